"""Whole comparisons on digits: what they compute, keep, refuse and tell."""

from __future__ import annotations

import csv
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

import launch
from toy_runs import TEACHER
from understudy.artifacts import Run
from understudy.cli import main
from understudy.compare import comparison
from understudy.compare.search import rates
from understudy.evaluate.protocols import PROTOCOLS
from understudy.pipeline import RunSettings, training_images
from understudy.report.comparison import FIGURES, footnotes, table_of
from understudy.settings import resolve

pytestmark = pytest.mark.slow


SHARED = [
    "--data", "digits:train", "--limit", "600", "--eval-data", "digits", "--student", "small:resnet8x0.25",
    "--teacher", "python:thumbnail:ToyEncoder", "--batch-size", "64", "--workers", "0", "--head-hidden", "32",
    "--device", "cpu", "--evaluation.protocols", "knn,asymmetric_knn,fidelity", "--budget", "passes=0.3",
]  # fmt: skip


METHODS = ["--methods", "coss,rkd", "--seeds", "2", "--trials", "2"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    (folder / "thumbnail.py").write_text(TEACHER)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def compared(workplace):
    """A comparison in this process, and how often each protocol was computed of the teacher."""
    asked = []

    def counted(name, protocol):
        def run(encoded_set, settings):
            if encoded_set.name == "teacher":
                asked.append(name)
            return protocol(encoded_set, settings)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name, protocol in PROTOCOLS.items():
            patch.setattr(protocol, "evaluate", staticmethod(counted(name, protocol.evaluate)))
        assert main(["compare", *SHARED, *METHODS, "--out", "whole"]) == 0
    return json.loads((workplace / "whole" / "comparison.json").read_text()), asked


def test_the_table_holds_what_the_runs_measured(workplace, compared):
    found, _ = compared
    assert [variant["label"] for variant in found["variants"]] == ["coss", "rkd"]
    for variant in found["variants"]:
        runs = [Run(workplace / "whole" / cell["folder"]) for cell in variant["cells"]]
        assert [cell["seed"] for cell in variant["cells"]] == [0, 1]
        for figure in FIGURES:
            part, protocol, metric = figure.key.split(".", 2)
            values = [run.evaluation[part].get(protocol, {}).get(metric) for run in runs]
            entry = found["summary"][variant["label"]].get(figure.key)
            if entry is None:
                assert None in values, figure
                continue
            assert entry["mean"] == pytest.approx(np.mean(values))
            assert entry["std"] == pytest.approx(np.std(values, ddof=1))
            assert entry["n"] == 2
        for run in runs:
            config = run.config_path.read_text()
            assert f"lr = {variant['lr']}" in config and "passes = 0.3" in config


def test_the_rate_is_that_of_the_best_trial(workplace, compared):
    for variant in compared[0]["variants"]:
        shares = {}
        for folder in (workplace / "whole" / "trials").glob(f"{variant['method']}-*/*"):
            evaluation = Run(folder).evaluation
            shares[float(folder.name.removeprefix("lr-"))] = evaluation["student"]["fidelity"]["overlap@11"]
            assert "knn" not in evaluation["student"]  # no label was read
        assert sorted(shares) == [trial["lr"] for trial in variant["trials"]] == rates(0.002, 2, 3.0)
        assert variant["lr"] == max(shares, key=lambda rate: shares[rate])
        assert variant["edge"] == ("low" if variant["lr"] == min(shares) else "high")
    assert any("--trials 4 goes on from here" in sentence for sentence in footnotes(compared[0]))


def test_no_run_is_trained_on_what_the_rates_are_judged_by(workplace, compared):
    settings = resolve(RunSettings, {"data": "digits:train", "limit": 600, "student": "s", "holdout": 2000, "seed": 7})
    source, held_out = training_images(settings)
    assert len(held_out) == 60 and not set(source.ids) & set(held_out.ids)
    listings = set()
    for role, fingerprint in (("trials", held_out.fingerprint), ("cells", None)):
        for path in (workplace / "whole" / role).glob("*/*/student.json"):
            listings.add(json.loads(path.read_text())["data"]["listing"])
            tested = Run(path.parent).evaluation["about"]["test_fingerprint"]
            assert (tested == held_out.fingerprint) == (fingerprint is not None)
    assert listings == {source.fingerprint}  # whatever the seed


def test_the_teacher_is_measured_once(compared):
    assert compared[1] == ["knn"]


def test_a_method_outside_the_teacher_s_space_leaves_those_figures_empty(compared):
    found = compared[0]
    assert "student_embed.asymmetric_knn.top1@10" in found["summary"]["coss"]
    assert not [key for key in found["summary"]["rkd"] if "asymmetric" in key or "cosine" in key]
    assert "student_embed.fidelity.overlap@11" in found["summary"]["rkd"]
    headings, rows = table_of(found)
    cells = {row[0]: dict(zip(headings, row, strict=True)) for row in rows}
    assert cells["rkd"]["asym. 10-NN, %"] == "" and cells["coss"]["asym. 10-NN, %"]
    assert cells["teacher"]["asym. 10-NN, %"] == cells["teacher"]["10-NN, %"]
    assert any(sentence.startswith("rkd: the embedding is not meant to lie") for sentence in footnotes(found))


def test_the_csv_has_a_line_for_each_run(workplace, compared):
    with open(workplace / "whole" / "comparison.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["seed"]) for row in rows] == [("coss", "0"), ("coss", "1"), ("rkd", "0"), ("rkd", "1")]
    for row in rows:
        run = Run(workplace / "whole" / row["folder"])
        assert float(row["student.knn.top1@10"]) == run.evaluation["student"]["knn"]["top1@10"]
        assert row["failure"] == "" and int(row["student_forwards"]) == 192  # 3 steps of 64
        assert float(row["seconds"]) > 0


def test_the_page_opens_offline_and_holds_the_table(workplace, compared):
    page = (workplace / "whole" / "report.html").read_text()
    for words in (
        "95 % confidence interval",
        "rkd: the embedding is not meant",
        "Learning rates",
        "What the interval assumes",
    ):
        assert words.lower() in page.lower(), words
    mean = compared[0]["summary"]["coss"]["student.knn.top1@10"]["mean"]
    assert f"{mean:.1f} ±" in page
    assert page.count('class="plot') == len(compared[0]["best"])


def states(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*/*/*/metrics.jsonl")}


def test_more_is_added_and_nothing_done_again(workplace, compared, capsys):
    before = states(workplace / "whole")
    assert len(before) == 8
    assert main(["compare", *SHARED, *METHODS, "--out", "whole", "--seeds", "3"]) == 0
    after = states(workplace / "whole")
    assert len(after) == 10 and {name: after[name] for name in before} == before
    found = json.loads((workplace / "whole" / "comparison.json").read_text())
    assert {entry["n"] for row in found["summary"].values() for entry in row.values()} == {3}
    assert "4 trials are done already" in capsys.readouterr().err


def test_a_setting_that_is_newer_than_a_comparison_is_no_difference(workplace, compared):
    path = workplace / "whole" / "plan.json"
    plan = json.loads(path.read_text())
    assert plan["settings"].pop("chunks") == 1
    path.write_text(json.dumps(plan))
    before = states(workplace / "whole")
    assert main(["compare", *SHARED, *METHODS, "--out", "whole"]) == 0
    assert states(workplace / "whole") == before


def test_other_settings_are_refused_in_the_same_folder(workplace, compared, capsys):
    assert main(["compare", *SHARED, *METHODS, "--out", "whole", "--batch-size", "32"]) == 1
    told = capsys.readouterr().err
    assert "batch_size (was 64, now 32)" in told and "another --out" in told


def test_a_run_that_was_asked_to_stop_stops_the_comparison_and_is_no_failure(workplace, monkeypatch, capsys):
    begun = []
    monkeypatch.setattr(
        "understudy.compare.cell.train_stage", lambda settings, **_: begun.append(settings.out)
    )  # None: stopped
    assert main(["compare", *SHARED, *METHODS, "--out", "asked", "--jobs", "1"]) == 143
    assert len(begun) == 1 and not list((workplace / "asked").rglob("failure.json"))
    assert "the same command goes on from here" in capsys.readouterr().err


def test_stopped_with_two_jobs_and_continued_it_repeats_nothing_that_was_finished(workplace, compared):
    given = ["--methods", "coss", "--seeds", "1", "--trials", "2", "--out", "stopped", "--jobs", "2"]
    command = [sys.executable, "-m", "understudy", "compare", *SHARED, *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": f"{workplace}:{os.environ.get('PYTHONPATH')}"}
    with launch.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while process.poll() is None and not list((workplace / "stopped").glob("trials/*/*/cell.json")):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        told = process.communicate()[1]
    assert process.returncode == 143, told
    assert "the same command goes on from here" in told
    assert not (workplace / "stopped" / "comparison.json").exists()  # it was not at its end
    assert not list((workplace / "stopped").rglob("failure.json"))
    finished = {str(path.parent / "metrics.jsonl") for path in (workplace / "stopped").glob("*/*/*/cell.json")}
    before = {name: os.stat(name).st_mtime_ns for name in finished}
    done = launch.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((workplace / "stopped" / "comparison.json").read_text())
    assert before and {name: os.stat(name).st_mtime_ns for name in finished} == before
    # Another process' memory is laid out otherwise, and matrix products are rounded by that: near, not the same bits.
    (alone,), together = found["variants"][0]["cells"], compared[0]["variants"][0]["cells"]
    assert alone["figures"].keys() == together[0]["figures"].keys()
    key = "student.knn.top1@10"
    assert alone["figures"][key] == pytest.approx(together[0]["figures"][key], abs=2)
    assert found["variants"][0]["lr"] == compared[0]["variants"][0]["lr"]


def test_a_failed_run_is_named_and_the_rest_goes_on(workplace, capsys):
    more = ["--vary", "optimizer.lr=0.002,1e30", "--seeds", "1", "--out", "failed"]
    assert main(["ablate", *SHARED, *more]) == 1
    found = json.loads((workplace / "failed" / "comparison.json").read_text())
    good, bad = found["variants"]
    assert good["cells"][0]["failure"] is None and good["trials"] == []
    assert "student.knn.top1@10" in good["cells"][0]["figures"]
    assert "not finite" in bad["cells"][0]["failure"] and bad["cells"][0]["figures"] == {}
    out = capsys.readouterr().out
    assert "optimizer.lr=1e30, seed 0: " in out and "not finite" in out
    # No rate is searched, so no training image is held out.
    assert "holdout = 0" in (workplace / "failed" / good["cells"][0]["folder"] / "config.toml").read_text()


def test_minutes_become_passes_once(workplace, monkeypatch):
    monkeypatch.setattr(comparison, "TIMED_STEPS", 3)
    given = [word for word in SHARED if word not in ("--budget", "passes=0.3")]
    more = ["--budget", "minutes=0.003", "--vary", "neighbors.k=0,3", "--vary", "method.weight=0,1", "--seeds", "1",
            "--optimizer.lr", "0.002", "--out", "minutes"]  # fmt: skip
    assert main(["ablate", *given, *more]) == 0
    plan = json.loads((workplace / "minutes" / "plan.json").read_text())
    assert len(plan["passes"]) == 4 and min(plan["passes"].values()) > 0
    found = json.loads((workplace / "minutes" / "comparison.json").read_text())
    assert [variant["passes"] for variant in found["variants"]] == list(plan["passes"].values())
    before = states(workplace / "minutes")
    assert main(["ablate", *given, *more]) == 0
    assert states(workplace / "minutes") == before
    page = (workplace / "minutes" / "report.html").read_text()
    assert '"type":"heatmap"' in page


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--vary", "neighbors.kk=1,2"], "Unknown setting 'neighbors.kk'. Did you mean 'k'?"),
        (["--vary", "method.wieght=1,2"], "Method 'coss_centered' has no setting 'wieght'. Did you mean 'weight'?"),
        (["--vary", "method=coss,simreq"], "Unknown method 'simreq'. Did you mean 'simreg'?"),
        (["--vary", "method.weight=1,2", "--budget", "hours=1"], "--budget hours=1 cannot be read"),
        (["--vary", "method.weight=1,2", "--limit", "400"], "leaves 40 of them"),
        (["--vary", "optimizer.lr=-1,1"], "'optimizer.lr' must be at least 0"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_computed(workplace, capsys, more, sentence):
    assert main(["ablate", *SHARED, *more, "--out", "refused"]) == 1
    assert sentence in capsys.readouterr().err
    assert not (workplace / "refused" / "plan.json").exists()


def test_authors_settings_are_not_shared_by_rivals(workplace, capsys):
    assert main(["compare", *SHARED, "--methods", "coss,seed", "--recipe", "authors", "--out", "refused"]) == 1
    assert "each method's authors had their own" in capsys.readouterr().err


def test_a_comparison_tells_every_run_that_ends(workplace, compared, capsys):
    assert main(["compare", *SHARED, "--methods", "coss", "--seeds", "1", "--trials", "2", "--out", "told"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "runs done" in line]
    assert [line.split("]")[1].split()[0] for line in lines] == ["trial", "trial", "cell"]
    assert [re.search(r"(\d) of 3 runs done, 0 running, about", line)[1] for line in lines] == ["1", "2", "3"]
    assert "10-NN" in lines[2] and lines[2].endswith("about 0:00:00 left")
