"""The linear probe: logistic regression whose l2 weight is chosen on held-out training images.

On the main images, on another set scored by its convention (`transfer`), and with labels for few images (`semi`).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from understudy.artifacts import read_regular
from understudy.errors import ConfigError, DataError, first_line
from understudy.evaluate.encoded_set import EncodedSet, Figures, Labeled, Progress, check_finite
from understudy.evaluate.measures.accuracy import accuracies, average_precision_11
from understudy.evaluate.measures.logistic import Classifier, LogisticPath, logistic_regression
from understudy.evaluate.measures.training import finetuned
from understudy.evaluate.protocols.semi import SemiSettings
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
        held_out = validation_split(data.train_labels, settings.seed)
        encoded_set.cache["probe"] = _fit(encoded_set, settings, data.train, data.train_labels, held_out)
    probe: Probe = encoded_set.cache["probe"]
    return probe


def _fit(
    encoded_set: EncodedSet, settings: EvaluationSettings, rows: np.ndarray, labels: np.ndarray, held_out: np.ndarray,
    metric: str = "top1",
) -> Probe:  # fmt: skip
    return fit_probe(
        rows, labels, held_out, metric=metric, device=encoded_set.device, memory_mb=settings.memory_mb,
        progress=encoded_set.progress,
    )  # fmt: skip


def linear_figures(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Score an encoded set by logistic regression on its features; `seed` draws the validation split.

    Returns:
        "top1", "top5" (with more than 5 classes) and "mean_class" (mean of per-class accuracies) on the test
        images, "validation" (top-1 of the chosen l2 on the validation images), all in per cent, and "l2" itself.

    Raises:
        DataError: no labels, one class, features that are not finite, or no class with two images.
    """
    data = encoded_set.labeled()
    probe = main_probe(encoded_set, settings)
    figures = accuracies(probe, data.test, data.test_labels, data.classes, settings.memory_mb)
    return {**figures, "validation": probe.validation, "l2": probe.l2}


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


