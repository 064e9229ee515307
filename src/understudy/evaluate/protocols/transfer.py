"""Transfer: logistic regression on frozen features of other data sets, in their official splits.

The protocol of Kornblith et al., "Do Better ImageNet Models Transfer Better?" (CVPR 2019, arXiv 1805.08974), as SimCLR,
BYOL and Ericsson et al. (arXiv 2011.13377) ran it: no augmentation, the encoder's own resize and center crop, the l2
weight the best of 45 values log-spaced in 1e-6..1e5 on the validation images (the set's own where it has them, else a
fifth of every class), then refitted on training + validation images and scored once on the test images. What is scored
is the set's convention: top-1; the mean over classes for Caltech-101, Pets, Flowers-102 and Aircraft; and for VOC 2007
the 11-point mAP of twenty two-class regressions, one l2 weight for all (Ericsson's harness chooses one too).

Differs from the released harness, beside what `linear` says of the fit:

- It resizes the shorter side to 224 pixels, bicubic, and crops 224. The CoSS authors' copy of it squashes every image
  to 224 x 224 pixels, and holds out 0.3 of the training images where a set has no validation images.
- An image marked "difficult" for a class of VOC is neither learned nor scored for it, as in the challenge; there, it
  has one of two labels.
- Its precision at recall 0 is always 1, as scikit-learn ends the curve there; here it is the largest precision reached.

With `finetune.epochs` the whole network is trained too; see `finetune`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from understudy.evaluate.protocol import TITLES, TRAINING_PASSES, Display, Protocol, Requirements, prefixed

if TYPE_CHECKING:
    from understudy.evaluate.settings import EvaluationSettings


class Transfer(Protocol):
    """Logistic regression on frozen features of other data sets."""

    name = "transfer"
    summary = "logistic regression on other sets in their official splits, and full fine-tuning if asked"
    paper = ("kornblith2019transfer", "ericsson2021transfer")
    measure = "probe.transfer_figures"
    shared_settings = ("finetune",)
    requirements = Requirements(main=False, kinds=frozenset({"labeled"}), head=False)
    display = Display(
        title="Transfer",
        sentence="Logistic regression on frozen features of another set in its official split, scored by that set's "
        "convention; if asked, the whole network fine-tuned too.",
        source="Kornblith et al., CVPR 2019 (arXiv 1805.08974), section A.2; Ericsson et al., CVPR 2021 (arXiv "
        "2011.13377)",
        compared=(r"top1|mean_class|map11", r"finetuned_(top1|mean_class|map11)"),
        quoted=(r"top5",),
        figures=prefixed("finetuned_", "fine-tuned", TITLES),
        plain=(r"l2",),
    )

    @staticmethod
    def image_passes(settings: EvaluationSettings, train: int, test: int) -> float:
        """Those of fine-tuning."""
        return TRAINING_PASSES * settings.finetune.epochs * train + test if settings.finetune.epochs else 0.0
