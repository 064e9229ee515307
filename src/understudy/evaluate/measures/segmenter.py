"""A linear layer on frozen feature maps: trained on crops, tested by sliding windows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from understudy.errors import DataError
from understudy.evaluate.datasets.masks import IGNORED, Masks
from understudy.evaluate.encoded_set import EncodedSet, Figures
from understudy.evaluate.protocols.segmentation import SegmentationSettings
from understudy.evaluate.settings import EvaluationSettings
from understudy.models.contract import Contract
from understudy.models.dense import DenseFeatures, dense_features
from understudy.models.outputs import patch_size
from understudy.philox import ANCHORS, VIEWS, permutation, random_words, uniforms
from understudy.sources.decode import RESAMPLING

WARMUP = 1500
SHARE = 0.75
"""A crop with more than this of one class is drawn again, at most `DRAWS` times."""
DRAWS = 10


def segmentation_figures(encoded_set: EncodedSet, evaluation: EvaluationSettings) -> Figures:
    """Train a linear layer on a frozen backbone's maps on one set, and score it on the validation split.

    Returns:
        "miou", "mean_accuracy" (over the classes) and "accuracy" (over the pixels), in per cent; "classes", how
        many the mIoU is over, "images", "iterations".

    Raises:
        DataError: a file is missing, a mask does not fit, no pixel can be scored, or training diverged.
        ModelError: the network gives no feature maps.
    """
    assert encoded_set.dataset is not None
    settings, seed = evaluation.group(SegmentationSettings), evaluation.seed
    module, contract = encoded_set.network()
    train, test = encoded_set.dataset.metadata["train"], encoded_set.dataset.metadata["test"]
    patch = patch_size(module)
    side = settings.size if patch is None else max(1, round(settings.size / patch)) * patch
    body = dense_features(module, (side, side), spec=f"The {encoded_set.name}").to(encoded_set.device)
    body = body.eval().requires_grad_(False)
    torch.manual_seed(seed)
    head = LinearHead(body, train.count).to(encoded_set.device)
    batches = _batches(train, side, settings, seed, contract, encoded_set.workers or 0)
    _train(body, head, batches, settings, encoded_set)
    head.eval()
    confusion = np.zeros((test.count, test.count), dtype=np.int64)
    for i in range(len(test)):
        image, truth = test.read(i)
        predicted = _predict(body, head, image, contract, side)
        confusion += confusion_matrix(truth, predicted, test.count)
        if encoded_set.progress and ((i + 1) % 50 == 0 or i + 1 == len(test)):
            encoded_set.progress(i + 1, len(test), "testing")
    if not confusion.any():
        raise DataError(f"{test.name}: every pixel of {len(test)} masks is to be ignored; nothing can be scored.")
    return {**mean_iou(confusion), "images": len(test), "iterations": settings.iterations}


def _batches(
    train: Masks, side: int, settings: SegmentationSettings, seed: int, contract: Contract, workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """The training crops."""
    count = settings.iterations * settings.batch_size
    epochs = -(-count // len(train))
    order = np.concatenate([permutation(seed, ANCHORS, epoch, len(train)) for epoch in range(epochs)])[:count]
    return DataLoader(
        _Crops(train, order, side, seed, contract), batch_size=settings.batch_size, num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
    )  # fmt: skip


def _train(
    body: DenseFeatures, head: LinearHead, batches: DataLoader[tuple[Tensor, Tensor]], settings: SegmentationSettings,
    encoded_set: EncodedSet,
) -> None:  # fmt: skip
    device, contract, steps = torch.device(encoded_set.device), encoded_set.network()[1], settings.iterations
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.lr, weight_decay=1e-4)
    losses: list[Tensor] = []
    for step, (pixels, truth) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * _rate(step, steps)
        with torch.no_grad():
            maps = body(contract.normalize(pixels.to(device)))
        scores = F.interpolate(head(maps), truth.shape[-2:], mode="bilinear", align_corners=False)
        truth = truth.to(device).long()
        # Where every pixel of a batch is ignored, the mean of nothing would be NaN.
        total = F.cross_entropy(scores, truth, ignore_index=IGNORED, reduction="sum")
        loss = total / (truth != IGNORED).sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if (step + 1) % 20 == 0 or step + 1 == steps:
            mean = float(torch.stack(losses).mean())
            losses.clear()
            if not math.isfinite(mean):
                raise DataError(
                    f"The linear layer diverged before step {step + 1} of {steps} (loss {mean}). Lower "
                    f"--segmentation.lr, now {settings.lr:g}; or the encoder's features are not finite."
                )
            if encoded_set.progress:
                encoded_set.progress(step + 1, steps, f"loss {mean:.3f}")


class LinearHead(nn.Module):
    """BatchNorm and a 1 x 1 convolution on the frozen backbone's maps that the protocol uses."""

    def __init__(self, body: DenseFeatures, classes: int) -> None:
        super().__init__()
        levels = [round(math.log2(stride)) for stride in body.strides]
        self.places = [place for place, level in enumerate(levels) if level in (4, 5)] or [len(levels) - 1]
        width = sum(body.channels[place] for place in self.places)
        self.norm = nn.BatchNorm2d(width)
        self.linear = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.linear.weight, std=0.01)
        assert self.linear.bias is not None
        nn.init.zeros_(self.linear.bias)

    def forward(self, maps: list[Tensor]) -> Float[Tensor, "B C h w"]:
        """Maps of a batch -> class scores on the grid of the first one used."""
        chosen = [maps[place] for place in self.places]
        grid = chosen[0].shape[-2:]
        joined = torch.cat([F.interpolate(one, grid, mode="bilinear", align_corners=False) for one in chosen], dim=1)
        scores: Tensor = self.linear(self.norm(joined.float()))
        return scores


