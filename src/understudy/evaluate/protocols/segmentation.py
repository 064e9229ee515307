"""Semantic segmentation by a linear layer on frozen feature maps: BatchNorm and a 1 x 1 convolution, scored by mIoU.

The linear protocol of DINOv2 (Oquab et al., TMLR 2024, arXiv 2304.07193, section 7.4): the last block's patch tokens,
or of a network with levels its maps of strides 16 and 32, joined on the grid of the first (a network that is nowhere so
coarse: its last map); class scores are enlarged bilinearly to the image's own size. AdamW, weight decay 1e-4, linear
warm-up over at most 1,500 steps, then linear decay to zero; crops out of images scaled by 0.5 to 2, at most 75 % of a
crop one class, flips. In testing, windows of the crop's size slide by two thirds of it over the image, whose shorter
side is the crop's; scores are averaged where windows overlap.

Differs from the released code in leaving out its photometric distortion, and in BatchNorm of one process.

mIoU is over the whole set: intersections and unions are summed over all pixels first, and a class that occurs neither
in the masks nor in the predictions does not count.
"""

from dataclasses import dataclass

from understudy.evaluate.protocol import Display, Protocol, Requirements
from understudy.settings import setting


@dataclass(frozen=True)
class SegmentationSettings:
    """How `segmentation` trains its linear layer; the defaults are DINOv2's."""

    iterations: int = setting(40000, "Training steps.", minimum=1)
    batch_size: int = setting(16, "Crops per step.", minimum=2)
    size: int = setting(512, "Side of a crop, and shorter side of an image in testing, in pixels.", minimum=32)
    lr: float = setting(0.001, "Peak learning rate of AdamW.", minimum=0.0)


class Segmentation(Protocol):
    """A linear layer on frozen feature maps."""

    name = "segmentation"
    summary = "a linear layer on frozen feature maps: mIoU"
    paper = ("oquab2024dinov2",)
    measure = "segmenter.segmentation_figures"
    Settings = SegmentationSettings
    requirements = Requirements(main=False, kinds=frozenset({"masks"}), labels=False, head=False)
    display = Display(
        title="Semantic segmentation",
        short="Segmentation",
        sentence="A linear layer on frozen feature maps; the mean over classes of intersection over union.",
        source="Oquab et al., DINOv2 (arXiv 2304.07193), section 7.4",
        compared=(r"miou",),
        quoted=(r"mean_accuracy", r"accuracy"),
        figures={
            "miou": "Mean IoU", "mean_accuracy": "Pixel accuracy, mean of the classes", "accuracy": "Pixel accuracy",
        },
    )  # fmt: skip
