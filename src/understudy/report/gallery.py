"""Pictures: queries with the neighbors that teacher and student find, and the sheet of thumbnails for the maps."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping

import numpy as np

from understudy.report.markup import Markup, join, tag
from understudy.report.spaces import label_names

QUERIES = 12


def jpeg(pixels: np.ndarray) -> str:
    """A data URI of (H, W, 3) uint8 pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=82, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sheet(thumbnails: np.ndarray) -> tuple[str, int]:
    """All thumbnails on one square sheet, row by row.

    Args:
        thumbnails: (n, H, W, 3) uint8.

    Returns:
        Its data URI, and how many thumbnails lie in a row (and how many rows there are).
    """
    n, height, width, _ = thumbnails.shape
    side = math.ceil(math.sqrt(n))
    filled = np.zeros((side * side, height, width, 3), np.uint8)
    filled[:n] = thumbnails
    grid = filled.reshape(side, side, height, width, 3).swapaxes(1, 2)
    return jpeg(grid.reshape(side * height, side * width, 3)), side


def shared_neighbors(sample: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n,) how many of the student's listed neighbors of an image are in the teacher's list too."""
    teacher, student = sample["teacher_neighbors"], sample["student_neighbors"]
    shared: np.ndarray = ((student[:, :, None] == teacher[:, None, :]).any(axis=2) & (student >= 0)).sum(axis=1)
    return shared


def chosen(shared: np.ndarray) -> np.ndarray:
    """Queries at even quantiles of agreement, from the worst to the best: nobody picked them."""
    order = np.argsort(shared, kind="stable")
    picks: np.ndarray = order[np.linspace(0, len(order) - 1, min(QUERIES, len(order))).round().astype(int)]
    return picks


def gallery(sample: Mapping[str, np.ndarray]) -> Markup:
    """Each chosen query with two rows of neighbors, nearest first; every mark has a shape, not only a color."""
    shared = shared_neighbors(sample)
    return tag("div", *(_query(sample, int(query), int(shared[query])) for query in chosen(shared)), class_="gallery")


def _query(sample: Mapping[str, np.ndarray], query: int, shared: int) -> Markup:
    names = label_names(sample) or [None] * len(sample["thumbnails"])
    lists = {"teacher": sample["teacher_neighbors"][query], "student": sample["student_neighbors"][query]}
    rows = []
    for who, other in (("teacher", "student"), ("student", "teacher")):
        thumbs = [
            _thumb(sample, int(image), f"{who}, neighbor {rank}", names[image], names[query], image in lists[other])
            for rank, image in enumerate(lists[who], 1)
            if image >= 0
        ]
        rows.append(join(tag("h4", who.capitalize()), tag("ol", *thumbs, class_="thumbs")))
    title = names[query] or "query"
    return tag(
        "article",
        tag("header", _image(sample, query, f"Query: {title}"),
            tag("h3", title), tag("p", f"{shared} of {(lists['teacher'] >= 0).sum()} shared")),
        tag("div", *rows),
        class_="query",
    )  # fmt: skip


def _thumb(
    sample: Mapping[str, np.ndarray], image: int, place: str, name: str | None, wanted: str | None, both: bool
) -> Markup:
    known = name is not None and wanted is not None
    kind = ("same" if name == wanted else "other") if known else "unlabeled"
    words = [place, "found by both" if both else "found by this model only"]
    if known:
        words.insert(1, f"{name}, {kind} class")
    mark = tag("span", "✓", class_="both", aria_hidden="true") if both else None
    return tag("li", _image(sample, image, "; ".join(words)), mark, class_=kind)


def _image(sample: Mapping[str, np.ndarray], image: int, words: str) -> Markup:
    name = str(sample["names"][image]) if "names" in sample else None
    pixels = sample["thumbnails"][image]
    height, width = pixels.shape[:2]
    return tag("img", src=jpeg(pixels), alt=words, title=name, width=str(width), height=str(height))
