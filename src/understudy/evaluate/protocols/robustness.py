"""Robustness: what the main images teach, asked about other photographs, drawings, and corrupted images.

Of an `--on` set of test images alone: ImageNet-v2, -Sketch, -A and -R, and the corruptions of ImageNet-C and CIFAR-10-C
(Hendrycks & Dietterich, ICLR 2019, arXiv 1903.12261). The classifier is the linear probe of `linear` on the main
training images, beside the 10-NN vote of `knn`. A set with some of the classes, as ImageNet-A and -R with 200 of 1,000,
is judged among those alone, as its authors do.

Of the main test images: the same corruptions made on the fly (`measures.corruptions`), the linear probe alone. That
takes an image pass for each corruption and severity, so at most `robustness.images` images are looked at.

"mce" is the mean corruption error, each corruption's error divided by AlexNet's on ImageNet-C; it has a meaning for
ImageNet-C alone. "mean_error" is the plain mean over corruptions, CIFAR-10-C's convention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from understudy.evaluate.protocol import ACCURACIES, SHARES, Display, Protocol, Requirements
from understudy.settings import setting

if TYPE_CHECKING:
    from understudy.evaluate.settings import EvaluationSettings


@dataclass(frozen=True)
class RobustnessSettings:
    """Which corruptions `robustness` makes of the main test images."""

    severities: tuple[int, ...] = setting((1, 2, 3, 4, 5), "Of 1 to 5.")
    images: int = setting(2000, "Test images at most, drawn by the seed.", minimum=1)
    frost: str | None = setting(None, "Folder of the authors' photographs of frost; without it frost is left out.")


class Robustness(Protocol):
    """What the main training images teach, tested on shifted and corrupted images."""

    name = "robustness"
    summary = "shifted test sets, and corruptions, those of published sets or made on the fly"
    paper = ("hendrycks2019benchmarking",)
    measure = "shift.robustness_figures"
    Settings = RobustnessSettings
    requirements = Requirements(kinds=frozenset({"shift"}), head=False)
    display = Display(
        title="Robustness and shift",
        short="Robustness",
        sentence="What the main training images teach, asked about other photographs, drawings or corrupted images.",
        source="Hendrycks and Dietterich, ICLR 2019 (arXiv 1903.12261), and the papers of the sets",
        compared=(r"mean_error|top1",),
        quoted=(r"clean", r"mce", r"knn"),
        figures={
            "mean_error": "Mean error, corrupted", "mce": "Mean corruption error (AlexNet = 100)",
            "clean": "Not corrupted", "knn": "10-NN", r"severity_(\d)": r"Severity \1",
        },
        less=(r"mean_error|mce",),
        shares=(*SHARES, "clean", "knn"),
        accuracies=(*ACCURACIES, "clean", "knn"),
    )  # fmt: skip

    @staticmethod
    def image_passes(settings: EvaluationSettings, train: int, test: int) -> float:
        """One for each corruption and severity."""
        own = settings.group(RobustnessSettings)
        return (15 if own.frost else 14) * len(own.severities) * min(test, own.images)
