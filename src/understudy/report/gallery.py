"""Pictures: queries with the neighbors that teacher and student find, and the sheet of thumbnails for the maps."""

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from understudy.report.spaces import label_names

QUERIES = 12
SIDES = ("teacher", "student")


@dataclass(frozen=True)
class Picture:
    """An image on the page: its pixels, its content in words for those who cannot see it, its file, its size in pixels.

    Of a neighbor also its kind, "same" or "other" class than the query or "unlabeled", and whether the other model
    finds it too.
    """

    uri: str
    words: str
    name: str | None
    width: int
    height: int
    kind: str = ""
    in_both: bool = False


@dataclass(frozen=True)
class Sheet:
    """All thumbnails on one square sheet of `side` rows of `side` thumbnails."""

    uri: str
    side: int


def jpeg(pixels: np.ndarray) -> str:
    """A data URI of (H, W, 3) uint8 pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=82, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def thumbnail_sheet(thumbnails: np.ndarray) -> Sheet:
    """The sheet of (n, H, W, 3) uint8 thumbnails."""
    n, height, width, _ = thumbnails.shape
    side = math.ceil(math.sqrt(n))
    filled = np.zeros((side * side, height, width, 3), np.uint8)
    filled[:n] = thumbnails
    grid = filled.reshape(side, side, height, width, 3).swapaxes(1, 2)
    return Sheet(jpeg(grid.reshape(side * height, side * width, 3)), side)


def shared_neighbors(sample: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n,) how many of the student's listed neighbors of an image are in the teacher's list too."""
    teacher, student = sample["teacher_neighbors"], sample["student_neighbors"]
    return np.asarray(((student[:, :, None] == teacher[:, None, :]).any(axis=2) & (student >= 0)).sum(axis=1))


def chosen_queries(shared: np.ndarray) -> np.ndarray:
    """Queries at even quantiles of agreement, from the worst to the best: nobody picked them."""
    order = np.argsort(shared, kind="stable")
    return np.asarray(order[np.linspace(0, len(order) - 1, min(QUERIES, len(order))).round().astype(int)])


def queries(sample: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Each chosen query with the neighbors of both models; every mark has a shape or words, not only a color."""
    shared, names = shared_neighbors(sample), label_names(sample) or [None] * len(sample["thumbnails"])
    entries = []
    for query in chosen_queries(shared).tolist():
        title = names[query] or "query"
        listed = int((sample["teacher_neighbors"][query] >= 0).sum())
        neighbors = {side: _neighbors(sample, query, side, names) for side in SIDES}
        entry = {"title": title, "shared": shared[query], "listed": listed, "neighbors": neighbors}
        entries.append(entry | {"image": _picture(sample, query, f"Query: {title}")})
    return entries


def _neighbors(sample: Mapping[str, np.ndarray], query: int, side: str, names: list[str | None]) -> list[Picture]:
    other_side = SIDES[1 - SIDES.index(side)]
    other_list = set(sample[f"{other_side}_neighbors"][query].tolist())
    pictures = []
    for rank, image in enumerate(sample[f"{side}_neighbors"][query].tolist(), 1):
        if image < 0:
            continue
        labeled = names[image] is not None and names[query] is not None
        kind = ("same" if names[image] == names[query] else "other") if labeled else "unlabeled"
        words = [f"{side}, neighbor {rank}"]
        if labeled:
            words.append(f"{names[image]}, {kind} class")
        in_both = image in other_list
        words.append("found by both" if in_both else "found by this model only")
        pictures.append(_picture(sample, image, "; ".join(words), kind, in_both))
    return pictures


def _picture(
    sample: Mapping[str, np.ndarray], image: int, words: str, kind: str = "", in_both: bool = False
) -> Picture:
    pixels = sample["thumbnails"][image]
    height, width = pixels.shape[:2]
    name = str(sample["names"][image]) if "names" in sample else None
    return Picture(jpeg(pixels), words, name, width, height, kind, in_both)
