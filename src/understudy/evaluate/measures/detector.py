"""Torchvision's detectors over a backbone: trained, resumed, applied, and scored by pycocotools."""

import contextlib
import io
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

from understudy.artifacts import atomic, fingerprint, lock, require_whole
from understudy.errors import DataError, MissingDependency, StoreError, first_line
from understudy.evaluate.datasets.objects import Objects
from understudy.evaluate.encoded_set import EncodedSet, Figures
from understudy.evaluate.protocols.detection import DetectionSettings
from understudy.evaluate.settings import EvaluationSettings
from understudy.models.checkpoints import fingerprint_weights
from understudy.models.contract import Contract
from understudy.models.pyramid import Pyramid
from understudy.philox import ANCHORS, permutation
from understudy.settings import as_table
from understudy.views.workers import in_shared_memory

FORMAT = 1
CHECKPOINT_SECONDS = 300.0
PUBLISHED_SIZE = 800
WARMUP = 1000
"""Steps of linear warm-up, at most a tenth of training."""


def detection_figures(encoded_set: EncodedSet, evaluation: EvaluationSettings) -> Figures:
    """Fine-tune a backbone under a detector on one set, and score it; `folder` keeps the detector while it trains.

    The same seed and settings give the same weights on the same machine, interrupted or not: the seed decides the
    heads' weights, the order of images, flips, scales and proposals.

    Returns:
        "box_ap", "box_ap50", "box_ap75", "box_ap_small", "box_ap_medium", "box_ap_large", and with masks the same
        of "mask_", in per cent; what the set holds no objects for is left out. "images" and "iterations".

    Raises:
        DataError: a file is missing or does not fit, nothing can be learned from the set, or training diverged.
        ModelError: the network gives no feature maps.
        MissingDependency: pycocotools is not installed.
    """
    mask_tools()  # before hours of training, not after
    settings, seed = evaluation.group(DetectionSettings), evaluation.seed
    assert encoded_set.dataset is not None
    assert encoded_set.folder is not None
    module, contract = encoded_set.network()
    train, test = encoded_set.dataset.metadata["train"], encoded_set.dataset.metadata["test"]
    if [dict(one) for one in train.categories] != [dict(one) for one in test.categories]:
        raise DataError(
            f"{train.name} has {len(train.categories)} categories and {test.name} {len(test.categories)}, or other "
            "ones: a detector of the first cannot be scored on the second."
        )
    masks = settings.masks and train.outlined and test.outlined
    torch.manual_seed(seed)
    classes, spec = len(train.categories), f"The {encoded_set.name}"
    detector = build_detector(module, contract, classes, settings, masks=masks, spec=spec).to(encoded_set.device)
    learned = (fingerprint_weights(module), contract.table(), train.fingerprint)
    folder = encoded_set.folder / "detectors" / fingerprint(FORMAT, *learned, as_table(settings), seed)
    with lock(folder):
        path = folder / "detector.pt"
        _train(detector, _Learned(train, masks), settings, seed, path, encoded_set)
        detections = _detect(detector, test, masks, encoded_set)
        path.unlink()  # its figures are what is kept
    figures: Figures = {}
    for kind in ("box", "mask") if masks else ("box",):
        figures |= {f"{kind}_{name}": value for name, value in average_precision(test.coco(), detections, kind).items()}
    return {**figures, "images": len(test), "iterations": settings.iterations}


def build_detector(
    module: nn.Module, contract: Contract, classes: int, settings: DetectionSettings, *, masks: bool, spec: str
) -> nn.Module:
    """Torchvision's Mask R-CNN or Faster R-CNN over a copy of a headless network.

    Of `settings` it reads `size`, the shorter side in testing (in training one of 0.8 to 1 times it, drawn for each
    image), and `rois`, proposals per image that the heads learn from. `classes` do not count the background; `spec` is
    how messages call the network.
    """
    from torchvision.models.detection import FasterRCNN, MaskRCNN
    from torchvision.models.detection.rpn import AnchorGenerator

    size = settings.size
    canvas = 32 * max(1, round(size / 32))
    pyramid = Pyramid(module, canvas, spec=spec)
    anchors = tuple((32.0 * 2**level * size / PUBLISHED_SIZE,) for level in range(5))
    if pyramid.fixed:
        sides: dict[str, Any] = {"min_size": canvas, "max_size": canvas, "size_divisible": canvas}
    else:
        # 640, 672, ..., 800 pixels, at most 1333.
        scales = tuple(round(size * share / PUBLISHED_SIZE) for share in range(640, 801, 32))
        sides = {"min_size": scales, "max_size": round(size * 1333 / PUBLISHED_SIZE)}
    detector: nn.Module = (MaskRCNN if masks else FasterRCNN)(
        pyramid, num_classes=classes + 1, image_mean=list(contract.mean), image_std=list(contract.std),
        rpn_anchor_generator=AnchorGenerator(anchors, ((0.5, 1.0, 2.0),) * len(anchors)),
        box_batch_size_per_image=settings.rois, **sides,
    )  # fmt: skip
    return detector


