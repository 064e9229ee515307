"""Full fine-tuning: backbone and a new classifier, trained on labels.

As SimCLR and BYOL fine-tune (arXiv 2002.05709, appendix B.5 and B.8): SGD with Nesterov momentum 0.9, batches of 256,
no weight decay, RandomResizedCrop and flip, the encoder's own resize and center crop for testing. They choose learning
rate and length on a grid; here they are settings, the rate falls along a cosine, and the classifier, which starts at
zero while the backbone starts at a solution, learns ten times as fast. BatchNorm follows the new images. The last epoch
counts: no epoch is chosen on the test images.
"""

from __future__ import annotations

import contextlib
import copy
import math

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from understudy.embed.embedding import Inference, extract
from understudy.errors import DataError
from understudy.evaluate.encoded_set import EncodedSet, Encoder, Figures
from understudy.evaluate.measures import augmented
from understudy.evaluate.measures.accuracy import mean_class
from understudy.evaluate.settings import EvaluationSettings, FinetuneSettings
from understudy.models.onnx_encoder import onnx_encoders
from understudy.models.student import Student
from understudy.models.teacher import Teacher
from understudy.views.batches import NeighborBatches

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
        return {
            "note": f"{encoded_set.name} was not fine-tuned: it is frozen as it is (an ONNX file, or an embedding)."
        }
    rows = np.arange(len(source)) if chosen is None else chosen
    classifier = nn.Linear(data.train.shape[1], data.classes)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    model = nn.Sequential(network, classifier).to(encoded_set.device)
    _train(model, encoded_set, rows, settings.finetune, settings.seed)
    model.eval()

    def best_classes(images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = model(images)
        return scores.topk(min(5, data.classes), dim=1).indices.float()

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


def trainable(encoder: Encoder) -> nn.Module | None:
    """A copy of an encoder's backbone that can be trained; None for one that cannot."""
    module = (
        encoder.module if isinstance(encoder, Teacher) else encoder.backbone if isinstance(encoder, Student) else None
    )
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
    batches = NeighborBatches(len(source), min(augmented.BATCH, len(source)), seed=seed)
    steps = batches.steps_for(settings.epochs)
    rate = settings.lr * batches.batch_size / 256
    backbone, classifier = model
    groups = [
        {"params": list(backbone.parameters()), "lr": rate, "rate": rate},
        {"params": list(classifier.parameters()), "lr": HEAD_RATE * rate, "rate": HEAD_RATE * rate},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    model.train()
    with contextlib.closing(augmented.augmented(encoded_set, source, batches, steps)) as loader:
        for step, images in enumerate(loader):
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * 0.5 * (1 + math.cos(math.pi * step / steps))
            pixels = augmented.prepared(images, contract, device)
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
