"""Is it learning? The student against the teacher on images it is not trained on, in numbers that mean something.

A distillation loss can be flat for hours in a healthy run. These do not lie that way: per cent of the teacher's kNN
accuracy, share of common neighbors, cosine per image and per dimension, and how alike all embeddings have become.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from understudy.embed.transform import Transform
from understudy.losses.base.similarity import column_cosine, row_cosine
from understudy.models.contract import Contract
from understudy.models.student import Student
from understudy.models.teacher import Teacher
from understudy.neighbors.search import search
from understudy.neighbors.vote import neighbor_overlap, weighted_vote
from understudy.sources.source import Source
from understudy.views.loader import ImageLoader

TEST_IMAGES, BANK_IMAGES = 512, 2048
"""Held-out images and labeled training images at most: small enough to cost seconds a run."""

NEIGHBORS = 10
COLLAPSED = 1e-4
"""Mean distance (1 - cosine) between images below which features count as constant. Pooled features after a ReLU share
a large mean, so healthy small students lie as low as 0.007; a constant one lies at rounding error."""


@dataclass
class Probe:
    """A slice of images, decoded once, with the teacher's embeddings of them.

    Args:
        pixels: (M, 3, S, S) uint8, un-augmented held-out images.
        teacher: (M, D) teacher embeddings of them, or None in a run without teacher.
        target: (M, D) the same in the transformed space that the student is trained in; `teacher` unless given.
        labels: (M,) class indices, or None.
        bank: (N, 3, S, S) uint8 labeled training images that vote, or None.
        bank_teacher: (N, D) teacher embeddings of the bank, or None.
        bank_labels: (N,) class indices, or None.
    """

    pixels: Tensor
    teacher: np.ndarray | None = None
    labels: np.ndarray | None = None
    bank: Tensor | None = None
    bank_teacher: np.ndarray | None = None
    bank_labels: np.ndarray | None = None
    target: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.teacher_neighbors = None
        if self.teacher is not None and len(self.teacher) > NEIGHBORS:
            self.teacher_neighbors = _nearest(self.teacher)
        self.teacher_knn = self._accuracy(self.bank_teacher, self.teacher)

    def _accuracy(self, bank: np.ndarray | None, queries: np.ndarray | None) -> float | None:
        if bank is None or queries is None or self.labels is None or self.bank_labels is None:
            return None
        k = min(NEIGHBORS, len(bank))
        neighbors = search(queries, bank, k)
        classes = int(max(self.labels.max(), self.bank_labels.max())) + 1
        voted = weighted_vote(neighbors, self.bank_labels, classes, [k])[k]
        return float(100 * (voted[:, 0] == self.labels).mean())

    def measure(self, student: Student, device: torch.device, batch_size: int = 256) -> dict[str, float]:
        """The signals of a student; its mode is left as it was.

        Returns:
            Of `row_cosine`, `column_cosine`, `overlap@10` (0-100), `knn`, `teacher_knn`, `knn_relative` (per cent of
            the teacher's) those that can be measured, and `spread`: 1 - mean cosine between images, 0 when collapsed.
        """
        was_training = student.training
        student.eval()
        features, embeddings = _forward(student, self.pixels, device, batch_size)
        signals: dict[str, float] = {}
        unit = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
        count = len(unit)
        if count > 1:
            signals["spread"] = float(1 - (unit.sum(0).square().sum() - count) / (count * (count - 1)))
        target = self.teacher if self.target is None else self.target
        if target is not None and embeddings.shape[1] == target.shape[1]:
            s, t = torch.from_numpy(embeddings), torch.from_numpy(target).float()
            signals["row_cosine"] = float(row_cosine(s, t).mean())
            signals["column_cosine"] = float(column_cosine(s, t).mean())
        if self.teacher_neighbors is not None:
            overlap = neighbor_overlap(_nearest(features), self.teacher_neighbors, [NEIGHBORS])
            signals[f"overlap@{NEIGHBORS}"] = 100 * float(overlap[NEIGHBORS])
        if self.bank is not None:
            knn = self._accuracy(_forward(student, self.bank, device, batch_size)[0], features)
            if knn is not None:
                signals["knn"] = knn
                if self.teacher_knn:
                    signals["teacher_knn"] = self.teacher_knn
                    signals["knn_relative"] = 100 * knn / self.teacher_knn
        student.train(was_training)
        return signals


def build_probe(
    test: Source,
    bank: Source | None,
    contract: Contract,
    *,
    teacher: Teacher | None,
    transform: Transform | None,
    device: torch.device,
    seed: int,
) -> Probe:
    """A probe of at most `TEST_IMAGES` images, with at most `BANK_IMAGES` that vote where both have labels.

    Args:
        test: images that are not trained on.
        bank: labeled training images, or None.
        contract: of the student.
        teacher: on the device, or None.
        transform: of the space that the student is trained in, or None.
        device: of the teacher.
        seed: decides which images are taken.
    """
    size = max(contract.size, teacher.contract.size if teacher is not None else 0)

    def read(source: Source, count: int) -> tuple[Tensor, np.ndarray | None, np.ndarray | None]:
        generator = np.random.Generator(np.random.Philox(key=[seed, 0x51]))
        source = source.subset(np.sort(generator.permutation(len(source))[:count]))
        loader = ImageLoader(source, contract.geometry._replace(size=size), batch_size=64, workers=0)
        parts = [(indices, pixels) for indices, pixels, *_ in loader]
        pixels = torch.cat([part[1] for part in parts])
        readable = np.concatenate([part[0] for part in parts])
        embeddings = None
        if teacher is not None:
            images = (chunk.to(device).float() / 255 for chunk in pixels.split(64))
            embeddings = torch.cat([teacher(image).float().cpu() for image in images]).numpy()
        return pixels, embeddings, None if source.labels is None else source.labels[readable]

    pixels, embeddings, labels = read(test, TEST_IMAGES)
    target = None if embeddings is None or transform is None else transform.apply(embeddings)
    if bank is None or labels is None:
        return Probe(pixels, embeddings, target=target)
    return Probe(pixels, embeddings, labels, *read(bank, BANK_IMAGES), target=target)


def verdict(signals: dict[str, float]) -> str:
    """One plain sentence on a set of signals."""
    if signals.get("spread", 1.0) < COLLAPSED:
        return "WARNING: the student's features are nearly the same for all images (collapsed)."
    if "knn_relative" in signals:
        return f"The student keeps {signals['knn_relative']:.1f} % of the teacher's kNN accuracy on held-out images."
    if f"overlap@{NEIGHBORS}" in signals:
        return f"{signals[f'overlap@{NEIGHBORS}']:.1f} % of the {NEIGHBORS} nearest neighbors are the teacher's."
    if "knn" in signals:
        return f"kNN accuracy {signals['knn']:.1f} % on held-out images."
    return "No teacher and no labels to compare with."


def _nearest(features: np.ndarray) -> np.ndarray:
    return search(features, features, NEIGHBORS, exclude=np.arange(len(features)))[0]


@torch.no_grad()
def _forward(student: Student, pixels: Tensor, device: torch.device, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    features, embeddings = [], []
    for chunk in pixels.split(batch_size):
        images = student.contract.prepare(chunk.to(device).float() / 255)
        feature = student.features(images.contiguous(memory_format=torch.channels_last))
        features.append(feature.float().cpu())
        embeddings.append(student.head(feature).float().cpu())  # as it is trained, before the way back
    return torch.cat(features).numpy(), torch.cat(embeddings).numpy()
