"""Images into tensors, for training (`Loader`) and for embedding (`ImageLoader`).

They are read by worker processes or in this one: always the same batches.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
import shutil
import signal
import statistics
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from understudy.errors import ConfigError, DataError, UnderstudyError, UnreadableImage
from understudy.sources.arrays import ArrayImages
from understudy.sources.pixels import SMALL
from understudy.sources.source import Source
from understudy.views.augmentation import SIGMA, Recipe, center, draw, geometry, geometry_of_batch
from understudy.views.batches import Batch, NeighborBatches

Skipped = list[tuple[str, str]]
"""Images that could not be read: name, and the sentence that says why."""

AHEAD = 4
"""Batches that each worker prepares ahead where nothing was measured."""

MOST_AHEAD = 8
"""No more than these: workers that do not keep up are not helped by a longer queue."""

TRIAL = 4
"""Batches that are read in this process first, to see how long reading takes beside a step; the first one warms up."""


@dataclass(frozen=True)
class TeacherInput:
    """What the teacher is shown, where its input is not as large as the student's.

    Args:
        size: T, side of its views in pixels.
        views: which of the V views of an image it sees.
        recorded: called with the images' indices and a view's number for each, both (B,): which of them it need not see
            again. None: it sees all.
    """

    size: int
    views: tuple[int, ...]
    recorded: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class TeacherViews:
    """The views of one step that the teacher is shown, at its own size.

    Args:
        place: (n,) int64, which of the views that the teacher sees, counted view by view: i is image i % B.
        pixels: (n, 3, T, T) uint8, before photometry.
        rows: (n, P) float64.
    """

    place: Int64[Tensor, " n"]
    pixels: UInt8[Tensor, "n 3 T T"]
    rows: Float64[Tensor, "n 31"]


@dataclass(frozen=True)
class ImageBatch:
    """Views of the images of one step, on this process.

    Args:
        step: counted from 0.
        index: (B,) int64 on the CPU, which images of the source.
        anchor: (B,) int64, the bag of each in the global batch.
        view: (V, B) int64, the number of each view.
        pixels: (V, B, 3, S, S) uint8, V views of each image, before photometry.
        rows: (V, B, P) float64, their view rows; `views.photometry` wants them on the CPU.
        skipped: images that could not be read; they are in none of the above.
        teacher: views at the teacher's size, where it has one of its own.
    """

    step: int
    index: Int64[Tensor, " B"]
    anchor: Int64[Tensor, " B"]
    view: Int64[Tensor, "V B"]
    pixels: UInt8[Tensor, "V B 3 S S"]
    rows: Float64[Tensor, "V B 31"]
    skipped: Skipped
    teacher: TeacherViews | None = None

    def pin_memory(self) -> ImageBatch:
        """The same with the pixels in page-locked memory, so that copying them to a GPU does not wait."""
        teacher = self.teacher
        if teacher is not None:
            teacher = replace(teacher, pixels=teacher.pixels.pin_memory())
        return replace(self, pixels=self.pixels.pin_memory(), teacher=teacher)


class Loader:
    """Iterates over the augmented batches of a run.

    The global batch of a step is a function of (seed, step), each view one of (seed, image id, view number): neither
    workers nor processes nor a resumed start change a pixel. Labels are never read.

    Args:
        source: the images; see `pixels.decoded` for those that are small.
        batches: which images meet.
        size: S, side of the views in pixels.
        recipe: how they are augmented.
        seed: of the views.
        views_per_image: V, views of each image in a batch.
        pool: how many different views an image has, seen in turn; 0 for no end.
        teacher: what the teacher sees if that is not S pixels wide: the same crops, cut once more. The recipe speaks of
            the larger of the two sizes, and the blur of the other is narrower by their ratio.
        interpolation: of the resizing; "nearest", "bilinear", "bicubic" or "lanczos".
        workers: processes that read, 0 for none; None measures (`enough_workers`).
        rank: this process' place among all, which take equal shares of whole bags.
        world: number of processes.
        start_step: first step, for resuming.
        steps: step before which to end; that of `batches` unless given.
        device: where the batches go. For a GPU their pixels are copied to page-locked memory, unless it is measured,
            with the workers, that this does not pay.
        notify: called with a sentence once the number of workers is measured.

    Raises:
        ConfigError: the bags of a batch cannot be shared equally, or the pool has fewer views than a batch.
    """

    def __init__(
        self,
        source: Source,
        batches: NeighborBatches,
        *,
        size: int,
        recipe: Recipe,
        seed: int,
        views_per_image: int = 1,
        pool: int = 0,
        teacher: TeacherInput | None = None,
        interpolation: str = "bilinear",
        workers: int | None = None,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        steps: int | None = None,
        device: str | torch.device = "cpu",
        notify: Callable[[str], object] | None = None,
    ) -> None:
        if batches.bags % world:
            bag = batches.k + 1
            raise ConfigError(
                f"{batches.bags} bags of {bag} images cannot be shared equally by {world} processes. Set --batch-size "
                f"to a multiple of {world * bag}."
            )
        if 0 < pool < views_per_image:
            raise ConfigError(
                f"This method sees {views_per_image} views of an image in a batch, and the pool has {pool}. Set "
                f"--views.pool to at least {views_per_image}."
            )
        self.batches, self.start_step, self.steps, self.device = batches, start_step, steps, torch.device(device)
        share = slice(rank * batches.batch_size // world, (rank + 1) * batches.batch_size // world)
        self._reader = _ViewReader(source, share, size, recipe, seed, views_per_image, pool, teacher, interpolation)
        self.pin, self.ahead = self.device.type == "cuda", AHEAD
        self.workers = choose_workers(source, world) if workers is None else workers
        self._measures, self._tell = workers is None and (self.workers > 0 or self.pin), notify
        self._room = room(world)
        if workers is not None:
            _, self.ahead = fitting(self.workers, self.ahead, self._reader.nbytes, self._room)
        self._stream: Generator[ImageBatch] | None = None

    def __iter__(self) -> Iterator[ImageBatch]:
        jobs = self.batches.iterate(self.start_step, self.steps)
        self._stream = self._read(jobs)
        return self._stream

    def _read(self, jobs: Iterator[Batch]) -> Generator[ImageBatch]:
        """All jobs; how many workers take part is measured on the first of them, and changes no batch."""
        if self._measures:
            seconds: list[tuple[float, float]] = []
            for job in itertools.islice(jobs, TRIAL):
                begun = time.perf_counter()
                result = self._reader[job]
                read = time.perf_counter()
                yield result.pin_memory() if self.pin else result
                if self.pin:
                    torch.cuda.synchronize()
                seconds.append((read - begun, time.perf_counter() - read))
            if len(seconds) == TRIAL:
                self._measures = False
                reads, steps = map(list, zip(*seconds[1:], strict=True))
                self._choose(reads, steps, result.pixels)
        with contextlib.closing(_stream(self._reader, jobs, self.workers, self.ahead, self.pin)) as rest:
            yield from rest

    def _choose(self, reads: list[float], steps: list[float], pixels: Tensor) -> None:
        """Workers, batches ahead and page-locking from the seconds that reading and training took, and say so."""
        read, step = statistics.median(reads), statistics.median(steps)
        most, wanted = self.workers, enough_workers(read, step, self.workers)
        ahead = enough_ahead(max(reads), step, wanted)
        self.workers, self.ahead = fitting(wanted, ahead, self._reader.nbytes, self._room)
        each = f", {self.ahead} batch{'' if self.ahead == 1 else 'es'} ahead each" if self.workers else ""
        said = (
            f"Reading a batch takes {read:.3g} s of a core, a step {step:.3g} s: {self.workers} of at most {most} "
            f"workers{each}."
        )
        if (self.workers, self.ahead) != (wanted, ahead):
            said += (
                f" Shared memory has no room for more: {self._room / 2**20:,.0f} MiB, a batch takes "
                f"{self._reader.nbytes / 2**20:,.1f} MiB. In a container, give it --shm-size=8g."
            )
        if self.pin:
            locked, pageable = held_up(pixels, self.device, alone=self.workers == 0)
            self.pin = locked < pageable
            said += (
                f" A batch's way to the device holds training up for {locked * 1000:.2g} ms from page-locked memory, "
                f"{pageable * 1000:.2g} ms from other: {'page-locked' if self.pin else 'other'}."
            )
        if self._tell is not None:
            self._tell(said)

    def close(self) -> None:
        """End the worker processes of the last iteration."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class ImageLoader:
    """Iterates over the images of a source in order, un-augmented: for embedding and evaluation.

    Yields (indices, pixels, skipped): the positions in the source of those that could be read, (b,) int64; their uint8
    pixels (b, 3, S, S); and the others. b is the batch size but at the end and where images were skipped; it can be 0.

    Args:
        source: the images.
        size: S, side in pixels.
        crop: share of the resized shorter side that the center crop keeps.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        batch_size: images per batch.
        workers: as for `Loader`.
        parts: ranges of positions to read, each cut into batches by itself; the whole source unless given.
    """

    def __init__(
        self,
        source: Source,
        *,
        size: int,
        crop: float,
        interpolation: str,
        batch_size: int,
        workers: int | None = None,
        parts: Sequence[range] | None = None,
    ) -> None:
        parts = [range(len(source))] if parts is None else parts
        self._jobs = [part[i : i + batch_size] for part in parts for i in range(0, len(part), batch_size)]
        self._reader = _CenterReader(source, size, crop, interpolation)
        fits, self.ahead = fitting(
            choose_workers(source) if workers is None else workers, AHEAD, batch_size * 3 * size * size, room()
        )
        self.workers = fits if workers is None else workers

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Generator[tuple[np.ndarray, Tensor, Skipped]]:
        return _stream(self._reader, self._jobs, self.workers, self.ahead, pin=False)


