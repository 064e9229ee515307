"""The linear probe: logistic regression whose l2 weight is chosen on held-out training images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from understudy.errors import DataError
from understudy.evaluate.encoded_set import EncodedSet, Progress
from understudy.evaluate.measures.logistic import Classifier, LogisticPath, logistic_regression
from understudy.evaluate.settings import EvaluationSettings

L2_VALUES = tuple(float(value) for value in np.logspace(5, -6, 45))
"""The grid, strongest first."""

VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Probe:
    """A classifier of the classes that have training images, (Ck,) ids, its l2 weight, and how that was chosen.

    `validation` is its score on the validation images, in per cent.
    """

    classifier: Classifier
    classes: Int[np.ndarray, " Ck"]
    l2: float
    validation: float


def main_probe(encoded_set: EncodedSet, settings: EvaluationSettings) -> Probe:
    """The probe of an encoded set's training images; fitted once, for all protocols that ask for it.

    Raises:
        DataError: no labels, one class, features that are not finite, or no class with two images.
    """
    if "probe" not in encoded_set.cache:
        data = encoded_set.labeled()
        encoded_set.cache["probe"] = fit_probe(
            data.train, data.train_labels, validation_split(data.train_labels, settings.seed),
            device=encoded_set.device, memory_mb=settings.memory_mb, progress=encoded_set.progress,
        )  # fmt: skip
    probe: Probe = encoded_set.cache["probe"]
    return probe


def fit_probe(
    features: Float[np.ndarray, "N F"],
    labels: Int[np.ndarray, "N ..."],
    held_out: Bool[np.ndarray, " N"],
    *,
    metric: str = "top1",
    device: str | torch.device = "cpu",
    memory_mb: int = 1024,
    progress: Progress | None = None,
) -> Probe:
    """The l2 weight that is best on the validation images (`held_out`), then the classifier refitted on all images.

    Labels are (N,) class ids; or (N, C) marks of several labels an image: 1 yes, -1 no, 0 not counted. The metric is
    "top1", "mean_class", or with marks "map11" (`average_precision_11`).
    """
    several = labels.ndim == 2
    known, targets = (np.arange(labels.shape[1]), labels) if several else np.unique(labels, return_inverse=True)
    inside, outside = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    path = LogisticPath(
        features, targets, len(known), index=inside, device=device, dtype=torch.float32, memory_mb=memory_mb
    )
    best_score, best_l2, solution = -1.0, L2_VALUES[0], None
    for number, l2 in enumerate(L2_VALUES):
        solution = path.solve(l2, start=solution, tolerance=1e-4, iterations=100)
        score = path.score(solution, outside, metric)
        if score > best_score:
            best_score, best_l2 = score, l2
        if progress:
            progress(number + 1, len(L2_VALUES) + 1, f"l2 {l2:.1e}")
    del path
    classifier = logistic_regression(features, targets, len(known), best_l2, device=device, memory_mb=memory_mb)
    if progress:
        progress(len(L2_VALUES) + 1, len(L2_VALUES) + 1, f"refitted with l2 {best_l2:.1e}")
    return Probe(classifier, known, best_l2, best_score)


def validation_split(labels: Int[np.ndarray, " N"], seed: int, share: float = VALIDATION_SHARE) -> np.ndarray:
    """Draw a share, in (0, 1), of every class, at least one image where a class has two or more: (N,) bool.

    Raises:
        DataError: no class has two images, so nothing can be held out.
    """
    generator = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    starts = np.flatnonzero(np.diff(labels[order], prepend=labels[order[0]] - 1))
    for start, size in zip(starts, np.diff(starts, append=len(labels)), strict=True):
        count = max(1, int(share * size)) if size > 1 else 0
        held_out[order[start : start + count]] = True
    if not held_out.any():
        raise DataError(
            f"No class has two training images ({len(labels)} images, {len(starts)} classes), so none can be held out "
            "to choose the l2 weight. Give more labeled images."
        )
    return held_out
