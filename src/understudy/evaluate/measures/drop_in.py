"""An index of one encoder asked by another, against the answers that the teacher gives itself."""

from __future__ import annotations

import numpy as np

from understudy.errors import DataError, ShapeError
from understudy.evaluate.encoded_set import EncodedSet, Figures, check_finite
from understudy.evaluate.measures.geometry import LEVEL, interval_of_mean
from understudy.evaluate.measures.ranking import class_figures
from understudy.evaluate.settings import EvaluationSettings
from understudy.neighbors.search import search
from understudy.neighbors.vote import shared_by_image

KS = (1, 10, 100)
DRAWS = 100
"""Resamples of the queries behind each interval."""


def swap_encoders(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Ask the teacher's index with the student's queries, and the student's with the teacher's.

    Returns:
        The figures of the protocol `drop_in`, in per cent, and "images"; a k that needs more images than there are is
        left out, and "note" says so, likewise mAP without labels. Only a "note" where the student's rows are not meant
        to lie in the teacher's space.

    Raises:
        DataError: no reference, fewer than 3 images, or rows that are not finite.
        ShapeError: student and teacher have different numbers of rows or widths.
    """
    if encoded_set.reference is None:
        raise DataError(f"Drop-in search asks a teacher's index, and {encoded_set.name} has no teacher.")
    if not encoded_set.aligned:
        return {"note": "this method's embeddings are not meant to lie in the teacher's space"}
    student, teacher = encoded_set.test, encoded_set.reference.test
    if student.shape != teacher.shape:
        raise ShapeError(
            f"The test rows of {encoded_set.name} are {student.shape}, those of {encoded_set.reference.name} "
            f"{teacher.shape}: one cannot be searched with the other."
        )
    if len(teacher) < 3:
        raise DataError(f"Drop-in search needs at least 3 test images, there are {len(teacher)}. Check --eval-data.")
    for side in (encoded_set, encoded_set.reference):
        check_finite(side.test, f"{side.name} features of the test images")

    ks = [k for k in KS if k < len(teacher)]
    truth = encoded_set.reference.neighbors(max(ks), settings.memory_mb)
    directions = {"": (student, teacher), "reverse_": (teacher, student)}
    figures: Figures = {}
    for prefix, (queries, index) in directions.items():
        answers, _ = search(
            queries, index, max(ks), exclude=np.arange(len(index)), memory_mb=settings.memory_mb,
            device=encoded_set.device, progress=encoded_set.progress,
        )  # fmt: skip
        for k in ks:
            name, shares = f"{prefix}recall@{k}", 100.0 * shared_by_image(answers, truth, k)
            figures[name] = float(shares.mean())
            figures[f"{name}_low"], figures[f"{name}_high"] = interval_of_mean(shares, settings.seed, DRAWS)
    notes = [f"recall@{k} left out: there are only {len(teacher)} test images" for k in KS if k not in ks]
    if _have_classes(encoded_set.test_labels):
        for name, (queries, index) in {**directions, "teacher": (teacher, teacher)}.items():
            score = class_figures(encoded_set, queries, index, settings)["map"]
            figures["map_teacher" if name == "teacher" else f"{name}map"] = score
    else:
        notes.append("mAP left out: it needs labels, and two test images of one class")
    figures |= {"interval_level": LEVEL, "interval_draws": DRAWS, "images": len(teacher)}
    return figures | ({"note": f"{'; '.join(notes)}."} if notes else {})


def _have_classes(labels: np.ndarray | None) -> bool:
    """Whether every image has a label and some class has two images."""
    return labels is not None and bool((labels >= 0).all()) and len(np.unique(labels)) < len(labels)
