"""A linear classifier trained by SGD on a frozen encoder's features of augmented images."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from understudy.errors import DataError
from understudy.evaluate.encoded_set import EncodedSet, Figures
from understudy.evaluate.measures import augmented

if TYPE_CHECKING:
    from understudy.evaluate.protocols.linear_sgd import LinearSgdSettings


def train_classifier(encoded_set: EncodedSet, settings: LinearSgdSettings, seed: int) -> Figures:
    """See `LinearSgd.evaluate`."""
    data, source, encoder = encoded_set.labeled(), encoded_set.train_source, encoded_set.encoder
    if encoder is None or source is None:
        raise DataError(
            f"linear_sgd sends augmented images through the network, and of {encoded_set.name} there are only "
            "features. Use the 'linear' protocol."
        )
    device, epochs = torch.device(encoded_set.device), settings.epochs
    batches = augmented.EpochBatches(len(source), min(augmented.BATCH, len(source)), seed=seed)
    steps = batches.steps_per_epoch
    classifier = nn.Linear(data.train.shape[1], data.classes)
    nn.init.normal_(classifier.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(classifier.bias)
    classifier.to(device)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=settings.lr, momentum=0.9)
    labels, test_labels = torch.as_tensor(data.train_labels), torch.as_tensor(data.test_labels)
    test = torch.from_numpy(np.array(data.test, dtype=np.float32))

    scores: list[tuple[float, float]] = []
    losses: list[torch.Tensor] = []
    with contextlib.closing(augmented.augmented(encoded_set, source, batches, epochs * steps)) as loader:
        for step, images in enumerate(loader):
            epoch = step // steps
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * 0.1 ** ((epoch >= 0.6 * epochs) + (epoch >= 0.8 * epochs))
            with torch.no_grad():
                features = encoder.features(augmented.prepared(images, encoder.contract, device)).float()
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
