"""Several processes under torchrun, killed and resumed by as many or by others: the same bytes, or the same weights."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import launch
from toy_runs import TEACHER
from understudy.artifacts import Run, lock
from understudy.errors import TrainingError
from understudy.pipeline import RunSettings, train_stage
from understudy.settings import resolve
from understudy.train import distributed, loop
from understudy.train.distributed import Processes

pytestmark = pytest.mark.slow

TRAIN = {
    "data": "digits.npy", "holdout": 0, "probes": 0, "workers": 0, "device": "cpu", "batch_size": 16, "image_size": 32,
    "passes": 3, "teacher": "python:thumbnail:ToyEncoder", "student": "python:thumbnail:no_norm", "head_hidden": 32,
    "neighbors": {"k": 3, "n": 9}, "optimizer": {"name": "sgd", "lr": 0.1}, "checkpoint_minutes": 0.0,
}  # fmt: skip
POOL = {"pool": 2, "seed": 1, "dtype": "float32"}
RECORDED = {**POOL, "teacher": "recorded"}

# Small blocks, so that few images make several; every batch is saved; what is done is written down, life by life.
WORKER = """
import json, os, signal, sys, time
import torch
from understudy.settings import resolve
from understudy.embed import blocks, embedding
from understudy.neighbors import graph
from understudy.pipeline import RunSettings, train_stage
from understudy.train import loop, meter

torch.set_num_threads(1)
with open("processes", "a") as file: file.write(f"{os.getpid()}\\n")
embedding.BLOCK, embedding.BLOCKS, blocks.SAVE_SECONDS = 64, 8, 0.0
graph.BLOCK = 32
rank, life = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])

def train(out, store, **more):
    return train_stage(resolve(RunSettings, {**TRAIN, "out": out, "store": store, **more}), quiet=True)

def stopping(save):
    def saved(run, state):
        save(run, state)
        os.kill(os.getpid(), signal.SIGTERM)
    return saved
"""

UNDISTURBED = """
train("two", "store", views=RECORDED)
train("two-live", "store", views=POOL)
save = loop.save_checkpoint
loop.save_checkpoint = stopping(save)
assert train("two-then-one", "store", views=POOL) is None
loop.save_checkpoint = save
train("one-then-two", "store", views=POOL)
"""

KILLED = """
def die(where):  # once, whichever life it is
    if not os.path.exists(where):
        with open(where, "w") as file: file.write(str(life))
        os.kill(os.getpid(), signal.SIGKILL)

append, search, add = blocks.Block.append, graph.search, meter.Meter.add

def appending(self, *args):
    append(self, *args)
    with open("embedded", "a") as file: file.write(f"{self.number} {self.done}\\n")
    if rank == 1: die("died-embedding")

def searching(queries, *args, **more):
    found = search(queries, *args, **more)
    with open("searched", "a") as file: file.write(f"{more['exclude'][0]}\\n")
    if rank == 0: die("died-searching")
    return found

def adding(self, step, *args):
    add(self, step, *args)
    if (rank, step) == (1, 14): die("died-training")

blocks.Block.append, graph.search, meter.Meter.add = appending, searching, adding
train("killed", "store-killed", views=RECORDED)
"""

# In the first life a worker is in the middle of a long step when torchrun is killed.
ORPHANED = """
add = meter.Meter.add

def adding(self, step, *args):
    add(self, step, *args)
    if step == 12 and not os.path.exists(f"asleep-{rank}"):
        open(f"asleep-{rank}", "w").close()
        time.sleep(120)

meter.Meter.add = adding
train("orphaned", "store", views=POOL)
"""

# One waits in a collective, with the lock of a run, for another that never comes.
STUCK = """
from understudy.artifacts import lock
from understudy.train.distributed import join

processes = join("cpu")
with lock("stuck" if rank == 0 else "other"):
    open(f"stuck-{rank}", "w").close()
    if rank == 0: processes.barrier()
    time.sleep(200)
"""

# As torchrun and its worker: the first is gone before the second asks for the others.
LATE = """
import os, time
if not os.fork():
    if not os.fork():
        import understudy
        open("begun", "w").write(str(os.getpid()))
        while os.getppid() == understudy.parent.PARENT: time.sleep(0.01)
        from understudy.train.distributed import join
        open("joins", "w").close()
        join("cpu")
    while not os.path.exists("begun"): time.sleep(0.01)
    os._exit(0)
os.wait()
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("processes")
    (folder / "thumbnail.py").write_text(TEACHER)
    digits = np.repeat(load_digits().images[:160, :, :, None] * 15, 3, axis=3)
    np.save(folder / "digits.npy", digits.astype(np.uint8))
    given = f"TRAIN, POOL, RECORDED = {TRAIN!r}, {POOL!r}, {RECORDED!r}\n" + WORKER
    (folder / "undisturbed.py").write_text(given + UNDISTURBED)
    (folder / "killed.py").write_text(given + KILLED)
    (folder / "orphaned.py").write_text(given + ORPHANED)
    (folder / "stuck.py").write_text(given + STUCK)
    (folder / "late.py").write_text(LATE)
    return folder


