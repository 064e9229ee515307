"""A run folder is data: what it says is checked, and nothing is imported on its word."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from understudy.artifacts import Run
from understudy.cli import main
from understudy.errors import ModelError, StoreError
from understudy.evaluate.runner import evaluate_run
from understudy.evaluate.settings import EvaluationSettings
from understudy.models.settings import StudentSettings
from understudy.models.student import build_student, load_student, save_student
from understudy.models.teacher import build_teacher
from understudy.models.trust import module_of, trusting

NET = """
from pathlib import Path
import torch
Path("ran").touch()
class Net(torch.nn.Module):
    contract = {"size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 5)
    def forward(self, x):
        return self.layer(x.mean((2, 3)))
"""
REFUSED = "run/student.json names code, python:trojan:Net"
TOY = "python:understudy.models.toy_encoder:ToyEncoder"


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("trojan", "pack")]:
        del sys.modules[name]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A finished run whose student is `python:trojan:Net`, in a working directory that has that module."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trojan.py").write_text(NET)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "inner.py").write_text(NET)
    torch.manual_seed(0)
    save_student(build_student(StudentSettings("python:trojan:Net"), 4), Run("run"), {"teacher": None})
    (tmp_path / "ran").unlink()
    forget()
    yield Run("run")
    forget()


def change(run: Run, **values: Any) -> None:
    table = json.loads(run.student_path.read_text())
    for name, value in values.items():
        if value is None:
            del table[name]
        else:
            table[name] = table[name] | value if isinstance(value, dict) and name in table else value
    run.student_path.write_text(json.dumps(table))


def test_a_run_folder_imports_nothing_that_was_not_named(run: Run) -> None:
    for use in (
        lambda: load_student(run.path), lambda: load_student(run.path, trust_code="another"),
        lambda: build_teacher("run:run"), lambda: build_student(StudentSettings("run:run"), 4),
        lambda: load_student(run.path, trust_code=False), lambda: load_student(run.path, trust_code=["small:trojan"]),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=rf"{REFUSED} \(/.*/trojan.py\).*--trust-code trojan"):
            use()
    assert not os.path.exists("ran") and "trojan" not in sys.modules


NAMED = ["trojan", "trojan.py", "./trojan.py", "python:trojan:Net", ["small:resnet8", "trojan"], True]


@pytest.mark.parametrize("trust", NAMED)
def test_what_was_named_is_imported(run: Run, trust: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert load_student(run.path, trust_code=trust).spec == "python:trojan:Net"
    assert os.path.exists("ran") and "trojan.py is imported" in caplog.text
    forget()
    with pytest.raises(ModelError, match="names code"):  # trust ends with the call
        load_student(run.path)


def test_a_module_in_a_package_and_one_that_is_not_there(run: Run) -> None:
    change(run, architecture="python:pack.inner:Net")
    with pytest.raises(ModelError, match=r"pack/inner.py\).*--trust-code pack.inner"):
        load_student(run.path)
    assert "pack" not in sys.modules
    assert module_of("pack/inner.py") == "pack.inner"
    with trusting("pack/inner.py"):
        load_student(run.path)
    change(run, architecture="python:nothing.like.this:Net")
    with pytest.raises(ModelError, match="nowhere to be found here"):
        load_student(run.path)


def test_code_of_this_package_and_of_python_is_code_too(run: Run) -> None:
    for spec in ("python:understudy.cli:main", "python:os:abort", "python:understudy.models.toy_encoder:nn"):
        change(run, architecture=spec)
        with pytest.raises(ModelError, match="names code"):
            load_student(run.path)


def test_a_teacher_that_a_run_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trojan.py").write_text(NET)
    teacher = build_teacher(TOY)
    origin = {"spec": "python:trojan:Net", "fingerprint": "0" * 16, "contract": teacher.contract.table()}
    save_student(build_student(StudentSettings("small:resnet8"), 24), Run("run"), {"teacher": origin})
    folder = tmp_path / "images"
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    settings = EvaluationSettings(eval_data=str(folder), protocols=("knn",))
    with pytest.raises(ModelError, match="names code, python:trojan:Net"):
        evaluate_run(Run("run"), settings)
    change(Run("run"), teacher={"spec": "run:other"})
    with pytest.raises(StoreError, match="no run folder other"):
        evaluate_run(Run("run"), settings)
    assert not os.path.exists("ran")


def test_the_flag_names_modules(run: Run, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    np.save("images.npy", pixels)
    words = ["embed", "--data", "images.npy", "--teacher", "run:run", "--store", "st", "--workers", "0"]
    assert main(words) == 1 and "--trust-code trojan" in capsys.readouterr().err
    assert main([*words, "--trust-code", "another"]) == 1 and not os.path.exists("ran")
    capsys.readouterr()
    for flag in (["--trust-code", "trojan.py"], ["--trust-code=trojan"], ["--trust-code"]):
        caplog.clear()
        main([*words, *flag])
        assert "trojan.py is imported" in caplog.text
        forget()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": None}, "architecture missing"),
        ({"contract": None, "head": None}, "contract, head missing"),
        ({"architecture": ["small:resnet8"]}, "as its architecture, not text"),
        ({"architecture": "run:run"}, "no network without weights"),
        ({"architecture": "onnx:/dev/zero"}, "no network without weights"),
        ({"architecture": "small:resnet8@/etc/passwd"}, "no network without weights"),
        ({"architecture": "timm:resnet18@pretrained"}, "no network without weights"),
        ({"architecture": "nonsense"}, "no model spec|is not a model spec"),
        ({"contract": {"size": 10**9}}, "at most 4096"),
        ({"contract": {"mean": [124, 116, 104]}}, "Divided by 255"),
        ({"head": {"width": 10**9}}, "does not fit into the [0-9,]+ bytes of student.safetensors"),
        ({"head": {"out": -1}}, "its head is"),
        ({"head": {"kind": "none of them"}}, "its head is"),
        ({"head": "mlp"}, "'mlp' as its head, not a table"),
        ({"teacher": 3}, "3 as its teacher, not a table"),
        ({"teacher": {"spec": 3}}, "3 as its teacher.spec, not text"),
        ({"weights": 5}, "as its weights, not text"),
    ],
)
def test_a_description_of_anything_else_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    run = Run(tmp_path / "run")
    save_student(build_student(StudentSettings("small:resnet8"), 24), run, {})
    change(run, **values)
    with pytest.raises(StoreError, match=message):
        load_student(run.path)
    for text in ("[]", "3", "{", "[" * 100_000, "\udcff"):
        run.student_path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(StoreError, match="student.json"):
            load_student(run.path)


def test_pipes_in_a_run_folder_are_not_opened(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    save_student(build_student(StudentSettings("small:resnet8"), 24), run, {})
    for path in (run.student_path, run.weights_path):
        path.rename(tmp_path / "away")
        os.mkfifo(path)
        with pytest.raises(StoreError, match="no finished student"):
            load_student(run.path)
        path.unlink()
        (tmp_path / "away").rename(path)
    assert load_student(run.path).embed_dim == 24
