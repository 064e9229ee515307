"""A teacher shared out over two processes under torchrun: the same embeddings and students, half the weights each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from test_models_teacher import onnx_file, structured
from test_processes import TRAIN, files, under_torchrun, weights
from toy_runs import TEACHER
from understudy.artifacts import ALONE, Writers
from understudy.cli import main
from understudy.errors import ConfigError, ModelError
from understudy.models.contract import Contract
from understudy.models.encoder import Encoder
from understudy.models.sharded import ShardedTeacher, collective_calls, gather_groups
from understudy.models.teacher import Teacher, build_teacher
from understudy.pipeline import RunSettings, train_stage
from understudy.plan import plan
from understudy.settings import resolve
from understudy.train.compile import can_compile

pytestmark = pytest.mark.slow

SHARED = {
    **TRAIN, "teacher": "python:thumbnail:transformer", "data": "images", "holdout": 16, "probes": 2, "passes": 1,
    "neighbors": {"k": 3, "n": 9}, "workers": 0,
}  # fmt: skip

WORKER = """
import json, os
import torch
from torch import nn
from understudy.settings import resolve
from understudy.embed import blocks, embedding
from understudy.errors import ModelError
from understudy.models import sharded
from understudy.models.teacher import build_teacher
from understudy.pipeline import RunSettings, train_stage
from understudy.train.distributed import join

torch.set_num_threads(1)
with open("processes", "a") as file: file.write(f"{os.getpid()}\\n")
embedding.BLOCK, embedding.BLOCKS = 64, 8
rank = int(os.environ["RANK"])
counts = {"with images": 0, "in all": 0}

init, features, one = sharded.ShardedTeacher.__init__, sharded.ShardedTeacher.features, sharded.ShardedTeacher._pass

def beginning(self, *args):
    init(self, *args)
    parameters = list(self.module.parameters())
    counts["bytes"] = sum(parameter.to_local().nbytes for parameter in parameters)
    counts["held"] = sum(parameter.to_local().untyped_storage().nbytes() for parameter in parameters)

def seeing(self, x):
    counts["with images"] += 1
    return features(self, x)

def passing(self, x):
    counts["in all"] += 1
    return one(self, x)

sharded.ShardedTeacher.__init__, sharded.ShardedTeacher.features = beginning, seeing
sharded.ShardedTeacher._pass = passing

def train(out, store, **more):
    counts.update({"with images": 0, "in all": 0})
    train_stage(resolve(RunSettings, {**SHARED, "out": out, "store": store, **more}), quiet=True)
    with open(f"{out}-{rank}.json", "w") as file: json.dump(counts, file)

recorded, live = {"teacher": "recorded", "pool": 2, "seed": 1}, {"pool": 2, "seed": 1}
train("whole", "store-whole", views=recorded)
train("sharded", "store-sharded", views=recorded, teacher_sharding="fsdp")
train("whole-live", "store-whole", views=live)
train("sharded-live", "store-sharded", views=live, teacher_sharding="fsdp")

processes = join("cpu")
try:
    sharded.ShardedTeacher(build_teacher("python:thumbnail:crossed"), processes, processes.device)
except ModelError as error:
    with open(f"crossed-{rank}.txt", "w") as file: file.write(str(error))
"""

CROSSED = """
class Crossed(torch.nn.Module):
    contract = ToyEncoder.contract

    def __init__(self):
        super().__init__()
        self.parts = torch.nn.Sequential(*[torch.nn.Linear(32, 32) for _ in range(4)])

    def forward(self, x):
        x = x.mean((1, 2))
        for part in self.parts:
            x = torch.nn.functional.linear(x, part.weight)
        return x

def crossed():
    module = Crossed()
    for part in module.parts:
        part.weight.data += 1
    return module
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("sharded")
    (folder / "thumbnail.py").write_text(TEACHER + CROSSED)
    (folder / "images").mkdir()
    for number, image in enumerate(load_digits().images[:150]):
        Image.fromarray((image * 15).astype(np.uint8)).convert("RGB").save(folder / "images" / f"{number:03d}.png")
    for number in range(100, 110):  # so that the processes have unequal batches, too
        (folder / "images" / f"{number}.png").write_text("no image")
    (folder / "work.py").write_text(f"SHARED = {SHARED!r}\n" + WORKER)
    under_torchrun(folder, "work.py", seconds=250)
    return folder


def counts(place: Path, run: str) -> list[dict[str, int]]:
    found: list[dict[str, int]] = [json.loads((place / f"{run}-{rank}.json").read_text()) for rank in (0, 1)]
    return found


