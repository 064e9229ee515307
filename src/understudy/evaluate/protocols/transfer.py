"""Transfer: logistic regression on frozen features of other data sets, in their official splits.

The protocol of Kornblith et al., "Do Better ImageNet Models Transfer Better?" (CVPR 2019, arXiv 1805.08974), as SimCLR,
BYOL and Ericsson et al. (arXiv 2011.13377) ran it: no augmentation, the encoder's own resize and center crop, the l2
weight the best of 45 values log-spaced in 1e-6..1e5 on the validation images (the set's own where it has them, else a
fifth of every class), then refitted on training + validation images and scored once on the test images. What is scored
is the set's convention: top-1; the mean over classes for Caltech-101, Pets, Flowers-102 and Aircraft; and for VOC 2007
the 11-point mAP of twenty two-class regressions, "difficult" images left out, one l2 weight for all (Ericsson's harness
chooses one too). How the fit differs from the released harness is said in `linear`.

With `finetune.epochs` the whole network is trained too; see `finetune`.
"""

from __future__ import annotations

import numpy as np

from understudy.errors import DataError
from understudy.evaluate.encoded_set import EncodedSet, Figures, check_finite
from understudy.evaluate.finetune import finetuned
from understudy.evaluate.protocol import TITLES, TRAINING, Display, Protocol, Requirements, prefixed
from understudy.evaluate.protocols.linear import (
    KORNBLITH,
    accuracies,
    average_precision_11,
    fit_chosen,
    validation_split,
)
from understudy.evaluate.settings import EvaluationSettings


def transfer(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Score an encoded set by logistic regression on a target set.

    Args:
        encoded_set: features of the target's training and test images.
        settings: `seed` draws the validation images where the set has none; `finetune.epochs`.

    Returns:
        The set's own figure as "top1", "mean_class" or "map11", with "top5" and the others of `linear` where they have
        a meaning; "validation" and "l2". Fine-tuned: the same under "finetuned_...".

    Raises:
        DataError: no labels, one class, features that are not finite, or no class with two images.

    Source:
        Kornblith et al. 2019 (arXiv 1805.08974), section A.2; Ericsson et al. 2021 (arXiv 2011.13377).
    """
    metadata = {} if encoded_set.target is None else encoded_set.target.metadata
    metric = metadata.get("metric", "top1")
    if metric == "map11":
        return _several_labels(encoded_set, settings)
    data = encoded_set.labeled()
    known, targets = np.unique(data.train_labels, return_inverse=True)
    classifier, l2, validation = fit_chosen(
        data.train,
        targets,
        len(known),
        _held_out(encoded_set, targets, settings),
        metric=metric,
        device=encoded_set.device,
        memory_mb=settings.memory_mb,
        progress=encoded_set.progress,
    )
    found = accuracies(classifier, data.test, data.test_labels, known, data.classes, settings.memory_mb)
    # The set's own figure first: tables show the first one.
    figures: Figures = {metric: found.pop(metric), **found, "validation": validation, "l2": l2}
    if settings.finetune.epochs:
        figures |= finetuned(encoded_set, settings)
    return figures


def _held_out(encoded_set: EncodedSet, targets: np.ndarray, settings: EvaluationSettings) -> np.ndarray:
    """The target's own validation images, or a fifth of every class."""
    own = None if encoded_set.target is None else encoded_set.target.metadata.get("validation")
    if own is None or encoded_set.train_source is None:
        return validation_split(targets, settings.seed)
    found: np.ndarray = np.isin(encoded_set.train_source.ids, own)
    return found


def _several_labels(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """VOC 2007: marks in place of labels."""
    if (
        encoded_set.target is None
        or encoded_set.train is None
        or encoded_set.train_source is None
        or encoded_set.test_source is None
    ):
        raise DataError("The 11-point mAP needs training and test images with marks.")
    for rows, split in ((encoded_set.train, "training"), (encoded_set.test, "test")):
        check_finite(rows, f"{encoded_set.name} features of the {split} images")
    metadata = encoded_set.target.metadata
    marks = np.asarray(metadata["train_marks"][encoded_set.train_source.ids], dtype=np.int64)
    truth = np.asarray(metadata["test_marks"][encoded_set.test_source.ids], dtype=np.int64)
    classifier, l2, validation = fit_chosen(
        encoded_set.train,
        marks,
        marks.shape[1],
        _held_out(encoded_set, marks, settings),
        metric="map11",
        device=encoded_set.device,
        memory_mb=settings.memory_mb,
        progress=encoded_set.progress,
    )
    precision = average_precision_11(classifier.scores(encoded_set.test), truth)
    if not len(precision):
        raise DataError(f"No test image of {encoded_set.target.name} is marked with a class.")
    figures: Figures = {"map11": 100.0 * float(precision.mean()), "validation": validation, "l2": l2}
    if len(precision) < truth.shape[1]:
        figures["note"] = (
            f"The mean is over {len(precision)} of {truth.shape[1]} classes: the others have no test image."
        )
    return figures


ERICSSON = """@inproceedings{ericsson2021transfer,
  title     = {How Well Do Self-Supervised Models Transfer?},
  author    = {Ericsson, Linus and Gouk, Henry and Hospedales, Timothy M.},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2021}
}"""


class Transfer(Protocol):
    """Logistic regression on frozen features of other data sets."""

    name = "transfer"
    summary = "logistic regression on other sets in their official splits, and full fine-tuning if asked"
    paper = (KORNBLITH, ERICSSON)
    shared_settings = ("finetune",)
    requirements = Requirements(main=False, kinds=frozenset({"labeled"}), head=False)
    display = Display(
        title="Transfer",
        short="Transfer",
        sentence="Logistic regression on frozen features of another set in its official split, scored by that set's "
        "convention; if asked, the whole network fine-tuned too.",
        source="Kornblith et al., CVPR 2019 (arXiv 1805.08974), section A.2; Ericsson et al., CVPR 2021 (arXiv "
        "2011.13377)",
        compared=(r"top1|mean_class|map11", r"finetuned_(top1|mean_class|map11)"),
        quoted=(r"top5",),
        figures=prefixed("finetuned_", "fine-tuned", TITLES),
        plain=(r"l2",),
    )
    evaluate = staticmethod(transfer)

    @staticmethod
    def image_passes(settings: EvaluationSettings, train: int, test: int) -> float:
        """Those of fine-tuning."""
        return TRAINING * settings.finetune.epochs * train + test if settings.finetune.epochs else 0.0
