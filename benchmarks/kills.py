"""SIGKILL at random moments of embedding, graph, recording and training; resumed, the results are the same bytes.

    python benchmarks/kills.py [--kills 3] [--seed 0]

For one process and for two: a whole run on the digits that nobody disturbs, then the same run killed `--kills` times in
each of its four stages, after a random number of its units of work. With two processes one of them or both are killed;
whatever is left then gets SIGTERM, as torchrun would send. Prints what each kill cost, in units that had to be done
again, and ends with an error if a single byte of embeddings, graph, recorded views or student differs.

So that a kill can hit them, stages that take milliseconds on 1,437 digits are cut small (128 images a block) and each
unit sleeps 20 ms; what was done is saved every 0.3 s instead of every 10 (checkpoints: every 10 minutes).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from understudy import pipeline
from understudy.artifacts import Run
from understudy.embed import blocks, embedding, recorded
from understudy.neighbors import graph
from understudy.pipeline import RunSettings
from understudy.settings import resolve
from understudy.sources.source import open_source
from understudy.train import meter

TEACHER = """
import torch

class ToyEncoder(torch.nn.Module):
    contract = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}

    def forward(self, x):
        small = torch.nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 5).flatten(1)
        return small - small.mean(1, keepdim=True)
"""
SAVED_EVERY = 0.3  # seconds
PAUSE = 0.02  # seconds
STAGES = ("embed", "graph", "record", "train")
UNITS = {"embed": "batches", "graph": "blocks", "record": "views", "train": "steps"}
TRAIN = {
    "data": "digits:train", "holdout": 0, "probes": 0, "workers": 0, "device": "cpu", "batch_size": 64, "passes": 4,
    "teacher": "python:thumbnail:ToyEncoder", "student": "small:resnet8x0.25", "head_hidden": 32,
    "neighbors": {"k": 3, "n": 9}, "views": {"teacher": "recorded", "pool": 2, "dtype": "float32"},
    "checkpoint_minutes": SAVED_EVERY / 60,
}  # fmt: skip


def main() -> None:
    """Kill, resume, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3, help="in each of four stages, for one process and for two")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("thumbnail.py").write_text(TEACHER)
        sys.path.insert(0, folder)
        open_source("digits:train")  # what every life needs is imported once, before it forks
        print("| processes | killed | in | after | to be done again |\n|---|---|---|---|---|", flush=True)
        for world in (1, 2):
            assert Life(f"whole-{world}", world).wait() == [0] * world, Path("errors").read_text()
            name, log = f"killed-{world}", Units(f"killed-{world}")
            for stage in [stage for stage in STAGES for _ in range(options.kills)]:
                life = Life(name, world)
                victims = draw.choice([[rank] for rank in range(world)] + [list(range(world))])
                after = log.wait_for(stage, draw.randint(1, 3 if stage in STAGES[:2] else 10), life)
                time.sleep(draw.uniform(0, 2 * PAUSE))
                life.kill(victims)
                log.next_life(
                    f"| {world} | {'all' if len(victims) == world else f'rank {victims[0]}'} | {stage} | {after} "
                )
            assert Life(name, world).wait() == [0] * world, Path("errors").read_text()
            log.report()
            compare(Path(f"whole-{world}"), Path(name))


class Life:
    """The processes of a run from a start to an end or a kill.

    Args:
        name: of the run and its store.
        world: number of processes.
    """

    def __init__(self, name: str, world: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [self._start(name, rank, world, port) for rank in range(world)]

    def _start(self, name: str, rank: int, world: int, port: int) -> int:
        process = os.fork()
        if process:
            return process
        status = 1
        try:
            with open("errors", "a") as errors:
                os.dup2(errors.fileno(), 2)
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            note_units(name, rank)
            settings = resolve(RunSettings, {**TRAIN, "out": f"{name}/run", "store": f"{name}/store"})
            status = 0 if pipeline.train_stage(settings, quiet=True) else 3
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    def wait(self) -> list[int]:
        """The exit statuses."""
        statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in self.processes]
        self.processes = []
        return statuses

    def ended(self) -> bool:
        """Whether a process is no longer there, nobody having killed it."""
        return any(os.waitid(os.P_PID, p, os.WEXITED | os.WNOHANG | os.WNOWAIT) for p in self.processes)

    def kill(self, victims: list[int]) -> None:
        """SIGKILL for some, SIGTERM for the rest, SIGKILL for what has not ended 30 s later."""
        for rank in victims:
            os.kill(self.processes[rank], signal.SIGKILL)
        for process in self.processes:
            os.kill(process, signal.SIGTERM)
        for process in self.processes:
            limit = time.monotonic() + 30
            while not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if time.monotonic() > limit:
                    os.kill(process, signal.SIGKILL)
                time.sleep(0.01)
        self.wait()


