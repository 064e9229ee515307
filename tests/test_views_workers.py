"""The processes that read: how many, how far ahead, and that losing them loses no batch."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from test_views_loader import all_equal, loader_of, noise, photographs
from understudy.sources.decode import Geometry
from understudy.sources.source import Source, open_source
from understudy.views import loader as loader_module
from understudy.views import tuning
from understudy.views.loader import ImageLoader, Reading
from understudy.views.reader import TeacherInput, ViewReader
from understudy.views.tuning import (
    available_shared_memory,
    fit_shared_memory,
    max_workers,
    needed_prefetch,
    needed_workers,
    reading_advice,
    transfer_seconds,
)
from understudy.views.workers import SharedMemoryFull, in_shared_memory


@pytest.fixture
def folder(tmp_path: Path) -> Source:
    """Twenty photographs of many sizes."""
    return photographs(tmp_path / "images")


def test_reading_goes_on_when_the_workers_are_stopped(folder: Source):
    """A scheduler may send SIGTERM to every process of a job; the loop still has to reach its checkpoint."""
    wanted = list(loader_of(folder))
    loader = loader_of(folder, reading=Reading(workers=1))
    stream = iter(loader)
    found = [next(stream)]
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGTERM)
    with pytest.warns(UserWarning, match="worker processes were lost.*Reading goes on in this one"):
        found.extend(stream)
    assert all_equal(iter(found), iter(wanted))


def test_closing_ends_the_workers(folder: Source):
    loader = loader_of(folder, reading=Reading(workers=2))
    next(iter(loader))
    assert len(multiprocessing.active_children()) == 2
    loader.close()
    for worker in multiprocessing.active_children():
        worker.join(10)
    assert multiprocessing.active_children() == []


def test_workers_are_chosen_by_source_and_cores(folder: Source, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert max_workers(open_source(noise(4))) == 0
    assert max_workers(open_source(noise(4, 80, 80))) == 7
    assert max_workers(folder) == 7
    assert max_workers(folder, world=4) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # 4 processes on two machines
    assert max_workers(folder, world=4) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert max_workers(folder) == 0


def test_as_many_workers_as_keep_a_step_fed():
    assert needed_workers(0.001, 0.1, 7) == 0
    assert needed_workers(0.01, 0.1, 7) == 1
    assert needed_workers(0.1, 0.1, 7) == 2
    assert needed_workers(0.4, 0.1, 7) == 5
    assert needed_workers(9.0, 0.1, 7) == 7


@pytest.mark.parametrize("slow", ["step", "read"])
def test_workers_are_measured_and_change_no_batch(folder: Source, monkeypatch: pytest.MonkeyPatch, slow: str):
    wanted = list(loader_of(folder))
    clock, cost = [0.0], {"read": 0.5, "step": 2.0} if slow == "read" else {"read": 0.01, "step": 2.0}
    monkeypatch.setattr(loader_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(loader_module, "max_workers", lambda *_: 3)
    parent, read = os.getpid(), ViewReader.__getitem__

    def reading(self, job):
        if os.getpid() == parent:
            clock[0] += cost["read"]
        return read(self, job)

    monkeypatch.setattr(ViewReader, "__getitem__", reading)
    messages: list[str] = []
    loader = loader_of(folder, reading=Reading(notify=messages.append))
    found, children = [], []
    for batch in loader:
        found.append(batch)
        children.append(len(multiprocessing.active_children()))
        clock[0] += cost["step"]
    assert all_equal(iter(found), iter(wanted)) and len(found) > tuning.TRIALS + 1
    number = 1 if slow == "read" else 0
    ahead = ", 2 batches ahead each" if number else ""
    assert messages == [
        f"Reading a batch takes {cost['read']:g} s of a core, a step 2 s: {number} of at most 3 workers{ahead}."
    ]
    assert loader.workers.count == number
    assert children[: tuning.TRIALS] == [0] * tuning.TRIALS and children[tuning.TRIALS] == number


def test_so_far_ahead_that_a_slow_batch_holds_nobody_up():
    assert needed_prefetch(0.01, 0.1, 1) == 2
    assert needed_prefetch(0.08, 0.1, 1) == 3  # one taking 0.16 s outlasts a step, and not two
    assert needed_prefetch(0.4, 0.1, 5) == 3
    assert needed_prefetch(1.5, 0.1, 5) == 7
    assert needed_prefetch(9.0, 0.1, 1) == needed_prefetch(1.0, 0.0, 1) == tuning.MAX_PREFETCH


def test_no_more_batches_ahead_than_shared_memory_holds():
    mib = 2**20
    assert fit_shared_memory(7, 4, 38 * mib, 12 * 1024 * mib) == (7, 4)
    assert fit_shared_memory(7, 4, 38 * mib, 760 * mib) == (7, 2)  # 20 batches, one of them with the training
    assert fit_shared_memory(7, 4, 38 * mib, 380 * mib) == (4, 2)
    assert fit_shared_memory(7, 4, 38 * mib, 38 * 3 * mib) == (1, 2)
    assert fit_shared_memory(7, 4, 38 * mib, 38 * 2 * mib) == (1, 1)
    assert fit_shared_memory(7, 4, 38 * mib, 32 * mib) == (0, 1)
    assert fit_shared_memory(0, 4, 38 * mib, 0) == (0, 4)
    for workers in range(1, 9):
        for ahead in range(1, 9):
            for batches in range(60):
                fewer, less = fit_shared_memory(workers, ahead, 1, batches)
                assert fewer * less <= max(batches - 1, 0) and fewer <= workers and 1 <= less <= ahead


def test_without_shared_memory_this_process_reads(folder: Source, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loader_module, "max_workers", lambda *_: 2)
    monkeypatch.setattr(loader_module, "needed_workers", lambda *_: 2)
    wanted = list(loader_of(folder))
    batch = 8 * 3 * 24**2
    for batches, workers in [(100, 2), (3, 1), (1, 0)]:
        free = SimpleNamespace(free=2 * batches * batch)
        monkeypatch.setattr(tuning.shutil, "disk_usage", lambda _, free=free: free)
        messages: list[str] = []
        loader = loader_of(folder, reading=Reading(notify=messages.append))
        assert all_equal(loader, iter(wanted))
        assert loader.workers.count == workers
        assert ("Shared memory has no room for more" in messages[0]) == (batches < 100)
    # Who gave a number of workers keeps it.
    loader = loader_of(folder, reading=Reading(workers=2))
    assert (loader.workers.count, loader.workers.prefetch) == (2, 1)
    options = {"geometry": Geometry(24, 0.875, "bicubic"), "batch_size": 8}
    assert ImageLoader(folder, **options).workers.count == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    free = SimpleNamespace(free=2 * 10 * batch)
    monkeypatch.setattr(tuning.shutil, "disk_usage", lambda _: free)
    assert fit_shared_memory(3, 4, batch, available_shared_memory(2)) == (
        2,
        2,
    )  # half of the ten are the other process'


@pytest.mark.slow
def test_a_batch_that_finds_no_shared_memory_is_read_again_in_this_process(
    folder: Source, monkeypatch: pytest.MonkeyPatch
):
    wanted = list(loader_of(folder))
    parent, share = os.getpid(), torch.Tensor.share_memory_

    def share_memory_(tensor):
        if os.getpid() != parent and tensor.ndim == 5 and torch.equal(tensor, wanted[2].pixels):
            raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")
        return share(tensor)

    monkeypatch.setattr(torch.Tensor, "share_memory_", share_memory_)
    with pytest.warns(UserWarning, match="no room in shared memory. Reading goes on in this process"):
        assert all_equal(loader_of(folder, reading=Reading(workers=2)), iter(wanted))
    for worker in multiprocessing.active_children():
        worker.join(10)
    assert multiprocessing.active_children() == []


def test_what_a_worker_hands_over_is_in_shared_memory(folder: Source, monkeypatch: pytest.MonkeyPatch):
    batch = next(iter(loader_of(folder, per_image=2, teacher=TeacherInput(32, (1,)))))
    kept = [batch.pixels.clone(), batch.teacher.pixels.clone()]
    handed = in_shared_memory([batch, {"boxes": torch.ones(2, 4)}, (torch.ones(3), "name")])
    tensors = [batch.index, batch.view, batch.pixels, batch.rows, batch.teacher.place, batch.teacher.pixels]
    assert all(tensor.is_shared() for tensor in [*tensors, handed[1]["boxes"], handed[2][0]])
    assert torch.equal(batch.pixels, kept[0]) and torch.equal(batch.teacher.pixels, kept[1])

    def full(tensor):
        raise RuntimeError("No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(SharedMemoryFull, match=r"no shared memory for 12.0 MiB \(No space left on device \(28\)\)"):
        in_shared_memory(torch.zeros(3 * 2**20))


@pytest.mark.parametrize("fast", ["page-locked", "other"])
def test_pages_are_locked_where_that_pays(folder: Source, monkeypatch: pytest.MonkeyPatch, fast: str):
    """With a clock of our own, as the copies are: a CPU locks no pages."""
    clock, locked, synchronized = [0.0], [], []
    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(torch.cuda, "synchronize", synchronized.append)

    def pin_memory(pixels):
        clock[0] += 3.0
        locked.append(pixels.clone())
        return locked[-1]

    def to(pixels, device, non_blocking):
        assert non_blocking
        clock[0] += 1.0 if any(pixels is one for one in locked) else {"page-locked": 5.0, "other": 0.5}[fast]
        return pixels

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    device, other = torch.device("cuda"), {"page-locked": 5.0, "other": 0.5}[fast]
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert transfer_seconds(pixels, device, pinned_here=False) == (1.0, other)
    assert transfer_seconds(pixels, device, pinned_here=True) == (4.0, other)  # locking is then its own work
    assert synchronized == [device] * len(synchronized) and len(synchronized) == 4 * tuning.TRIALS

    messages: list[str] = []
    loader = loader_of(folder, reading=Reading(device=device, notify=messages.append))
    loader._choose_workers([1.0], [1.0], pixels)
    assert loader.workers.pin == (fast == "page-locked")
    assert messages[0].endswith(f" from other: {fast}.")


def test_who_waits_for_images_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert reading_advice(0.1, 0, 224) is None
    assert reading_advice(0.25, 2, 224) == (
        "25% of the time went into waiting for images, with 2 reading processes. Give it more: --workers 7."
    )
    assert "shorter side about 256 px" in str(reading_advice(0.25, 7, 224))
    assert "--workers 3." in str(reading_advice(0.25, 2, 224, world=2)) and "no cores for more" in str(
        reading_advice(0.25, 3, 224, 2)
    )


def test_an_error_of_the_reader_is_not_mistaken_for_a_lost_worker(folder: Source, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise OSError("a broken disk")

    monkeypatch.setattr("understudy.sources.formats.folder.FolderImages.read", broken)
    with pytest.raises(OSError, match="a broken disk"):
        next(iter(loader_of(folder, reading=Reading(workers=1))))
