"""The images of a source in order, each cut to its center square: for embedding and evaluation."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from torch import Tensor

from understudy.errors import UnreadableImage
from understudy.sources.source import Source
from understudy.sources.square import center
from understudy.views.reader import Skipped
from understudy.views.tuning import PREFETCH, available_shared_memory, fit_shared_memory, max_workers
from understudy.views.workers import Workers, results


class ImageLoader:
    """Iterates over the images of a source in order, without augmentation.

    Yields (indices, pixels, skipped): the positions in the source of those that could be read, (b,) int64; their uint8
    pixels (b, 3, S, S); and the others. b is the batch size but at the end and where images were skipped; it can be 0.

    Args:
        source: the images.
        size: S, side in pixels.
        crop: share of the resized shorter side that the center crop keeps.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        batch_size: images per batch.
        workers: processes that read, 0 for none; None takes as many as there are cores and shared memory for.
        parts: ranges of positions to read, each cut into batches by itself; the whole source unless given.
    """

    def __init__(
        self, source: Source, *, size: int, crop: float, interpolation: str, batch_size: int,
        workers: int | None = None, parts: Sequence[range] | None = None,
    ) -> None:  # fmt: skip
        parts = [range(len(source))] if parts is None else parts
        self._jobs = [part[i : i + batch_size] for part in parts for i in range(0, len(part), batch_size)]
        self._reader = _CenterReader(source, size, crop, interpolation)
        most = max_workers(source) if workers is None else workers
        fits, prefetch = fit_shared_memory(most, PREFETCH, batch_size * 3 * size * size, available_shared_memory())
        self.workers = Workers(fits if workers is None else workers, prefetch)

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Generator[tuple[np.ndarray, Tensor, Skipped]]:
        return results(self._reader, self._jobs, self.workers)

    """Turns a range of positions into pixels."""

    source: Source
    size: int
    crop: float
    interpolation: str

    def __getitem__(self, positions: range) -> tuple[np.ndarray, Tensor, Skipped]:
        pixels = np.empty((len(positions), self.size, self.size, 3), dtype=np.uint8)
        readable: list[int] = []
        skipped: Skipped = []
        for position in positions:
            try:
                image = self.source.read(position)
            except UnreadableImage as error:
                skipped.append((self.source.name(position), str(error)))
                continue
            pixels[len(readable)] = np.asarray(center(image, self.size, self.crop, self.interpolation))
            readable.append(position)
        images = torch.from_numpy(pixels[: len(readable)]).permute(0, 3, 1, 2).contiguous()
        return np.array(readable, dtype=np.int64), images, skipped
