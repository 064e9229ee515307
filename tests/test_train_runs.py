"""Whole runs on digits: killed, stopped, poisoned, resumed, on one process and two; the same weights every time."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import launch
import understudy
from toy_runs import TEACHER, assert_same, command, train
from understudy import pipeline
from understudy.artifacts import Run
from understudy.errors import ConfigError, StoreError, TrainingError
from understudy.sources.source import open_source
from understudy.train.resume import refuse_other_images

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "thumbnail.py").write_text(TEACHER)
    return folder


@pytest.fixture(scope="module")
def undisturbed(workplace):
    train(workplace, "undisturbed")
    return load_file(workplace / "undisturbed" / "student.safetensors")


def test_a_run_killed_again_and_again_ends_with_the_same_bits(workplace, undisturbed):
    generator = np.random.default_rng(0)
    kills = 0
    for _ in range(40):
        process = launch.Popen(
            command(workplace, "killed", "--checkpoint-minutes", "0"), cwd=workplace, stderr=subprocess.DEVNULL
        )
        checkpoint = workplace / "killed" / "checkpoint" / "latest.pt"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns != before):
            time.sleep(0.01)
        time.sleep(float(generator.uniform(0, 0.5)))
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.kill()
        process.wait()
        kills += 1
        if kills == 3:
            train(workplace, "killed", "--checkpoint-minutes", "0")
            break
    assert kills, "the run was never caught alive"
    assert_same(workplace, "killed", undisturbed)
    rows = Run(workplace / "killed").metrics()
    steps = [row["step"] for row in rows if row["kind"] == "signal"]
    assert steps == sorted(set(steps)), "a resumed run must not write a row twice"


def test_sigterm_leaves_a_checkpoint_and_the_same_command_goes_on(workplace, undisturbed):
    process = launch.Popen(command(workplace, "stopped"), cwd=workplace, stderr=subprocess.PIPE, text=True)
    while not any(row["kind"] == "step" for row in Run(workplace / "stopped").metrics()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and "the same command goes on" in said
    assert Run(workplace / "stopped").checkpoint_path.exists() and not Run(workplace / "stopped").trained
    assert "resumed at step" in train(workplace, "stopped").stderr
    assert_same(workplace, "stopped", undisturbed)


FULL = """
import shutil, sys, torch
from understudy.cli import main

save, usage, calls = torch.save, shutil.disk_usage, []

def full(state, path):
    calls.append(path)
    if len(calls) < 3:
        return save(state, path)
    path.write_bytes(b"half")
    shutil.disk_usage = lambda folder: usage(folder)._replace(free=0)
    raise RuntimeError("unexpected pos 371328 vs 371216")  # all that torch says of a full disk

torch.save = full
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_is_said_and_loses_nothing(workplace, undisturbed):
    given = command(workplace, "full", "--checkpoint-minutes", "0")[3:]
    done = launch.run([sys.executable, "-c", FULL, *given], cwd=workplace, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "understudy train: The disk that holds full/checkpoint is full (0.0 MiB left of" in done.stderr
    assert sorted(path.name for path in (workplace / "full" / "checkpoint").iterdir()) == ["latest.pt", "previous.pt"]
    assert "resumed at step 2" in train(workplace, "full").stderr
    assert_same(workplace, "full", undisturbed)


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(workplace, undisturbed):
    before = (workplace / "undisturbed" / "student.safetensors").stat().st_mtime_ns
    train(workplace, "undisturbed")
    assert (workplace / "undisturbed" / "student.safetensors").stat().st_mtime_ns == before
    said = train(workplace, "undisturbed", "--method.weight", "0.5", "--batch-size", "32", expect=1).stderr
    assert "batch_size (was 64, now 32)" in said and "method.weight (was None, now 0.5)" in said


def test_a_finished_run_whose_images_changed_is_not_called_fresh(workplace, undisturbed, monkeypatch):
    monkeypatch.chdir(workplace)
    source = open_source("digits:train", limit=320)
    refuse_other_images(Run("undisturbed"), source)
    with pytest.raises(StoreError, match="trained on 320 images of digits:train, .* there are 319 now"):
        refuse_other_images(Run("undisturbed"), source.subset(np.arange(319)))


AGAIN = """
import sys
from understudy.pipeline import resolve_run, run

run(resolve_run(eval(sys.argv[1])), quiet=True)
print(*sorted({"torch", "timm", "sklearn", "plotly"} & sys.modules.keys()))
"""


def test_a_finished_run_asked_again_checks_everything_and_imports_nothing_heavy(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(workplace))
    images = np.random.default_rng(0).integers(0, 255, (64, 32, 32, 3), np.uint8)
    np.save("again.npy", images)
    given = {
        "data": "again.npy", "teacher": "python:thumbnail:ToyEncoder", "student": "small:resnet8x0.25", "passes": 1,
        "batch_size": 32, "workers": 0, "head_hidden": 16, "probes": 1, "method": "coss", "method.weight": "1",
    }  # fmt: skip
    run = pipeline.run(pipeline.resolve_run({**given, "device": "cpu"}), quiet=True)  # into runs/, which has its name
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}

    def again(**more) -> str:
        """Asked in a process of its own: the heavy packages that it has imported."""
        done = subprocess.run(
            [sys.executable, "-c", AGAIN, repr({**given, **more})], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def here(**more) -> Run:
        return pipeline.run(pipeline.resolve_run({**given, **more}), quiet=True)

    assert again() == ""
    for same in ({"method.weight": 1.0, "checkpoint_minutes": 3}, {"out": str(run.path)}):
        assert here(**same).path.resolve() == run.path.resolve()
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()} == before
    # Other settings, in a folder of that name.
    with pytest.raises(TrainingError, match=r"batch_size \(was 32, now 16\)"):
        here(out=str(run.path), batch_size=16)
    with pytest.raises(TrainingError, match=r"method.weight \(was 1.0, now 0.5\)"):
        here(out=str(run.path), **{"method.weight": 0.5})
    # A report that is older than what it shows; figures that are missing.
    os.utime(run.evaluation_path)
    assert "plotly" in (imported := again()) and "torch" not in imported
    run.evaluation_path.unlink()
    here()
    assert run.evaluation_path.is_file()
    # Other images under the same name.
    np.save("again.npy", images[:60])
    with pytest.raises(StoreError, match="trained on 58 images of again.npy, which have changed since: there are 54"):
        here()