def _rate(step: int, steps: int) -> float:
    """Share of the peak: linear warm-up, then linear to zero."""
    warmup = min(WARMUP, steps // 10)
    return min(1.0, (step + 1) / (warmup + 1)) * (1 - step / steps)


class _Crops(Dataset[tuple[Tensor, Tensor]]):
    """The training crops in the order in which they are seen; each is a function of the seed and its place."""

    def __init__(self, masks: Masks, order: np.ndarray, side: int, seed: int, contract: Contract) -> None:
        self.masks, self.order, self.side, self.seed, self.contract = masks, order, side, seed, contract

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        row = int(self.order[place])
        drawn = uniforms(random_words(self.seed, VIEWS, np.array([row]), place, 2 + 2 * DRAWS))[0].tolist()
        image, truth = self.masks.read(row)
        scale = self.side * 4 ** (drawn[0] - 0.5) / min(image.size)  # 0.5 to 2
        image, truth = scaled(image, truth, scale, self.contract)
        pixels = np.asarray(image)
        height, width = (max(extent - self.side, 0) for extent in truth.shape)
        for draw in range(DRAWS):
            top, left = (round(drawn[2 + 2 * draw + axis] * room) for axis, room in enumerate((height, width)))
            inside = truth[top : top + self.side, left : left + self.side]
            counts = np.bincount(inside[inside != IGNORED].ravel(), minlength=1)
            if counts.max() <= SHARE * max(1, counts.sum()):
                break
        pixels = pixels[top : top + self.side, left : left + self.side]
        if drawn[1] < 0.5:
            pixels, inside = pixels[:, ::-1], inside[:, ::-1]
        # An image smaller than the crop is continued by its own mean color, which nobody scores.
        below, right = self.side - inside.shape[0], self.side - inside.shape[1]
        canvas = np.empty((self.side, self.side, 3), dtype=np.float32)
        canvas[:] = np.array(self.contract.mean, dtype=np.float32)
        canvas[: inside.shape[0], : inside.shape[1]] = pixels.astype(np.float32) / 255
        inside = np.pad(inside, ((0, below), (0, right)), constant_values=IGNORED)
        return torch.from_numpy(canvas).permute(2, 0, 1), torch.from_numpy(np.ascontiguousarray(inside))


def scaled(
    image: Image.Image, truth: UInt8[np.ndarray, "H W"], scale: float, contract: Contract
) -> tuple[Image.Image, UInt8[np.ndarray, "h w"]]:
    """An image by the network's own resampling, its mask by nearest pixels."""
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    mask = Image.fromarray(truth).resize(size, Image.Resampling.NEAREST)
    return image.resize(size, RESAMPLING[contract.interpolation]), np.asarray(mask)


@torch.no_grad()
def _predict(
    body: nn.Module, head: LinearHead, image: Image.Image, contract: Contract, side: int
) -> Int[np.ndarray, "H W"]:
    """The class of each pixel of an image, by sliding windows."""
    scale = side / min(image.size)
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    pixels = np.asarray(image.resize(size, RESAMPLING[contract.interpolation]), dtype=np.float32) / 255
    whole = contract.normalize(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(head.linear.weight.device))
    total: Any = 0
    for top, left in windows(whole.shape[-2], whole.shape[-1], side):
        scores = head(body(whole[:, :, top : top + side, left : left + side]))
        scores = F.interpolate(scores, (side, side), mode="bilinear", align_corners=False)
        room = (left, whole.shape[-1] - left - side, top, whole.shape[-2] - top - side)
        total = total + F.pad(torch.cat([scores, torch.ones_like(scores[:, :1])], dim=1), room)
    mean = total[:, :-1] / total[:, -1:]
    enlarged = F.interpolate(mean, (image.height, image.width), mode="bilinear", align_corners=False)
    return np.asarray(enlarged.argmax(1)[0].cpu().numpy())


def windows(height: int, width: int, side: int) -> Iterator[tuple[int, int]]:
    """Upper left corners of square windows that cover an image, two thirds of a side apart, the last at its edge."""
    step = max(1, side * 2 // 3)
    for top in sorted({min(start, height - side) for start in range(0, height - side + step, step)}):
        for left in sorted({min(start, width - side) for start in range(0, width - side + step, step)}):
            yield top, left


def confusion_matrix(
    truth: UInt8[np.ndarray, "H W"], predicted: Int[np.ndarray, "H W"], classes: int
) -> Int[np.ndarray, "C C"]:
    """Pixels by true (row) and predicted (column) class; ignored ones are left out."""
    scored = truth != IGNORED
    pairs = truth[scored].astype(np.int64) * classes + predicted[scored]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def mean_iou(confusion: Int[np.ndarray, "C C"]) -> Figures:
    """MIoU and accuracies, in per cent, of pixels by true and predicted class, at least one.

    Returns:
        "miou", "mean_accuracy", "accuracy", and "classes": how many occur in truth or prediction.
    """
    right, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    union = true + predicted - right
    return {
        "miou": 100.0 * float((right[union > 0] / union[union > 0]).mean()),
        "mean_accuracy": 100.0 * float((right[true > 0] / true[true > 0]).mean()),
        "accuracy": 100.0 * float(right.sum() / confusion.sum()),
        "classes": int((union > 0).sum()),
    }
