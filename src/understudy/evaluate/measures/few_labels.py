"""Probe and fine-tuning with labels for few training images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from understudy.errors import ConfigError, DataError
from understudy.evaluate.encoded_set import EncodedSet, Figures, Labeled
from understudy.evaluate.measures.accuracy import accuracies
from understudy.evaluate.measures.logistic import logistic_regression
from understudy.evaluate.measures.probe import Probe, fit_probe, validation_split
from understudy.evaluate.measures.training import finetuned
from understudy.evaluate.settings import EvaluationSettings

if TYPE_CHECKING:
    from understudy.evaluate.protocols.semi import SemiSettings

LISTS = {"1%": "1percent.txt", "10%": "10percent.txt"}
"""SimCLR's published file lists of ImageNet."""


def few_label_figures(encoded_set: EncodedSet, settings: EvaluationSettings, own: SemiSettings) -> Figures:
    """See `Semi.evaluate`."""
    data = encoded_set.labeled()
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
        yield _listed(Path(settings.lists).expanduser() / LISTS[share], encoded_set)
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
        listed = {Path(line.strip()).name for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    except OSError:
        raise DataError(
            f"{path} does not exist. The published lists are in the SimCLR repository, imagenet_subsets/; without "
            "--semi.lists images are drawn with the seed."
        ) from None
    names = [Path(name).name for name in source.names.to_pylist()]
    positions = np.array([place for place, name in enumerate(names) if name in listed], dtype=np.int64)
    if len(positions) < len(listed):
        raise DataError(
            f"{path} lists {len(listed):,} images, and {len(positions):,} of them are among the {len(names):,} "
            f"training images of {source.spec}. Is it the list of this set?"
        )
    return positions
