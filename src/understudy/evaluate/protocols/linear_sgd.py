"""The paper's linear classifier: SGD on a frozen backbone, with augmentation, one forward pass per epoch.

The protocol of MoCo (He et al., CVPR 2020, arXiv 1911.05722) as SEED, the CoSS authors and their rivals run it: batches
of 256, learning rate 30 times 0.1 at 60 % and at 80 % of 100 epochs, momentum 0.9, no weight decay, weights drawn from
N(0, 0.01), RandomResizedCrop of 8 to 100 % of the area and horizontal flip for training, the encoder's own resize and
center crop for testing, the backbone in eval mode. No normalization of features, no BatchNorm.

The published figure is the BEST epoch on the test images, chosen with their labels: "top1". "top1_last", of the last
epoch, is free of that choice. `linear` finds the optimum of nearly the same objective in seconds, without augmentation.

As the backbone is frozen, test features are computed once and not after every epoch; nothing else is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from understudy.evaluate.protocol import Display, Protocol
from understudy.settings import setting

if TYPE_CHECKING:
    from understudy.evaluate.settings import EvaluationSettings


@dataclass(frozen=True)
class LinearSgdSettings:
    """How `linear_sgd` trains its classifier; the defaults are the paper's."""

    epochs: int = setting(100, "Passes over the training images; the paper's 100.", minimum=1)
    lr: float = setting(30.0, "Learning rate; the paper's 30.", minimum=0.0)


class LinearSgd(Protocol):
    """The papers' linear classifier, trained by SGD on augmented images."""

    name = "linear_sgd"
    summary = "the paper's linear classifier by SGD with augmentation; one forward pass per epoch"
    paper = ("he2020moco",)
    measure = "training.train_classifier"
    Settings = LinearSgdSettings
    display = Display(
        title="Linear classifier by SGD", short="Linear, SGD",
        sentence="A linear layer trained by SGD on augmented images before the frozen network; the best epoch counts.",
        source="He et al., CVPR 2020 (arXiv 1911.05722), section 4.1", compared=(r"top1",),
        quoted=(r"top5", r"top1_last"), figures={"best_epoch": "Best epoch", r"top(\d)_last": r"Top-\1, last epoch"},
        headline=(r"top1",), plain=(r"best_epoch",), whole=(r"best_epoch",),
    )  # fmt: skip

    @staticmethod
    def image_passes(settings: EvaluationSettings, train: int, test: int) -> float:
        """One forward pass of each training image an epoch."""
        return settings.group(LinearSgdSettings).epochs * train
