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

import contextlib

import numpy as np
import torch
from torch import nn

from understudy.errors import DataError
from understudy.evaluate.encoded_set import EncodedSet, Figures
from understudy.evaluate.protocol import Display, Protocol
from understudy.evaluate.settings import EvaluationSettings
from understudy.sources.source import Source
from understudy.views.augmentation import RECIPES, photometry
from understudy.views.batches import NeighborBatches
from understudy.views.loader import Loader, Reading
from understudy.views.reader import Views

BATCH = 256
RECIPE = RECIPES["crop"]
"""torchvision's RandomResizedCrop and RandomHorizontalFlip with their defaults."""


def linear_sgd(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Train the paper's linear classifier on an encoded set's encoder.

    Args:
        encoded_set: labeled training images as pixels with their encoder, and features of the test images.
        settings: `sgd_epochs`, `sgd_lr` and the seed.

    Returns:
        "top1" and "top5" (with more than 5 classes) of the best epoch by top-1, "best_epoch" counted from 1,
        "top1_last" and "top5_last" of the last epoch; accuracies in per cent.

    Raises:
        DataError: no labels, one class, features that are not finite, no pixels, or a loss that is not finite.
    """
    data = encoded_set.labeled()
    if encoded_set.encoder is None or encoded_set.train_source is None:
        raise DataError(
            f"linear_sgd sends augmented images through the network, and of {encoded_set.name} there are only "
            "features. Use the 'linear' protocol."
        )
    device, contract = torch.device(encoded_set.device), encoded_set.encoder.contract
    epochs = settings.sgd_epochs
    batches, loader = augmented(encoded_set, encoded_set.train_source, epochs, settings)
    ends = [batches.steps_for(epoch) for epoch in range(1, epochs + 1)]

    classifier = nn.Linear(data.train.shape[1], data.classes)
    nn.init.normal_(classifier.weight, std=0.01, generator=torch.Generator().manual_seed(settings.seed))
    nn.init.zeros_(classifier.bias)
    classifier.to(device)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=settings.sgd_lr, momentum=0.9)
    labels = torch.as_tensor(data.train_labels)
    test = torch.from_numpy(np.array(data.test, dtype=np.float32))
    test_labels = torch.as_tensor(data.test_labels)

    best, last, best_epoch, epoch = (-1.0, -1.0), (-1.0, -1.0), 0, 0
    losses: list[torch.Tensor] = []
    with contextlib.closing(loader):
        for step, images in enumerate(loader, 1):
            drop = (epoch >= 0.6 * epochs) + (epoch >= 0.8 * epochs)
            for group in optimizer.param_groups:
                group["lr"] = settings.sgd_lr * 0.1**drop
            with torch.no_grad():
                pixels = photometry(images.pixels[0].to(device, non_blocking=True), images.rows[0], RECIPE)
                features = encoded_set.encoder.features(contract.prepare(pixels)).float()
            loss = nn.functional.cross_entropy(classifier(features), labels[images.index].to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if step == ends[epoch]:
                epoch += 1
                mean = float(torch.stack(losses).mean())
                if not np.isfinite(mean):
                    raise DataError(
                        f"The SGD classifier diverged in epoch {epoch} (loss {mean}): features of mean length "
                        f"{float(test.norm(dim=1).mean()):.3g} are too long for learning rate {settings.sgd_lr:g}. "
                        "Lower --sgd-lr, or use the 'linear' protocol."
                    )
                losses.clear()
                last = _accuracies(classifier, test, test_labels, device)
                if last[0] > best[0]:
                    best, best_epoch = last, epoch
                if encoded_set.progress:
                    encoded_set.progress(epoch, epochs, f"epoch {epoch}, loss {mean:.3f}, top-1 {last[0]:.1f}")

    figures: Figures = {"top1": best[0], "best_epoch": best_epoch, "top1_last": last[0]}
    if data.classes > 5:
        figures |= {"top5": best[1], "top5_last": last[1]}
    return figures


@torch.no_grad()
def _accuracies(
    classifier: nn.Linear, features: torch.Tensor, labels: torch.Tensor, device: torch.device
) -> tuple[float, float]:
    """Top-1 and top-5 in per cent."""
    top1 = top5 = 0
    for rows, truth in zip(features.split(4096), labels.split(4096), strict=True):
        ranked = classifier(rows.to(device)).topk(min(5, classifier.out_features), dim=1).indices.cpu()
        hits = ranked == truth[:, None]
        top1 += int(hits[:, 0].sum())
        top5 += int(hits.sum())
    return 100.0 * top1 / len(labels), 100.0 * top5 / len(labels)


def augmented(
    encoded_set: EncodedSet, source: Source, epochs: int, settings: EvaluationSettings
) -> tuple[NeighborBatches, Loader]:
    """Batches of labeled images under the protocol's views, for so many epochs; the caller closes the loader.

    Args:
        encoded_set: whose input contract and reader processes are used.
        source: the images.
        epochs: how often each is seen.
        settings: `seed`.
    """
    assert encoded_set.encoder is not None
    contract = encoded_set.encoder.contract
    batches = NeighborBatches(len(source), min(BATCH, len(source)), seed=settings.seed)
    views = Views(contract.size, RECIPE, settings.seed, interpolation=contract.interpolation)
    reading = Reading(encoded_set.workers, encoded_set.device)
    return batches, Loader(source, batches, views, reading=reading, steps=range(batches.steps_for(epochs)))


HE = """@inproceedings{he2020moco,
  title     = {Momentum Contrast for Unsupervised Visual Representation Learning},
  author    = {He, Kaiming and Fan, Haoqi and Wu, Yuxin and Xie, Saining and Girshick, Ross},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2020}
}"""


class LinearSgd(Protocol):
    """The papers' linear classifier, trained by SGD on augmented images."""

    name = "linear_sgd"
    summary = "the paper's linear classifier by SGD with augmentation; one forward pass per epoch"
    paper = (HE,)
    shared_settings = ("sgd_epochs", "sgd_lr")
    display = Display(
        title="Linear classifier by SGD",
        short="Linear, SGD",
        sentence="A linear layer trained by SGD on augmented images before the frozen network; the best epoch counts.",
        source="He et al., CVPR 2020 (arXiv 1911.05722), section 4.1",
        compared=(r"top1",),
        quoted=(r"top5", r"top1_last"),
        figures={"best_epoch": "Best epoch", r"top(\d)_last": r"Top-\1, last epoch"},
        plain=(r"best_epoch",),
        whole=(r"best_epoch",),
    )
    evaluate = staticmethod(linear_sgd)

    @staticmethod
    def image_passes(settings: EvaluationSettings, train: int, test: int) -> float:
        """One forward pass of each training image an epoch."""
        return settings.sgd_epochs * train
