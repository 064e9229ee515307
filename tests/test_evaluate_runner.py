"""A finished run to evaluation.json: what is written and kept, how often encoders run, what a fault leaves."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from understudy.artifacts import Run, write_json
from understudy.errors import ConfigError, DataError, ModelError, StoreError
from understudy.evaluate import PROTOCOLS, runner
from understudy.evaluate.datasets.shifted import numbered_as
from understudy.evaluate.encoded_set import EncodedSet
from understudy.evaluate.features import Resources
from understudy.evaluate.open_set import split_name
from understudy.evaluate.protocol import Requirements
from understudy.evaluate.protocols.fidelity import FidelitySettings
from understudy.evaluate.protocols.knn import Knn
from understudy.evaluate.protocols.linear_sgd import LinearSgdSettings
from understudy.evaluate.protocols.robustness import RobustnessSettings
from understudy.evaluate.settings import WITHOUT_EFFECT, EvaluationSettings
from understudy.models.contract import Contract
from understudy.models.settings import StudentSettings
from understudy.models.student import Student, build_student, load_student, save_student
from understudy.models.teacher import Teacher, build_teacher
from understudy.models.trust import trusting
from understudy.sources.evaluation import open_evaluation
from understudy.sources.source import Source, open_source

TRAIN, TEST = 150, 60


class Principal(nn.Module):
    """A teacher worth the name: the digits' 16 principal components, each weighted by its own strength."""

    contract = Contract(32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def __init__(self) -> None:
        super().__init__()
        from sklearn.datasets import load_digits

        gray = load_digits().data / 16
        _, strengths, axes = np.linalg.svd(gray - gray.mean(0), full_matrices=False)
        self.project = nn.Linear(64, 16, bias=False)
        with torch.no_grad():
            self.project.weight.copy_(torch.from_numpy(axes[:16] * (strengths[:16, None] / strengths[0]) ** 2))

    def forward(self, images: Tensor) -> Tensor:
        return self.project(nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4).flatten(1))


SPEC = f"python:{__name__}:Principal"


def evaluate_run(
    run: Run, settings: EvaluationSettings, *, held_out: Any = None, control: Any = None, **given: Any
) -> Any:
    with trusting(SPEC):
        return runner.evaluate_run(run, settings, Resources(**given), held_out=held_out, control=control)


def evaluate_model(spec: str, settings: EvaluationSettings, **given: Any) -> Any:
    with trusting(SPEC):
        return runner.evaluate_model(spec, settings, Resources(**given))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of PNG files; one file of each half cannot be read."""
    root = tmp_path_factory.mktemp("digits")
    source = open_source("digits")
    labels = source.labels
    assert labels is not None
    for split, numbers in (("train", range(TRAIN)), ("test", range(TRAIN, TRAIN + TEST))):
        for i in numbers:
            folder = root / split / f"digit {labels[i]}"
            folder.mkdir(parents=True, exist_ok=True)
            source.read(i).save(folder / f"{i:04d}.png")
        next((root / split / "digit 3").iterdir()).write_bytes(b"not an image")
    return root


def metadata(teacher: str | None, data: Path) -> dict[str, Any]:
    origin = None
    if teacher is not None:
        built = build_teacher(teacher)
        origin = {"spec": teacher, "fingerprint": built.fingerprint, "contract": built.contract.table()}
    return {"teacher": origin, "data": {"spec": str(data / "train"), "images": TRAIN}}


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Makes a finished run of an untrained student, which is enough to be measured."""

    def make(teacher: str | None = SPEC, head: str = "mlp", spec: str = "small:resnet8x0.5") -> Run:
        torch.manual_seed(0)
        run = Run(tmp_path_factory.mktemp("run"))
        save_student(build_student(StudentSettings(spec, head=head, hidden=32), 16), run, metadata(teacher, digits))
        return run

    return make


