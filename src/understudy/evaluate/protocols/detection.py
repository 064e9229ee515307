"""Object detection and instance segmentation: the backbone fine-tuned under Mask R-CNN or Faster R-CNN, scored by AP.

The protocol of MoCo (He et al., CVPR 2020, arXiv 1911.05722, section 4.2) as SEED and the CoSS authors run it: all
layers are trained on the training split, COCO's own measures are taken on the validation split (on VOC's test split for
Pascal VOC). The detectors are torchvision's, over a feature pyramid for any backbone (`models/pyramid.py`).

Differences from the papers' detectors, which were Detectron2's:

- A feature pyramid (FPN) on every set. The papers have it on Cityscapes and, in MoCo, on COCO beside C4; on VOC they
  have C4 only. C4 cuts a ResNet after its fourth stage and makes the fifth the head of each region, so there is none
  for ViTs, MobileNets or EfficientNets; and torchvision's parts have no mask branch that shares that stage, so it would
  be a detector of our own making.
- BatchNorm of the backbone stays frozen, as torchvision's detectors have it; MoCo trains it, synchronized over 8 GPUs.
- Anchors of 32 to 512 pixels belong to images of 800; they scale with the size of the images.
- A network with a fixed grid (ViT) sees a square canvas whose side is the image's longer one, the rest of it blank.

AP is pycocotools' in per cent: the mean over IoU 0.50, 0.55, ..., 0.95 and over the classes, at most 100 detections an
image. On Pascal VOC it is this AP too, where Detectron2 interpolates precision at the 11 points of VOC 2007 instead of
COCO's 101.
"""

from dataclasses import dataclass

from understudy.evaluate.protocol import Display, Protocol, Requirements
from understudy.settings import setting


@dataclass(frozen=True)
class DetectionSettings:
    """How `detection` trains its detector; the defaults are the paper's Pascal VOC schedule."""

    iterations: int = setting(24000, "Training steps; COCO's 1x schedule has 90,000.", minimum=1)
    batch_size: int = setting(16, "Images per step.", minimum=1)
    size: int = setting(800, "Shorter side of the images in pixels, the longer one at most 5/3 of it.", minimum=64)
    lr: float = setting(0.02, "Learning rate for batches of 16, scaled linearly with the batch.", minimum=0.0)
    rois: int = setting(512, "Proposals per image that the heads learn from.", minimum=1)
    masks: bool = setting(True, "Mask R-CNN where the set has outlines; false: Faster R-CNN.")


class Detection(Protocol):
    """The backbone fine-tuned under a detector."""

    name = "detection"
    summary = "the backbone fine-tuned under Mask R-CNN or Faster R-CNN: AP of boxes and masks"
    paper = ("he2020moco",)
    measure = "detector.detection_figures"
    Settings = DetectionSettings
    requirements = Requirements(main=False, kinds=frozenset({"objects"}), labels=False, head=False)
    display = Display(
        title="Detection and instance segmentation",
        short="Detection",
        sentence="The whole network fine-tuned under Mask R-CNN or Faster R-CNN with a feature pyramid; average "
        "precision over IoU 0.50 to 0.95.",
        source="He et al., CVPR 2020 (arXiv 1911.05722), section 4.2",
        compared=(r"box_ap", r"mask_ap"),
        quoted=(r"(box|mask)_ap(50|75)",),
        figures={
            "box_ap": "Box AP", r"box_ap(\d+)": r"Box AP\1", r"box_ap_(\w+)": r"Box AP, \1",
            "mask_ap": "Mask AP", r"mask_ap(\d+)": r"Mask AP\1", r"mask_ap_(\w+)": r"Mask AP, \1",
        },
    )  # fmt: skip
