"""Which images meet in a batch: anchors in random order, each with neighbors drawn from the teacher's graph.

Every batch is a pure function of (seed, step), whoever computes it and in whatever order, so resuming and sharing among
processes need no state.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int64

from understudy.errors import ConfigError
from understudy.philox import ANCHORS, NEIGHBORS, permutation, random_words


@dataclass(frozen=True)
class Batch:
    """The global batch of one step."""

    step: int  # counted from 0
    index: Int64[np.ndarray, " B"]  # (B,) int64, which images
    anchor: Int64[np.ndarray, " B"]  # (B,) int64, which bag each belongs to; a bag is an anchor and its neighbors
    view: Int64[np.ndarray, " B"]  # (B,) int64, how often each image was seen before: the number of its view


class NeighborBatches:
    """Batches of bags: [anchor, its k neighbors, anchor, its k neighbors, ...].

    Anchors are a new random permutation of all images each epoch, cut into batches; what is left over at its end is
    dropped, as the authors do, and comes up in other epochs. So anchors are distinct within a batch. An image may still
    be in a batch twice: as a neighbor of two anchors, or as an anchor and a neighbor, as in the paper; each time as
    another view. With k = 0 every image of a batch is an anchor: plain random batches, no image twice.

    Args:
        images: N, how many images there are.
        batch_size: images per step over all processes; the largest multiple of k + 1 up to it is used.
        k: neighbors drawn for each anchor, without replacement, ...
        n: ... from its n nearest.
        seed: 0 <= seed < 2^64.
        graph: (N, K) neighbors, nearest first; not needed for k = 0.
        steps: how many batches there are; None for no end.

    Raises:
        ConfigError: sizes that do not fit; the sentence has both.
    """

    def __init__(
        self, images: int, batch_size: int, *, k: int = 0, n: int = 0, seed: int = 0,
        graph: Int[np.ndarray, "N K"] | None = None, steps: int | None = None,
    ) -> None:  # fmt: skip
        if k < 0 or batch_size < 1:
            raise ConfigError(f"A batch has at least 1 image and 0 neighbors an anchor; got {batch_size} and {k}.")
        self.images, self.k, self.n, self.seed, self.graph, self.steps = images, k, n, seed, graph, steps
        self.bags = batch_size // (k + 1)
        self.batch_size = self.bags * (k + 1)  # B, images per step in fact
        if self.bags == 0:
            raise ConfigError(
                f"A batch of {batch_size} images cannot hold an anchor and its {k} neighbors. Set --batch-size to at "
                f"least {k + 1}, or --neighbors.k to at most {batch_size - 1}."
            )
        if self.bags > images:
            raise ConfigError(
                f"A batch of {batch_size} images needs {self.bags} different anchors, and there are only {images} "
                f"images. Set --batch-size to at most {images * (k + 1)}, or use more images."
            )
        if k:
            if graph is None:
                raise ConfigError(
                    f"Drawing {k} neighbors an anchor needs a neighbor graph. Build it, or set --neighbors.k 0."
                )
            if k > n:
                raise ConfigError(
                    f"{k} neighbors cannot be drawn from the nearest {n}. Raise --neighbors.n or lower --neighbors.k."
                )
            if graph.shape[0] != images:
                raise ConfigError(
                    f"The graph has {graph.shape[0]} rows and there are {images} images. It belongs to other data."
                )
            if n > graph.shape[1]:
                raise ConfigError(
                    f"The graph holds the nearest {graph.shape[1]} neighbors, and {n} are asked for. Build it again "
                    f"with --neighbors.n {n}, or lower --neighbors.n."
                )
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every image is an anchor once, but for those dropped at the end."""
        return self.images // self.bags

    def steps_for(self, passes: float, *, whole_epochs: bool = False) -> int:
        """How many steps so many image passes are, rounded up.

        Args:
            passes: how often an image is in a batch, on average.
            whole_epochs: count as the authors' codes do, an epoch of anchors as 1 + k passes. What an epoch drops at
                its end is then not made up for, and images are in batches a little less often.
        """
        if whole_epochs:
            return math.ceil(passes * self.steps_per_epoch / (self.k + 1))
        return math.ceil(passes * self.images / self.batch_size)

    def passes_of(self, steps: int) -> float:
        """How often an image is in a batch of so many steps, on average."""
        return steps * self.batch_size / self.images

    def describe(self, passes: float, *, whole_epochs: bool = False) -> str:
        """One line: how long `passes` image passes are; arguments as for `steps_for`."""
        steps = self.steps_for(passes, whole_epochs=whole_epochs)
        bags = f"{self.bags} anchors x (1 + {self.k} of the nearest {self.n})" if self.k else "plain random"
        return (
            f"{min(passes, self.passes_of(steps)):.6g} image passes = {steps:,} steps = "
            f"{steps / self.steps_per_epoch:.4g} epochs of anchors; batches of {self.batch_size:,}: {bags}"
        )

    def at(self, step: int) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
        """The images of a step and the bag that each belongs to."""
        return self._indices(step, step + 1)[0], np.repeat(np.arange(self.bags), self.k + 1)

    def iterate(self, start: int = 0, end: int | None = None) -> Iterator[Batch]:
        """The batches of steps `start` to before `end` (or `steps`), with the view numbers of a run from step 0."""
        end = self.steps if end is None else end
        visits = self.visits(start)
        for step in itertools.count(start) if end is None else range(start, end):
            index, anchor = self.at(step)
            view = visits[index] + _occurrence(index)
            np.add.at(visits, index, 1)
            yield Batch(step, index, anchor, view)

    def visits(self, step: int) -> Int64[np.ndarray, " N"]:
        """How often each image was in the batches before `step`."""
        visits = np.zeros(self.images, dtype=np.int64)
        many = max(1, 2**20 // self.batch_size)
        for start in range(0, step, many):
            visits += np.bincount(self._indices(start, min(step, start + many)).ravel(), minlength=self.images)
        return visits

    def _indices(self, start: int, end: int) -> Int64[np.ndarray, "steps B"]:
        """The images of several steps."""
        anchors = np.concatenate([self._anchors(step) for step in range(start, end)])
        if self.k == 0 or self.graph is None:
            return anchors.reshape(end - start, -1)
        # Ranks of random words: the k smallest of n are a draw without replacement, in random order.
        steps = np.repeat(np.arange(start, end), self.bags)
        bags = np.tile(np.arange(self.bags), end - start)
        words = random_words(self.seed, NEIGHBORS, steps, bags, self.n)
        drawn = np.argsort(words, axis=1, kind="stable")[:, : self.k]
        neighbors = np.take_along_axis(self.graph[anchors, : self.n], drawn, axis=1)
        return np.concatenate([anchors[:, None], neighbors], axis=1, dtype=np.int64).reshape(end - start, -1)

    def _anchors(self, step: int) -> Int64[np.ndarray, " bags"]:
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, permutation(self.seed, ANCHORS, epoch, self.images))
        return self._order[1][place * self.bags : (place + 1) * self.bags]


def _occurrence(index: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
    """How often each entry already stands before its place: 0 for the first, 1 for the second."""
    order = np.argsort(index, kind="stable")
    ranked = index[order]
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    result = np.empty_like(index)
    result[order] = np.arange(len(index)) - np.repeat(first, np.diff(np.r_[first, len(index)]))
    return result
