"""Whole runs on digits: killed, stopped, poisoned, resumed, on one process and two; the same weights every time."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import launch
import understudy
from understudy import pipeline
from understudy.artifacts import Run
from understudy.embed.embedding import extract
from understudy.embed.settings import TRANSFORMS
from understudy.embed.transform import fit
from understudy.errors import ConfigError, ModelError, StoreError, TrainingError
from understudy.losses import LOSSES
from understudy.models.settings import StudentSettings
from understudy.models.student import build_student
from understudy.models.teacher import build_teacher
from understudy.pipeline import RunSettings, resolve_method, train_stage
from understudy.settings import resolve, setting, write_toml
from understudy.sources.source import open_source
from understudy.train.finish import fit_inverse_transform
from understudy.train.resume import refuse_other_images, refuse_other_settings, resolved, run_id, same_settings

TINY = [
    "--data", "digits:train", "--limit", "320", "--eval-data", "digits", "--student", "small:resnet8x0.25",
    "--batch-size", "64", "--workers", "0", "--probes", "2", "--head-hidden", "32", "--device", "cpu",
]  # fmt: skip

# A teacher that costs nothing and is not random: the low frequencies of a gray thumbnail.
TEACHER = """
import math
import torch

class ToyEncoder(torch.nn.Module):
    contract = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}

    def __init__(self):
        super().__init__()
        place = (torch.arange(8) + 0.5) * math.pi / 8
        waves = torch.stack([torch.outer((u * place).cos(), (v * place).cos()) for u in range(5) for v in range(5)])
        self.register_buffer("waves", waves[1:].flatten(1))

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 8).flatten(1) @ self.waves.T

def no_norm():  # a student without BatchNorm: its batch statistics would differ between process counts
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()
    )

def transformer(width=24, heads=3):
    from timm.models.vision_transformer import VisionTransformer
    torch.manual_seed(0)
    module = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=width, depth=2, num_heads=heads, mlp_ratio=2, num_classes=0
    )
    module.norm.weight.data += torch.linspace(-0.5, 0.5, width)  # as a teacher: it did leave its initial values
    module.contract = ToyEncoder.contract
    return module

def smaller_transformer():
    return transformer(16, 2)

def poisonous():
    module = no_norm()
    seen = []
    def spoil(module, inputs, output):
        seen.append(1)
        return output * float("nan") if module.training and len(seen) > 4 else output
    module.register_forward_hook(spoil)
    return module
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "thumbnail.py").write_text(TEACHER)
    return folder


def command(workplace: Path, out: str, *more: str) -> list[str]:
    given = [
        *TINY,
        "--teacher",
        "python:thumbnail:ToyEncoder",
        "--store",
        "store",
        "--passes",
        "6",
        "--out",
        out,
        *more,
    ]
    return [sys.executable, "-m", "understudy", "train", *given]


