"""The augmented batches of a run, and the plain center squares of a source in order, read by workers or in place."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from understudy.errors import ConfigError, UnreadableImage
from understudy.sources.decode import Geometry, center
from understudy.sources.source import Source
from understudy.views.batches import Batch, NeighborBatches
from understudy.views.reader import ImageBatch, Skipped, ViewReader, Views
from understudy.views.tuning import (
    PREFETCH,
    TRIALS,
    available_shared_memory,
    fit_shared_memory,
    max_workers,
    needed_prefetch,
    needed_workers,
    transfer_seconds,
)
from understudy.views.workers import Workers, results


@dataclass(frozen=True)
class Reading:
    """Who reads the batches, and for which device."""

    workers: int | None = None  # processes that read, 0 for none; None measures (`tuning.needed_workers`)
    # Where the batches go. For a GPU their pixels are copied to page-locked memory, unless it is measured, with the
    # workers, that this does not pay.
    device: str | torch.device = "cpu"
    notify: Callable[[str], object] | None = None  # called with a sentence once the number of workers is measured


@dataclass(frozen=True)
class Share:
    """One process' place (from 0) among so many, which take equal shares of whole bags."""

    rank: int = 0
    world: int = 1

    def of(self, batches: NeighborBatches) -> slice:
        """This process' images of each batch.

        Raises:
            ConfigError: the bags of a batch cannot be shared equally.
        """
        if batches.bags % self.world:
            bag = batches.k + 1
            raise ConfigError(
                f"{batches.bags} bags of {bag} images cannot be shared equally by {self.world} processes. Set "
                f"--batch-size to a multiple of {self.world * bag}."
            )
        size = batches.batch_size // self.world
        return slice(self.rank * size, (self.rank + 1) * size)