def torchrun(workplace: Path, *arguments: str, cold: bool = False) -> subprocess.Popen[str]:
    """Two processes, which write their numbers into the file `processes`; of a `cold` start they are its children."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(workplace), *sys.path])}
    (workplace / "processes").write_text("")
    start = subprocess.Popen if cold else launch.Popen
    return start(launch.torchrun(*arguments), cwd=workplace, env=env, stderr=subprocess.PIPE, text=True)


def under_torchrun(workplace: Path, *arguments: str, seconds: float) -> None:
    """Two processes under torchrun, to their end, or to the end of the time they have: then they are killed."""
    process = torchrun(workplace, *arguments)
    try:
        _, errors = process.communicate(timeout=seconds)
    except BaseException:
        process.kill()
        for number in (workplace / "processes").read_text().split():  # torchrun gives each a session of its own
            if Path(f"/proc/{number}/cwd").exists() and Path(f"/proc/{number}/cwd").readlink() == workplace:
                os.kill(int(number), signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, errors


def alone(out: str) -> Run | None:
    """The same run in this process."""
    return train_stage(resolve(RunSettings, {**TRAIN, "out": out, "store": "store-one", "views": POOL}), quiet=True)


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> Path:
    """Runs of one process (`one`, and `one-then-two`, stopped after 8 of 30 steps), then those of two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        patch.syspath_prepend(str(workplace))
        alone("one")
        save = loop.save_checkpoint

        def stopping(run: Run, state: dict) -> None:
            save(run, state)
            if state["step"] == 7:
                torch.save(state["student"], "early.pt")
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(loop, "save_checkpoint", stopping)
        assert alone("one-then-two") is None
    under_torchrun(workplace, "undisturbed.py", seconds=200)
    return workplace


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "student.safetensors")
    return found


def files(store: Path) -> dict[str, bytes]:
    (folder,) = (path.parent for path in store.glob("*/manifest.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.npy")}


def resumed_at(run: Path) -> list[int]:
    return [row["step"] for row in Run(run).metrics() if row["kind"] == "resume"]


def test_two_processes_make_the_store_and_the_graph_of_one(undisturbed: Path):
    one, two = files(undisturbed / "store-one"), files(undisturbed / "store")
    assert {"embeddings.npy", "graph.npy"} <= one.keys() & two.keys()
    assert one["embeddings.npy"] == two["embeddings.npy"] and one["graph.npy"] == two["graph.npy"]
    metadata = [json.loads(next((undisturbed / s).glob("*/manifest.json")).read_text()) for s in ("store-one", "store")]
    for name in ("key", "rows", "images", "D", "dtype", "skipped"):
        assert metadata[0][name] == metadata[1][name]
    for folder in (undisturbed / "store").glob("*/manifest.json"):  # nothing is left of how it was made
        assert not (folder.parent / "blocks").exists() and not (folder.parent / "graph").exists()


def test_two_processes_record_views_at_once_and_train_the_weights_of_live_ones(undisturbed: Path):
    recorded, live = weights(undisturbed / "two"), weights(undisturbed / "two-live")
    assert all(torch.equal(recorded[name], live[name]) for name in live)
    # Both views of every image, once; an image that stands in both processes' share of a batch is done by both.
    forwards = Run(undisturbed / "two").metrics()[-1]["teacher_forwards"]
    marks = [v for n, v in files(undisturbed / "store").items() if n.endswith(".done.npy")]
    known = sum(np.count_nonzero(np.load(io.BytesIO(mark))) for mark in marks)
    assert 160 < known <= forwards <= 2 * 160 + 30 * 4


@pytest.mark.parametrize("out", ["two-then-one", "one-then-two", "two-live"])
def test_another_number_of_processes_resumes_and_ends_with_the_weights_of_one(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch, out: str
):
    monkeypatch.chdir(undisturbed)
    monkeypatch.syspath_prepend(str(undisturbed))
    if out == "two-then-one":
        assert not Run(out).trained
        alone(out)
    expected = weights(undisturbed / "one")
    found = weights(undisturbed / out)
    assert resumed_at(undisturbed / out) == {"two-then-one": [20], "one-then-two": [8]}.get(out, [])
    early = torch.load("early.pt", weights_only=True)
    assert max(float((early[name] - expected[name]).abs().max()) for name in expected) > 0.02  # it does train
    for name in expected:  # thirty steps of fp32
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=2e-4)