def test_the_files_of_a_run_say_what_was_done(workplace, undisturbed):
    run = Run(workplace / "undisturbed")
    kinds = [row["kind"] for row in run.metrics()]
    assert kinds[0] == "start" and kinds[-1] == "end" and kinds.count("signal") == 2
    row = next(row for row in run.metrics() if row["kind"] == "step")
    assert set(row["terms"]) == {"feature", "space"} and row["images_per_s"] > 0
    assert 0 < run.metrics()[-1]["data_wait"] < 1 and run.metrics()[-1]["workers"] == 0
    last = [row for row in run.metrics() if row["kind"] == "signal"][-1]
    assert {"row_cosine", "column_cosine", "overlap@10", "knn", "knn_relative", "spread"} <= set(last)
    assert run.student["method"]["name"] == "coss_centered" and run.student["teacher"]["width"] == 24
    student = understudy.load_student(run.path)
    assert not student.training
    image = np.zeros((40, 30, 3), np.uint8)
    from PIL import Image

    prepared = student.preprocess(Image.fromarray(image))[None]
    assert student.embed(prepared).shape == (1, 24) and student.features(prepared).shape == (1, student.width)


def test_two_processes_train_the_weights_of_one(workplace):
    more = (
        "--student",
        "python:thumbnail:no_norm",
        "--neighbors.k",
        "3",
        "--probes",
        "0",
        "--optimizer.name",
        "sgd",
        "--optimizer.lr",
        "0.5",
        "--passes",
        "1",
    )
    train(workplace, "one", *more)
    arguments = command(workplace, "two", *more)[1:]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    two = launch.torchrun("--standalone", *arguments)
    done = launch.run(two, cwd=workplace, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(workplace / out / "student.safetensors") for out in ("one", "two"))
    for name in one:  # five steps of fp32; weights move by 0.1 and more, a gradient of 1/W would show at once
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_with_the_names_of_its_images(workplace):
    said = train(workplace, "poisoned", "--student", "python:thumbnail:poisonous", expect=1).stderr
    assert re.search(r"not finite at step \d", said) and "optimizer.lr" in said
    listed = said.split("images of the batch:")[1]
    assert len(listed.split(",")) == 64


def test_no_teacher_and_no_method_are_sentences(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    with pytest.raises(TypeError):
        understudy.distill(data="digits", student="small:resnet8")
    with pytest.raises(ConfigError, match="Unknown method 'cos'. Did you mean 'coss'"):
        understudy.distill(data="digits", teacher="x", student="small:resnet8", method="cos")
    with pytest.raises(ConfigError, match="has no teacher, so no neighbors"):
        understudy.distill(data="digits", teacher="x", student="small:resnet8", method="moco", neighbors={"k": 3})


def test_the_api_trains_evaluates_and_reports(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(workplace))
    run = understudy.distill(
        data="digits:train", teacher="python:thumbnail:ToyEncoder", student="small:resnet8x0.25", eval_data="digits",
        out="api", limit=320, passes=2, batch_size=64, workers=0, device="cpu", head_hidden=32, quiet=True,
        method={"name": "coss", "weight": 0.5}, neighbors={"k": 3}, evaluation={"limit": 64},
    )  # fmt: skip
    figures = run.evaluation
    assert {"teacher", "student", "student_embed"} <= set(figures)
    assert 0 <= figures["student"]["knn"]["top1@10"] <= 100
    assert json.loads(run.evaluation_path.read_text()) == figures
    assert run.report_path.read_text().lower().startswith("<!doctype html>")
    assert "weight = 0.5" in run.config_path.read_text()
    with pytest.raises(TrainingError, match="begun with other settings"):
        understudy.distill(
            data="digits:train",
            teacher="python:thumbnail:ToyEncoder",
            student="small:resnet8x0.25",
            out="api",
            quiet=True,
        )


def test_chunks_train_the_weights_of_the_whole_batch(workplace):
    more = ("--student", "python:thumbnail:no_norm", "--neighbors.k", "3", "--probes", "0", "--passes", "1")
    sgd = ("--optimizer.name", "sgd", "--optimizer.lr", "0.5")
    for out, chunks in (("whole", "1"), ("chunks", "4")):
        train(workplace, out, *more, *sgd, "--chunks", chunks)
    whole, parts = (load_file(workplace / out / "student.safetensors") for out in ("whole", "chunks"))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-4)