def note_units(name: str, rank: int) -> None:
    """Write every unit of work down as it is done, and slow it down."""
    embedding.BLOCK = graph.BLOCK = 128
    graph.BLOCKS = 64
    blocks.SAVE_SECONDS = recorded.FLUSH_SECONDS = SAVED_EVERY
    file = os.open(f"{name}.units", os.O_APPEND | os.O_CREAT | os.O_WRONLY)

    def note(stage: str, *units: str) -> None:
        os.write(file, "".join(f"{stage} {rank}:{unit}\n" for unit in units).encode())
        time.sleep(PAUSE)

    append, record, add = blocks.Block.append, recorded.RecordedViews.record, meter.Meter.add
    search = graph.search  # type: ignore[attr-defined] # as it is called there

    def appending(self: Any, *args: Any) -> None:
        append(self, *args)
        note("embed", f"{self.number}-{self.done}")

    def searching(*args: Any, **more: Any) -> Any:
        found = search(*args, **more)
        note("graph", str(more["exclude"][0]))
        return found

    def recording(self: Any, index: Any, view: Any, rows: Any) -> Any:
        found = record(self, index, view, rows)
        note("record", *(f"{i}-{v}" for i, v in zip(index, view, strict=True)))
        return found

    def adding(self: Any, step: int, *args: Any) -> None:
        add(self, step, *args)
        note("train", str(step))

    blocks.Block.append = appending
    graph.search = searching  # type: ignore[attr-defined]
    recorded.RecordedViews.record, meter.Meter.add = recording, adding


class Units:
    """What the lives of a run have done.

    Args:
        name: of the run.
    """

    def __init__(self, name: str) -> None:
        self.path, self.lives, self.kills, self.read = Path(f"{name}.units"), [], [], 0

    def lines(self) -> list[str]:
        """What was done in this life."""
        return self.path.read_text().splitlines()[self.read :] if self.path.exists() else []

    def wait_for(self, stage: str, count: int, life: Life) -> str:
        """Until so many units of a stage are done (recording and training both count in steps); says what is done.

        Training begins when the pool is full: in the first steps views are still recorded.
        """
        while True:
            done = self.lines()
            steps = {line.split(":")[1] for line in done if line.startswith("train")}
            if stage in ("embed", "graph"):
                reached = sum(line.startswith(stage) for line in done)
            elif stage == "record":
                reached = len(steps)
            else:
                pool_full = [int(step) for step in steps if int(step) >= 2 * 1437 // 64]
                reached = len(pool_full)
            if reached >= count:
                last = max(map(int, steps), default=None)
                return f"step {last}" if stage in ("record", "train") else f"{reached} {UNITS[stage]}"
            assert not life.ended(), Path("errors").read_text()
            time.sleep(0.002)

    def next_life(self, kill: str) -> None:
        """Keep what this life did, and how it ended."""
        done = self.lines()
        self.read += len(done)
        self.lives.append(done)
        self.kills.append(kill)

    def report(self) -> None:
        """A row for each kill: what later lives did again of what its life had done."""
        self.lives.append(self.lines())
        lost = [Counter() for _ in self.lives]
        last: dict[str, int] = {}
        for number, done in enumerate(self.lives):
            for unit in done:
                if unit in last:
                    lost[last[unit]][unit.split()[0]] += 1
                last[unit] = number
        for kill, again in zip(self.kills, lost, strict=False):
            print(kill + "| " + (", ".join(f"{again[s]} {UNITS[s]}" for s in STAGES if again[s]) or "nothing") + " |")
        assert not lost[-1], "a life that nobody killed did something twice"


def compare(whole: Path, killed: Path) -> None:
    """Every array and the student, byte for byte.

    Raises:
        SystemExit: something differs.
    """
    found = []
    for run in (whole, killed):
        (store,) = (path.parent for path in run.glob("store/*/manifest.json"))
        arrays = {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*.npy")}
        found.append({**arrays, "student.safetensors": Run(run / "run").weights_path.read_bytes()})
    if found[0].keys() != found[1].keys():
        sys.exit(f"{killed} has other files: {sorted(found[0].keys() ^ found[1].keys())}")
    different = [name for name in found[0] if found[0][name] != found[1][name]]
    if different:
        sys.exit(f"{killed} differs from {whole} in {', '.join(different)}")
    print(f"{killed}: {len(found[0])} files, the same bytes as {whole}", flush=True)


if __name__ == "__main__":
    main()
