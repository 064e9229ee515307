"""Declarations of protocols: a new one is one file, and all that is derived from it follows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from understudy.evaluate.datasets import DATASETS
from understudy.evaluate.protocols import PROTOCOLS, display_tables
from understudy.evaluate.settings import EvaluationSettings, FinetuneSettings

TOY = '''"""Nearest class mean: the class whose mean feature is nearest."""

from dataclasses import dataclass

from understudy.evaluate.protocol import Display, Protocol
from understudy.settings import setting


@dataclass(frozen=True)
class NearestMeanSettings:
    """How the mean is taken."""

    shrink: float = setting(0.5, "Share of the mean of all classes in the mean of each.", minimum=0.0)


class NearestMean(Protocol):
    """The class whose mean feature is nearest."""

    name = "nearest_mean"
    summary = "the class whose mean feature is nearest"
    paper = ("""@article{toy2026mean,
  title  = {Toy Means},
  author = {Toy, Ada},
  year   = {2026}
}""",)
    Settings = NearestMeanSettings
    display = Display(
        title="Nearest class mean",
        short="NCM",
        sentence="Each image gets the class whose mean is nearest.",
        source="Toy, 2026",
        compared=("top1",),
        figures={"shrink": "Shrinkage"},
        plain=("shrink",),
    )

    @staticmethod
    def evaluate(encoded_set, settings):
        import numpy as np

        data, shrink = encoded_set.labeled(), settings.group(NearestMeanSettings).shrink
        means = np.stack([data.train[data.train_labels == label].mean(0) for label in range(data.classes)])
        means = shrink * means.mean(0) + (1 - shrink) * means
        guesses = np.argmin(((data.test[:, None] - means) ** 2).sum(-1), axis=1)
        return {"top1": 100.0 * float((guesses == data.test_labels).mean()), "shrink": shrink}

    @staticmethod
    def image_passes(settings, train, test):
        return 2.0 * train
'''

SCRIPT = """
import contextlib, io, json, sys
from pathlib import Path

import understudy.evaluate.protocols as package

folder = Path(sys.argv[1])
package.__path__.append(str(folder / "declared"))

from understudy.artifacts import Run
from understudy.citation import cite
from understudy.cli import main
from understudy.models.settings import StudentSettings
from understudy.models.student import build_student, save_student

run = Run(folder / "run")
teacher = {"teacher": None, "data": {"spec": "digits", "images": 10}}
save_student(build_student(StudentSettings("small:resnet8x0.25"), 8), run, teacher)
run.config_path.write_text('student = "small:resnet8x0.25"\\n[method]\\nname = "coss"\\n')
code = main(
    ["evaluate", str(run.path), "--eval-data", "digits", "--limit", "60", "--protocols", "nearest_mean,knn",
     "--nearest-mean.shrink", "0.25", "--workers", "0", "--device", "cpu", "--store", str(folder / "store")]
)
assert code == 0
help = io.StringIO()
with contextlib.redirect_stdout(help), contextlib.suppress(SystemExit):
    main(["evaluate", "--help-all"])
(folder / "help.txt").write_text(help.getvalue())
(folder / "cite.txt").write_text(cite(run.path))
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder where a process that knows one protocol more has evaluated a student; and what it said."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "declared").mkdir()
    (folder / "declared" / "nearest_mean.py").write_text(TOY)
    done = launch.run([sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


def test_a_protocol_is_one_file(toy: tuple[Path, str]) -> None:
    """Its figure and its sentence are in evaluation.json, its settings in the help, its paper in the citation."""
    folder, said = toy
    evaluation = json.loads((folder / "run" / "evaluation.json").read_text())
    figures, about = evaluation["student"]["nearest_mean"], evaluation["about"]
    assert 0 <= figures["top1"] <= 100
    assert figures["shrink"] == about["settings"]["nearest_mean"]["shrink"] == 0.25
    assert list(about["protocols"]) == ["knn", "nearest_mean"]
    display = about["protocols"]["nearest_mean"]
    assert display["sentence"] == "Each image gets the class whose mean is nearest."
    assert display["figures"] == {"top1": "Top-1", "shrink": "Shrinkage"}
    assert (display["plain"], display["shares"], display["settings"]) == (["shrink"], ["top1"], ["nearest_mean"])
    assert "nearest_mean on main images 120" in said  # the plan counts its passes
    text = re.sub(r"\s+", " ", (folder / "help.txt").read_text())
    assert "--nearest-mean.shrink" in text
    assert "Share of the mean of all classes in the mean of each." in text
    assert re.search(r"Comma-separated, of knn, linear, .*, nearest_mean\.", text)
    assert "@article{toy2026mean," in (folder / "cite.txt").read_text()


def test_the_settings_of_one_protocol_are_those_of_its_file() -> None:
    for name, declared in PROTOCOLS.items():
        if declared.Settings is not None:
            assert EvaluationSettings().group(declared.Settings) == getattr(EvaluationSettings(), name)
    assert EvaluationSettings().group(FinetuneSettings) == FinetuneSettings()


def test_declarations_are_whole_and_need_no_torch() -> None:
    for declared in PROTOCOLS.values():
        assert declared.summary and declared.display.title and declared.display.source
    for dataset in DATASETS.values():
        assert dataset.summary and dataset.home and dataset.kind
    code = (
        "import sys; from understudy.evaluate.datasets import DATASETS; from understudy.evaluate import PROTOCOLS;"
        "print(len(DATASETS), len(PROTOCOLS), *{'torch', 'sklearn', 'scipy', 'timm', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(DATASETS)), str(len(PROTOCOLS))]


def test_displays_are_resolved_by_figure() -> None:
    figures = {
        "semi": {"top1 1%": 50.0, "top1 1% std": 1.0, "finetuned_top1 5": 60.0, "images 1%": 14, "note": "few"},
        "fidelity": {"overlap@11": 40.0, "overlap@11_low": 39.0, "cka": 0.9, "dead_dimensions": 3, "images": 400},
        "cost": {"parameters": 10, "latency_ms cpu": 2.0, "images_per_s@16 cuda": 9.0},
        "detection@coco": {"box_ap50": 30.0, "mask_ap_small": 9.0},
    }
    found = display_tables({"student": figures, "about": {"settings": {}}})
    assert list(found) == ["semi", "fidelity", "cost", "detection"]
    assert found["semi"]["figures"] == {
        "top1 1%": "Top-1, 1\u00a0% of the labels", "finetuned_top1 5": "Top-1, 5 labels a class, fine-tuned",
    }  # fmt: skip
    assert found["semi"]["labels"]["finetuned_top1 5"] == "Few labels, 5 labels a class, fine-tuned"
    assert (found["semi"]["counts"], found["semi"]["accuracies"]) == (["images 1%"], ["top1 1%", "finetuned_top1 5"])
    assert (found["fidelity"]["plain"], found["fidelity"]["whole"]) == (
        ["cka", "dead_dimensions", "images"], ["dead_dimensions", "images"]
    )  # fmt: skip
    assert found["cost"]["figures"]["images_per_s@16 cuda"] == "Images a second, CUDA, batch of 16"
    assert [bool(re.fullmatch(found["cost"]["less"][0], name)) for name in figures["cost"]] == [True, True, False]
    assert found["detection"]["figures"] == {"box_ap50": "Box AP50", "mask_ap_small": "Mask AP, small"}
