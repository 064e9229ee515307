"""Batches made by worker processes, or in this one: the same in the same order, whatever happens to the workers."""

from __future__ import annotations

import gc
import itertools
import signal
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from understudy.errors import DataError, UnderstudyError
from understudy.views.tuning import PREFETCH


@dataclass(frozen=True)
class Workers:
    """The processes that read: how many (0: none), batches ahead of each, and whether to page-locked memory."""

    count: int
    prefetch: int = PREFETCH
    pin: bool = False


def results(reader: Dataset[Any], jobs: Iterable[Any], workers: Workers) -> Generator[Any]:
    """The reader's results of all jobs, in order, made by worker processes or, without any, one by one on demand."""
    jobs = iter(jobs)
    if workers.count:
        pending: deque[Any] = deque()
        try:
            for result in _loader(reader, jobs, pending, workers):
                pending.popleft()
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
        jobs = itertools.chain(pending, jobs)
    for job in jobs:
        result = reader[job]
        yield result.pin_memory() if workers.pin else result


def _loader(reader: Dataset[Any], jobs: Iterator[Any], pending: deque[Any], workers: Workers) -> DataLoader[Any]:
    """PyTorch's loader of the jobs; those that it has given to a worker are appended to `pending`."""

    def sampler() -> Iterator[Any]:
        for job in jobs:
            pending.append(job)
            yield job

    return DataLoader(
        reader,
        batch_size=None,  # a job is a whole batch
        sampler=sampler(),
        num_workers=workers.count,
        prefetch_factor=workers.prefetch,
        pin_memory=workers.pin,
        collate_fn=in_shared_memory,
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),  # its own: drawing from the global one would change the training
    )


class SharedMemoryFull(DataError):
    """A worker has read a batch and found no shared memory to return it in."""


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


def _ignore_interrupts(_: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training process finishes its step and closes the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
