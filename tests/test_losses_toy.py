"""A method is one file: written into the package's path, it is listed, checked, cited and trained by its name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy import losses
from understudy.citation import cite
from understudy.errors import ConfigError
from understudy.losses import LOSSES, build, typed_settings
from understudy.pipeline import resolve_run, train_stage
from understudy.recipes import TINY_TEACHER

METHOD = '''
"""Toy: the absolute difference of embeddings."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from understudy.losses.base import Loss, Requirements, Terms
from understudy.settings import setting


class Toy(Loss):
    """The absolute difference of embeddings, taken apart from the batch as a whole."""

    name = "toy"
    summary = "the absolute difference of embeddings"
    paper = "@misc{toy,\\n  title = {A Toy},\\n  author = {Nobody},\\n  year = {2026}\\n}"
    needs = Requirements(passes=True)
    authors = {"optimizer.name": "sgd", "optimizer.lr": 0.5, "method.weight": 3.0}

    @dataclass(frozen=True)
    class Settings:
        weight: float | Literal["rising"] = setting(1.0, "Factor on the total; rising follows the passes.", above=0)

    settings: Settings

    def forward(self, student: Tensor, teacher: Tensor, passes: float) -> Terms:
        """The loss of a batch."""
        distance = (student - teacher.detach()).abs().mean()
        weight = self.settings.weight
        return Terms(distance * (passes if isinstance(weight, str) else weight), {"distance": distance})
'''


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[str]:
    """The one file, in a folder of the package's path."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "toy.py").write_text(METHOD)
    losses.__path__.append(str(tmp_path / "methods"))
    importlib.invalidate_caches()
    yield "toy"
    losses.__path__.pop()
    del sys.modules["understudy.losses.toy"], losses.toy, LOSSES._found["toy"]


def test_a_method_is_one_file(toy: str, tmp_path: Path):
    assert toy in LOSSES and list(LOSSES)[:2] == ["coss_centered", "coss"] and LOSSES[toy].summary.startswith("the abs")
    assert LOSSES[toy] is losses.toy.Toy and build(toy).needs.views == 1
    with pytest.raises(ConfigError, match=r"Unknown method 'tay'. Did you mean 'toy'\? Known: .*, toy."):
        build("tay")
    with pytest.raises(ConfigError, match=r"Method 'toy' has no setting 'wait'. Did you mean 'weight'"):
        build(toy, wait=1)
    with pytest.raises(ConfigError, match="'method.weight' must be a number or rising; got 'falling'"):
        build(toy, weight="falling")
    with pytest.raises(ConfigError, match="'method.weight' must be above 0.*; got 0"):
        build(toy, weight="0")
    with pytest.raises(ConfigError, match="'method.weight' must be a finite number; got inf"):
        build(toy, weight="inf")
    assert typed_settings(toy, weight="2") == {"name": "toy", "weight": 2.0}
    assert typed_settings(toy, weight="rising") == {"name": "toy", "weight": "rising"}
    assert typed_settings(toy) == {"name": "toy"}
    assert cite(toy).startswith("% method toy\n@misc{toy,")

    flags = {
        "method": toy, "recipe": "authors", "preset": "tiny", "teacher": TINY_TEACHER, "student": "small:resnet8x0.25",
        "out": str(tmp_path / "run"), "store": str(tmp_path / "store"), "device": "cpu", "workers": 0, "probes": 0,
    }  # fmt: skip
    run = train_stage(resolve_run({}, flags), quiet=True)
    assert run is not None and run.student["method"] == {"name": "toy", "weight": 3.0}
    steps = [row for row in run.metrics() if row["kind"] == "step"]
    assert steps[-1]["terms"]["distance"] > 0 and steps[-1]["loss"] == pytest.approx(3 * steps[-1]["terms"]["distance"])
    assert "% method toy\n@misc{toy," in cite(run.path)
