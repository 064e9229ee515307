"""Logistic regression on another set's frozen features, scored by its convention."""

from __future__ import annotations

import numpy as np

from understudy.errors import DataError
from understudy.evaluate.encoded_set import EncodedSet, Figures, check_finite
from understudy.evaluate.measures.accuracy import accuracies, average_precision_11
from understudy.evaluate.measures.probe import fit_probe, validation_split
from understudy.evaluate.measures.training import finetuned
from understudy.evaluate.settings import EvaluationSettings


def transfer_figures(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """See `Transfer.evaluate`."""
    metadata = {} if encoded_set.dataset is None else encoded_set.dataset.metadata
    metric = metadata.get("metric", "top1")
    if metric == "map11":
        return _several_labels(encoded_set, settings)
    data = encoded_set.labeled()
    probe = fit_probe(
        data.train, data.train_labels, _held_out(encoded_set, data.train_labels, settings.seed), metric=metric,
        device=encoded_set.device, memory_mb=settings.memory_mb, progress=encoded_set.progress,
    )  # fmt: skip
    scores = accuracies(probe, data.test, data.test_labels, data.classes, settings.memory_mb)
    # The set's own figure first: tables show the first one.
    figures: Figures = {metric: scores.pop(metric), **scores, "validation": probe.validation, "l2": probe.l2}
    if settings.finetune.epochs:
        figures |= finetuned(encoded_set, settings)
    return figures


def _held_out(encoded_set: EncodedSet, labels: np.ndarray, seed: int) -> np.ndarray:
    """The set's own validation images, or a fifth of every class."""
    own = None if encoded_set.dataset is None else encoded_set.dataset.metadata.get("validation")
    if own is None or encoded_set.train_source is None:
        return validation_split(labels, seed)
    held_out: np.ndarray = np.isin(encoded_set.train_source.ids, own)
    return held_out


def _several_labels(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """VOC 2007: marks in place of labels."""
    dataset, rows, train, test = (
        encoded_set.dataset, encoded_set.train, encoded_set.train_source, encoded_set.test_source,
    )  # fmt: skip
    if dataset is None or rows is None or train is None or test is None:
        raise DataError("The 11-point mAP needs training and test images with marks.")
    check_finite(rows, f"{encoded_set.name} features of the training images")
    check_finite(encoded_set.test, f"{encoded_set.name} features of the test images")
    marks = np.asarray(dataset.metadata["train_marks"][train.ids], dtype=np.int64)
    truth = np.asarray(dataset.metadata["test_marks"][test.ids], dtype=np.int64)
    probe = fit_probe(
        rows, marks, _held_out(encoded_set, marks, settings.seed), metric="map11",
        device=encoded_set.device, memory_mb=settings.memory_mb, progress=encoded_set.progress,
    )  # fmt: skip
    precision = average_precision_11(probe.classifier.scores(encoded_set.test), truth)
    if not len(precision):
        raise DataError(f"No test image of {dataset.name} is marked with a class.")
    figures: Figures = {"map11": 100.0 * float(precision.mean()), "validation": probe.validation, "l2": probe.l2}
    if (count := len(precision)) < (classes := truth.shape[1]):
        figures["note"] = f"The mean is over {count} of {classes} classes: the others have no test image."
    return figures