def enough_workers(read: float, step: float, most: int) -> int:
    """So many that a batch is there when a step ends, with a quarter to spare; none where reading is next to nothing.

    Args:
        read: seconds of one core to read a batch.
        step: seconds of a training step without reading.
        most: workers that there are cores for.
    """
    return 0 if read < 0.02 * step else min(most, math.ceil(1.25 * read / max(step, 1e-9)))


def enough_ahead(slowest: float, step: float, workers: int) -> int:
    """So many batches prepared by each worker that one batch twice as slow as any seen holds nobody up; at least two.

    Args:
        slowest: seconds of one core of the slowest batch that was read.
        step: seconds of a training step without reading.
        workers: processes that read, each its turn.
    """
    return min(MOST_AHEAD, 1 + max(1, math.ceil(2 * slowest / max(workers * step, 1e-9))))


def fitting(workers: int, ahead: int, nbytes: int, room: int) -> tuple[int, int]:
    """The nearest number of workers and of batches ahead of each for which shared memory has room, or no workers.

    Containers have 64 MiB unless told otherwise, less than one batch of photographs.

    Args:
        workers: processes that are wanted.
        ahead: batches that each of them is wanted to prepare.
        nbytes: of a batch.
        room: bytes to be had.
    """
    batches = room // max(nbytes, 1) - 1  # one is with the training
    if workers <= 0 or batches >= workers * ahead:
        return workers, ahead
    # Rather fewer ahead than fewer workers, but a worker with one batch ahead waits for its turn.
    workers = min(workers, max(batches // 2, min(batches, 1)))
    return max(workers, 0), max(1, min(ahead, batches // max(workers, 1)))


def room(world: int = 1) -> int:
    """Bytes of shared memory that reader processes may fill: half of what is free, shared by this machine's processes.

    Args:
        world: as for `choose_workers`.
    """
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:  # not Linux: no such limit
        return sys.maxsize
    return free // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", world))


def held_up(pixels: Tensor, device: torch.device, *, alone: bool) -> tuple[float, float]:
    """Seconds for which the training process is held up by a batch's way to its device: page-locked, and not.

    Args:
        pixels: of a batch, on the CPU.
        device: a CUDA device.
        alone: the training process reads by itself, so page-locking is its own work and not another thread's.
    """
    locked: list[float] = []
    pageable: list[float] = []
    for _ in range(TRIAL):
        begun = time.perf_counter()
        held = pixels.pin_memory()
        since = begun if alone else time.perf_counter()
        held.to(device, non_blocking=True)
        locked.append(time.perf_counter() - since)
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        pixels.to(device, non_blocking=True)
        pageable.append(time.perf_counter() - begun)
        torch.cuda.synchronize(device)
    return min(locked), min(pageable)  # the first of each asks for memory


def advice(waited: float, workers: int, size: int, world: int = 1) -> str | None:
    """What to do about a training that waits for images; None where it does not.

    Args:
        waited: share of the time that went into waiting.
        workers: processes that read.
        size: side of the views in pixels.
        world: as for `choose_workers`.
    """
    if waited <= 0.1:
        return None
    readers = f"{workers} reading process{'' if workers == 1 else 'es'}"
    said = f"{waited:.0%} of the time went into waiting for images, with {readers}. "
    if (spare := _share_of_cores(world) - 1) > workers:
        return f"{said}Give it more: --workers {min(16, spare)}."
    return (
        f"{said}There are no cores for more. Keep the images no larger than the views need (shorter side about "
        f"{round(size * 8 / 7)} px), on a local disk; --views.recipe crop costs least."
    )


def choose_workers(source: Source, world: int = 1) -> int:
    """How many worker processes there is room for.

    None for small decoded images, which cost less to read than to send between processes; else one for each core but
    one, at most 16, where the training processes of a machine share its cores.

    Args:
        source: what is to be read.
        world: number of training processes; those on this machine are known under torchrun.
    """
    pixels = source.images.pixels if isinstance(source.images, ArrayImages) else None
    if pixels is not None and max(pixels.shape[1:3]) <= SMALL:
        return 0
    return max(0, min(16, _share_of_cores(world) - 1))


def _share_of_cores(world: int) -> int:
    """Cores of this machine for each of its training processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", world))


@dataclass(frozen=True)
class _Cut:
    """Views of the images of a batch at one size: (V, B, P) rows, and (V, B) which of them are wanted."""

    size: int
    rows: np.ndarray
    wanted: np.ndarray


@dataclass
class _ViewReader(Dataset[ImageBatch]):
    """Turns the global batch of a step into this process' share of views."""

    source: Source
    share: slice
    size: int
    recipe: Recipe
    seed: int
    views: int
    pool: int
    teacher: TeacherInput | None
    interpolation: str

    @property
    def nbytes(self) -> int:
        """Of the pixels of a batch, at most."""
        image = 3 * self.views * self.size**2
        if self.teacher is not None:
            image += 3 * len(self.teacher.views) * self.teacher.size**2
        return int(self.share.stop - self.share.start) * image

    def __getitem__(self, batch: Batch) -> ImageBatch:
        index, anchor = batch.index[self.share], batch.anchor[self.share]
        view = self.views * batch.view[self.share] + np.arange(self.views)[:, None]
        if self.pool:
            view %= self.pool
        ids = self.source.ids[index]
        rows = np.stack([draw(self.seed, ids, numbers, self.recipe) for numbers in view])
        largest = max(self.size, self.teacher.size if self.teacher is not None else 0)
        everywhere = np.ones(view.shape, bool)
        cuts = [_Cut(self.size, _narrowed(rows, self.size / largest), everywhere)]
        if self.teacher is not None:
            seen, known = list(self.teacher.views), self.teacher.recorded
            wanted = everywhere[seen] if known is None else np.stack([~known(index, view[i]) for i in seen])
            cuts.append(_Cut(self.teacher.size, _narrowed(rows[seen], self.teacher.size / largest), wanted))
        pixels, readable, skipped = self._read(index, cuts)
        if skipped:
            index, anchor, view = index[readable], anchor[readable], view[:, readable]
            cuts = [replace(cut, rows=cut.rows[:, readable], wanted=cut.wanted[:, readable]) for cut in cuts]
        teacher = None
        if self.teacher is not None:
            cut = cuts[1]
            teacher = TeacherViews(
                place=torch.from_numpy(np.flatnonzero(cut.wanted)),
                pixels=torch.from_numpy(pixels[1]),
                rows=torch.from_numpy(cut.rows[cut.wanted]),
            )
        return ImageBatch(
            step=batch.step,
            index=torch.from_numpy(index),
            anchor=torch.from_numpy(anchor),
            view=torch.from_numpy(view),
            pixels=torch.from_numpy(pixels[0].reshape(*view.shape, *pixels[0].shape[1:])),
            rows=torch.from_numpy(cuts[0].rows),
            skipped=skipped,
            teacher=teacher,
        )

    def _read(self, index: np.ndarray, cuts: list[_Cut]) -> tuple[list[np.ndarray], np.ndarray, Skipped]:
        """For each cut its wanted views (n, 3, size, size), view by view; which images could be read; the others."""
        places = [cut.wanted.nonzero()[1] for cut in cuts]
        views = [cut.rows[cut.wanted] for cut in cuts]
        pixels, single = [], []
        for i, cut in enumerate(cuts):
            made = self._small(index[places[i]], views[i], cut.size)
            if made is None:
                single.append(i)
                # In memory as PIL has them, channels last: taking a view over is then one plain copy.
                made = np.empty((len(views[i]), cut.size, cut.size, 3), np.uint8).transpose(0, 3, 1, 2)
            pixels.append(made)
        readable = np.ones(len(index), bool)
        skipped: Skipped = []
        # An image is decoded once, whatever is cut from it.
        for place in np.unique(np.concatenate([places[i] for i in single])).tolist() if single else ():
            try:
                image = self.source.read(int(index[place]))
            except UnreadableImage as error:
                skipped.append((self.source.name(int(index[place])), str(error)))
                readable[place] = False
                continue
            for i in single:
                for n in np.flatnonzero(places[i] == place).tolist():
                    pixels[i][n] = geometry(image, views[i][n], cuts[i].size, self.interpolation)
        if skipped:
            pixels = [made[readable[place]] for made, place in zip(pixels, places, strict=True)]
        return pixels, readable, skipped

    def _small(self, index: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray | None:
        """Views of small decoded images, all at once; None where that way cannot be taken."""
        images = self.source.images
        if (
            not isinstance(images, ArrayImages)
            or images.pixels is None
            or not max(images.pixels.shape[1:3]) <= size <= SMALL
            or self.interpolation != "bilinear"
            or self.recipe.scale is None
            or (images.unreadable and not images.unreadable.keys().isdisjoint(self.source.rows[index].tolist()))
        ):
            return None
        return geometry_of_batch(images.pixels[self.source.rows[index]], rows, size)


def _narrowed(rows: np.ndarray, ratio: float) -> np.ndarray:
    """View rows for images so many times as wide as those that the recipe speaks of."""
    if ratio != 1:
        rows = rows.copy()
        rows[..., SIGMA] *= ratio
    return rows


@dataclass
class _CenterReader(Dataset[tuple[np.ndarray, Tensor, Skipped]]):
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


def _stream(reader: Dataset[Any], jobs: Iterable[Any], workers: int, ahead: int, pin: bool) -> Generator[Any]:
    """The results of all jobs, in order, made by worker processes or, with none, one by one as they are asked for."""
    jobs = iter(jobs)
    if workers:
        handed_out: deque[Any] = deque()

        def drawn() -> Iterator[Any]:
            for job in jobs:
                handed_out.append(job)
                yield job

        loader = DataLoader(
            reader,
            batch_size=None,  # a job is a whole batch
            sampler=drawn(),
            num_workers=workers,
            prefetch_factor=ahead,
            pin_memory=pin,
            collate_fn=in_shared_memory,
            worker_init_fn=_leave_interrupts_to_the_parent,
            generator=torch.Generator(),  # its own: drawing from the global one would change the training
        )
        try:
            for result in loader:
                handed_out.popleft()
                yield result
            return
        except SharedMemoryFull:
            warnings.warn(
                "A batch found no room in shared memory. Reading goes on in this process; in a container, give it "
                "--shm-size=8g.",
                stacklevel=2,
            )
        except UnderstudyError as error:  # the sentence, without the story of the worker around it
            name = f"{type(error).__module__}.{type(error).__name__}: "
            raise type(error)(str(error).strip().rpartition(name)[2]) from None
        except (RuntimeError, OSError, EOFError) as error:
            if "in DataLoader worker process" in str(error):  # raised by the reader, not by the loss of a worker
                raise
            # A scheduler that stops a job may signal every process of it. The loop has to come far enough to write its
            # checkpoint, so reading goes on here, with the same batches.
            warnings.warn(f"The worker processes were lost ({error}). Reading goes on in this one.", stacklevel=2)
        gc.collect()  # what was raised in the iterator holds it in a cycle, and it the workers
        jobs = itertools.chain(handed_out, jobs)
    for job in jobs:
        result = reader[job]
        yield result.pin_memory() if pin else result


class SharedMemoryFull(DataError):
    """A worker has read a batch and found no shared memory to hand it over in."""


def in_shared_memory(result: Any) -> Any:
    """The same with every tensor in shared memory, to be called in the worker that made it.

    Left to itself, a thread of the worker moves it there. Where there is no room that thread drops the batch, and the
    training waits for it for ever.

    Raises:
        SharedMemoryFull: there is no room.
    """
    if isinstance(result, Tensor):
        try:
            result.share_memory_()
        except RuntimeError as error:
            raise SharedMemoryFull(
                f"Reader processes found no shared memory for {result.nbytes / 2**20:,.1f} MiB ({error}). In a "
                "container, give it --shm-size=8g; or use --workers 0."
            ) from None
    elif isinstance(result, list | tuple):
        for part in result:
            in_shared_memory(part)
    elif isinstance(result, dict):
        in_shared_memory(list(result.values()))
    elif is_dataclass(result):
        in_shared_memory([getattr(result, field.name) for field in fields(result)])
    return result


def _leave_interrupts_to_the_parent(_: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training process finishes its step and closes the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