class _Learned(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images and targets for training: crowds and boxes without area are left out, and images without any other."""

    def __init__(self, objects: Objects, masks: bool) -> None:
        self.objects, self.masks = objects, masks
        self.labels = {one["id"]: label for label, one in enumerate(objects.categories, 1)}
        self.usable = [
            [place for place, one in enumerate(of_image) if not one["iscrowd"] and min(one["bbox"][2:]) >= 1]
            for of_image in objects.annotations
        ]
        self.rows = [row for row, places in enumerate(self.usable) if places]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Tensor, dict[str, Tensor]]:
        row = self.rows[position]
        places = self.usable[row]
        chosen = [self.objects.annotations[row][place] for place in places]
        image = _pixels(self.objects, row)
        target = {
            "boxes": torch.from_numpy(self.objects.boxes(row)[places]).float(),
            "labels": torch.tensor([self.labels[one["category_id"]] for one in chosen]),
        }
        if self.masks:
            height, width = image.shape[-2:]
            drawn = [outline_mask(one["segmentation"], height, width) for one in chosen]
            target["masks"] = torch.from_numpy(np.stack(drawn))
        return image, target


class _Seen(Dataset[Tensor]):
    """Images alone, for testing."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, row: int) -> Tensor:
        return _pixels(self.objects, row)


def _pixels(objects: Objects, row: int) -> Tensor:
    return torch.from_numpy(np.array(objects.read(row))).permute(2, 0, 1)


def _stream(dataset: Dataset[Any], order: Sequence[int], batch: int, workers: int) -> DataLoader[Any]:
    return DataLoader(
        dataset, batch_size=batch, sampler=order, num_workers=workers, collate_fn=_handed_over,
        multiprocessing_context="forkserver" if workers else None,
    )  # fmt: skip


def _handed_over(batch: list[Any]) -> list[Any]:
    return list(in_shared_memory(batch)) if get_worker_info() is not None else batch


def _train(
    detector: nn.Module, dataset: _Learned, settings: DetectionSettings, seed: int, path: Path, encoded_set: EncodedSet
) -> None:
    """From the start, or from where the checkpoint stands, to the last step."""
    device = torch.device(encoded_set.device)
    if not len(dataset):
        objects = dataset.objects
        raise DataError(f"{objects.name}: none of {len(objects)} images has an object that is not a crowd.")
    steps, batch = settings.iterations, settings.batch_size
    peak = settings.lr * batch / 16
    trained = [one for one in detector.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=peak, momentum=0.9, weight_decay=1e-4)
    first = _resume(path, detector, optimizer, steps)
    epochs = -(-steps * batch // len(dataset))
    order = np.concatenate([permutation(seed, ANCHORS, epoch, len(dataset)) for epoch in range(epochs)])

    def save(step: int) -> None:
        state = {"step": step, "detector": detector.state_dict(), "optimizer": optimizer.state_dict()}
        with atomic(path, sealed=True) as temporary:
            torch.save(state, temporary)

    detector.train()
    saved, losses = time.monotonic(), []
    stream = _stream(dataset, order[first * batch : steps * batch].tolist(), batch, encoded_set.workers or 0)
    for step, pairs in enumerate(stream, first):
        # What is drawn (flips, scales, proposals) is a function of seed and step: no random state to be resumed.
        torch.manual_seed(seed * 1_000_003 + step)
        images, targets = [], []
        for image, target in pairs:
            image, target = _flipped(image, target) if torch.rand(()) < 0.5 else (image, target)
            images.append(image.to(device).float() / 255)
            targets.append({name: value.to(device) for name, value in target.items()})
        for group in optimizer.param_groups:
            group["lr"] = peak * _rate(step, steps)
        loss = torch.stack(list(detector(images, targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if (step + 1) % 20 == 0 or step + 1 == steps:
            mean = float(torch.stack(losses).mean())
            losses.clear()
            if not np.isfinite(mean):
                raise DataError(
                    f"The detector diverged before step {step + 1} of {steps} (loss {mean}) at learning rate {peak:g} "
                    f"for batches of {batch}. Lower --detection.lr, now {settings.lr:g}."
                )
            if encoded_set.progress:
                encoded_set.progress(step + 1, steps, f"loss {mean:.3f}")
        if time.monotonic() - saved >= CHECKPOINT_SECONDS or step + 1 == steps:
            save(step + 1)
            saved = time.monotonic()


def _rate(step: int, steps: int) -> float:
    """Share of the peak: linear warm-up from a thousandth, a tenth after 2/3 of the steps, a hundredth after 8/9."""
    warmup = min(WARMUP, steps // 10)
    if step < warmup:
        return 0.001 + 0.999 * step / warmup
    return 0.1 ** ((step >= steps * 2 / 3) + (step >= steps * 8 / 9))


def _flipped(image: Tensor, target: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Mirrored left to right, boxes and masks with it."""
    flipped, width = dict(target), image.shape[-1]
    left, top, right, bottom = target["boxes"].unbind(1)
    flipped["boxes"] = torch.stack([width - right, top, width - left, bottom], dim=1)
    if "masks" in target:
        flipped["masks"] = target["masks"].flip(-1)
    return image.flip(-1), flipped


def _resume(path: Path, detector: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> int:
    """The step to go on from. The folder's name holds all that a detector depends on, so what is there belongs here."""
    if not path.exists():
        return 0
    remedy = "Delete it to train the detector from the start."
    require_whole(path, remedy)
    try:
        state = torch.load(path, map_location=next(detector.parameters()).device, weights_only=True)
        step = int(state["step"])
        detector.load_state_dict(state["detector"])
        optimizer.load_state_dict(state["optimizer"])
    except Exception as error:
        raise StoreError(f"{path} cannot be read ({first_line(error)}). {remedy}") from None
    if not 0 <= step <= steps:
        raise StoreError(f"{path} holds what cannot be: step {step} of a training of {steps:,} steps. {remedy}")
    return step


@torch.no_grad()
def _detect(detector: nn.Module, objects: Objects, masks: bool, encoded_set: EncodedSet) -> list[dict[str, Any]]:
    """Detections of every image, in COCO's result format: boxes (x, y, width, height) and run lengths."""
    detector.eval()
    tools = mask_tools()
    detections: list[dict[str, Any]] = []
    stream = _stream(_Seen(objects), range(len(objects)), 1, encoded_set.workers or 0)
    for row, (image,) in enumerate(stream):
        (output,) = detector([image.to(encoded_set.device).float() / 255])
        corners = output["boxes"].cpu().double().numpy()
        scores, labels = output["scores"].cpu().tolist(), output["labels"].cpu().tolist()
        for place, (x0, y0, x1, y1) in enumerate(corners.tolist()):
            one = {
                "image_id": objects.images[row]["id"], "category_id": objects.categories[labels[place] - 1]["id"],
                "bbox": [x0, y0, x1 - x0, y1 - y0], "score": scores[place],
            }  # fmt: skip
            if masks:
                inside = (output["masks"][place, 0] > 0.5).to(torch.uint8).cpu().numpy()
                one["segmentation"] = tools.encode(np.asfortranarray(inside))
            detections.append(one)
        if encoded_set.progress and ((row + 1) % 50 == 0 or row + 1 == len(objects)):
            encoded_set.progress(row + 1, len(objects), "testing")
    return detections


MEASURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The first six of COCO's twelve; small is below 32 x 32 pixels of area, large above 96 x 96, of the original image."""


def outline_mask(outline: Any, height: int, width: int) -> np.ndarray:
    """(height, width) uint8 of 0 and 1 from polygons or run lengths, as COCO writes them."""
    tools = mask_tools()
    runs = tools.frPyObjects(outline, height, width) if isinstance(outline, list) else outline
    if isinstance(runs, list):
        runs = tools.merge(runs)
    elif isinstance(runs["counts"], list):
        runs = tools.frPyObjects(runs, height, width)
    with warnings.catch_warnings():
        # pycocotools 2.0.11 hands its array over without numpy 2's `copy` keyword.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return np.asarray(tools.decode(runs))


def mask_tools() -> Any:
    """The module `pycocotools.mask`.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise MissingDependency("Detection is scored by pycocotools: pip install 'understudy[detection]'.") from None
    return mask


def average_precision(
    truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], kind: str = "box"
) -> dict[str, float]:
    """COCO's average precision of detections: those of `MEASURES` that the truth has objects for, in per cent.

    Args:
        truth: a COCO table: "images", "annotations", "categories".
        detections: tables {"image_id", "category_id", "score", "bbox"} and, for masks, "segmentation" as run lengths.
        kind: "box" or "mask".

    Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; pycocotools.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    tools = mask_tools()
    results = []
    for number, one in enumerate(detections, 1):
        area = float(tools.area(one["segmentation"])) if kind == "mask" else one["bbox"][2] * one["bbox"][3]
        results.append({**one, "id": number, "area": area, "iscrowd": 0})
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        indexed = []
        for annotations in (truth["annotations"], results):
            one_side = COCO()
            one_side.dataset = {**truth, "annotations": annotations}
            one_side.createIndex()
            indexed.append(one_side)
        scorer = COCOeval(*indexed, {"box": "bbox", "mask": "segm"}[kind])
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    # -1 stands for "no such objects".
    return {name: 100.0 * float(value) for name, value in zip(MEASURES, scorer.stats, strict=False) if value >= 0}
