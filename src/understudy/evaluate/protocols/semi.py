"""Semi-supervised classification: labels for a share of the training images, or for a few of each class.

ImageNet's published shares are lists of file names (SimCLR's `1percent.txt` and `10percent.txt`, which SwAV, BYOL, SEED
and the CoSS authors use too): where the folder given as `semi.lists` has them, they are used and there is one draw.
Else the images are drawn with the seed, the same share of every class and at least one, several times, and mean and
standard deviation over the draws are given. On the labeled images: the frozen probe of `linear` (its l2 weight chosen
on a fifth of THOSE images; with one image a class there is none to spare, and the weight is 1), and with
`finetune.epochs` full fine-tuning of the whole network (`finetune`), once a draw.

Source: Chen et al., SimCLR (arXiv 2002.05709), section 6 and appendix B.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from understudy.errors import ConfigError, DataError
from understudy.evaluate.encoded_set import EncodedSet, Figures, Labeled
from understudy.evaluate.finetune import finetuned
from understudy.evaluate.protocol import TRAINING, Display, Protocol, Requirements, prefixed
from understudy.evaluate.protocols.linear import accuracies, fit_chosen, logistic_regression, validation_split
from understudy.evaluate.settings import EvaluationSettings, SemiSettings

LISTS = {"1%": "1percent.txt", "10%": "10percent.txt"}
"""SimCLR's published file lists of ImageNet."""


def semi(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Score an encoded set with few labels.

    Args:
        encoded_set: features and labels of training and test images; for fine-tuning, pixels too.
        settings: `semi.shares` ("1%", "10%", or images a class as "5"), `semi.draws`, `semi.lists`, `seed`, and
            `finetune.epochs`.

    Returns:
        For each share, e.g. "1%": "top1 1%" and, with more than 5 classes, "top5 1%", means over the draws; "... std"
        (n - 1) with two draws or more; "draws 1%" and "images 1%". Fine-tuned: "finetuned_top1 1%" likewise.

    Raises:
        ConfigError: a share that is none.
        DataError: no labels, one class, features that are not finite, or a list of images that are not there.
    """
    data = encoded_set.labeled()
    figures: Figures = {}
    notes: list[str] = []
    for share in settings.semi.shares:
        runs: list[Figures] = []
        size = 0
        for number, chosen in enumerate(_draws(share, data, encoded_set, settings)):
            size = len(chosen)
            runs.append(_probe(data, chosen, settings, encoded_set))
            if settings.finetune.epochs:
                found = finetuned(encoded_set, settings, chosen=chosen)
                notes += [str(found.pop("note"))] if "note" in found else []
                runs[-1] |= found
            if encoded_set.progress:
                encoded_set.progress(
                    number + 1,
                    settings.semi.draws,
                    f"{share} of the labels, {size} images"
                    if "%" in share
                    else f"{share} labels a class, {size} images",
                )
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
    rows = np.asarray(data.train[chosen])
    known, targets = np.unique(data.train_labels[chosen], return_inverse=True)
    if len(known) < 2:
        raise DataError(f"The {len(chosen)} labeled images are of one class. Give a larger share, or more per class.")
    if np.bincount(targets).max() < 2:
        classifier = logistic_regression(rows, targets, len(known), 1.0, device=encoded_set.device)
    else:
        held_out = validation_split(targets, settings.seed)
        classifier, _, _ = fit_chosen(
            rows, targets, len(known), held_out, device=encoded_set.device, memory_mb=settings.memory_mb
        )
    found = accuracies(classifier, data.test, data.test_labels, known, data.classes, settings.memory_mb)
    return {name: found[name] for name in ("top1", "top5") if name in found}


def _draws(share: str, data: Labeled, encoded_set: EncodedSet, settings: EvaluationSettings) -> Iterator[np.ndarray]:
    """Positions of the labeled images, a draw at a time."""
    if settings.semi.lists is not None and share in LISTS:
        yield _listed(Path(settings.semi.lists).expanduser() / LISTS[share], encoded_set)
        return
    for number in range(settings.semi.draws):
        yield draw(share, data.train_labels, seed=settings.seed, number=number)


def draw(share: str, labels: np.ndarray, *, seed: int, number: int) -> np.ndarray:
    """One class-balanced draw, sorted positions.

    Args:
        share: "1%" of every class, rounded, at least one; or "5", so many images of every class, all of a smaller one.
        labels: (N,) class ids.
        seed: of all draws.
        number: of this draw.

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
        wanted = {Path(line.strip()).name for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    except OSError:
        raise DataError(
            f"{path} does not exist. The published lists are in the SimCLR repository, imagenet_subsets/; without "
            "--semi.lists images are drawn with the seed."
        ) from None
    names = [Path(name).name for name in source.names.to_pylist()]
    found = np.array([place for place, name in enumerate(names) if name in wanted], dtype=np.int64)
    if len(found) < len(wanted):
        raise DataError(
            f"{path} lists {len(wanted):,} images, and {len(found):,} of them are among the {len(names):,} training "
            f"images of {source.spec}. Is it the list of this set?"
        )
    return found


SIMCLR = """@inproceedings{chen2020simclr,
  title     = {A Simple Framework for Contrastive Learning of Visual Representations},
  author    = {Chen, Ting and Kornblith, Simon and Norouzi, Mohammad and Hinton, Geoffrey},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2020}
}"""

SHARE_TITLES = {
    r"top(\d) ([\d.]+)%": "Top-\\1, \\2\u00a0% of the labels",
    r"top(\d) (\d+)": r"Top-\1, \2 labels a class",
    r"mean_class ([\d.]+)%": "Mean of the classes, \\1\u00a0% of the labels",
    r"mean_class (\d+)": r"Mean of the classes, \1 labels a class",
}
SHARE_LABELS = {
    r"top\d ([\d.]+)%": "Few labels, \\1\u00a0%",
    r"top\d (\d+)": r"Few labels, \1 labels a class",
}


class Semi(Protocol):
    """Classification with labels for few training images."""

    name = "semi"
    summary = "1 % and 10 % of the labels, or a few a class: frozen probe, and full fine-tuning if asked"
    paper = (SIMCLR,)
    Settings = SemiSettings
    shared_settings = ("finetune",)
    requirements = Requirements(head=False)
    display = Display(
        title="Semi-supervised",
        short="Few labels",
        sentence="Labels for a share of the training images only, or for a few of each class: a frozen probe and, if "
        "asked, the whole network fine-tuned. Means over several draws of the labeled images.",
        source="Chen et al., SimCLR, ICML 2020 (arXiv 2002.05709), section 6",
        compared=(r"top1 [^ ]+", r"finetuned_top1 [^ ]+"),
        quoted=(r"top5 [^ ]+", r"finetuned_top5 [^ ]+"),
        figures=SHARE_TITLES | prefixed("finetuned_", "fine-tuned", SHARE_TITLES),
        labels=SHARE_LABELS | prefixed("finetuned_", "fine-tuned", SHARE_LABELS),
    )
    evaluate = staticmethod(semi)

    @staticmethod
    def image_passes(settings: EvaluationSettings, train: int, test: int) -> float:
        """Those of fine-tuning, once a share and draw."""
        own = settings.semi
        if not settings.finetune.epochs:
            return 0.0
        shares = [float(share.strip("% ")) / 100 for share in own.shares if share.strip().endswith("%")]
        trained = TRAINING * settings.finetune.epochs * sum(shares) * train
        return own.draws * (trained + len(own.shares) * test)
