"""Recipes and presets: where they lie among the settings, that they are what the authors ran, and that each runs."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import understudy
from understudy import pipeline
from understudy.artifacts import Run
from understudy.cli import VERBS, main
from understudy.compare.variants import variants_of, variants_of_grid
from understudy.errors import ConfigError, DataError, ModelError
from understudy.losses import LOSSES, build
from understudy.models.student import student_encoder
from understudy.models.teacher import build_teacher
from understudy.pipeline import RunSettings, resolve_run, train_stage
from understudy.recipes import TINY_TEACHER, merge_layers, recipe_names
from understudy.settings import as_table, flatten, read_toml
from understudy.train.finish import compute_cost

FOLDER = Path(__file__).resolve().parents[1] / "recipes"
IMAGES = {"data": "digits", "student": "small:resnet8", "teacher": "x"}
IMAGENET = 1_281_167

SGD = "sgd 0.9"
# What the authors ran, copied by hand from their public code: optimizer and momentum, rate, weight decay, schedule,
# images a step, image passes, neighbors (drawn, of), head, views, then the method's own settings.
AUTHORS: dict[str, tuple[Any, ...]] = {
    "coss": (SGD, 0.03, 1e-4, "cosine hold 0.2", 1024, 400, (15, 31), "auto 2048", "moco-v2",
             {"weight": 1, "scale": "code", "scope": "process"}),
    "simreg": (SGD, 0.05, 1e-4, "cosine", 256, 130, (0, None), "deep", "weak", {}),
    "seed": (SGD, 0.03, 1e-4, "cosine hold 0.025", 256, 200, (0, None), "mlp 0", "moco-v2",
             {"tau_teacher": 0.0001, "tau_student": 0.2, "queue": 65536}),
    "compress": (SGD, 0.01, 1e-4, "step 0.2 at 90, 120 of 130", 256, 130, (0, None), "linear", "crop",
                 {"queues": 2, "temperature": 0.04, "queue": 128000, "momentum": 0.999}),
    "isd": (SGD, 0.01, 1e-4, "step 0.2 at 140, 180 of 200", 256, 200, (0, None), "auto", "moco-v2",
            {"temperature": 0.02, "queue": 128000, "momentum": 0.999}),
    "disco": (SGD, 0.03, 1e-4, "cosine", 256, 200, (0, None), "mlp 2048", "moco-v2",
              {"temperature": 0.2, "queue": 65536, "momentum": 0.999, "weight": 32}),
    "bingo": (SGD, 0.03, 1e-4, "cosine", 512, 400, (1, 5), "mlp 2048", "moco-v2",
              {"temperature": 0.2, "queue": 65536, "warmup": 22}),
    "smd": (SGD, 0.1, 1e-4, "cosine", 512, 100, (0, None), "linear", "moco-v2",
            {"tau": 0.04, "warmup": 2, "views": 2}),
    "rkd": (SGD, 0.1, 5e-4, "step 0.2 at 60, 120, 160 of 200", 128, 200, (0, None), "linear", "weak",
            {"distance": 25, "angle": 50}),
    "pkt": ("adamw 0.9", 1e-4, 0, "constant", 128, 20, (0, None), "linear", "weak", {"weight": 1}),
    "sp": (SGD, 0.05, 5e-4, "step 0.1 at 150, 180, 210 of 240", 64, 240, (0, None), "linear", "weak",
           {"weight": 3000}),
    "mse": (SGD, 0.05, 5e-4, "step 0.1 at 150, 180, 210 of 240", 64, 240, (0, None), "linear", "weak", {}),
    "dist": (SGD, 0.1, 1e-4, "step 0.1 at 30, 60, 90 of 100", 256, 100, (0, None), "linear", "crop",
             {"beta": 1, "gamma": 1}),
    "attndistill": ("adamw 0.9", 2.4e-3, 0.05, "cosine warmup 40", 4096, 800, (0, None), "gelu", "weak",
                    {"weight": 0.1, "temperature": 10}),
    "proteus": ("adamw 0.9", 5e-4, 0.05, "cosine warmup 5", 512, 300, (0, None), "norm", "crop",
                {"token": 1, "feature": 1, "patch": 1, "probability": 0.5, "ratio": 0.5}),
    "queue_kl": ("adamw 0.9", 5e-4, 0.01, "cosine clip 1", 128, 100, (0, None), "linear", "moco-v2",
                 {"temperature": 0.07, "queue": 8192}),
    "moco": (SGD, 0.03, 1e-4, "cosine", 256, 200, (0, None), "mlp 0", "moco-v2",
             {"temperature": 0.2, "queue": 65536, "momentum": 0.999}),
}  # fmt: skip
EVERY_STEP = {"pkt", "queue_kl", "attndistill"}

# Linear top-1, top-5 and 10-NN of the main table, and the students; then the two other teachers.
ROWS = {
    ("moco-v2", "moco"): ("52.20 76.60 36.70", "56.80 81.40 41.50", "42.20 68.50 30.0"),
    ("seed", "seed"): ("57.60 81.80 50.12", "58.50 82.60 45.20", "61.30 82.70 53.11"),
    ("bingo", "bingo"): ("61.40 84.30 54.16", "63.50 85.70", "63.74 85.32 54.75"),
    ("disco", "disco"): ("60.60 83.70 52.03", "62.50 85.40 53.65", "66.50 87.60 54.78"),
    ("smd", "smd"): ("59.56 83.29 49.69", "62.75 85.25 52.61", ""),
    ("coss", "coss"): ("62.35 84.81 53.78", "64.01 86.14 54.80", "67.36 87.75 58.33"),
}
R50 = "torchvision:resnet50@moco_v2_200ep_pretrain.pth.tar"
EXPECTED = {
    f"{row}-{student}": (method, student.replace("-", "_"), "" if method == "moco" else R50, numbers)
    for (row, method), columns in ROWS.items()
    for student, numbers in zip(("resnet18", "resnet34", "efficientnet-b0"), columns, strict=True)
} | {
    "coss-resnet18-from-moco-v2-resnet101": (
        "coss", "resnet18", "torchvision:resnet101@moco_v2_resnet101.pth.tar", "63.40"
    ),
    "coss-resnet18-from-moco-v3-resnet50": (
        "coss", "resnet18", "torchvision:resnet50@moco_v3_resnet50.pth.tar", "67.20"
    ),
}  # fmt: skip
COMPARISONS = {"ablate-space": 2, "ablate-weight": 5, "ablate-neighbors": 8, "ablate-transform": 12}
# Epochs and rate of the linear classifier, where its authors' commands differ from those of the CoSS paper.
LINEAR = {"bingo-efficientnet-b0": (120, 3), "disco-efficientnet-b0": (100, 3), "disco-resnet34": (100, 3)}
# Where a row differs from its method's other rows in the authors' own code.
OWN = {
    "bingo-efficientnet-b0": {"weight_decay": 4e-5, "temperature": 0.12},
    "smd-efficientnet-b0": {"tau": 0.004},
}


def assert_authors(settings: RunSettings, method: str, **own: Any) -> None:
    """The settings are those of the hand-written row, but for what is named here."""
    name, rate, decay, schedule, batch, passes, (k, n), head, views, terms = AUTHORS[method]
    optimizer = settings.optimizer
    assert f"{optimizer.name} {optimizer.momentum:g}" == name
    assert (optimizer.lr, optimizer.weight_decay) == (rate, own.pop("weight_decay", decay))
    assert (settings.batch_size, settings.passes) == (batch, passes)
    assert settings.neighbors.k == k and (n is None or settings.neighbors.n == n)
    kind, *hidden = head.split()
    assert settings.head == kind and (not hidden or settings.head_hidden == int(hidden[0]))
    assert settings.views.recipe == views
    assert settings.method == {"name": method, **terms, **own}
    shape, *words = schedule.replace(",", "").split()
    assert optimizer.schedule == shape
    assert optimizer.every == ("step" if method in EVERY_STEP else "epoch")
    more = {"hold": "0", "warmup": "0", "clip": "nan", **dict(zip(words[::2], words[1::2], strict=shape != "step"))}
    assert (optimizer.hold, optimizer.warmup) == (float(more["hold"]), float(more["warmup"]))
    assert (optimizer.clip or np.nan) == pytest.approx(float(more["clip"]), nan_ok=True)
    if shape == "step":
        factor, _, *epochs, _, length = words
        assert optimizer.decay == float(factor)
        assert [round(share * float(length), 9) for share in optimizer.milestones] == [float(e) for e in epochs]


def test_no_method_is_left_out():
    assert set(LOSSES) - {"coss_centered"} == set(AUTHORS) == {name for name, loss in LOSSES.items() if loss.authors}


@pytest.mark.parametrize("method", AUTHORS)
def test_every_method_carries_what_its_authors_ran(method: str):
    assert_authors(resolve_run({**IMAGES, "method": method, "recipe": "authors"}), method)
    build(**AUTHORS[method][-1], name=method)  # the numbers are ones the method takes
    assert set(AUTHORS[method][-1]) == set(vars(LOSSES[method].Settings())), "every setting of a method is written"


def test_flags_win_over_files_over_authors_over_defaults():
    seed = {**IMAGES, "method": "seed"}
    assert resolve_run(seed).optimizer.name == "adamw"
    file = {
        **seed,
        "recipe": "authors",
        "batch-size": 64,
        "optimizer": {"lr": 0.5},
        "method": {"name": "seed", "queue": 9},
    }
    settings = resolve_run(file, {"optimizer.lr": "0.25", "method.tau_student": 0.1})
    assert (settings.batch_size, settings.passes, settings.optimizer.lr) == (64, 200, 0.25)
    assert settings.method == {"name": "seed", "queue": 9, "tau_teacher": 1e-4, "tau_student": 0.1}
    # The flag decides whose authors are meant, and whether there is a recipe at all.
    assert_authors(resolve_run({**file, "optimizer": {}, "batch-size": 256}, {"method": "disco"}), "disco")
    assert resolve_run(file, {"recipe": "none"}).optimizer.name == "adamw"


def test_a_recipe_is_a_file_or_a_name_and_may_build_on_the_authors(tmp_path: Path):
    plain = tmp_path / "plain.toml"
    plain.write_text('passes = 3\n[method]\nname = "sp"\n')
    settings = resolve_run({**IMAGES, "recipe": str(plain)})
    assert (settings.passes, settings.method, settings.optimizer.name) == (3, {"name": "sp"}, "adamw")
    built = tmp_path / "built.toml"
    built.write_text('recipe = "authors"\nmethod = "sp"\npasses = 3\n')
    settings = resolve_run({**IMAGES, "recipe": str(built)}, {"batch_size": 8})
    assert (settings.passes, settings.batch_size, settings.optimizer.lr) == (3, 8, 0.05)
    assert resolve_run({"recipe": "seed-resnet18"}) == resolve_run(read_toml(FOLDER / "seed-resnet18.toml"))
    built.write_text('recipe = "seed-resnet18"\n')
    with pytest.raises(ConfigError, match=r"build on 'authors' only; .*built.toml asks for 'seed-resnet18'"):
        resolve_run({**IMAGES, "recipe": str(built)})


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"recipe": "autors"}, "no recipe 'autors', .* Did you mean 'authors'.*coss-resnet18"),
        ({"recipe": 3}, "'recipe' must be a name; got 3"),
        ({"preset": "small"}, "Unknown preset 'small'. Known: tiny"),
        ({"recipe": "authors", "method": "sed"}, "Unknown method 'sed'. Did you mean 'seed'"),
    ],
)
def test_what_is_unknown_is_a_sentence(layer: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        resolve_run({**IMAGES, **layer})


def test_a_method_without_authors_is_a_sentence():
    """The default method is one: nobody but this project has run it."""
    words = "Nothing is known of what the authors of 'coss_centered' ran. Name a method that has .*, coss, disco"
    for layer in ({}, {"method": "coss_centered"}):
        with pytest.raises(ConfigError, match=words):
            resolve_run({**IMAGES, "recipe": "authors", **layer})


def test_tiny_shrinks_data_and_length_and_nothing_else():
    whole = flatten(as_table(resolve_run({"recipe": "coss-resnet34"})))
    tiny = flatten(as_table(resolve_run({"recipe": "coss-resnet34"}, {"preset": "tiny"})))
    assert {key for key in whole if whole[key] != tiny[key]} == {
        "data", "eval_data", "teacher", "limit", "image_size", "passes", "batch_size",
        "evaluation.limit", "evaluation.linear_sgd.epochs",
    }  # fmt: skip
    # Flags win; a run without a teacher gets none.
    kept = resolve_run({"recipe": "coss-resnet34"}, {"preset": "tiny", "teacher": "run:x", "passes": 2})
    assert (kept.teacher, kept.passes, kept.limit) == ("run:x", 2, 64)
    assert resolve_run({"recipe": "moco-v2-resnet18", "preset": "tiny"}, {}).teacher is None
    assert merge_layers({"data": "x"}, {"preset": "tiny"}, method="coss")[1]["data"] == "digits:train"


def test_the_recipes_are_the_rows_of_the_table():
    assert set(recipe_names()) == {path.stem for path in FOLDER.iterdir()} == {*EXPECTED, *COMPARISONS}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_says_what_it_is(name: str):
    method, student, teacher, numbers = EXPECTED[name]
    settings = resolve_run({"recipe": name})
    assert_authors(settings, method, **OWN.get(name, {}))
    assert settings.student.split(":")[1] == student and (settings.teacher or "") == teacher
    assert (settings.data, settings.eval_data) == ("imagenet/train", "imagenet")
    evaluation = settings.evaluation
    assert {"knn", "linear_sgd"} <= set(evaluation.protocols)
    assert (evaluation.linear_sgd.epochs, evaluation.linear_sgd.lr) == LINEAR.get(
        name, (120 if method == "bingo" else 100, 30)
    )

    head = (FOLDER / f"{name}.toml").read_text().split("\n\n")[0]
    text = " ".join(line.removeprefix("#").strip() for line in head.splitlines())
    assert "[table]" in text and ("arXiv" in text or "ECCV 2022" in text)
    sentence = text.split("Expected")[1].split("[table]")[0]
    assert re.findall(r"\d+\.\d+", sentence) == numbers.split()
    if len(numbers.split()) < 3:
        assert re.search("not published|no (other )?numbers", sentence)
    assert re.search(rf"^#   .*understudy run --recipe {name}$", head, flags=re.MULTILINE)
    loss = build(settings.method["name"])
    passes = compute_cost(round(settings.passes * IMAGENET), loss)
    cost = text.split("Cost:")[1].split("pixels")[0]
    millions = [passes["student_forwards"], passes["teacher_forwards"], passes["key_forwards"]]
    assert [int(n) for n in re.findall(r"(\d+) M", cost)] == [round(n / 1e6) for n in millions if n]
    assert f" {settings.passes:g} image passes" in cost


@pytest.mark.parametrize("name", EXPECTED)
def test_every_row_is_evaluated_as_its_authors_did(name: str):
    """torchvision's Resize(256), bilinear, and CenterCrop(224), whatever library the student comes from."""
    import torchvision

    contract = student_encoder(resolve_run({"recipe": name}).student_settings).contract
    theirs = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    assert (contract.size, round(contract.size / contract.crop)) == (theirs.crop_size[0], theirs.resize_size[0])
    assert contract.interpolation == theirs.interpolation.value
    assert (list(contract.mean), list(contract.std)) == (theirs.mean, theirs.std)


