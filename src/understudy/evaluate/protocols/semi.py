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

from dataclasses import dataclass
from typing import TYPE_CHECKING

from understudy.evaluate.protocol import TRAINING_PASSES, Display, Protocol, Requirements, prefixed
from understudy.settings import setting

if TYPE_CHECKING:
    from understudy.evaluate.settings import EvaluationSettings

SHARE_TITLES = {
    r"top(\d) ([\d.]+)%": "Top-\\1, \\2\u00a0% of the labels",
    r"top(\d) (\d+)": r"Top-\1, \2 labels a class",
    r"mean_class ([\d.]+)%": "Mean of the classes, \\1\u00a0% of the labels",
    r"mean_class (\d+)": r"Mean of the classes, \1 labels a class",
}
SHARE_LABELS = {r"top\d ([\d.]+)%": "Few labels, \\1\u00a0%", r"top\d (\d+)": r"Few labels, \1 labels a class"}


@dataclass(frozen=True)
class SemiSettings:
    """Which labels `semi` uses."""

    shares: tuple[str, ...] = setting(("1%", "10%"), "Per cent of each class, as 1%, or images of each class, as 5.")
    draws: int = setting(3, "Draws of the labeled images.", minimum=1)
    lists: str | None = setting(None, "Folder with SimCLR's 1percent.txt and 10percent.txt, in place of draws.")


class Semi(Protocol):
    """Classification with labels for few training images."""

    name = "semi"
    summary = "1 % and 10 % of the labels, or a few a class: frozen probe, and full fine-tuning if asked"
    paper = ("chen2020simclr",)
    measure = "probe.few_label_figures"
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

    @staticmethod
    def image_passes(settings: EvaluationSettings, train: int, test: int) -> float:
        """Those of fine-tuning, once a share and draw."""
        own = settings.group(SemiSettings)
        if not settings.finetune.epochs:
            return 0.0
        shares = [float(share.strip("% ")) / 100 for share in own.shares if share.strip().endswith("%")]
        trained = TRAINING_PASSES * settings.finetune.epochs * sum(shares) * train
        return own.draws * (trained + len(own.shares) * test)
