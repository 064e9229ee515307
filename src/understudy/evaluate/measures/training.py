"""What is trained on augmented images: the papers' linear classifier by SGD, and whole networks with a new classifier.

Augmentation is torchvision's standard one. Full fine-tuning is as SimCLR and BYOL do it (arXiv 2002.05709, appendix B.5
and B.8): SGD with Nesterov momentum 0.9, batches of 256, no weight decay, RandomResizedCrop and flip, the encoder's own
resize and center crop for testing. They choose learning rate and length on a grid; here they are settings, the rate
falls along a cosine, and the classifier, which starts at zero while the backbone starts at a solution, learns ten times
as fast. BatchNorm follows the new images. The last epoch counts: no epoch is chosen on the test images.
"""

import contextlib
import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from understudy.embed.embedding import Inference, extract
from understudy.errors import DataError
from understudy.evaluate.encoded_set import EncodedSet, EvaluatedEncoder, Figures
from understudy.evaluate.measures.accuracy import mean_class
from understudy.evaluate.protocols.linear_sgd import LinearSgdSettings
from understudy.evaluate.settings import EvaluationSettings, FinetuneSettings
from understudy.models.contract import Contract
from understudy.models.onnx_encoder import onnx_encoders
from understudy.models.student import Student
from understudy.models.teacher import Teacher
from understudy.philox import ANCHORS, permutation
from understudy.sources.source import Source
from understudy.views.augmentation import RECIPES, photometry
from understudy.views.batches import Batch, NeighborBatches
from understudy.views.loader import Loader, Reading
from understudy.views.reader import ImageBatch, Views

BATCH = 256
RECIPE = RECIPES["crop"]
"""torchvision's RandomResizedCrop and RandomHorizontalFlip with their defaults."""


