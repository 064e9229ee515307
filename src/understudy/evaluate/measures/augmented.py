"""Labeled images under torchvision's standard augmentation, for protocols that train on pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from understudy.evaluate.encoded_set import EncodedSet
from understudy.models.contract import Contract
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

    def __init__(self, images: int, batch_size: int, *, seed: int) -> None:
        super().__init__(images, batch_size, seed=seed)

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
