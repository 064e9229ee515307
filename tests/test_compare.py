"""`compare` and `ablate`: the rows they make, the arithmetic of their table, and whole comparisons on digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from understudy.compare import rates, variants_of, variants_of_grid
from understudy.errors import ConfigError
from understudy.report.comparison import half_width, paired, quantile, statistics


def test_a_method_brings_its_own_settings():
    plain, weighted = variants_of(["coss", "coss:weight=0.5:neighbours.k=0"])
    assert plain.changes == {"method": "coss"}
    assert weighted.changes == {"method": "coss", "method.weight": "0.5", "neighbours.k": "0"}
    assert plain.folder != weighted.folder


def test_a_grid_has_every_combination():
    grid = variants_of_grid(["method.weight=0,1", "neighbours.k=0,5,15"])
    assert [tuple(row.changes.values()) for row in grid] == [(w, k) for w in "01" for k in ("0", "5", "15")]
    assert grid[1].label == "method.weight=0, neighbours.k=5"


@pytest.mark.parametrize(
    ("make", "given", "sentence"),
    [
        (variants_of, [], "nothing to compare"),
        (variants_of, ["coss", "coss"], "names coss more than once"),
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


def row(label, values, lands=True):
    keys = ("student.knn.top1@10", "student_embed.asymmetric_knn.top1@10")
    cells = [{"seed": seed, "figures": dict.fromkeys(keys, value)} for seed, value in values.items()]
    return {"label": label, "lands": lands, "cells": cells}


def test_the_best_is_the_highest_mean_of_those_with_all_seeds():
    found = statistics([row("a", {0: 1.0, 1: 3.0}), row("b", {0: 9.0}), row("c", {0: 4.0, 1: 4.0}, lands=False)])
    assert found["best"] == {"student.knn.top1@10": "c", "student_embed.asymmetric_knn.top1@10": "a"}
    a = found["summary"]["a"]["student.knn.top1@10"]
    assert (a["mean"], a["std"], a["n"]) == (2.0, math.sqrt(2), 2)
    assert a["difference"]["mean"] == -2.0
    assert found["summary"]["b"]["student.knn.top1@10"]["std"] is None
    assert found["summary"]["c"]["student.knn.top1@10"]["difference"] is None
    assert list(found["summary"]["c"]) == ["student.knn.top1@10"]  # it does not lie in the teacher's space
