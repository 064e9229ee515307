"""Every method, recorded views and transformed spaces, through the whole loop on digits."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import understudy
from toy_runs import TEACHER, assert_same, train
from understudy.artifacts import Run
from understudy.embed.embedding import extract
from understudy.embed.settings import TRANSFORMS
from understudy.embed.transform import fit
from understudy.errors import ModelError
from understudy.losses import LOSSES
from understudy.models.settings import StudentSettings
from understudy.models.student import build_student
from understudy.models.teacher import build_teacher
from understudy.pipeline import RunSettings, train_stage
from understudy.settings import resolve
from understudy.sources.source import open_source
from understudy.train.finish import fit_inverse_transform

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "thumbnail.py").write_text(TEACHER)
    return folder


def test_a_method_that_compares_attention_needs_transformers(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(workplace))
    given = {"data": "digits:train", "limit": 64, "holdout": 0, "method": "attndistill", "neighbors": {"k": 0}}
    seeing, blind = "python:thumbnail:transformer", "python:thumbnail:ToyEncoder"
    with pytest.raises(ModelError, match="ToyEncoder shows its embedding only .it is a ToyEncoder"):
        train_stage(resolve(RunSettings, {**given, "teacher": blind, "student": seeing}), quiet=True)
    with pytest.raises(ModelError, match="small:resnet8 shows its embedding only .it is a"):
        train_stage(resolve(RunSettings, {**given, "teacher": seeing, "student": "small:resnet8"}), quiet=True)


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
    assert understudy.load_student(run.path, trust_code=True).embed_dim == (
        24 if needs_teacher else LOSSES[name].embed_dim
    )


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
        transform="phi-s", probes=1, evaluation={"protocols": ("fidelity",)},
    )  # fmt: skip
    student = understudy.load_student(run.path)
    assert run.student["head"]["transform"] == "phi-s" and float(student.inverse_transform.scale) > 0
    # The mean alone, put back, is a large part of what these embeddings share.
    assert run.evaluation["student_embed"]["fidelity"]["row_cosine"] > 0.5
    assert "row_cosine" in next(row for row in run.metrics() if row["kind"] == "signal")