class EpochBatches(NeighborBatches):
    """Random batches of whole epochs: the last batch of each holds what is left over, where training drops it."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every image comes once."""
        return -(-self.images // self.batch_size)

    def at(self, step: int) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
        """The images of a step, each a bag of its own."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = permutation(self.seed, ANCHORS, epoch, self.images)
        index: np.ndarray = order[place * self.batch_size : (place + 1) * self.batch_size].astype(np.int64)
        return index, np.arange(len(index))

    def iterate(self, start: int = 0, end: int | None = None) -> Iterator[Batch]:
        """The batches from step `start` to before `end`; the view of an image is the number of the epoch."""
        assert end is not None
        for step in range(start, end):
            index, anchor = self.at(step)
            yield Batch(step, index, anchor, np.full(len(index), step // self.steps_per_epoch))


def augmented(encoded_set: EncodedSet, source: Source, batches: NeighborBatches, steps: int) -> Loader:
    """A loader of so many batches of images under the protocol's views, drawn by their seed; the caller closes it."""
    assert encoded_set.encoder is not None
    contract = encoded_set.encoder.contract
    views = Views(contract.size, RECIPE, batches.seed, interpolation=contract.interpolation)
    reading = Reading(encoded_set.workers, encoded_set.device)
    return Loader(source, batches, views, reading=reading, steps=range(steps))


@torch.no_grad()
def prepared(images: ImageBatch, contract: Contract, device: torch.device) -> Float[Tensor, "B 3 S S"]:
    """The pixels of a batch of the loader, on the device, as the network expects them."""
    pixels = photometry(images.pixels[0].to(device, non_blocking=True), images.rows[0], RECIPE)
    return contract.prepare(pixels)


def train_classifier(encoded_set: EncodedSet, evaluation: EvaluationSettings) -> Figures:
    """Train the paper's linear classifier on an encoded set's encoder.

    Returns:
        "top1" and "top5" (with more than 5 classes) of the best epoch by top-1, "best_epoch" counted from 1,
        "top1_last" and "top5_last" of the last epoch; accuracies in per cent.

    Raises:
        DataError: no labels, one class, features that are not finite, no pixels, or a loss that is not finite.
    """
    settings, seed = evaluation.group(LinearSgdSettings), evaluation.seed
    data, source, encoder = encoded_set.labeled(), encoded_set.train_source, encoded_set.encoder
    if encoder is None or source is None:
        raise DataError(
            f"linear_sgd sends augmented images through the network, and of {encoded_set.name} there are only "
            "features. Use the 'linear' protocol."
        )
    device, epochs = torch.device(encoded_set.device), settings.epochs
    batches = EpochBatches(len(source), min(BATCH, len(source)), seed=seed)
    steps = batches.steps_per_epoch
    classifier = nn.Linear(data.train.shape[1], data.classes)
    nn.init.normal_(classifier.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(classifier.bias)
    classifier.to(device)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=settings.lr, momentum=0.9)
    labels, test_labels = torch.as_tensor(data.train_labels), torch.as_tensor(data.test_labels)
    test = torch.from_numpy(np.array(data.test, dtype=np.float32))

    scores: list[tuple[float, float]] = []
    losses: list[Tensor] = []
    with contextlib.closing(augmented(encoded_set, source, batches, epochs * steps)) as loader:
        for step, images in enumerate(loader):
            epoch = step // steps
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * 0.1 ** ((epoch >= 0.6 * epochs) + (epoch >= 0.8 * epochs))
            with torch.no_grad():
                features = encoder.features(prepared(images, encoder.contract, device)).float()
            loss = nn.functional.cross_entropy(classifier(features), labels[images.index].to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if (step + 1) % steps == 0:
                mean = float(torch.stack(losses).mean())
                losses.clear()
                if not np.isfinite(mean):
                    raise DataError(
                        f"The SGD classifier diverged in epoch {epoch + 1} (loss {mean}): features of mean length "
                        f"{float(test.norm(dim=1).mean()):.3g} are too long for learning rate {settings.lr:g}. "
                        "Lower --linear-sgd.lr, or use the 'linear' protocol."
                    )
                scores.append(_accuracies(classifier, test, test_labels, device))
                if encoded_set.progress:
                    note = f"epoch {epoch + 1}, loss {mean:.3f}, top-1 {scores[-1][0]:.1f}"
                    encoded_set.progress(epoch + 1, epochs, note)
    best, last = max(range(epochs), key=lambda epoch: scores[epoch][0]), scores[-1]
    figures: Figures = {"top1": scores[best][0], "best_epoch": best + 1, "top1_last": last[0]}
    if data.classes > 5:
        figures |= {"top5": scores[best][1], "top5_last": last[1]}
    return figures


@torch.no_grad()
def _accuracies(classifier: nn.Linear, features: Tensor, labels: Tensor, device: torch.device) -> tuple[float, float]:
    """Top-1 and top-5 in per cent."""
    top1 = top5 = 0
    for rows, truth in zip(features.split(4096), labels.split(4096), strict=True):
        ranked = classifier(rows.to(device)).topk(min(5, classifier.out_features), dim=1).indices.cpu()
        hits = ranked == truth[:, None]
        top1 += int(hits[:, 0].sum())
        top5 += int(hits.sum())
    return 100.0 * top1 / len(labels), 100.0 * top5 / len(labels)


HEAD_RATE = 10.0


def finetuned(
    encoded_set: EncodedSet, settings: EvaluationSettings, *, chosen: Int[np.ndarray, " n"] | None = None
) -> Figures:
    """Train a copy of an encoded set's backbone with a new classifier, and test it; the encoder stays as it is.

    `chosen` are positions of the training images to use; all unless given.

    Returns:
        "finetuned_top1", "finetuned_mean_class" in per cent, "finetuned_top5" with more than 5 classes; or a "note"
        that says why the network cannot be trained.

    Raises:
        DataError: no pixels, or a loss that is not finite.
    """
    data = encoded_set.labeled()
    source, test = encoded_set.train_source, encoded_set.test_source
    if encoded_set.encoder is None or source is None or test is None:
        raise DataError(f"Fine-tuning needs pixels, and of {encoded_set.name} there are only features.")
    network = trainable(encoded_set.encoder)
    if network is None:
        note = f"{encoded_set.name} was not fine-tuned: it is frozen as it is (an ONNX file, or an embedding)."
        return {"note": note}
    rows = np.arange(len(source)) if chosen is None else chosen
    classifier = nn.Linear(data.train.shape[1], data.classes)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    model = nn.Sequential(network, classifier).to(encoded_set.device)
    _train(model, encoded_set, rows, settings.finetune, settings.seed)
    model.eval()

    def best_classes(images: Tensor) -> Tensor:
        return torch.topk(model(images), min(5, data.classes), dim=1).indices.float()

    inference = Inference(encoded_set.device, settings.batch_size, encoded_set.workers)
    ranked, readable, _ = extract(best_classes, encoded_set.encoder.contract, test, inference)
    truth = np.asarray(data.test_labels)[readable]
    hits = ranked.astype(np.int64) == truth[:, None]
    figures: Figures = {
        "finetuned_top1": 100.0 * float(hits[:, 0].mean()),
        "finetuned_mean_class": mean_class(hits[:, 0], truth, data.classes),
    }
    if data.classes > 5:
        figures["finetuned_top5"] = 100.0 * float(hits.any(axis=1).mean())
    return figures


def trainable(encoder: EvaluatedEncoder) -> nn.Module | None:
    """A copy of an encoder's backbone that can be trained; None for one that cannot."""
    module = encoder.backbone if isinstance(encoder, Student) else None
    module = encoder.module if isinstance(encoder, Teacher) else module
    if module is None or onnx_encoders(module):
        return None
    copied: nn.Module = copy.deepcopy(module)
    return copied.requires_grad_(True)


def _train(
    model: nn.Sequential, encoded_set: EncodedSet, rows: np.ndarray, settings: FinetuneSettings, seed: int
) -> None:
    assert encoded_set.encoder is not None
    assert encoded_set.train_source is not None
    assert encoded_set.train_labels is not None
    device, contract = torch.device(encoded_set.device), encoded_set.encoder.contract
    source, labels = encoded_set.train_source.subset(rows), torch.as_tensor(np.array(encoded_set.train_labels[rows]))
    batches = NeighborBatches(len(source), min(BATCH, len(source)), seed=seed)
    steps = batches.steps_for(settings.epochs)
    rate = settings.lr * batches.batch_size / 256
    backbone, classifier = model
    groups = [
        {"params": list(backbone.parameters()), "lr": rate, "rate": rate},
        {"params": list(classifier.parameters()), "lr": HEAD_RATE * rate, "rate": HEAD_RATE * rate},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    model.train()
    with contextlib.closing(augmented(encoded_set, source, batches, steps)) as loader:
        for step, images in enumerate(loader):
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * 0.5 * (1 + math.cos(math.pi * step / steps))
            pixels = prepared(images, contract, device)
            if len(pixels) < 2:  # BatchNorm has no statistics of one image
                continue
            loss = nn.functional.cross_entropy(model(pixels), labels[images.index].to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (step + 1) % 10 == 0 or step + 1 == steps:
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise DataError(
                        f"Fine-tuning {encoded_set.name} diverged at step {step + 1} of {steps} (loss {value}). Lower "
                        f"--finetune.lr, which is {settings.lr:g}."
                    )
                if encoded_set.progress:
                    encoded_set.progress(step + 1, steps, f"fine-tuning: loss {value:.3f}")