def test_workers_killed_while_embedding_graphing_and_training_are_restarted_with_the_same_bytes(undisturbed: Path):
    """One launch, three kills: rank 1 after its first batch, rank 0 after its first block, rank 1 at step 14."""
    under_torchrun(undisturbed, "--standalone", "--max-restarts", "3", "killed.py", seconds=200)
    assert [(undisturbed / f"died-{where}").read_text() for where in ("embedding", "searching", "training")] == [*"012"]
    whole, killed = files(undisturbed / "store"), files(undisturbed / "store-killed")
    assert killed.keys() == whole.keys()
    for name in ("embeddings.npy", "graph.npy", *(name for name in whole if name.startswith("views"))):
        assert killed[name] == whole[name], name
    expected, found = weights(undisturbed / "two"), weights(undisturbed / "killed")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert resumed_at(undisturbed / "killed") == [10]  # the last checkpoint before step 14
    # 160 images are three blocks of 64; the one in flight in either process may be done again, and nothing else.
    batches = Counter((undisturbed / "embedded").read_text().splitlines())
    assert set(batches) == {"0 64", "1 128", "2 160"} and batches.total() <= 3 + 2
    searched = Counter((undisturbed / "searched").read_text().split())
    assert set(searched) == {"0", "32", "64", "96", "128"} and searched.total() <= 5 + 2


def is_alive(process: str) -> bool:
    """Whether a process runs; one that has ended stays listed until somebody asks for its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_torchrun_takes_its_workers_along_and_the_same_command_goes_on_at_once(undisturbed: Path):
    process = torchrun(undisturbed, "orphaned.py", cold=True)
    while not all((undisturbed / f"asleep-{rank}").exists() for rank in range(2)):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.kill()
    workers = (undisturbed / "processes").read_text().split()
    under_torchrun(undisturbed, "orphaned.py", seconds=240)
    assert len(workers) == 2
    deadline = time.monotonic() + 10  # the one without the lock ends when it looks for its torchrun the next time
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.communicate()
    expected, found = weights(undisturbed / "two-live"), weights(undisturbed / "orphaned")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert resumed_at(undisturbed / "orphaned") == [10]


def test_a_worker_in_a_collective_ends_with_its_torchrun_too(workplace: Path):
    process = torchrun(workplace, "stuck.py", cold=True)
    while not all((workplace / f"stuck-{rank}").exists() for rank in range(2)):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    time.sleep(0.5)  # the first of them is in the barrier by then
    process.kill()
    killed, workers = time.monotonic(), (workplace / "processes").read_text().split()
    with lock(workplace / "stuck", patience=10):
        pass
    while any(map(is_alive, workers)):
        assert time.monotonic() < killed + 10
        time.sleep(0.05)
    assert len(workers) == 2
    process.communicate()


def test_a_worker_whose_torchrun_is_gone_before_it_joins_does_not_look_for_it(workplace: Path):
    alone = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "gone"}
    nobody = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": launch.torchrun()[-1]}
    launch.run(
        [sys.executable, "late.py"], cwd=workplace, env={**os.environ, **alone, **nobody}, check=True, timeout=60
    )
    worker, deadline = (workplace / "begun").read_text(), time.monotonic() + 60
    while not (workplace / "joins").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    joined = time.monotonic()
    while is_alive(worker):
        assert time.monotonic() < joined + 10
        time.sleep(0.05)


def test_alone_there_is_nobody_to_wait_for():
    processes = Processes(0, 1, torch.device("cpu"))
    processes.barrier()
    assert processes.agree(True) and not processes.agree(False) and processes.total(3) == 3


def test_a_restarted_process_never_takes_a_dead_one_for_its_own(monkeypatch: pytest.MonkeyPatch):
    """torchrun keeps one store for all lives: here two earlier ones left everything in it."""
    store = dist.HashStore()
    for left in ("older", "dead"):
        for key, value in {"understudy": left, f"{left}/1": "a", f"{left}/2": "b", f"{left}/all": "a b"}.items():
            store.set(key, value)
    with ThreadPoolExecutor(3) as pool:
        late = [pool.submit(distributed._common_prefix, store, rank, 3) for rank in (1, 2)]
        while store.get("dead/1") == b"a" or store.get("dead/2") == b"b":  # both have answered the dead process
            time.sleep(0.01)
        names = {pool.submit(distributed._common_prefix, store, 0, 3).result(20), *(found.result(20) for found in late)}
    assert len(names) == 1 and not names & {"older", "dead"}
    monkeypatch.setattr(distributed, "CONNECT", timedelta(seconds=0.2))
    store.set_timeout(distributed.CONNECT)
    for rank in (0, 1):
        with pytest.raises(TrainingError, match=f"Process {rank} waited 0.2 s, and not all 2 processes came"):
            distributed._common_prefix(store, rank, 2)
