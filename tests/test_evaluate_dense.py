"""Dense protocols through `evaluate_model`: their sets, where their figures are filed, and faults beside figures."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from test_evaluate_davis import official
from test_evaluate_segmentation import colors
from understudy.evaluate.features import Resources
from understudy.evaluate.measures import propagation
from understudy.evaluate.protocols.segmentation import SegmentationSettings
from understudy.evaluate.runner import evaluate_model
from understudy.evaluate.settings import EvaluationSettings


def test_sets_meet_the_protocols_that_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propagation, "SHORT", 64)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parent)])
    videos, masks = official(tmp_path / "videos", "dogs"), colors(tmp_path / "pictures")
    common = {
        "protocols": ("davis", "segmentation", "detection"),
        "on": (f"davis={videos}", f"index-masks={masks}", f"coco={tmp_path}"),
    }
    plan: list[str] = []
    settings = EvaluationSettings(**common, segmentation=SegmentationSettings(iterations=2, batch_size=2, size=32))
    found = evaluate_model("python:test_evaluate_davis:Colors", settings, Resources(notify=plan.append))
    assert set(found) == {"teacher", "about"}
    figures = found["teacher"]
    assert figures["davis@davis"]["j_and_f"] > 90
    assert figures["segmentation@index-masks"]["images"] == 3
    assert "expected" in figures["detection@coco"]["error"] and "cocodataset.org" in figures["detection@coco"]["error"]
    assert re.search(r"and of unknown length: .*davis on davis", plan[0])

    # Another schedule of one protocol leaves the figures of the others.
    seen: list[str] = []
    again = EvaluationSettings(**common, segmentation=SegmentationSettings(iterations=3, batch_size=2, size=32))
    after = evaluate_model(
        "python:test_evaluate_davis:Colors", again, Resources(progress=lambda done, total, note: seen.append(note))
    )
    assert after["teacher"]["davis@davis"] == figures["davis@davis"]
    assert after["teacher"]["segmentation@index-masks"]["iterations"] == 3
    assert any("segmentation" in note for note in seen) and not any("davis:" in note for note in seen)
