"""`understudy doctor --store`: every file of stores and runs, damaged ones by their names, checksums for old ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from test_artifacts_integrity import flip, nothing_verified, one_batch_sample, whole_store
from understudy.artifacts import Run, sealed_row, write_text
from understudy.cli.program import main
from understudy.doctor.integrity import files_of, stores_and_runs
from understudy.embed.recorded import RecordedViews
from understudy.models.settings import StudentSettings
from understudy.models.student import build_student, save_student
from understudy.views.augmentation import recipe_for

__all__ = ["nothing_verified", "one_batch_sample"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store with a graph and recorded views, and a run, in one folder."""
    store, _ = whole_store(tmp_path)
    views = RecordedViews(
        store, lambda images: images.flatten(1)[:, :6], recipe=recipe_for("weak", 4), size=4, seed=0, batch_size=8
    )
    rows = torch.arange(35)
    views(torch.rand(35, 3, 4, 4), rows, torch.zeros(35, dtype=torch.int64))
    views.flush()
    run = Run(tmp_path / "runs" / "one")
    write_text(run.config_path, 'data = "digits"\n')
    write_text(run.metrics_path, sealed_row({"kind": "start", "step": 0}) + sealed_row({"kind": "end", "step": 9}))
    write_text(run.report_path, "<html></html>")
    save_student(build_student(StudentSettings("small:resnet8"), 6), run, {})
    return tmp_path


def test_all_is_whole_and_then_each_file_is_found_by_its_name(place: Path):
    (check,) = stores_and_runs(place)
    files = list(files_of(place))
    assert sorted(path.name for path in files) == [
        "0000.done.npy", "0000.npy", "config.toml", "embeddings.npy", "graph.npy", "images.npy", "listing.parquet",
        "manifest.json", "manifest.json", "metrics.jsonl", "report.html", "student.json", "student.safetensors",
    ]  # fmt: skip
    assert (check.status, check.found.split(", ")[0]) == ("ok", f"13 files below {place} are what was written")
    for path in files:
        for where in (0.0, 0.5, 0.999):
            place_of_flip = int(where * path.stat().st_size)
            flip(path, place_of_flip)
            failed = [one.found for one in stores_and_runs(place) if one.status == "fail"]
            assert any(path.name in sentence for sentence in failed), (path, place_of_flip)
            flip(path, place_of_flip)
    assert [one.status for one in stores_and_runs(place)] == ["ok"]


def test_a_file_that_is_missing_or_no_file_is_named(place: Path):
    (array,) = place.glob("store/*/embeddings.npy")
    array.unlink()
    assert "embeddings.npy cannot be read (No such file" in stores_and_runs(place)[0].found
    array.mkdir()
    assert "embeddings.npy cannot be read (it is a folder" in stores_and_runs(place)[0].found
    (check,) = stores_and_runs(place / "photos")
    assert check.found.endswith("holds no store and no run")
    assert "is no folder" in stores_and_runs(place / "nowhere")[0].found


def unsealed(place: Path) -> None:
    """As an older version wrote all of it."""
    for path in place.rglob("*"):
        if path.suffix == ".json":
            table = json.loads(path.read_text())
            table.pop("checksums", None), table.pop("weights_checksums", None)
            path.write_text(json.dumps(table, indent=1) + "\n")
        elif path.name == "metrics.jsonl":
            path.write_text("".join(json.dumps(json.loads(line)) + "\n" for line in path.read_text().splitlines()))
        elif path.suffix in (".toml", ".html"):
            path.write_text(path.read_text().rpartition("# checksum" if path.suffix == ".toml" else "<!--")[0])
        elif path.name.endswith(".done.npy"):
            np.save(path, (np.load(path) != 0).astype(np.uint8))


def test_what_has_no_checksums_is_said_and_gets_them(place: Path):
    before = {path: path.read_bytes() for path in files_of(place)}
    unsealed(place)
    without, _ = stores_and_runs(place)
    assert (without.status, without.found.split(":")[0]) == ("warn", "12 files have no checksum")
    assert "--add-checksums" in without.fix
    (check,) = stores_and_runs(place, add_checksums=True)
    assert (check.status, check.found.split(", ")[0]) == ("ok", f"13 files below {place} are what was written")
    # Blocks of an array are cut otherwise; all else is as if it had been written so.
    same = {path: content for path, content in before.items() if path.name != "manifest.json" or "views" in str(path)}
    assert {path: path.read_bytes() for path in same if path.name != "student.json"} == {
        path: content for path, content in same.items() if path.name != "student.json"
    }


def test_the_command_fails_where_a_file_is_damaged(place: Path, monkeypatch, capsys):
    monkeypatch.setattr("understudy.doctor.examination.checks", lambda **_: [])
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("HOME", str(place))
    assert main(["doctor", "--store", "~/store", "--run", "~/runs/one"]) == 0
    flip(place / "runs" / "one" / "config.toml", 3)
    assert main(["doctor", "--store", "~/store", "--run", "~/runs/one"]) == 1
    assert "config.toml is damaged" in capsys.readouterr().out
    shutil.rmtree(place / "runs")
    assert main(["doctor", "--run", "~/runs/one"]) == 1
    assert "runs/one is no folder" in capsys.readouterr().out
    assert main(["doctor", "--add-checksums"]) == 1
    assert "--add-checksums needs a folder" in capsys.readouterr().err