def test_the_stores_and_students_are_those_of_the_whole_teacher(place: Path):
    whole, sharded = files(place / "store-whole"), files(place / "store-sharded")
    assert any(name.startswith("views") for name in whole)
    assert whole.keys() == sharded.keys()
    for name in whole:
        assert whole[name] == sharded[name], name
    for out in ("", "-live"):
        expected, found = weights(place / f"whole{out}"), weights(place / f"sharded{out}")
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    metadata = [json.loads((place / run / "student.json").read_text())["teacher"] for run in ("whole", "sharded")]
    assert metadata[0] == metadata[1] and metadata[0]["flops"] > 0  # fingerprint and counts are those of the whole


def test_each_process_holds_half_of_the_weights(place: Path):
    namespace: dict[str, Any] = {}
    exec(TEACHER, namespace)
    total = sum(parameter.nbytes for parameter in namespace["transformer"]().parameters())
    held = counts(place, "sharded")
    assert sum(one["bytes"] for one in held) == total
    for one in held:
        assert 0.45 * total < one["bytes"] < 0.55 * total
        assert one["held"] < 0.6 * total  # with what fills the last share up


def test_processes_with_unequal_work_make_equally_many_passes(place: Path):
    """Three blocks of images for two processes, 10 unreadable images, recorded views that only one of them lacks."""
    for run in ("sharded", "sharded-live"):
        first, second = counts(place, run)
        assert first["in all"] == second["in all"] > 0
    first, second = counts(place, "sharded")
    assert first["with images"] != second["with images"]
    assert first["in all"] > min(first["with images"], second["with images"]) > 0


def test_parts_that_use_the_weights_of_others_are_refused_by_all(place: Path):
    for rank in (0, 1):
        said = (place / f"crossed-{rank}.txt").read_text()
        assert said.startswith("python:thumbnail:crossed cannot be sharded: a part of it uses weights of another")


def test_what_is_gathered_as_one():
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    found = gather_groups(vit)
    assert [type(part).__name__ for part in found] == ["PatchEmbed"] + ["Block"] * 12
    resnet = timm.create_model("resnet18", pretrained=False, num_classes=0)
    largest = max(sum(parameter.numel() for parameter in part.parameters()) for part in gather_groups(resnet))
    assert largest == 512 * 512 * 9  # a convolution, which cannot be taken apart
    attention = nn.Sequential(nn.MultiheadAttention(16, 2), nn.Linear(2, 2))
    assert gather_groups(attention) == [attention[0]]


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc(x.mean((2, 3)))
        return found


def flat() -> Teacher:
    contract = Contract(size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Teacher(Encoder(Flat(), 4, contract, "flat", "flat", "given", "0" * 16))


def test_what_cannot_be_sharded(tmp_path: Path):
    two = Writers(0, 2)
    with pytest.raises(ConfigError, match=r"over several processes, and there is one.*torchrun --nproc-per-node"):
        ShardedTeacher(flat(), ALONE, torch.device("cpu"))
    with pytest.raises(ConfigError, match="on CPUs or CUDA devices, not on mps"):
        ShardedTeacher(flat(), two, torch.device("mps"))
    teacher = build_teacher(f"onnx:{onnx_file(tmp_path / 'teacher.onnx', structured())}")
    with pytest.raises(
        ModelError, match=r"teacher\.onnx is an ONNX file, whose weights its runtime keeps: it cannot be"
    ):
        ShardedTeacher(teacher, two, torch.device("cpu"))


def test_a_whole_teacher_needs_nobody():
    with collective_calls(flat()), collective_calls(None):
        pass


def test_nothing_of_it_is_compiled():
    sharded = ShardedTeacher.__new__(ShardedTeacher)
    nn.Module.__init__(sharded)
    assert can_compile(flat()) and not can_compile(sharded)


def test_settings_that_ask_for_it_in_vain(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    asked = {"data": "digits", "student": "small:resnet8", "out": str(tmp_path / "run"), "teacher_sharding": "fsdp"}
    settings = resolve(RunSettings, {**asked, "teacher": "onnx:nowhere.onnx"})
    with pytest.raises(ConfigError, match="there is one"):
        train_stage(settings)
    with pytest.raises(ConfigError, match="A plan times the teacher in one process"):
        plan(settings)
    with pytest.raises(ConfigError, match="Method 'moco' has no teacher to shard"):
        train_stage(resolve(RunSettings, {**asked, "method": {"name": "moco"}}))
    assert main(["embed", "--data", "digits", "--teacher", "onnx:nowhere.onnx", "--teacher-sharding", "fsdp"]) != 0
    assert "there is one. Start it with torchrun" in capsys.readouterr().err


def test_methods_that_look_inside_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("understudy.models.sharded.require_processes", lambda _: None)
    asked = {"data": "digits", "student": "small:resnet8", "teacher": "onnx:nowhere.onnx", "out": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match="Method 'proteus' compares tokens or attention, and a sharded teacher"):
        train_stage(resolve(RunSettings, {**asked, "teacher_sharding": "fsdp", "method": {"name": "proteus"}}))