class Loader:
    """Iterates over the augmented batches of a run.

    The global batch of a step is a function of (seed, step), each view one of (seed, image id, view number): neither
    workers nor processes nor a resumed start change a pixel. Labels are never read.

    Args:
        source: the images; see `pixels.decoded` for those that are small.
        batches: which images meet.
        views: what is cut from each image.
        reading: who reads.
        share: this process' part of each batch.
        steps: which batches; all unless given.

    Raises:
        ConfigError: the bags of a batch cannot be shared equally.
    """

    def __init__(
        self, source: Source, batches: NeighborBatches, views: Views, *, reading: Reading | None = None,
        share: Share | None = None, steps: range | None = None,
    ) -> None:  # fmt: skip
        reading, share = reading or Reading(), share or Share()
        self.batches, self.steps, self.reading = batches, steps, reading
        self.device = torch.device(reading.device)
        self._reader = ViewReader(source, share.of(batches), views)
        self._shared_memory = available_shared_memory(share.world)
        count, prefetch, pin = reading.workers, PREFETCH, self.device.type == "cuda"
        if count is None:
            count = max_workers(source, share.world)
        else:
            _, prefetch = fit_shared_memory(count, prefetch, self._reader.nbytes, self._shared_memory)
        self.workers = Workers(count, prefetch, pin)
        self._measures = reading.workers is None and (count > 0 or pin)
        self._stream: Generator[ImageBatch] | None = None

    def __iter__(self) -> Iterator[ImageBatch]:
        bounds = () if self.steps is None else (self.steps.start, self.steps.stop)
        self._stream = self._read(self.batches.iterate(*bounds))
        return self._stream

    def _read(self, jobs: Iterator[Batch]) -> Generator[ImageBatch]:
        """All jobs; how many workers take part is measured on the first of them, and changes no batch."""
        if self._measures:
            seconds: list[tuple[float, float]] = []
            for job in itertools.islice(jobs, TRIALS):
                start = time.perf_counter()
                batch = self._reader[job]
                read = time.perf_counter()
                yield batch.pin_memory() if self.workers.pin else batch
                if self.workers.pin:
                    torch.cuda.synchronize()
                seconds.append((read - start, time.perf_counter() - read))
            if len(seconds) == TRIALS:
                self._measures = False
                reads, steps = map(list, zip(*seconds[1:], strict=True))
                self._choose_workers(reads, steps, batch.pixels)
        with contextlib.closing(results(self._reader, jobs, self.workers)) as rest:
            yield from rest

    def _choose_workers(self, reads: list[float], steps: list[float], pixels: Tensor) -> None:
        """Workers, batches ahead and page-locking from the seconds that reading and training took; notifies."""
        read, step = statistics.median(reads), statistics.median(steps)
        most, count = self.workers.count, needed_workers(read, step, self.workers.count)
        needed = (count, needed_prefetch(max(reads), step, count))
        count, prefetch = fit_shared_memory(*needed, self._reader.nbytes, self._shared_memory)
        each = f", {prefetch} batch{'' if prefetch == 1 else 'es'} ahead each" if count else ""
        sentence = (
            f"Reading a batch takes {read:.3g} s of a core, a step {step:.3g} s: {count} of at most {most} "
            f"workers{each}."
        )
        if (count, prefetch) != needed:
            sentence += (
                f" Shared memory has no room for more: {self._shared_memory / 2**20:,.0f} MiB, a batch takes "
                f"{self._reader.nbytes / 2**20:,.1f} MiB. In a container, give it --shm-size=8g."
            )
        self.workers = replace(self.workers, count=count, prefetch=prefetch)
        if self.workers.pin:
            locked, pageable = transfer_seconds(pixels, self.device, pinned_here=count == 0)
            self.workers = replace(self.workers, pin=locked < pageable)
            sentence += (
                f" A batch's way to the device holds training up for {locked * 1000:.2g} ms from page-locked memory, "
                f"{pageable * 1000:.2g} ms from other: {'page-locked' if self.workers.pin else 'other'}."
            )
        if self.reading.notify is not None:
            self.reading.notify(sentence)

    def close(self) -> None:
        """End the worker processes of the last iteration."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class ImageLoader:
    """Iterates over the images of a source in order, without augmentation.

    Yields (indices, pixels, skipped, sums): the positions in the source of those that could be read, (b,) int64; their
    uint8 pixels (b, 3, S, S); the others; and checksums (b,) uint32 of what the images are made from, (0,) unless asked
    for. b is the batch size but at the end and where images were skipped; it can be 0.

    Args:
        source: the images.
        geometry: which square of an image, of S x S pixels, and how.
        batch_size: images per batch.
        workers: processes that read, 0 for none; None takes as many as there are cores and shared memory for.
        parts: ranges of positions to read, each cut into batches by itself; the whole source unless given.
        sums: whether the checksums are asked for.
    """

    def __init__(
        self, source: Source, geometry: Geometry, *, batch_size: int, workers: int | None = None,
        parts: Sequence[range] | None = None, sums: bool = False,
    ) -> None:  # fmt: skip
        parts = [range(len(source))] if parts is None else parts
        self._jobs = [part[i : i + batch_size] for part in parts for i in range(0, len(part), batch_size)]
        self._reader = _CenterReader(source, geometry, sums)
        most = max_workers(source) if workers is None else workers
        pixels = batch_size * 3 * geometry.size**2
        fits, prefetch = fit_shared_memory(most, PREFETCH, pixels, available_shared_memory())
        self.workers = Workers(fits if workers is None else workers, prefetch)

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Generator[tuple[np.ndarray, Tensor, Skipped, np.ndarray]]:
        return results(self._reader, self._jobs, self.workers)


@dataclass
class _CenterReader(Dataset[tuple[np.ndarray, Tensor, Skipped, np.ndarray]]):
    """Turns a range of positions into pixels."""

    source: Source
    geometry: Geometry
    sums: bool

    def __getitem__(self, positions: range) -> tuple[np.ndarray, Tensor, Skipped, np.ndarray]:
        size = self.geometry.size
        pixels = np.empty((len(positions), size, size, 3), dtype=np.uint8)
        readable: list[int] = []
        skipped: Skipped = []
        sums: list[int] = []
        for position in positions:
            try:
                if self.sums:
                    image, value = self.source.read_summed(position)
                    sums.append(value)
                else:
                    image = self.source.read(position)
            except UnreadableImage as error:
                skipped.append((self.source.name(position), str(error)))
                continue
            pixels[len(readable)] = np.asarray(center(image, *self.geometry))
            readable.append(position)
        images = torch.from_numpy(pixels[: len(readable)]).permute(0, 3, 1, 2).contiguous()
        return np.array(readable, dtype=np.int64), images, skipped, np.array(sums, dtype=np.uint32)
