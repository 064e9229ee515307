"""`compare` and `ablate`: the rows they make, the arithmetic of their table, and the progress they tell."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from understudy.compare import engine, search
from understudy.compare import progress as progress_module
from understudy.compare.cell import Cell
from understudy.compare.comparison import compare
from understudy.compare.progress import Progress, fraction
from understudy.compare.search import chosen, rates
from understudy.compare.settings import ComparisonSettings
from understudy.compare.variants import Variant, variants_of, variants_of_grid
from understudy.errors import ConfigError, UnderstudyError
from understudy.pipeline import RunSettings
from understudy.report.comparison import half_width, paired, quantile, statistics
from understudy.settings import resolve


def test_a_method_brings_its_own_settings():
    plain, weighted = variants_of(["coss", "coss:weight=0.5:neighbors.k=0"])
    assert plain.changes == {"method": "coss"}
    assert weighted.changes == {"method": "coss", "method.weight": "0.5", "neighbors.k": "0"}
    assert plain.folder != weighted.folder
    assert variants_of(["mse:transform=phi-s"])[0].changes == {"method": "mse", "transform": "phi-s"}
    assert variants_of(["smd:views=4"])[0].changes == {"method": "smd", "method.views": "4"}  # not the run's own views


def test_a_grid_has_every_combination():
    grid = variants_of_grid(["method.weight=0,1", "neighbors.k=0,5,15"])
    assert [tuple(row.changes.values()) for row in grid] == [(w, k) for w in "01" for k in ("0", "5", "15")]
    assert grid[1].label == "method.weight=0, neighbors.k=5"


@pytest.mark.parametrize(
    ("make", "given", "sentence"),
    [
        (variants_of, [], "nothing to compare"),
        (variants_of, ["coss", "coss"], "names coss more than once"),
        (variants_of, ["coss:seed=1"], "'seed' cannot be varied"),
        (variants_of, ["coss:weight"], "'weight' in --methods coss:weight is not KEY=VALUE"),
        (variants_of_grid, [], "Give --vary"),
        (variants_of_grid, ["method.weight"], "is not KEY=VALUE,VALUE"),
        (variants_of_grid, ["method.weight=0,"], "is not KEY=VALUE,VALUE"),
        (variants_of_grid, ["seed=0,1"], "'seed' cannot be varied"),
        (variants_of_grid, ["passes=1", "passes=2"], "given to --vary twice"),
    ],
)
def test_rows_that_cannot_be_made_are_refused(make, given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make(given)


def test_more_rates_hold_those_of_fewer():
    assert rates(0.002, 3, 3.0) == [0.0006667, 0.002, 0.006]
    for trials in range(1, 7):
        fewer, more = rates(0.03, trials, 2.0), rates(0.03, trials + 1, 2.0)
        assert len(more) == trials + 1 and set(fewer) < set(more) and more == sorted(more)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 29, 30, 200])
def test_student_s_quantiles_are_scipy_s(freedom):
    for probability in (0.6, 0.975, 0.999):
        assert quantile(probability, freedom) == pytest.approx(scipy.stats.t.ppf(probability, freedom), rel=1e-9)


def test_the_interval_of_a_paired_difference_is_scipy_s():
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(60, 1, 5), generator.normal(61, 1, 5)
    found = paired(dict(enumerate(ours)), dict(enumerate(theirs)))
    low, high = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found["mean"] == pytest.approx((ours - theirs).mean()) and found["n"] == 5


def test_pairs_are_the_seeds_that_both_have():
    # differences 1 and 3: mean 2, standard deviation sqrt(2), t(0.975, 1) = 12.7062
    found = paired({0: 2.0, 1: 5.0, 2: 9.0}, {0: 1.0, 1: 2.0, 7: 0.0})
    assert found["n"] == 2 and found["mean"] == 2.0
    assert found["high"] == pytest.approx(2 + 12.7062047 * math.sqrt(2) / math.sqrt(2))
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert paired({0: 1.5}, {0: 1.0}) == {"mean": 0.5, "low": None, "high": None, "n": 1}
    assert half_width([3.0]) is None


def row(label, values, in_teacher_space=True):
    keys = ("student.knn.top1@10", "student_embed.asymmetric_knn.top1@10")
    cells = [{"seed": seed, "figures": dict.fromkeys(keys, value)} for seed, value in values.items()]
    return {"label": label, "in_teacher_space": in_teacher_space, "cells": cells}


def test_the_best_is_the_highest_mean_of_those_with_all_seeds():
    found = statistics(
        [row("a", {0: 1.0, 1: 3.0}), row("b", {0: 9.0}), row("c", {0: 4.0, 1: 4.0}, in_teacher_space=False)], {}
    )
    assert found["best"] == {"student.knn.top1@10": "c", "student_embed.asymmetric_knn.top1@10": "a"}
    a = found["summary"]["a"]["student.knn.top1@10"]
    assert (a["mean"], a["std"], a["n"]) == (2.0, math.sqrt(2), 2)
    assert a["difference"]["mean"] == -2.0
    assert found["summary"]["b"]["student.knn.top1@10"]["std"] is None
    assert found["summary"]["c"]["student.knn.top1@10"]["difference"] is None
    assert list(found["summary"]["c"]) == ["student.knn.top1@10"]  # it does not lie in the teacher's space


def test_the_best_trial_is_chosen_and_an_edge_is_told(monkeypatch):
    def shares(*values):
        common = {"data": "digits", "student": "small:resnet8"}
        trials = [
            Cell(Variant("v", {}), Path(), resolve(RunSettings, {**common, "optimizer.lr": rate}), "trial")
            for rate in range(1, 1 + len(values))
        ]
        monkeypatch.setattr(search, "judged", lambda trial: values[int(trial.settings.optimizer.peak) - 1])
        return chosen(trials)

    assert shares(10.0, 30.0, 20.0) == (2.0, "")
    assert shares(30.0, 20.0, 10.0) == (1.0, "low")
    assert shares(10.0, None, 30.0) == (3.0, "high")
    assert shares(20.0, 20.0, 20.0) == (2.0, "")
    assert shares(None, None, None) == (None, "")


def test_torchrun_is_told_of_jobs(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    settings = resolve(ComparisonSettings, {"data": "digits", "student": "small:resnet8", "methods": "mse", "out": "x"})
    with pytest.raises(UnderstudyError, match="Use --jobs N in place of torchrun"):
        compare(settings)


def test_children_share_the_gpus(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [engine.one_gpu(place)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert engine.one_gpu(1) == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert engine.one_gpu(1) == {}


def cell_of(folder: Path, *, seed: int = 0, passes: float = 2.0, role: str = "cell") -> Cell:
    settings = resolve(RunSettings, {"data": "digits", "student": "small:resnet8", "passes": passes, "seed": seed})
    return Cell(Variant("coss", {}), folder, settings, role)


def finish(cell: Cell, top1: float) -> None:
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / "evaluation.json").write_text(json.dumps({"student": {"knn": {"top1@10": top1}}}))
    (cell.folder / "cell.json").write_text(json.dumps(cell.bound()))


def test_progress_tells_done_running_and_the_time_left(tmp_path, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    cells = [cell_of(tmp_path / str(seed), seed=seed) for seed in range(4)]
    progress = Progress("compare", count=4, passes=8.0)
    progress.skip(cells[0])
    with progress:
        progress.started(cells[1])
        assert progress.state() == "1 of 4 runs done, 1 running, time left unknown"
        clock[0] = 60.0
        finish(cells[1], 61.5)
        progress.started(cells[2])
        progress.ended(cells[1])
        # 2 of 6 passes took a minute: two more for what is left
        told = capsys.readouterr().err.splitlines()
        assert told == [
            "[ 50%] cell coss, seed 1, rate 0.002: 10-NN 61.50; 2 of 4 runs done, 1 running, about 0:02:00 left"
        ]
        cells[2].folder.mkdir()
        (cells[2].folder / "metrics.jsonl").write_text('{"kind": "step", "passes": 1.0}\n{"kind": "st')
        clock[0] = 90.0
        assert fraction(cells[2]) == 0.5
        assert "about 0:01:30 left" in progress.state()  # 3 of 6 passes in 90 s
        (cells[2].folder / "failure.json").write_text('{"sentence": "not finite"}')
        progress.ended(cells[2])
        assert ": failed: not finite; 3 of 4 runs done, 0 running" in capsys.readouterr().err
    assert fraction(cells[3]) == 0.0


def test_a_terminal_shows_what_is_running_and_the_table_so_far(tmp_path, monkeypatch, capsys):
    from rich.console import Console
    from rich.table import Table

    cells = [cell_of(tmp_path / str(seed), seed=seed) for seed in range(2)]
    progress = Progress("compare", count=2, passes=4.0)
    table = Table("variant")
    table.add_row("the table so far")
    progress.table = lambda: table
    monkeypatch.setattr(progress_module.sys.stderr, "isatty", lambda: True, raising=False)
    with progress:
        assert progress.live is not None
        for cell in cells:
            progress.started(cell)
        finish(cells[0], 50.0)
        progress.ended(cells[0])
        console = Console(width=100)
        with console.capture() as page:
            console.print(progress.page())
    assert progress.live is None
    shown = page.get()
    assert "the table so far" in shown and "compare: 1 of 2 runs done, 1 running, " in shown
    assert "  cell coss, seed 1, rate 0.002: 0%, 0:00:0" in shown and "seed 0" not in shown
    cells[1].folder.mkdir()
    (cells[1].folder / "metrics.jsonl").write_text('{"kind": "end", "passes": 2.0}\n')
    progress.started(cells[1])
    assert progress.state() == "1 of 2 runs done, 1 running, all trained, evaluating"
    with console.capture() as page:
        console.print(progress.page())
    assert "seed 1, rate 0.002: evaluating, 0:00:0" in page.get()
