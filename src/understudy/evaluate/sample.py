"""A sample of the test images as both spaces see them, for the report's gallery and maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps

from understudy.artifacts import Run, atomic
from understudy.errors import UnreadableImage
from understudy.evaluate.encoded_set import EncodedSet, check_finite
from understudy.losses.base.similarity import column_cosine
from understudy.neighbors.search import search

if TYPE_CHECKING:
    from understudy.sources.source import Source

IMAGES = 1000
NEIGHBORS = 10
THUMBNAIL = 64


def write_sample(
    run: Run, student: EncodedSet, embed: EncodedSet, source: Source, *, seed: int = 0, memory_mb: int = 1024
) -> None:
    """Write `run.sample_path`: at most 1,000 test images drawn by the seed, in the order of the test set.

    Arrays of n images: "student" (n, D) float16, the embedding; "features" (n, F) float16, the backbone's; "labels"
    (n,) int64, -1 without labels; "class_names" (C,); "names" (n,); "thumbnails" (n, 64, 64, 3) uint8, center crops;
    "student_neighbors" (n, 10) int32, nearest first by cosine of embeddings within the sample, -1 where it is smaller.
    With a teacher, the `reference` of `embed`, also "teacher" (n, D), "teacher_neighbors" (n, 10), and, where the
    student is meant to land in its space, "column_cosine" (D,) over ALL test images. `student` and `embed` hold
    backbone features and embeddings of the test images, `source` the images in the same order.

    Raises:
        DataError: rows that are not finite.
    """
    check_finite(embed.test, f"{embed.name} features of the test images")
    drawn = np.sort(np.random.default_rng(seed).permutation(len(embed.test))[:IMAGES])
    thumbnails, readable = [], []
    for row in drawn.tolist():
        try:
            image = source.read(row)
        except UnreadableImage:  # it was readable when it was embedded; a picture less is no reason to stop
            continue
        image = ImageOps.fit(image, (THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
        thumbnails.append(np.asarray(image, dtype=np.uint8))
        readable.append(row)
    rows = np.array(readable, dtype=np.int64)
    labels = embed.test_labels
    arrays = {
        "student": half(embed.test[rows]),
        "features": half(student.test[rows]),
        "labels": np.full(len(rows), -1) if labels is None else np.asarray(labels)[rows].astype(np.int64),
        "class_names": np.array(embed.class_names, dtype=np.str_),
        "names": np.array([source.name(row) for row in readable], dtype=np.str_),
        "thumbnails": np.stack(thumbnails) if thumbnails else np.empty((0, THUMBNAIL, THUMBNAIL, 3), np.uint8),
        "student_neighbors": neighbors(embed.test[rows], memory_mb),
    }
    if embed.reference is not None:
        teacher = embed.reference.test
        arrays["teacher"] = half(teacher[rows])
        arrays["teacher_neighbors"] = neighbors(teacher[rows], memory_mb)
    if embed.reference is not None and embed.aligned:
        pair = (torch.from_numpy(np.array(part, dtype=np.float32)) for part in (embed.test, embed.reference.test))
        arrays["column_cosine"] = column_cosine(*pair).numpy()
    with atomic(run.sample_path, sealed=True) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def half(rows: np.ndarray) -> np.ndarray:
    """(n, D) float16, or float32 where a value would overflow."""
    fits = rows.size == 0 or float(np.abs(rows).max()) < float(np.finfo(np.float16).max)
    return np.asarray(rows, dtype=np.float16 if fits else np.float32)


def neighbors(rows: np.ndarray, memory_mb: int) -> np.ndarray:
    """(n, 10) int32 nearest other rows by cosine, nearest first; -1 where there are fewer."""
    nearest = np.full((len(rows), NEIGHBORS), -1, dtype=np.int32)
    k = min(NEIGHBORS, len(rows) - 1)
    if k > 0:
        nearest[:, :k] = search(rows, rows, k, exclude=np.arange(len(rows)), memory_mb=memory_mb)[0]
    return nearest
