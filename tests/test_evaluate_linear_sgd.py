"""The paper's SGD classifier: the same steps in float64 numpy, and what augmentation and missing pixels do."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from understudy.errors import DataError
from understudy.evaluate.encoded_set import EncodedSet
from understudy.evaluate.measures import training as module
from understudy.evaluate.protocols.linear_sgd import LinearSgd, LinearSgdSettings
from understudy.evaluate.settings import EvaluationSettings
from understudy.models.contract import Contract
from understudy.philox import ANCHORS, permutation
from understudy.sources.source import Source, open_source
from understudy.views.augmentation import Recipe


class Pooled:
    """The digits' own 8 x 8 gray values as 64 features; remembers what it was shown."""

    contract = Contract(32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def features(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4).flatten(1)


def pixels(source: Source) -> Tensor:
    images = np.stack([np.asarray(source.read(i)) for i in range(len(source))])
    return Pooled.contract.prepare(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)


def encoded_set(encoder: Pooled, train: int = 300, test: int = 100, **metadata: object) -> EncodedSet:
    sources = open_source("digits:train").subset(np.arange(train)), open_source("digits:test").subset(np.arange(test))
    features = [Pooled().features(pixels(source)).numpy() for source in sources]
    labels = [source.labels for source in sources]
    assert labels[0] is not None
    assert labels[1] is not None
    return EncodedSet(
        "student", features[1], features[0], labels[1], labels[0], encoder=encoder, train_source=sources[0],
        test_source=sources[1], workers=0, **metadata,  # type: ignore[arg-type]
    )  # fmt: skip


def test_steps_are_momentum_sgd_with_two_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without augmentation the whole protocol is arithmetic: redone here in float64 from its description."""
    monkeypatch.setattr(module, "RECIPE", Recipe("none", scale=None, flip=0.0))
    monkeypatch.setattr(module, "BATCH", 64)
    notes: list[str] = []
    given = encoded_set(Pooled(), progress=lambda done, total, note: notes.append(note))
    figures = LinearSgd.evaluate(given, EvaluationSettings(linear_sgd=LinearSgdSettings(10, 0.5), seed=3))

    rows, truth = np.asarray(given.train, np.float64), np.asarray(given.train_labels)
    weight = torch.empty(10, 64).normal_(std=0.01, generator=torch.Generator().manual_seed(3)).double().numpy()
    bias, speed_w, speed_b = np.zeros(10), np.zeros((10, 64)), np.zeros(10)
    losses, scores = [], []
    for epoch in range(10):
        rate = 0.5 * (1 if epoch < 6 else 0.1 if epoch < 8 else 0.01)
        of_epoch, order = [], permutation(3, ANCHORS, epoch, 300)
        for index in (order[start : start + 64] for start in range(0, 300, 64)):  # the last batch has 44 images
            logits = rows[index] @ weight.T + bias
            chances = np.exp(logits - logits.max(1, keepdims=True))
            chances /= chances.sum(1, keepdims=True)
            of_epoch.append(-np.log(chances[np.arange(len(index)), truth[index]]).mean())
            residual = (chances - np.eye(10)[truth[index]]) / len(index)
            speed_w, speed_b = 0.9 * speed_w + residual.T @ rows[index], 0.9 * speed_b + residual.sum(0)
            weight, bias = weight - rate * speed_w, bias - rate * speed_b
        losses.append(np.mean(of_epoch))
        ranked = np.argsort(-(np.asarray(given.test, np.float64) @ weight.T + bias), axis=1)[:, :5]
        hits = ranked == np.asarray(given.test_labels)[:, None]
        scores.append((100 * hits[:, 0].mean(), 100 * hits.any(1).mean()))

    told = [float(re.search(r"loss ([\d.]+)", note)[1]) for note in notes]  # type: ignore[index]
    assert told == pytest.approx(losses, abs=2e-3)
    best = max(range(10), key=lambda epoch: (scores[epoch][0], -epoch))
    assert figures == pytest.approx(
        {
            "top1": scores[best][0],
            "top5": scores[best][1],
            "best_epoch": best + 1,
            "top1_last": scores[-1][0],
            "top5_last": scores[-1][1],
        }
    )
    assert figures["top1"] > 80


def test_augmented_images_pass_the_frozen_encoder_once_per_epoch() -> None:
    encoder = Pooled()
    figures = LinearSgd.evaluate(encoded_set(encoder), EvaluationSettings(linear_sgd=LinearSgdSettings(3, 0.3)))
    images = torch.cat(encoder.seen)
    assert [len(batch) for batch in encoder.seen] == 3 * [256, 44]  # what is left over makes a batch, as theirs
    assert not any(batch.requires_grad for batch in encoder.seen)
    # Every crop and flip is new: no view comes twice, and none is the plain image.
    plain = {image.numpy().tobytes() for image in pixels(open_source("digits:train").subset(np.arange(300)))}
    views = {image.numpy().tobytes() for image in images}
    assert len(views) > 0.99 * len(images)
    assert len(views & plain) < 0.01 * len(images)
    assert figures["top1"] >= figures["top1_last"]
    assert figures == LinearSgd.evaluate(
        encoded_set(Pooled()), EvaluationSettings(linear_sgd=LinearSgdSettings(3, 0.3))
    )  # seeded
    assert figures != LinearSgd.evaluate(
        encoded_set(Pooled()), EvaluationSettings(linear_sgd=LinearSgdSettings(3, 0.3), seed=1)
    )


def test_shuffled_labels_leave_chance() -> None:
    given = encoded_set(Pooled(), test=200)
    shuffled = np.random.default_rng(0).permutation(given.train_labels)
    assert (
        LinearSgd.evaluate(
            replace(given, train_labels=shuffled), EvaluationSettings(linear_sgd=LinearSgdSettings(3, 0.3))
        )["top1_last"]
        < 30
    )


def test_what_cannot_be_trained_is_a_sentence() -> None:
    given = encoded_set(Pooled(), train=40, test=20)
    features_only = EncodedSet("student", given.test, given.train, given.test_labels, given.train_labels)
    with pytest.raises(DataError, match="there are only features"):
        LinearSgd.evaluate(features_only, EvaluationSettings())
    with pytest.raises(DataError, match=r"diverged in epoch [12] \(loss (nan|inf)\).*learning rate 1e\+38"):
        LinearSgd.evaluate(given, EvaluationSettings(linear_sgd=LinearSgdSettings(2, 1e38)))