def transfer_figures(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Score an encoded set by logistic regression on another set; `seed` draws validation images where it has none.

    Returns:
        The set's own figure as "top1", "mean_class" or "map11", with "top5" and the others of `linear` where they
        have a meaning; "validation" and "l2". Fine-tuned: the same under "finetuned_...".

    Raises:
        DataError: no labels, one class, features that are not finite, or no class with two images.
    """
    metadata = {} if encoded_set.dataset is None else encoded_set.dataset.metadata
    metric = metadata.get("metric", "top1")
    if metric == "map11":
        return _several_labels(encoded_set, settings)
    data = encoded_set.labeled()
    held_out = _held_out(encoded_set, data.train_labels, settings.seed)
    probe = _fit(encoded_set, settings, data.train, data.train_labels, held_out, metric)
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
    return np.isin(encoded_set.train_source.ids, own)


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
    probe = _fit(encoded_set, settings, rows, marks, _held_out(encoded_set, marks, settings.seed), "map11")
    precision = average_precision_11(probe.classifier.scores(encoded_set.test), truth)
    if not len(precision):
        raise DataError(f"No test image of {dataset.name} is marked with a class.")
    figures: Figures = {"map11": 100.0 * float(precision.mean()), "validation": probe.validation, "l2": probe.l2}
    if (count := len(precision)) < (classes := truth.shape[1]):
        figures["note"] = f"The mean is over {count} of {classes} classes: the others have no test image."
    return figures


LISTS = {"1%": "1percent.txt", "10%": "10percent.txt"}
"""SimCLR's published file lists of ImageNet."""


def few_label_figures(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Score an encoded set with few labels; with `finetune.epochs` the whole network is trained on them too.

    Returns:
        For each share, e.g. "1%": "top1 1%" and, with more than 5 classes, "top5 1%", means over the draws; "...
        std" (n - 1) with two draws or more; "draws 1%" and "images 1%". Fine-tuned: "finetuned_top1 1%" likewise.

    Raises:
        ConfigError: a share that is none.
        DataError: no labels, one class, features that are not finite, or a list of images that are not there.
    """
    data, own = encoded_set.labeled(), settings.group(SemiSettings)
    figures: Figures = {}
    notes: list[str] = []
    for share in own.shares:
        runs, size = list[Figures](), 0
        for number, chosen in enumerate(_draws(share, data, encoded_set, own, settings.seed)):
            size = len(chosen)
            runs.append(_probe(data, chosen, settings, encoded_set))
            if settings.finetune.epochs:
                found = finetuned(encoded_set, settings, chosen=chosen)
                notes += [str(found.pop("note"))] if "note" in found else []
                runs[-1] |= found
            if encoded_set.progress:
                labels = f"{share} of the labels" if "%" in share else f"{share} labels a class"
                encoded_set.progress(number + 1, own.draws, f"{labels}, {size} images")
        for name in runs[0]:
            values = [float(run[name]) for run in runs]
            figures[f"{name} {share}"] = float(np.mean(values))
            if len(values) > 1:
                figures[f"{name} {share} std"] = float(np.std(values, ddof=1))
        figures[f"draws {share}"], figures[f"images {share}"] = len(runs), size
    if notes:
        figures["note"] = notes[0]
    return figures


def _probe(data: Labeled, chosen: np.ndarray, settings: EvaluationSettings, encoded_set: EncodedSet) -> Figures:
    """Frozen features of the chosen images."""
    rows, labels = np.asarray(data.train[chosen]), data.train_labels[chosen]
    known, targets, images = np.unique(labels, return_inverse=True, return_counts=True)
    if len(known) < 2:
        raise DataError(f"The {len(chosen)} labeled images are of one class. Give a larger share, or more per class.")
    if images.max() < 2:
        probe = Probe(logistic_regression(rows, targets, len(known), 1.0, device=encoded_set.device), known, 1.0, 0.0)
    else:
        held_out = validation_split(labels, settings.seed)
        probe = fit_probe(rows, labels, held_out, device=encoded_set.device, memory_mb=settings.memory_mb)
    figures = accuracies(probe, data.test, data.test_labels, data.classes, settings.memory_mb)
    return {name: figures[name] for name in ("top1", "top5") if name in figures}


def _draws(
    share: str, data: Labeled, encoded_set: EncodedSet, settings: SemiSettings, seed: int
) -> Iterator[np.ndarray]:
    """Positions of the labeled images, a draw at a time."""
    if settings.lists is not None and share in LISTS:
        yield _listed(Path(os.path.expanduser(settings.lists)) / LISTS[share], encoded_set)
        return
    for number in range(settings.draws):
        yield draw(share, data.train_labels, seed=seed, number=number)


def draw(share: str, labels: np.ndarray, *, seed: int, number: int) -> np.ndarray:
    """One class-balanced draw among (N,) labels, sorted positions; `number` tells the draws of a seed apart.

    A share is "1%" of every class, rounded, at least one; or "5", so many images of every class, all of a smaller one.

    Raises:
        ConfigError: a share that is none.
    """
    text = share.strip()
    try:
        amount = float(text.removesuffix("%"))
    except ValueError:
        amount = -1.0
    if not amount > 0 or (text.endswith("%") and amount > 100) or (not text.endswith("%") and amount != int(amount)):
        raise ConfigError(f"'{share}' is no share of labels. Write per cent, 1%, or images of each class, 5.")
    order = np.random.default_rng([seed, number]).permutation(len(labels))
    chosen = []
    for one in np.unique(labels).tolist():
        own = order[labels[order] == one]
        count = max(1, round(amount / 100 * len(own))) if text.endswith("%") else min(int(amount), len(own))
        chosen.append(own[:count])
    return np.sort(np.concatenate(chosen))


def _listed(path: Path, encoded_set: EncodedSet) -> np.ndarray:
    """Positions of the images that a list names by file name."""
    source = encoded_set.train_source
    if source is None:
        raise DataError(f"The list {path} names files, and of {encoded_set.name} there are only features.")
    try:
        lines = read_regular(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({first_line(error)}). The published lists are in the SimCLR repository, "
            "imagenet_subsets/; without --semi.lists images are drawn with the seed."
        ) from None
    listed = {Path(line.strip()).name for line in lines if line.strip()}
    names = [Path(name).name for name in source.names.to_pylist()]
    positions = np.array([place for place, name in enumerate(names) if name in listed], dtype=np.int64)
    if len(positions) < len(listed):
        raise DataError(
            f"{path} lists {len(listed):,} images, and {len(positions):,} of them are among the {len(names):,} "
            f"training images of {source.spec}. Is it the list of this set?"
        )
    return positions