@pytest.fixture(scope="module")
def measured(finished: Callable[..., Run], digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run, store = finished(), tmp_path_factory.mktemp("store")
    return run, evaluate_run(run, settings(digits), store_root=store, workers=0), store


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three l2 values, where a test asks who is judged on what and not how well."""
    monkeypatch.setattr("understudy.evaluate.measures.probe.L2_VALUES", (10.0, 0.1, 0.001))


def settings(digits: Path, **changes: Any) -> EvaluationSettings:
    given = {"eval_data": str(digits), "protocols": ("knn", "fidelity"), "fidelity": FidelitySettings(draws=5)}
    return EvaluationSettings(**{**given, **changes})


def raw(source: Source) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Pixels in [0, 1] of the readable images, their labels and their places."""
    found, kept = [], []
    for i in range(len(source)):
        try:
            found.append(torch.from_numpy(np.array(source.read(i))).permute(2, 0, 1).float() / 255)
        except Exception:
            continue
        kept.append(i)
    assert source.labels is not None
    return torch.stack(found), source.labels[kept], np.array(kept)


def test_the_file_and_what_it_says(measured: Any, digits: Path) -> None:
    run, result, _ = measured
    assert json.loads(run.evaluation_path.read_text(), parse_constant=pytest.fail) == result == run.evaluation
    assert list(result) == ["teacher", "student", "student_embed", "about"]
    assert set(result["teacher"]) == {"knn"}  # the teacher is not compared with itself
    assert set(result["student"]) == set(result["student_embed"]) == {"knn", "fidelity"}
    assert "row_cosine" in result["student_embed"]["fidelity"]
    assert "row_cosine" not in result["student"]["fidelity"]
    about = result["about"]
    assert (about["train_images"], about["test_images"], about["skipped"], about["classes"]) == (149, 59, 2, 10)
    assert set(about["seconds"]) == {"teacher", "student", "knn", "fidelity", "sample"}
    assert about["versions"]["torch"] == torch.__version__
    assert list(about["protocols"]) == ["knn", "fidelity"]
    assert about["eval_data"] == str(digits)
    assert about["hardware"]["device"] == "cpu"


def test_figures_equal_a_plain_pass_over_the_images(measured: Any, digits: Path) -> None:
    """The whole path (folders, loader, store, vote) against pixels through the module by hand."""
    _, result, _ = measured
    train, test = (raw(source) for source in open_evaluation(str(digits)))
    with torch.no_grad():
        rows = [Principal()(images).numpy() for images, _, _ in (train, test)]
    figures = Knn.evaluate(EncodedSet("teacher", rows[1], rows[0], test[1], train[1]), settings(digits))
    for name, value in figures.items():
        assert result["teacher"]["knn"][name] == pytest.approx(value, abs=100 / TEST + 1e-9), name  # stored in fp16
    assert result["teacher"]["knn"]["top1@10"] > 70


def test_fresh_figures_are_kept_and_only_missing_ones_computed(
    finished: Callable[..., Run], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished()
    first = settings(digits, protocols=("knn",))
    evaluate_run(run, first, store_root=tmp_path, workers=0)
    written = run.evaluation
    written["student"]["knn"]["top1@10"] = 12.5
    write_json(run.evaluation_path, written)

    with monkeypatch.context() as patch:
        patch.setattr(Student, "features", lambda *_: pytest.fail("the student ran again"))
        patch.setattr(Teacher, "features", lambda *_: pytest.fail("the teacher ran again"))
        assert evaluate_run(run, first, store_root=tmp_path, workers=0) == written
        other = replace(first, batch_size=7, memory_mb=500)  # budgets and batch sizes change no figure
        assert evaluate_run(run, other, store_root=tmp_path, workers=0) == written

    more = evaluate_run(run, settings(digits), store_root=tmp_path, workers=0)
    assert more["student"]["knn"]["top1@10"] == 12.5
    assert set(more["student_embed"]) == {"knn", "fidelity"}
    assert more["teacher"] == written["teacher"]
    assert list(more["about"]["protocols"]) == ["knn", "fidelity"]
    assert {"knn", "fidelity"} <= set(more["about"]["seconds"])

    again = evaluate_run(run, settings(digits, seed=1, protocols=("knn",)), store_root=tmp_path, workers=0)
    assert again["student"]["knn"]["top1@10"] != 12.5
    assert set(again["student"]) == {"knn"}


def test_each_image_passes_each_encoder_once(
    finished: Callable[..., Run], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"student": 0, "teacher": 0}
    for cls, name in ((Student, "student"), (Teacher, "teacher")):
        original = cls.features

        def counted(self: Any, x: Tensor, original: Any = original, name: str = name) -> Tensor:
            counts[name] += len(x)
            return original(self, x)

        monkeypatch.setattr(cls, "features", counted)
    evaluate_run(finished(), settings(digits), store_root=tmp_path, workers=0)
    assert counts["student"] == 149 + 59
    first = counts["teacher"]
    assert first <= 2 * (149 + 59)  # each store begins with a look at a sample of at most 256
    evaluate_run(finished(), settings(digits), store_root=tmp_path, workers=0)
    assert counts["teacher"] == first  # the next run of this teacher finds its features


def test_without_a_head_both_sides_of_the_student_are_one(
    finished: Callable[..., Run], digits: Path, tmp_path: Path
) -> None:
    result = evaluate_run(
        finished(head="none", spec="small:resnet8x0.25"), settings(digits), store_root=tmp_path, workers=0
    )
    assert result["student"] == result["student_embed"]
    assert "column_cosine" in result["student"]["fidelity"]


@pytest.mark.slow
def test_without_evaluation_images_fidelity_alone_with_its_caveat(
    finished: Callable[..., Run], digits: Path, tmp_path: Path
) -> None:
    run, held_out = finished(), open_source(digits / "test")
    result = evaluate_run(run, EvaluationSettings(), store_root=tmp_path, workers=0, held_out=held_out)
    assert {name: set(found) for name, found in result.items() if name != "about"} == {
        "teacher": set(),
        "student": {"fidelity"},
        "student_embed": {"fidelity"},
    }
    assert result["about"]["caveats"] == [
        "No evaluation images were given, so nothing was measured with labels.",
        "Fidelity was measured on 60 images held out of training.",
    ]
    with np.load(run.sample_path) as sample:
        assert (sample["labels"] == -1).all()  # there are labels in these folders; nobody asked for them
    both = EvaluationSettings(protocols=("fidelity", "drop_in"))
    result = evaluate_run(run, both, store_root=tmp_path, workers=0)
    assert "Drop-in search was measured on 150 of the training images" in result["about"]["caveats"][2]
    assert "150 of the training images: it flatters the student" in result["about"]["caveats"][1]
    # Fidelity's own sentence stays as long as its figures, and is not said of others.
    labeled = EvaluationSettings(protocols=("knn",), on=(f"set={digits}",))
    result = evaluate_run(run, labeled, store_root=tmp_path, workers=0)
    assert len(result["about"]["caveats"]) == 2 and "fidelity" in result["student"] and "knn@set" in result["student"]
    result = evaluate_run(finished(), labeled, store_root=tmp_path / "other", workers=0)
    assert result["about"]["caveats"] == [] and "fidelity" not in result["student"]


def test_a_run_without_a_teacher(finished: Callable[..., Run], digits: Path, tmp_path: Path) -> None:
    run = finished(teacher=None)
    result = evaluate_run(run, settings(digits), store_root=tmp_path, workers=0)
    assert list(result) == ["student", "student_embed", "about"]
    assert set(result["student"]) == {"knn"}
    assert list(tmp_path.iterdir()) == []  # no teacher, no store
    with np.load(run.sample_path) as sample:
        assert not {"teacher", "teacher_neighbors", "column_cosine"} & set(sample.files)


def test_a_users_fault_stops_one_protocol_only(
    finished: Callable[..., Run], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One class on either side: nothing to classify, but neighborhoods can be compared."""
    halves = open_evaluation(str(digits))
    ones = [half.subset(np.flatnonzero(half.labels == 1)) for half in halves]
    monkeypatch.setattr("understudy.evaluate.plan.open_evaluation", lambda *_, **__: ones)
    chosen = settings(digits, protocols=("knn", "linear", "fidelity"))
    result = evaluate_run(finished(), chosen, store_root=tmp_path, workers=0)
    assert result["student"]["knn"] == result["student"]["linear"]
    assert "are of one class ('digit 1')" in result["student"]["knn"]["error"]
    assert result["student"]["fidelity"]["overlap@1"] >= 0


def test_a_student_that_diverged_is_reported(finished: Callable[..., Run], digits: Path, tmp_path: Path) -> None:
    student = load_student(finished().path)
    with torch.no_grad():
        next(student.head.parameters()).fill_(torch.nan)
    broken = Run(tmp_path / "broken")
    save_student(student, broken, metadata(SPEC, digits))
    result = evaluate_run(broken, settings(digits), store_root=tmp_path / "store", workers=0)
    for protocol, rows in (("fidelity", "59 of 59"), ("knn", "149 of 149")):
        assert f"{rows} rows of the student_embed features" in result["student_embed"][protocol]["error"]
    assert "59 of 59 rows" in result["about"]["sample"]
    assert not broken.sample_path.exists()
    assert result["student"]["knn"]["top1@1"] >= 0


def test_a_limit_takes_so_many_images_of_each_half(finished: Callable[..., Run], digits: Path, tmp_path: Path) -> None:
    run, store = finished(), tmp_path / "store"
    few = settings(digits, protocols=("knn",), limit=40)
    about = evaluate_run(run, few, store_root=store, workers=0)["about"]
    assert about["train_images"] + about["test_images"] + about["skipped"] == 80
    # Another number of images is another measurement, not the one that is there.
    about = evaluate_run(run, replace(few, limit=None), store_root=store, workers=0)["about"]
    assert about["test_images"] == TEST - 1


def test_the_sample(measured: Any, digits: Path) -> None:
    source = open_evaluation(str(digits))[1]
    test, labels, kept = raw(source)
    with np.load(measured[0].sample_path, allow_pickle=False) as file:
        sample = {name: file[name] for name in file.files}
    n = len(kept)
    assert {name: (array.shape, array.dtype.kind) for name, array in sample.items()} == {
        "teacher": ((n, 16), "f"),
        "student": ((n, 16), "f"),
        "features": ((n, 32), "f"),
        "labels": ((n,), "i"),
        "class_names": ((10,), "U"),
        "names": ((n,), "U"),
        "thumbnails": ((n, 64, 64, 3), "u"),
        "teacher_neighbors": ((n, 10), "i"),
        "student_neighbors": ((n, 10), "i"),
        "column_cosine": ((16,), "f"),
    }
    assert (sample["labels"] == labels).all()
    assert sample["class_names"].tolist() == [f"digit {i}" for i in range(10)]
    assert sample["names"].tolist() == [source.name(int(i)) for i in kept]
    with torch.no_grad():
        rows = Principal()(test).numpy()
    assert np.abs(sample["teacher"] - rows).max() < 2e-3
    unit = sample["teacher"].astype(float) / np.linalg.norm(sample["teacher"].astype(float), axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    assert (np.sort(sample["teacher_neighbors"]) == np.sort(np.argsort(-cosines, axis=1)[:, :10])).mean() > 0.99
    gray = sample["thumbnails"][:, 32, 32].astype(int)  # the middle of the digit, as in the image itself
    middle = (255 * test[:, :, 15:17, 15:17].mean((2, 3))).numpy()
    assert np.abs(gray - middle).mean() < 20


def test_any_encoder_and_a_run_by_its_spec(measured: Any, digits: Path, tmp_path: Path) -> None:
    run, result, store = measured
    assert evaluate_model(f"run:{run.path}", settings(digits), store_root=store, workers=0) == result
    alone = evaluate_model(SPEC, settings(digits, protocols=("knn", "linear")), store_root=store, workers=0)
    assert list(alone) == ["teacher", "about"]
    assert alone["teacher"]["knn"] == result["teacher"]["knn"]
    assert set(alone["teacher"]) == {"knn", "linear"}
    with pytest.raises(ConfigError, match="needs labeled images"):
        evaluate_model(SPEC, EvaluationSettings(), store_root=tmp_path)
    with pytest.raises(ModelError):
        evaluate_model("small:resnet8", settings(digits), store_root=tmp_path)


def test_a_named_store_of_the_training_images_is_left_alone(
    measured: Any, finished: Callable[..., Run], digits: Path, tmp_path: Path
) -> None:
    """`--store` may be one particular store; evaluation images then lie beside it."""
    from understudy.embed.embedding import Inference, embed

    images = open_source("digits:test").subset(np.arange(50))
    particular = embed(build_teacher(SPEC), images, tmp_path, Inference(workers=0))
    result = evaluate_run(finished(), settings(digits), store_root=particular.folder, workers=0)
    assert result["teacher"] == measured[1]["teacher"]
    assert len(list(tmp_path.glob("*/manifest.json"))) == 3


def test_progress_names_the_stage(finished: Callable[..., Run], digits: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    evaluate_run(
        finished(), settings(digits), store_root=tmp_path, workers=0, progress=lambda *report: told.append(report)
    )
    assert all(0 <= done <= total for done, total, _ in told)
    assert {note.split(":")[0] for _, _, note in told} == {
        "teacher, main train images", "teacher, main test images", "student, main train images",
        "student, main test images", "teacher, knn", "student, knn", "student_embed, knn", "teacher, fidelity",
        "student, fidelity", "student_embed, fidelity",
    }  # fmt: skip


def test_what_cannot_be_evaluated_is_a_sentence(finished: Callable[..., Run], digits: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no finished student"):
        evaluate_run(Run(tmp_path), settings(digits), store_root=tmp_path)
    run = finished()
    write_json(run.student_path, {**run.student, "teacher": {**run.student["teacher"], "fingerprint": "0" * 16}})
    with pytest.raises(ModelError, match="the run was trained with 0000000000000000"):
        evaluate_run(run, settings(digits), store_root=tmp_path, workers=0)
    assert not run.evaluation_path.exists()


def test_the_real_teacher_scores_what_its_notes_say(shared: Path, tmp_path: Path) -> None:
    """ResNet-56 on CIFAR-10: weighted 10-NN from 10,000 images is 93.5 %; from 500, on 250, it must be near."""
    train, test = (open_source(shared / "data" / "cifar10" / f"{split}.parquet") for split in ("train", "test"))
    halves = train.subset(np.arange(500)), test.subset(np.arange(250))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("understudy.evaluate.plan.open_evaluation", lambda *_, **__: halves)
        found = evaluate_model(
            f"onnx:{shared / 'weights' / 'resnet56_cifar10.onnx'}",
            EvaluationSettings(eval_data="cifar10", protocols=("knn", "linear")),
            store_root=tmp_path,
            workers=0,
        )
    assert 89 < found["teacher"]["knn"]["top1@10"] < 97
    assert 89 < found["teacher"]["linear"]["top1"] < 97


def test_settings() -> None:
    with pytest.raises(ConfigError, match="Unknown protocol 'kn'. Did you mean 'knn'"):
        EvaluationSettings(protocols=("kn",))
    with pytest.raises(ConfigError, match="each once; got knn, knn"):
        EvaluationSettings(protocols=("knn", "knn"))
    with pytest.raises(ConfigError, match="got none"):
        replace(EvaluationSettings(), protocols=())


def test_settings_do_not_import_torch() -> None:
    code = "import sys, understudy.evaluate.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Images that pass each encoder from now on."""
    counts = {"student": 0, "teacher": 0}
    for cls, name in ((Student, "student"), (Teacher, "teacher")):
        original = cls.features

        def features(self: Any, x: Tensor, original: Any = original, name: str = name) -> Tensor:
            counts[name] += len(x)
            return original(self, x)

        monkeypatch.setattr(cls, "features", features)
    return counts


@pytest.mark.usefixtures("quick")
def test_further_sets_pass_each_encoder_once_and_are_filed_by_name(
    finished: Callable[..., Run], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Main images, a labeled root (the same images under another name) and test images alone."""
    run, counts = finished(), counted(monkeypatch)
    monkeypatch.setattr(PROTOCOLS["linear"], "requirements", Requirements(kinds=frozenset({"labeled", "shift"})))
    shutil.copytree(digits / "test", tmp_path / "alone")
    [broken] = [path for path in (tmp_path / "alone").rglob("*.png") if path.read_bytes() == b"not an image"]
    broken.unlink()
    on = (f"again={digits}", f"alone={tmp_path / 'alone'}", f"nowhere={tmp_path / 'nothing'}")
    chosen = settings(digits, on=on, protocols=("knn", "linear", "fidelity"))
    told: list[str] = []
    result = evaluate_run(run, chosen, store_root=tmp_path, workers=0, notify=told.append)
    assert counts["student"] == 149 + 59 + 59  # `again` is known by its content
    assert list(result["student"]) == [
        "knn", "knn@again", "knn@nowhere", "linear", "linear@again", "linear@alone", "linear@nowhere", "fidelity"
    ]  # fmt: skip
    assert result["student"]["knn@again"] == result["student"]["knn"]
    assert result["student"]["linear@alone"] == result["student"]["linear"]
    assert "neither a published set nor a path" in result["teacher"]["knn@nowhere"]["error"]
    assert result["about"]["on"]["alone"] == {"test": 59, "skipped": 0}
    assert [line.split(":")[0] for line in told] == ["teacher", "student"]
    line = r"student: 479 image passes \(main images 210, again 210, alone 59\) at ([\d.]+) ms.* about (\d+) s "
    said = re.search(line, told[1])
    assert said
    assert float(said[1]) * 0.479 == pytest.approx(float(said[2]), abs=1)

    before = dict(counts)
    (tmp_path / "nothing").symlink_to(digits)
    result = evaluate_run(run, chosen, store_root=tmp_path, workers=0)  # only what failed is tried again
    assert result["student"]["knn@nowhere"] == result["student"]["knn"]
    assert counts == before


def test_a_killed_evaluation_goes_on(
    finished: Callable[..., Run], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished()
    with monkeypatch.context() as patch:
        patch.setattr(
            PROTOCOLS["fidelity"], "evaluate", staticmethod(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        )
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(run, settings(digits), store_root=tmp_path, workers=0)
    assert not run.evaluation_path.exists()  # a file that exists is whole
    with monkeypatch.context() as patch:
        counts = counted(patch)
        patch.setattr(PROTOCOLS["knn"], "evaluate", staticmethod(lambda *_: pytest.fail("kNN was finished")))
        result = evaluate_run(run, settings(digits), store_root=tmp_path, workers=0)
    assert counts == {"student": 0, "teacher": 0}
    assert {"knn", "fidelity"} == set(result["student"])
    assert not list(run.path.glob("*.partial*"))


def test_test_images_alone_take_the_class_numbers_of_the_main_images(digits: Path, tmp_path: Path) -> None:
    names = tuple(f"digit {i}" for i in range(10))
    source = open_source(digits / "test")
    odd = source.subset(np.flatnonzero(np.isin(source.labels, [3, 7])))
    assert set(numbered_as(odd, names, "odd")) == {3, 7}
    assert (numbered_as(odd, names[::-1], "odd") == 9 - odd.labels).all()
    for number in (0, 2, 10):
        (tmp_path / "v2" / str(number)).mkdir(parents=True)
        source.read(0).save(tmp_path / "v2" / str(number) / "a.png")
    eleven = tuple(f"n{i:08d}" for i in range(11))
    found = open_source(tmp_path / "v2")  # its own class numbers are those of sorted strings: 0, 10, 2
    assert numbered_as(found, eleven, "v2").tolist() == [0, 10, 2]
    with pytest.raises(DataError, match="1 of 3 classes .* e.g. '10'"):
        numbered_as(found, eleven[:10], "v2")
    with pytest.raises(DataError, match="2 of 2 classes of odd .* e.g. 'digit 3'"):
        numbered_as(odd, eleven, "odd")


def test_sets_that_cannot_be_asked_for(finished: Callable[..., Run], digits: Path, tmp_path: Path) -> None:
    twice = settings(digits, on=(f"a={digits}", f"a={digits}"))
    with pytest.raises(ConfigError, match="Two sets of --on are called 'a'"):
        evaluate_run(finished(), twice, store_root=tmp_path, workers=0)
    lone = EvaluationSettings(on=(f"a={digits}", f"b={digits / 'test'}"), protocols=("knn",))
    alone = evaluate_model(SPEC, lone, store_root=tmp_path, workers=0)
    assert set(alone["teacher"]) == {"knn@a"}  # a labeled set stands in for main images; test images alone cannot
    assert alone["teacher"]["knn@a"]["top1@10"] > 70
    for text, name in (("a=/x", "a"), ("/x/my set/", "my-set"), ("torchvision:CIFAR10", "torchvision-CIFAR10")):
        assert split_name(text)[0] == name
    with pytest.raises(ConfigError, match="is not a set to be judged on"):
        split_name("")


def test_settings_of_one_protocol_leave_the_others_figures_alone() -> None:
    known = {field.name for field in dataclasses.fields(EvaluationSettings)}
    assert known == WITHOUT_EFFECT | {key for one in PROTOCOLS.values() for key in one.settings_keys()} | {"seed"}
    other = EvaluationSettings(linear_sgd=LinearSgdSettings(epochs=3))
    assert other.identity_settings("knn") == EvaluationSettings().identity_settings("knn") == {"seed": 0}
    assert other.identity_settings("linear_sgd") != EvaluationSettings().identity_settings("linear_sgd")


@pytest.mark.usefixtures("quick")
def test_ten_protocols_cost_one_pass_over_each_image_set(
    finished: Callable[..., Run], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Main images, a labeled set, and test images alone; corruptions, which are new images, are counted apart."""
    shutil.copytree(digits, tmp_path / "other")
    for split in ("train", "test"):
        for file in sorted((tmp_path / "other" / split / "digit 3").iterdir())[:3]:
            file.unlink()
    shutil.copytree(digits / "test", tmp_path / "alone")
    [broken] = [path for path in (tmp_path / "alone").rglob("*.png") if path.read_bytes() == b"not an image"]
    broken.unlink()
    readable = {
        split: sum(path.read_bytes() != b"not an image" for path in (tmp_path / "other" / split).rglob("*.png"))
        for split in ("train", "test")
    }
    protocols = (
        "knn", "linear", "asymmetric_knn", "semi", "transfer", "retrieval", "robustness", "fidelity", "drop_in", "cost",
    )  # fmt: skip
    on = (f"other={tmp_path / 'other'}", f"alone={tmp_path / 'alone'}")
    few = RobustnessSettings(severities=(3,), images=10)
    chosen = settings(digits, on=on, protocols=protocols, robustness=few, batch_size=16)
    monkeypatch.setattr(
        PROTOCOLS["cost"], "evaluate", staticmethod(lambda *_: {"parameters": 1})
    )  # blank images are no set
    # The last: a protocol of ours that asks for everything at once.
    monkeypatch.setattr(
        PROTOCOLS["linear_sgd"], "evaluate", staticmethod(lambda encoded_set, _: {"rows": len(encoded_set.test)})
    )
    counts = counted(monkeypatch)
    result = evaluate_run(
        finished(), replace(chosen, protocols=(*protocols, "linear_sgd")), store_root=tmp_path / "store", workers=0
    )
    sets = 149 + 59 + sum(readable.values()) + 59
    assert counts["student"] == sets + 14 * 10
    errors = {
        (name, job): figures["error"]
        for name in ("teacher", "student", "student_embed") for job, figures in result[name].items()
        if "error" in figures
    }  # fmt: skip
    assert errors == {}
    assert set(result["student"]) == {
        "knn", "knn@other", "linear", "semi", "transfer@other", "retrieval", "retrieval@other", "robustness",
        "robustness@alone", "fidelity", "cost", "linear_sgd",
    }  # fmt: skip
    asymmetric = {"asymmetric_knn", "asymmetric_knn@other", "drop_in", "drop_in@other", "retrieval"}
    assert asymmetric <= set(result["student_embed"])
    assert result["student_embed"]["drop_in"]["map"] == result["student_embed"]["retrieval"]["asymmetric_map"]
    assert "asymmetric_map" in result["student_embed"]["retrieval"]
    assert "asymmetric_map" not in result["student"]["retrieval"]
    assert result["student"]["robustness@alone"]["top1"] == result["student"]["linear"]["top1"]
    assert json.dumps(result, allow_nan=False)


@pytest.mark.usefixtures("quick")
def test_a_published_set_is_judged_on_the_classes_that_both_have(
    finished: Callable[..., Run], digits: Path, tmp_path: Path
) -> None:
    """ImageNet-R against a part of ImageNet, here three class folders of which the main images lack one."""
    for name in ("digit 1", "digit 2"):
        shutil.copytree(digits / "test" / name, tmp_path / "r" / name)
    shutil.copytree(digits / "test" / "digit 3", tmp_path / "r" / "zebra")
    few = RobustnessSettings(severities=(3,), images=2)
    chosen = settings(digits, on=(f"imagenet-r={tmp_path / 'r'}",), protocols=("robustness",), robustness=few)
    result = evaluate_run(finished(), chosen, store_root=tmp_path / "store", workers=0)
    for name in ("teacher", "student"):
        figures = result[name]["robustness@imagenet-r"]
        assert (figures["classes"], figures["images"]) == (2, 12)
        assert figures["note"] == "Judged on 2 of its 3 classes: the main evaluation images lack the others."
        assert figures["top1"] >= 50


@pytest.mark.usefixtures("quick")
def test_a_fault_of_one_set_stops_that_set_alone(finished: Callable[..., Run], digits: Path, tmp_path: Path) -> None:
    """An empty class, a class that the main images lack, a set of one class, a layout that is not there."""
    for name, count in (("digit 0", 4), ("digit 1", 3)):
        (tmp_path / "odd" / "train" / name).mkdir(parents=True)
        (tmp_path / "odd" / "test" / name).mkdir(parents=True)
        for i, file in enumerate(sorted((digits / "train" / name).iterdir())[:count]):
            shutil.copy(file, tmp_path / "odd" / ("train" if i else "test") / name)
    (tmp_path / "odd" / "train" / "digit 2").mkdir()  # an empty class
    shutil.copytree(digits / "test" / "digit 5", tmp_path / "lone" / "five")
    shutil.copytree(digits / "test" / "digit 6", tmp_path / "lone" / "digit 6")
    on = (f"odd={tmp_path / 'odd'}", f"lone={tmp_path / 'lone'}", f"dtd={tmp_path}", f"roxford5k={tmp_path}")
    chosen = settings(digits, on=on, protocols=("knn", "transfer", "retrieval", "robustness"),
                      robustness=RobustnessSettings(severities=(1,), images=4))  # fmt: skip
    result = evaluate_run(finished(), chosen, store_root=tmp_path / "store", workers=0)["student"]
    assert result["knn"]["top1@1"] >= 0
    assert "there are only 5 training images" in result["knn@odd"]["note"]  # more neighbors than images
    assert result["transfer@odd"]["top1"] >= 0
    assert "No class has two of the 2 test images" in result["retrieval@odd"]["error"]
    assert "1 of 2 classes of lone" in result["robustness@lone"]["error"]
    assert "e.g. 'five'" in result["robustness@lone"]["error"]
    assert "dtd/dtd/labels does not exist" in result["transfer@dtd"]["error"]
    assert "gnd_roxford5k.pkl does not exist" in result["retrieval@roxford5k"]["error"]
    assert result["robustness"]["clean"] >= 0


def test_shards_are_indexed_once_for_training_and_evaluation(digits: Path, tmp_path: Path) -> None:
    """Main images and a set of `--on` in tar shards: their indices lie beside the stores, where training looks too."""
    import tarfile

    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"digits-{split}.tar", "w", format=tarfile.USTAR_FORMAT) as file:
            file.add(digits / split, arcname=".")
    chosen = settings(tmp_path, on=(f"cifar10={tmp_path}",), protocols=("knn",))  # a root will do for any labeled set
    found = evaluate_model(SPEC, chosen, store_root=tmp_path / "store", workers=0)
    plain = evaluate_model(SPEC, settings(digits, protocols=("knn",)), store_root=tmp_path / "plain", workers=0)
    assert found["teacher"]["knn@cifar10"] == found["teacher"]["knn"] == plain["teacher"]["knn"]
    assert len(list((tmp_path / "store" / "listings").iterdir())) == 2


def test_the_table_sets_intervals_behind_their_figures(capsys: pytest.CaptureFixture[str]) -> None:
    from understudy.cli.tables import print_figures

    fidelity = {
        "overlap@11": 51.25, "overlap@11_low": 50.0, "overlap@11_high": 52.5, "dead_dimensions": 1234,
        "interval_level": 95, "images": 400,
    }  # fmt: skip
    print_figures([("", {"teacher": {}, "student": {"fidelity": fidelity}})], details=True)
    told = capsys.readouterr().out
    assert "fidelity, with 95 % intervals" in told
    assert re.search(r"overlap@11 *│ *51.25  50 to 52.5", told)
    assert re.search(r"dead_dimensions *│ *1,234", told)
    assert not re.search("_low|interval_level", told)
    print_figures([("", {"student": {"fidelity": fidelity}})])
    assert "intervals" not in capsys.readouterr().out  # in the headlines already


def test_one_sentence_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    from understudy.cli.tables import print_figures

    gone, few = {"error": "/x does not exist."}, {"top1@1": 5.0, "note": "Few images."}
    print_figures(
        [("", {"teacher": {"knn@x": gone, "knn": few}, "student": {"knn@x": gone, "linear@x": gone, "knn": few}})]
    )
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "teacher, student knn@x, linear@x: /x does not exist.", "teacher, student knn: Few images."
    ]  # fmt: skip


def test_progress_counts_each_part_by_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from understudy.train import log

    clock = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: clock[0])
    progress = log.StageProgress("evaluate")
    for seconds, done, note in ((20, 100, "knn"), (100, 1, "linear"), (120, 41, "linear"), (140, 80, "9 images/s")):
        clock[0] = float(seconds)
        progress(done, 200, note)
    assert capsys.readouterr().err.splitlines() == [
        "evaluate: 100 of 200, 5/s, knn",
        "evaluate: 1 of 200, linear",
        "evaluate: 41 of 200, 2/s, linear",
        "evaluate: 80 of 200, 9 images/s",
    ]