def test_the_student_s_input_is_a_setting():
    timm = {**IMAGES, "student": "timm:resnet18"}
    own = student_encoder(resolve_run(timm).student_settings).contract
    assert (own.crop, own.interpolation) == (0.95, "bicubic")
    asked = resolve_run(
        {**IMAGES, "student": "timm:resnet18"}, {"student_crop": 0.5, "student_interpolation": "nearest"}
    )
    contract = student_encoder(asked.student_settings).contract
    assert (contract.crop, contract.interpolation, contract.size) == (0.5, "nearest", own.size)
    with pytest.raises(ModelError, match="Unknown interpolation 'nearst'. Did you mean 'nearest'"):
        student_encoder(resolve_run({**IMAGES, "student_interpolation": "nearst"}).student_settings)
    with pytest.raises(ConfigError, match="'student_crop' must be at most 1; got 2"):
        resolve_run({**IMAGES, "student_crop": 2})


def test_what_a_recipe_lacks_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="The data imagenet/train does not exist. Give a folder of images"):
        train_stage(resolve_run({"recipe": "coss-resnet18"}), quiet=True)
    with pytest.raises(ModelError, match="weight file moco_v2_200ep_pretrain.pth.tar does not exist"):
        train_stage(resolve_run({"recipe": "coss-resnet18"}, {"data": "digits", "eval_data": "digits"}), quiet=True)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_every_recipe_runs_at_tiny_size(workplace: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(workplace)
    flags = {"recipe": name, "preset": "tiny", "out": name, "device": "cpu", "workers": 0, "probes": 1}
    run = train_stage(resolve_run({}, flags), quiet=True)
    assert run is not None
    method, student, teacher, _ = EXPECTED[name]
    rows = [row for row in run.metrics() if row["kind"] == "step"]
    assert rows[-1]["step"] == 2 and all(np.isfinite([row["loss"], *row["terms"].values()]).all() for row in rows)
    metadata = run.student
    assert metadata["spec"].split(":")[1] == student and metadata["data"]["images"] == 64
    assert (metadata["teacher"] or {}).get("spec") == (TINY_TEACHER if teacher else None)
    assert metadata["contract"]["interpolation"] == "bilinear"
    saved = tomllib.loads(run.config_path.read_text())
    assert "recipe" not in saved and "preset" not in saved
    assert saved["method"] == {"name": method, **AUTHORS[method][-1], **{
        key: value for key, value in OWN.get(name, {}).items() if key in vars(LOSSES[method].Settings())
    }}  # fmt: skip
    assert saved["optimizer"]["lr"] == AUTHORS[method][1] and saved["views"]["recipe"] == AUTHORS[method][8]
    shutil.rmtree(run.path)  # 20 checkpoints would be 3 GB


@pytest.mark.parametrize(("name", "rows"), COMPARISONS.items())
def test_an_experiment_has_its_rows_and_runs_at_tiny_size(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, rows: int
):
    monkeypatch.chdir(workplace)
    line = re.search(r"^#   understudy (.*)$", (FOLDER / f"{name}.toml").read_text(), flags=re.MULTILINE)
    assert line is not None and f"--recipe {name} " in line[1]
    verb = line[1].split()[0]
    table = read_toml(FOLDER / f"{name}.toml")
    made = variants_of_grid(table["vary"]) if verb == "ablate" else variants_of(table["methods"])
    assert len(made) == rows
    if name not in ("ablate-space", "ablate-transform"):
        return  # the others are larger grids of the same settings
    flags = ["--preset", "tiny", "--teacher", TINY_TEACHER, "--student", "small:resnet8x0.25", "--out", name]
    shorter = ["--seeds", "1", "--optimizer.lr", "0.01", "--device", "cpu", "--workers", "0"]
    assert main([verb, "--recipe", name, *flags, *shorter, "--evaluation.protocols", "knn"]) == 0, capsys.readouterr()
    found = json.loads((workplace / name / "comparison.json").read_text())
    assert len(found["variants"]) == rows and not any(row["failure"] for row in found["variants"])


def test_the_default_is_a_method_with_a_name_on_random_batches(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(workplace)
    tables = [{}, {"recipe": None}, {"recipe": "none"}, {"method": "coss_centered"}, {"method": "coss"}]
    default, unsaid, none, centered, paper = (flatten(as_table(resolve_run({**IMAGES, **more}))) for more in tables)
    assert default == unsaid == none == centered
    assert {key for key in centered if centered[key] != paper[key]} == {"method.name"}
    assert default["neighbors.k"] == paper["neighbors.k"] == 0
    of_the_authors = resolve_run({**IMAGES, "method": "coss", "recipe": "authors"})
    assert (of_the_authors.neighbors.k, of_the_authors.neighbors.n) == (15, 31)
    assert all(read_toml(FOLDER / f"ablate-{name}.toml")["neighbors"]["k"] == 15 for name in ("space", "weight"))
    # A setting of the method is no method; the name is.
    assert resolve_run({**IMAGES, "method.weight": 0}).method == {"name": "coss_centered", "weight": 0}
    assert resolve_run(IMAGES, {"method": "seed"}).method == {"name": "seed"}
    assert resolve_run({**IMAGES, "method": "mse"}, {"passes": 3}).method == {"name": "mse"}
    flags = {"preset": "tiny", "teacher": TINY_TEACHER, "student": "small:resnet8x0.25", "out": "centered"}
    run = train_stage(resolve_run({}, {**flags, "device": "cpu", "workers": 0, "probes": 0}), quiet=True)
    assert run is not None and run.student["method"] == {"name": "coss_centered"}


@pytest.mark.slow
def test_one_command_runs_a_recipe_from_end_to_end(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(workplace)
    flags = ["--device", "cpu", "--workers", "0", "--student", "small:resnet8", "--out", "whole"]
    assert main(["run", "--recipe", "bingo-efficientnet-b0", "--preset", "tiny", *flags]) == 0
    assert "Linear, SGD" in capsys.readouterr().out
    run = Run("whole")
    assert run.report_path.is_file() and run.student["head"]["hidden"] == 2048
    assert run.evaluation["student"]["linear_sgd"]["best_epoch"] == 1
    assert run.evaluation["about"]["test_images"] == 128


@pytest.mark.slow
def test_the_api_takes_recipes_and_presets(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(workplace)
    run = understudy.distill(
        data="digits:train", teacher=TINY_TEACHER, student="small:resnet8", out="api", method="simreg",
        recipe="authors", preset="tiny", device="cpu", workers=0, quiet=True, probes=0,
    )  # fmt: skip
    saved = tomllib.loads(run.config_path.read_text())
    assert (saved["head"], saved["optimizer"]["lr"], saved["passes"]) == ("deep", 0.05, 0.5)
    assert run.student["head"] == {"kind": "deep", "width": 64, "hidden": 128, "out": 24}


def test_pretrain_takes_the_authors_of_moco(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    seen: list[RunSettings] = []
    monkeypatch.setattr(pipeline, "train_stage", lambda settings: seen.append(settings))
    assert main(["pretrain", "--data", "digits", "--model", "small:resnet8", "--recipe", "authors"]) == 143
    assert_authors(seen[0], "moco")
    assert main(["train", "--recipe", "coss-resnet18", "--passes", "1"]) == 143
    assert (seen[1].passes, seen[1].batch_size) == (1, 1024)
    for verb in ("run", "train", "pretrain"):
        assert verb in VERBS
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        assert {"--recipe", "--preset"} <= set(re.findall(r"--\w+", capsys.readouterr().out))


def test_the_tiny_teacher_is_the_cosine_transform():
    from scipy.fft import dctn

    image = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    found = build_teacher(TINY_TEACHER)(torch.from_numpy(image)).numpy()
    gray = ((image - 0.5) / 0.25).mean(1).reshape(2, 8, 4, 8, 4).mean((2, 4))
    expected = dctn(gray, type=2, axes=(1, 2))[:, :5, :5].reshape(2, 25)[:, 1:] / 4  # scipy's has 2 a factor an axis
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