def train(workplace: Path, out: str, *more: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = launch.run(command(workplace, out, *more), cwd=workplace, capture_output=True, text=True, timeout=240)
    assert done.returncode == expect, done.stderr
    return done


@pytest.fixture(scope="module")
def undisturbed(workplace):
    train(workplace, "undisturbed")
    return load_file(workplace / "undisturbed" / "student.safetensors")


def assert_same(workplace: Path, out: str, expected: dict) -> None:
    found = load_file(workplace / out / "student.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


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
    assert [path.name for path in (workplace / "full" / "checkpoint").iterdir()] == ["latest.pt"]
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


def test_settings_are_told_apart_without_their_method(tmp_path):
    run = Run(tmp_path)

    def given(**method):
        return resolve(RunSettings, {"data": "digits", "student": "small:resnet8", "teacher": "run:x", **method})

    own = {"method": "coss", "method.weight": 1.0, "method.scale": "paper"}
    run.config_path.write_text(write_toml(resolved(resolve_method(given(**own)))))
    assert same_settings(run, given(**own)) and same_settings(run, given(**{**own, "method.weight": "1"}))
    for other in ({"method.weight": "0.5"}, {"method.weight": "much"}, {"method.scale": "code"}, {"method": "pkt"}):
        assert not same_settings(run, given(**{**own, **other}))
    assert not same_settings(run, given(method="coss")) and not same_settings(run, given(**own, passes=3))
    run.config_path.write_text(run.config_path.read_text().replace("passes = 100.0", "passes = 100.0\nforesight = 3"))
    assert not same_settings(run, given(**own))


def test_settings_that_are_newer_or_older_than_a_run(tmp_path):
    settings = resolve(RunSettings, {"data": "digits", "student": "small:resnet8", "teacher": "run:x", "chunks": 2})
    run = Run(tmp_path)
    run.config_path.write_text(write_toml(resolved(settings)))
    refuse_other_settings(run, settings)

    whole = run.config_path.read_text()
    older = re.sub(r"(?m)^(schedule|dtype) = .*\n", "", whole)
    assert len(older.splitlines()) == len(whole.splitlines()) - 2
    run.config_path.write_text(older)
    refuse_other_settings(run, settings)
    run.config_path.write_text(whole.replace("chunks = 2\n", ""))
    with pytest.raises(TrainingError, match=r"chunks \(was 1, now 2\)"):
        refuse_other_settings(run, settings)
    run.config_path.write_text("foresight = 3\n" + whole)
    with pytest.raises(TrainingError, match="this version does not take: Unknown setting 'foresight'"):
        refuse_other_settings(run, settings)


@pytest.mark.parametrize("begun", [{"queue": 64, "temperature": 1}, {"queue": "64", "temperature": "1.0"}])
def test_a_method_setting_is_one_whether_a_file_or_a_flag_says_it(tmp_path, begun):
    def given(**own):
        method = {f"method.{key}": value for key, value in own.items()}
        return resolve(
            RunSettings,
            {"data": "digits", "student": "small:resnet8", "teacher": "run:x", "method": "queue_kl", **method},
        )

    run = Run(tmp_path)
    run.config_path.write_text(write_toml(resolved(given(**begun))))
    typed = {"name": "queue_kl", "queue": 64, "temperature": 1.0}
    for again in ({"queue": 64, "temperature": 1.0}, {"queue": "64", "temperature": "1"}):
        refuse_other_settings(run, given(**again))
        assert resolve_method(given(**again)).method == typed
        assert run_id(resolve_method(given(**again))) == run_id(resolve_method(given(**begun)))
    with pytest.raises(TrainingError, match=r"method.queue \(was 64, now 32\)"):
        refuse_other_settings(run, given(queue="32", temperature="1"))


def test_a_version_with_more_settings_finds_a_run_by_its_name():
    @dataclasses.dataclass(frozen=True)
    class Newer(RunSettings):
        foresight: int = setting(0, "How far the student looks ahead.")

    given = {"data": "digits", "teacher": "run:x", "student": "small:resnet8", "passes": 3}
    now, newer = run_id(resolve(RunSettings, given)), run_id(resolve(Newer, given))
    assert now == newer != run_id(resolve(Newer, {**given, "foresight": 1}))
    assert now != run_id(resolve(RunSettings, {**given, "passes": 4}))


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


def test_a_method_that_compares_attention_needs_transformers(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(workplace))
    given = {"data": "digits:train", "limit": 64, "holdout": 0, "method": "attndistill", "neighbors": {"k": 0}}
    seeing, blind = "python:thumbnail:transformer", "python:thumbnail:ToyEncoder"
    with pytest.raises(ModelError, match="ToyEncoder shows its embedding only .it is a ToyEncoder"):
        train_stage(resolve(RunSettings, {**given, "teacher": blind, "student": seeing}), quiet=True)
    with pytest.raises(ModelError, match="small:resnet8 shows its embedding only .it is a"):
        train_stage(resolve(RunSettings, {**given, "teacher": seeing, "student": "small:resnet8"}), quiet=True)


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
        method={"name": "coss", "weight": 0.5}, neighbors={"k": 3},
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


@pytest.mark.parametrize("name", LOSSES)
def test_every_method_goes_through_the_one_loop(workplace, monkeypatch, name):
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(workplace))
    method = {"name": name, **({"queue": 64} if "queue" in vars(LOSSES[name].Settings()) else {})}
    needs_teacher = LOSSES[name].needs.teacher
    teacher, student = "python:thumbnail:ToyEncoder", "small:resnet8x0.25"
    if LOSSES[name].needs.tokens or LOSSES[name].needs.attention:
        teacher, student = "python:thumbnail:transformer", "python:thumbnail:smaller_transformer"
    settings = resolve(
        RunSettings,
        {
            "data": "digits:train", "limit": 96, "student": student, "method": method, "passes": 2,
            "batch_size": 32, "workers": 0, "probes": 0, "holdout": 0, "head_hidden": 16, "device": "cpu",
            "out": f"method-{name}", "teacher": teacher if needs_teacher else None,
            **({"neighbors": {"k": 3, "n": 9}} if needs_teacher else {}),
        },
    )  # fmt: skip
    run = train_stage(settings, quiet=True)
    row = [row for row in run.metrics() if row["kind"] == "step"][-1]
    assert row["step"] == 6 and all(np.isfinite([row["loss"], *row["terms"].values()]))
    assert understudy.load_student(run.path).embed_dim == (24 if needs_teacher else LOSSES[name].embed_dim)


@pytest.mark.parametrize("side", ["32", "16"])
def test_recorded_views_train_the_weights_of_live_ones_and_need_the_teacher_once(workplace, side):
    # The teacher's input is 32 pixels wide: shared views, and views of its own.
    pool = ("--views.pool", "3", "--views.seed", side, "--views.dtype", "float32", "--passes", "6")
    sized = (*pool, "--image-size", side)
    train(workplace, f"live-{side}", *sized)
    expected = load_file(workplace / f"live-{side}" / "student.safetensors")
    recorded = ("--views.teacher", "recorded")
    train(workplace, f"recorded-{side}", *sized, *recorded)
    assert_same(workplace, f"recorded-{side}", expected)
    end = Run(workplace / f"recorded-{side}").metrics()[-1]
    assert 2 * 320 < end["teacher_forwards"] <= 3 * 320 < end["images"] == 6 * 320
    # Another run of the same views, a student of another size and seed: the teacher is not asked again.
    other = ("--image-size", "24", "--seed", "3", "--neighbors.k", "0", "--passes", "3")
    train(workplace, f"shared-{side}", *pool, *recorded, *other)
    found = Run(workplace / f"shared-{side}").metrics()[-1]["teacher_forwards"]
    assert found <= 3 * 320 - end["teacher_forwards"]


def test_a_live_teacher_that_sees_the_same_views_again_is_told_of(workplace):
    few = ("--views.pool", "2", "--probes", "0", "--neighbors.k", "0", "--limit", "128")
    said = train(workplace, "again", *few, "--passes", "3").stderr
    assert "has 2 different views" in said and "--views.teacher recorded" in said
    said = train(workplace, "once", *few, "--passes", "2").stderr
    assert "different views" not in said


def test_two_views_a_batch_do_not_fit_into_a_pool_of_one(workplace):
    said = train(workplace, "small-pool", "--method", "disco", "--views.pool", "1", expect=1).stderr
    assert "sees 2 views of an image in a batch, and the pool has 1" in said


@pytest.mark.parametrize("transform", TRANSFORMS[1:])
def test_a_student_of_a_transformed_space_lands_in_the_teachers_own(workplace, monkeypatch, transform):
    monkeypatch.syspath_prepend(str(workplace))
    source = open_source("digits:test").subset(np.arange(100))
    teacher = build_teacher("python:thumbnail:ToyEncoder")
    rows = extract(teacher.features, teacher.contract, source)[0]
    fitted = fit(rows, transform)
    # A perfect student of the transformed space, but for the factor that cosines leave open.
    student = build_student(StudentSettings("python:thumbnail:ToyEncoder", head="linear", transform=transform), 24)
    with torch.no_grad():
        student.head.weight.copy_(torch.from_numpy(3 * fitted.matrix.T))
        student.head.bias.copy_(torch.from_numpy(-3 * fitted.mean @ fitted.matrix))
    fit_inverse_transform(student, fitted, source, rows, torch.device("cpu"))
    assert float(student.inverse_transform.scale) == pytest.approx(1 / 3, rel=1e-4)
    images = torch.stack([student.preprocess(source.read(i)) for i in range(100)])
    np.testing.assert_allclose(student.embed(images).detach().numpy(), rows, rtol=0, atol=2e-4 * np.abs(rows).max())
    np.testing.assert_allclose(student(images).detach().numpy() / 3, fitted.apply(rows), rtol=0, atol=2e-3)


def test_a_transformed_run_from_settings_to_figures(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(workplace))
    run = understudy.distill(
        data="digits:train", teacher="python:thumbnail:ToyEncoder", student="small:resnet8x0.25", eval_data="digits",
        out="transformed", limit=320, passes=2, batch_size=64, workers=0, device="cpu", head_hidden=32, quiet=True,
        transform="phi-s", probes=1,
    )  # fmt: skip
    student = understudy.load_student(run.path)
    assert run.student["head"]["transform"] == "phi-s" and float(student.inverse_transform.scale) > 0
    # The mean alone, put back, is a large part of what these embeddings share.
    assert run.evaluation["student_embed"]["fidelity"]["row_cosine"] > 0.5
    assert "row_cosine" in next(row for row in run.metrics() if row["kind"] == "signal")


def test_chunks_train_the_weights_of_the_whole_batch(workplace):
    more = ("--student", "python:thumbnail:no_norm", "--neighbors.k", "3", "--probes", "0", "--passes", "1")
    sgd = ("--optimizer.name", "sgd", "--optimizer.lr", "0.5")
    for out, chunks in (("whole", "1"), ("chunks", "4")):
        train(workplace, out, *more, *sgd, "--chunks", chunks)
    whole, parts = (load_file(workplace / out / "student.safetensors") for out in ("whole", "chunks"))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-4)
