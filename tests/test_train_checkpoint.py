"""Checkpoints: the newest that is whole and possible, others are refused by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from test_artifacts_integrity import flip
from understudy.artifacts import Run
from understudy.errors import TrainingError
from understudy.train.checkpoint import load_checkpoint, save_checkpoint

CPU = torch.device("cpu")


def state(step: int, **more: Any) -> dict[str, Any]:
    tables: dict[str, Any] = {name: {} for name in ("skipped", "compiled", "loss", "optimizer", "scaler")}
    student = {"weight": torch.full((3,), float(step))}
    return {"step": step, "seconds": 1.5, "teacher_views": 0, "student": student, "key": None, **tables, **more}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    for step in (1, 2, 3):
        save_checkpoint(run, state(step))
    return run


def test_the_newest_is_taken_and_the_one_before_is_kept(run: Run):
    found = load_checkpoint(run, CPU, 10)
    assert found is not None and found["step"] == 3
    before = torch.load(run.previous_path, weights_only=True)
    assert before["step"] == 2
    assert load_checkpoint(Run(run.path / "none"), CPU, 10) is None


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.999])
def test_a_damaged_one_is_named_and_the_one_before_goes_on(run: Run, caplog, share: float):
    flip(run.checkpoint_path, int(share * run.checkpoint_path.stat().st_size))
    found = load_checkpoint(run, CPU, 10)
    assert found is not None and found["step"] == 2
    (record,) = caplog.records
    assert f"{run.checkpoint_path} is damaged" in record.message
    assert f"goes on from {run.previous_path}, at step 2" in record.message
    flip(run.previous_path, 50)
    with pytest.raises(TrainingError, match=r"latest\.pt is damaged.*Delete .*checkpoint to train from the start"):
        load_checkpoint(run, CPU, 10)


def test_a_kill_between_two_renames_leaves_the_one_before(run: Run):
    run.checkpoint_path.unlink()
    found = load_checkpoint(run, CPU, 10)
    assert found is not None and found["step"] == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"step": 10**9}, "step 1000000000 of a training of 10 steps"),
        ({"step": -1}, "step -1"),
        ({"step": 2.5}, r"step 2\.5"),
        ({"step": None}, "step None"),
        ({"seconds": float("inf")}, "inf seconds"),
        ({"teacher_views": -3}, "-3 views"),
        ({"optimizer": None}, "no optimizer"),
        ({"student": {"weight": torch.tensor([1.0, float("nan")])}}, "a student whose weight is not finite"),
        ({"student": {"weight": 1}}, "a student whose weight is no tensor"),
        ({"format": 99}, "has format 99"),
    ],
)
def test_values_that_cannot_be_are_named(tmp_path: Path, more: dict[str, Any], words: str):
    run = Run(tmp_path)
    run.checkpoint_path.parent.mkdir()
    torch.save({"format": 1, **state(3), **more}, run.checkpoint_path)  # sealed or not
    with pytest.raises(TrainingError, match=rf"latest\.pt (holds what cannot be: )?{words}"):
        load_checkpoint(run, CPU, 10)


def test_one_that_was_written_without_a_checksum_is_taken(tmp_path: Path):
    run = Run(tmp_path)
    run.checkpoint_path.parent.mkdir()
    torch.save({"format": 1, **state(10)}, run.checkpoint_path)
    found = load_checkpoint(run, CPU, 10)
    assert found is not None and found["step"] == 10
    run.checkpoint_path.write_bytes(b"")
    with pytest.raises(TrainingError, match="latest.pt cannot be read"):
        load_checkpoint(run, CPU, 10)
    run.checkpoint_path.unlink()
    run.checkpoint_path.mkdir()
    with pytest.raises(TrainingError, match=r"latest\.pt cannot be read \(it is a folder"):
        load_checkpoint(run, CPU, 10)
