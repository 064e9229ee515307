"""Settings of evaluation: which protocols, on which labeled images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from understudy.errors import ConfigError
from understudy.settings import as_table, nearest, setting

PROTOCOLS = {
    "knn": "weighted k-nearest-neighbor vote on frozen features",
    "linear": "multinomial logistic regression on frozen features, l2 chosen on a validation split",
    "linear_sgd": "the paper's linear classifier by SGD with augmentation; one forward pass per epoch",
    "asymmetric_knn": "kNN vote of the teacher's training images, asked with the student's embeddings",
    "semi": "1 % and 10 % of the labels, or a few a class: frozen probe, and full fine-tuning if asked",
    "transfer": "logistic regression on other sets in their official splits, and full fine-tuning if asked",
    "retrieval": "ranking by cosine, of landmarks or of classes; also the student against the teacher's database",
    "robustness": "shifted test sets, and corruptions, those of published sets or made on the fly",
    "fidelity": "how far the student's neighborhoods and space are the teacher's",
    "cost": "parameters, multiply-accumulates, latency, throughput, memory, file size",
    "detection": "the backbone fine-tuned under Mask R-CNN or Faster R-CNN: AP of boxes and masks",
    "segmentation": "a linear layer on frozen feature maps: mIoU",
    "davis": "masks carried through videos by similarity of feature maps: J and F",
}
"""The known protocols, one line each; `understudy.evaluate.EVALUATIONS` holds the functions (and torch)."""

HOW = frozenset({"eval_data", "on", "protocols", "limit", "batch_size", "memory_mb"})
"""Settings that change no figure: images count by their fingerprints, and figures are kept protocol by protocol."""

OWN: dict[str, tuple[str, ...]] = {
    "linear_sgd": ("sgd_epochs", "sgd_lr"),
    "semi": ("semi", "finetune"),
    "transfer": ("finetune",),
    "robustness": ("robustness",),
    "fidelity": ("fidelity",),
    "detection": ("detection",),
    "segmentation": ("segmentation",),
}
"""Settings that change the figures of these protocols only. All others change every figure."""


@dataclass(frozen=True)
class DetectionSettings:
    """How `detection` trains its detector; the defaults are the paper's Pascal VOC schedule."""

    iterations: int = setting(24000, "Training steps; COCO's 1x schedule has 90,000.", minimum=1)
    batch_size: int = setting(16, "Images per step.", minimum=1)
    size: int = setting(800, "Shorter side of the images in pixels, the longer one at most 5/3 of it.", minimum=64)
    lr: float = setting(0.02, "Learning rate for batches of 16, scaled linearly with the batch.", minimum=0.0)
    rois: int = setting(512, "Proposals per image that the heads learn from.", minimum=1)
    masks: bool = setting(True, "Mask R-CNN where the set has outlines; false: Faster R-CNN.")


@dataclass(frozen=True)
class SegmentationSettings:
    """How `segmentation` trains its linear layer; the defaults are DINOv2's."""

    iterations: int = setting(40000, "Training steps.", minimum=1)
    batch_size: int = setting(16, "Crops per step.", minimum=2)
    size: int = setting(512, "Side of a crop, and shorter side of an image in testing, in pixels.", minimum=32)
    lr: float = setting(0.001, "Peak learning rate of AdamW.", minimum=0.0)


@dataclass(frozen=True)
class SemiSettings:
    """Which labels `semi` uses."""

    shares: tuple[str, ...] = setting(("1%", "10%"), "Per cent of each class, as 1%, or images of each class, as 5.")
    draws: int = setting(3, "Draws of the labeled images.", minimum=1)
    lists: str | None = setting(None, "Folder with SimCLR's 1percent.txt and 10percent.txt, in place of draws.")


@dataclass(frozen=True)
class FinetuneSettings:
    """How `semi` and `transfer` train the whole network."""

    epochs: int = setting(0, "Passes over the labeled images; 0: the frozen probe alone.", minimum=0)
    lr: float = setting(0.01, "Learning rate of the backbone for batches of 256, the classifier's is ten times it.")


@dataclass(frozen=True)
class RobustnessSettings:
    """Which corruptions `robustness` makes of the main test images."""

    severities: tuple[int, ...] = setting((1, 2, 3, 4, 5), "Of 1 to 5.")
    images: int = setting(2000, "Test images at most, drawn by the seed.", minimum=1)
    frost: str | None = setting(None, "Folder of the authors' photographs of frost; without it frost is left out.")


@dataclass(frozen=True)
class FidelitySettings:
    """How sure `fidelity` makes of its figures."""

    draws: int = setting(100, "Resamples of the images behind each interval; 0: no intervals, much faster.", minimum=0)


@dataclass(frozen=True)
class EvaluationSettings:
    """What `understudy evaluate` measures.

    Raises:
        ConfigError: a protocol that does not exist, none at all, or the same one twice.
    """

    eval_data: str | None = setting(
        None,
        "Labeled images: a root with train and val (or test), or two specs separated by a comma.",
        synonyms="data dataset val_data val_dir",
    )
    on: tuple[str, ...] = setting(
        (), "Further sets, comma-separated: NAME=PATH or NAME of a published set, or a data spec (README, Sets)."
    )
    protocols: tuple[str, ...] = setting(("knn", "linear", "fidelity"), f"Comma-separated, of {', '.join(PROTOCOLS)}.")
    limit: int | None = setting(
        None, "Use at most this many images of each half, always the same; all unless given.", minimum=1
    )
    batch_size: int = setting(128, "Images per forward pass.", minimum=1)
    memory_mb: int = setting(1024, "Memory budget of neighbor search, MiB.", minimum=16)
    sgd_epochs: int = setting(100, "linear_sgd: passes over the training images; the paper's 100.", minimum=1)
    sgd_lr: float = setting(30.0, "linear_sgd: learning rate; the paper's 30.", minimum=0.0)
    seed: int = setting(0, "Seed of splits, samples and augmentation.", minimum=0)
    semi: SemiSettings = setting(SemiSettings)
    finetune: FinetuneSettings = setting(FinetuneSettings)
    robustness: RobustnessSettings = setting(RobustnessSettings)
    fidelity: FidelitySettings = setting(FidelitySettings)
    detection: DetectionSettings = setting(DetectionSettings)
    segmentation: SegmentationSettings = setting(SegmentationSettings)

    def __post_init__(self) -> None:
        for name in self.protocols:
            if name not in PROTOCOLS:
                raise ConfigError(f"Unknown protocol '{name}'. {nearest(name, PROTOCOLS)}")
        if not self.protocols or len(set(self.protocols)) < len(self.protocols):
            listed = ", ".join(self.protocols) or "none"
            raise ConfigError(f"'protocols' needs at least one name, each once; got {listed}.")

    def identity_settings(self, protocol: str) -> dict[str, Any]:
        """The settings that decide a protocol's figures."""
        others = {name for names in OWN.values() for name in names} - set(OWN.get(protocol, ()))
        return {name: value for name, value in as_table(self).items() if name not in HOW | others}
