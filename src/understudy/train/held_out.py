"""The held-out images behind the live signals, decoded and embedded once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from understudy.embed.transform import Transform
from understudy.models.contract import Contract
from understudy.models.teacher import Teacher
from understudy.sources.source import Source
from understudy.train.signals import Probe
from understudy.views.loader import ImageLoader

TEST_IMAGES, BANK_IMAGES = 512, 2048
"""Held-out images and labeled training images at most: small enough to cost seconds a run."""

BATCH = 64


class _Slice(NamedTuple):
    """Some images of a source: (M, 3, S, S) uint8 pixels, (M, D) of the teacher, (M,) labels."""

    pixels: Tensor
    embeddings: np.ndarray | None
    labels: np.ndarray | None


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

    def read(source: Source, count: int) -> _Slice:
        generator = np.random.Generator(np.random.Philox(key=[seed, 0x51]))
        source = source.subset(np.sort(generator.permutation(len(source))[:count]))
        loader = ImageLoader(
            source, size=size, crop=contract.crop, interpolation=contract.interpolation, batch_size=BATCH, workers=0
        )
        parts = [(indices, pixels) for indices, pixels, _ in loader]
        pixels = torch.cat([part[1] for part in parts])
        readable = np.concatenate([part[0] for part in parts])
        embeddings = None
        if teacher is not None:
            images = (chunk.to(device).float() / 255 for chunk in pixels.split(BATCH))
            embeddings = torch.cat([teacher(image).float().cpu() for image in images]).numpy()
        return _Slice(pixels, embeddings, None if source.labels is None else source.labels[readable])

    pixels, embeddings, labels = read(test, TEST_IMAGES)
    target = None if embeddings is None or transform is None else transform.apply(embeddings)
    if bank is None or labels is None:
        return Probe(pixels, embeddings, target=target)
    return Probe(pixels, embeddings, labels, *read(bank, BANK_IMAGES), target=target)
