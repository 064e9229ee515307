"""How many processes read, and how far ahead: from the cores, the seconds measured and the shared memory there is."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time

import torch
from torch import Tensor

from understudy.sources.formats.npy import ArrayImages
from understudy.sources.pixels import SMALL
from understudy.sources.source import Source

PREFETCH = 4  # batches that each worker prepares ahead where nothing was measured
MAX_PREFETCH = 8  # no more than these: workers that do not keep up are not helped by a longer queue
TRIALS = 4  # measurements of each kind, the first of which warms up and does not count


def max_workers(source: Source, world: int = 1) -> int:
    """How many worker processes there are cores for.

    None for small decoded images, which cost less to read than to send between processes; else one for each core but
    one, at most 16, where the training processes of a machine share its cores.

    Args:
        source: the images to read.
        world: number of training processes; those on this machine are known under torchrun.
    """
    pixels = source.images.pixels if isinstance(source.images, ArrayImages) else None
    if pixels is not None and max(pixels.shape[1:3]) <= SMALL:
        return 0
    return max(0, min(16, _cores_per_process(world) - 1))


def needed_workers(read: float, step: float, most: int) -> int:
    """So many, up to `most`, that a batch is there when a step ends, with a quarter to spare.

    None where reading a batch, in seconds of one core, is next to nothing beside a step without reading, in seconds.
    """
    return 0 if read < 0.02 * step else min(most, math.ceil(1.25 * read / max(step, 1e-9)))


def needed_prefetch(slowest: float, step: float, workers: int) -> int:
    """So many batches ahead of each worker that one twice as slow as any measured delays no step; at least two.

    Both are seconds: of one core for the slowest batch that was read, and of a training step without reading.
    """
    return min(MAX_PREFETCH, 1 + max(1, math.ceil(2 * slowest / max(workers * step, 1e-9))))


def fit_shared_memory(workers: int, prefetch: int, nbytes: int, available: int) -> tuple[int, int]:
    """The nearest number of workers and of batches ahead of each that fits into shared memory, or no workers.

    Containers have 64 MiB by default, less than one batch of photographs; `nbytes` is that of a batch.
    """
    batches = available // max(nbytes, 1) - 1  # one is with the training
    if workers <= 0 or batches >= workers * prefetch:
        return workers, prefetch
    # Rather fewer ahead than fewer workers, but a worker with one batch ahead waits for its turn.
    workers = min(workers, max(batches // 2, min(batches, 1)))
    return max(workers, 0), max(1, min(prefetch, batches // max(workers, 1)))


def available_shared_memory(world: int = 1) -> int:
    """Bytes of shared memory that workers may fill: half of what is free, divided as the cores in `max_workers`."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:  # not Linux: no such limit
        return sys.maxsize
    return free // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", world))


def transfer_seconds(pixels: Tensor, device: torch.device, *, pinned_here: bool) -> tuple[float, float]:
    """Seconds for which copying a batch to a CUDA device stops this process: from page-locked memory, and from other.

    Where this process locks the pages itself (`pinned_here`), and no other thread does it, that counts too.
    """

    def copy(pin: bool) -> float:
        start = time.perf_counter()
        source = pixels.pin_memory() if pin else pixels
        start = start if pinned_here else time.perf_counter()
        source.to(device, non_blocking=True)
        seconds = time.perf_counter() - start
        torch.cuda.synchronize(device)
        return seconds

    locked, pageable = zip(*((copy(True), copy(False)) for _ in range(TRIALS)), strict=True)
    return min(locked), min(pageable)  # the first of each asks for memory


def reading_advice(waiting: float, workers: int, size: int, world: int = 1) -> str | None:
    """What to do about a training that waits for images for a share of its time; None where it does not.

    So many workers read, views are `size` pixels wide, `world` is as for `max_workers`.
    """
    if waiting <= 0.1:
        return None
    readers = f"{workers} reading process{'' if workers == 1 else 'es'}"
    sentence = f"{waiting:.0%} of the time went into waiting for images, with {readers}. "
    if (spare := _cores_per_process(world) - 1) > workers:
        return f"{sentence}Give it more: --workers {min(16, spare)}."
    return (
        f"{sentence}There are no cores for more. Keep the images no larger than the views need (shorter side about "
        f"{round(size * 8 / 7)} px), on a local disk; --views.recipe crop costs least."
    )


def _cores_per_process(world: int) -> int:
    """Cores of this machine for each of its training processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", world))
