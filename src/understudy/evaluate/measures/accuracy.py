"""Accuracies of a classifier on test images, and PASCAL VOC's average precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from understudy.evaluate.measures.probe import Probe
    from understudy.evaluate.protocol import Figures


def mean_class(hits: np.ndarray, labels: Int[np.ndarray, " M"], classes: int) -> float:
    """Mean in per cent, over those of C classes that have images, of each class's share of (M,) hits."""
    images = np.bincount(labels, minlength=classes)
    correct = np.bincount(labels, weights=hits, minlength=classes)
    return 100.0 * float((correct[images > 0] / images[images > 0]).mean())


def accuracies(
    probe: Probe, features: Float[np.ndarray, "M F"], labels: Int[np.ndarray, " M"], classes: int, memory_mb: int = 1024
) -> Figures:
    """Accuracies in per cent on M test images; the probe scores the classes that had training images.

    Returns:
        "top1", "top5" where C > 5, "mean_class" over the classes that have test images.
    """
    known = probe.classes
    ranked = np.empty((len(labels), min(5, len(known))), dtype=np.int64)
    block = max(1, min(4096, (memory_mb << 20) // (32 * len(known))))
    for start in range(0, len(labels), block):
        scores = probe.classifier.scores(features[start : start + block])
        ranked[start : start + block] = known[np.argsort(-scores, axis=1, kind="stable")[:, : ranked.shape[1]]]
    hits = ranked == labels[:, None]
    figures: Figures = {"top1": 100.0 * float(hits[:, 0].mean())}
    if classes > 5:
        figures["top5"] = 100.0 * float(hits.any(axis=1).mean())
    figures["mean_class"] = mean_class(hits[:, 0], labels, classes)
    if not probe.classifier.converged:
        figures["note"] = "The last fit stopped at its iteration limit before meeting its tolerance."
    return figures


def average_precision_11(scores: Float[np.ndarray, "M C"], marks: Int[np.ndarray, "M C"]) -> Float[np.ndarray, " Cp"]:
    """PASCAL VOC 2007's average precision, in [0, 1], of each class that has a positive image, in order.

    The mean, over the recalls 0, 0.1, ..., 1, of the largest precision at that recall or beyond. Marks are 1 yes, -1
    no, 0 ("difficult") left out of the ranking.

    Source:
        Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2.
    """
    precisions = []
    for score, mark in zip(scores.T, marks.T, strict=True):
        score, mark = score[mark != 0], mark[mark != 0]
        if not (mark > 0).any():
            continue
        hits = mark[np.argsort(-score, kind="stable")] > 0
        recall = np.cumsum(hits) / hits.sum()
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        # 11 thresholds as whole numbers of hits would have it: 0.1 * 3 in floating point is above 0.3.
        reached = [precision[recall >= step / 10 - 1e-12].max(initial=0.0) for step in range(11)]
        precisions.append(float(np.mean(reached)))
    return np.array(precisions)
