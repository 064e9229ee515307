"""Who makes the cells: this process one after the other, or several processes of this machine at a time."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from understudy.artifacts import write_json
from understudy.compare.cell import Cell, attempt
from understudy.compare.progress import Progress
from understudy.compare.variants import Variant
from understudy.errors import Stopped
from understudy.models.trust import TRUSTED, trusting
from understudy.pipeline import RunSettings
from understudy.settings import as_table, resolve


def make_cells(cells: Sequence[Cell], watch: Progress, jobs: int) -> None:
    """Make cells, one after the other here, or several at a time: one is done when its folder says so.

    One that fails does not keep the others from being made.

    Raises:
        Stopped: asked to stop; what is unfinished has left a checkpoint.
    """
    if jobs > 1:
        return LocalProcesses(min(jobs, len(cells))).run(cells, watch)
    for cell in cells:
        watch.started(cell)
        attempt(cell)
        watch.ended(cell)
    return None


class LocalProcesses:
    """Several cells at a time, each a process of its own with its share of the cores."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.running: dict[subprocess.Popen[str], Cell] = {}
        self.places: dict[subprocess.Popen[str], int] = {}
        self.stopping = False
        cores = int(os.environ.get("OMP_NUM_THREADS", 0)) or _cores()
        # The second is what torchrun tells: by it the readers of images share the cores too.
        shares = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), "LOCAL_WORLD_SIZE": str(jobs)}
        shares["PYTHONSAFEPATH"] = "1"  # `-m` would look for every module in the working directory first
        self.environment = os.environ | shares

    def run(self, cells: Sequence[Cell], watch: Progress) -> None:
        """As `make_cells`."""
        waiting = list(cells)
        with self._handlers():
            try:
                while (waiting and not self.stopping) or self.running:
                    while waiting and len(self.running) < self.jobs and not self.stopping:
                        watch.started(waiting[0])
                        self._start(waiting.pop(0))
                    time.sleep(0.05)
                    for process in [process for process in self.running if process.poll() is not None]:
                        self._end(process, watch)
            finally:
                for process in self.running:
                    process.kill()
        if self.stopping:
            raise Stopped

    def _start(self, cell: Cell) -> None:
        cell.folder.mkdir(parents=True, exist_ok=True)
        cell.failure_path.unlink(missing_ok=True)
        place = min(set(range(self.jobs)) - {self.places[process] for process in self.running})
        with open(cell.folder / "log.txt", "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "understudy.compare"], stdin=subprocess.PIPE, stdout=log, stderr=log,
                env=self.environment | one_gpu(place), text=True, start_new_session=True,
            )  # fmt: skip
        assert process.stdin is not None
        job = {"variant": dataclasses.asdict(cell.variant), "folder": str(cell.folder), "role": cell.role,
               "settings": as_table(cell.settings), "trusted": sorted(TRUSTED.get())}  # fmt: skip
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        self.running[process], self.places[process] = cell, place

    def _end(self, process: subprocess.Popen[str], watch: Progress) -> None:
        cell = self.running.pop(process)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        if self.stopping and not cell.done:
            return
        if not cell.done and not cell.failure_path.is_file():
            sentence = (
                f"Its process ended with status {process.returncode} and left no reason (killed for memory, perhaps); "
                f"see {cell.folder / 'log.txt'}."
            )
            write_json(cell.failure_path, {"sentence": sentence})
        watch.ended(cell)

    @contextlib.contextmanager
    def _handlers(self) -> Any:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(*_: Any) -> None:
            for process in list(self.running):
                process.kill() if self.stopping else process.terminate()
            self.stopping = True

        previous = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def one_gpu(place: int) -> dict[str, str]:
    """The environment in which the child of this place sees one of several GPUs: of four, the fifth has the first."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = seen.split(",") if seen else [str(number) for number in range(count)]
    return {"CUDA_VISIBLE_DEVICES": names[place % len(names)]}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_cell_of_parent() -> int:
    """One cell in a process of its own: it is read from standard input, and ends when the parent does."""
    job = json.loads(sys.stdin.readline())

    def watch() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    cell = Cell(Variant(**job["variant"]), Path(job["folder"]), resolve(RunSettings, job["settings"]), job["role"])
    try:
        with trusting(job["trusted"]):
            attempt(cell)
    except Stopped:
        return 143
    return 0 if cell.done else 1
