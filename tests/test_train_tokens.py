"""Methods that compare tokens and attention, through the whole loop on a pair of timm transformers with local weights:
resumed from the middle, on two processes, and in half precision."""

import os
import shutil
import socket
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import launch
from understudy.train import loop

pytestmark = pytest.mark.slow

METHODS = ["attndistill", "proteus"]

# Sixteen patches on both sides: 64 pixels in patches of 16, and 32 in patches of 8. Other heads, widths and depths.
PAIR = """
import torch
from timm.models.vision_transformer import VisionTransformer

class Student(VisionTransformer):
    contract = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}

    def __init__(self):
        super().__init__(
            img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2, num_classes=0
        )
"""

DISTILL = """
from understudy.artifacts import Run
from understudy.settings import resolve
from understudy.sources.source import open_source
from understudy.models.teacher import build_teacher
from understudy.train.setup import TrainingData
from understudy.train.distributed import join
from understudy.train.loop import train
from understudy.train.settings import TrainSettings

def distill(method, out, **more):
    given = {
        "data": "digits:train", "limit": 64, "teacher": "timm:test_vit@teacher.safetensors", "method": method,
        "student": "python:pair:Student", "batch_size": 16, "passes": 1, "neighbors": {"k": 0}, "workers": 0,
        "device": "cpu", "checkpoint_minutes": 0, "probes": 0, "out": out,
        "head": {"attndistill": "gelu", "proteus": "norm"}[method],
        "optimizer": {"name": "sgd", "lr": 0.05}, **more,
    }
    settings = resolve(TrainSettings, given)
    run, data = Run(out), TrainingData(open_source(settings.data, limit=settings.limit))
    teacher = build_teacher(settings.teacher, image_size=64)
    assert train(settings, run, data, teacher=teacher, processes=join("cpu"), quiet=True)
    return run
"""

WORKER = """
import sys
import torch
torch.set_num_threads(1)
for method in sys.argv[1].split(","):
    distill(method, "two-" + method)
torch.distributed.destroy_process_group()
"""


def distill(*args, **kwargs):
    """The same code as in the two processes, in this one."""
    scope: dict = {}
    exec(DISTILL, scope)
    return scope["distill"](*args, **kwargs)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    import timm

    folder = tmp_path_factory.mktemp("pair")
    (folder / "pair.py").write_text(PAIR)
    (folder / "worker.py").write_text(DISTILL + WORKER)
    torch.manual_seed(5)
    teacher = timm.create_model("test_vit", pretrained=False, num_classes=0)
    state = {name: value + 0.1 * torch.randn_like(value) for name, value in teacher.state_dict().items()}
    save_file(state, folder / "teacher.safetensors")
    return folder


@pytest.fixture(scope="module")
def undisturbed(workplace):
    """Both methods trained without a break: the run's folder, and a copy of it made after the second of four steps."""
    halves = {}

    def keep(run, state):
        save(run, state)
        if state["step"] == 2:
            half = run.path.with_name(run.path.name + "-half")
            shutil.copytree(run.path, half)
            halves[run.path.name] = half

    save = loop.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        patch.syspath_prepend(str(workplace))
        patch.setattr(loop, "save_checkpoint", keep)
        runs = {method: distill(method, workplace / method) for method in METHODS}
    return {method: (run, halves[method]) for method, run in runs.items()}


def result(run):
    """What training left behind: the student, and what belongs to the loss."""
    state = torch.load(run.checkpoint_path, weights_only=True)
    return load_file(run.weights_path) | {f"loss.{name}": value for name, value in state["loss"].items()}


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_student_and_projectors(workplace, undisturbed, method):
    run, half = undisturbed[method]
    rows = [row for row in run.metrics() if row["kind"] == "step"]
    names = {"attndistill": {"mse", "attention"}, "proteus": {"token", "feature", "patch"}}[method]
    assert rows[-1]["step"] == 4 and set(rows[-1]["terms"]) == names and rows[-1]["loss"] < rows[0]["loss"]
    end = next(row for row in run.metrics() if row["kind"] == "end")
    assert end["student_forwards"] == {"attndistill": 64, "proteus": 96}[method]
    middle = torch.load(half / "checkpoint" / "latest.pt", weights_only=True)
    final = result(run)
    before = middle["student"] | {f"loss.{name}": value for name, value in middle["loss"].items()}
    still = {name for name in final if torch.equal(final[name], before[name])}
    assert not still, still
    own = {name for name in final if name.startswith("loss.")}
    assert len(own) == {"attndistill": 0, "proteus": 9}[method]


@pytest.mark.parametrize("method", METHODS)
def test_resumed_from_the_middle_it_ends_with_the_same_bits(workplace, undisturbed, method, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(workplace))
    run, half = undisturbed[method]
    expected, found = result(run), result(distill(method, half))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_two_processes_train_the_weights_of_one(workplace, undisturbed):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    workers = [
        launch.Popen(
            [sys.executable, "worker.py", ",".join(METHODS)], cwd=workplace,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [worker.wait(timeout=400) for worker in workers] == [0, 0]
    for method in METHODS:
        run, _ = undisturbed[method]
        two, one = result(type(run)(workplace / f"two-{method}")), result(run)
        for name in one:  # four steps of fp32; a gradient of half the size, or of one process only, would show at once
            torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("method", METHODS)
def test_in_unequal_chunks_the_weights_are_those_of_the_whole_batch(workplace, undisturbed, method, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(workplace))
    expected = result(undisturbed[method][0])
    found = result(distill(method, workplace / f"chunks-{method}", chunks=3))  # of 6, 5 and 5 images
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_trains(workplace, method, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(workplace))
    run = distill(method, workplace / f"half-{method}", precision="bf16", limit=16)
    assert all(torch.isfinite(value).all() for value in result(run).values())
