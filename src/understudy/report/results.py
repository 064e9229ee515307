"""Measured figures with what is known of their certainty: counted images, draws, resamples, and what guessing gives."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from understudy.report.numbers import interval
from understudy.report.protocols import (
    COUNTED,
    ENDS,
    compared,
    is_accuracy,
    is_share,
    metric_title,
    ordered,
    short,
    split,
    written,
)
from understudy.report.provenance import Account
from understudy.report.verdict import Model, share, teacher_of


@dataclass(frozen=True)
class Result:
    """One figure of one model.

    Args:
        value: the figure.
        low: lower end of its 95 % interval, None where there is none.
        high: upper end.
        std: standard deviation over draws, None where there was one draw.
    """

    value: float
    low: float | None = None
    high: float | None = None
    std: float | None = None

    def certainty(self, key: str, metric: str) -> str:
        """The interval or the standard deviation in words, "" where neither is known."""
        if self.std is not None:
            return f"± {written(key, metric, self.std)}"
        if self.low is None or self.high is None:
            return ""
        return f"{written(key, metric, self.low)} to {written(key, metric, self.high)}"


def keys_of(rows: Sequence[Model]) -> list[str]:
    """All that was measured, PROTOCOL or PROTOCOL@SET, in the order of the page."""
    return ordered(key for row in rows for key, figures in row.scores.items() if figures)


def metrics_of(rows: Sequence[Model], key: str) -> list[str]:
    """The figures that any model has of one protocol on one set, without those that tell how sure another one is.

    The teacher's side of a comparison ("effective_rank_teacher") is no figure of its own: it stands in its column.
    """
    names = dict.fromkeys(metric for row in rows for metric in row.scores.get(key, {}))
    return [
        name
        for name in names
        if not ENDS.fullmatch(name)
        and not COUNTED.fullmatch(name)
        and not (name.endswith("_teacher") and name.removesuffix("_teacher") in names)
    ]


def result(model: Model, key: str, metric: str, rows: Sequence[Model] = ()) -> Result | None:
    """One figure of one model with its interval, None where it was not measured.

    Args:
        model: whose.
        key: PROTOCOL or PROTOCOL@SET.
        metric: the figure.
        rows: all models: the teacher's side of a comparison is found among its students' figures.
    """
    figures = model.scores.get(key, {})
    if model.is_teacher and not figures:
        metric = f"{metric}_teacher"
        figures = next((row.scores[key] for row in rows if metric in row.scores.get(key, {})), {})
    if metric not in figures:
        return None
    value = figures[metric]
    if f"{metric}_low" in figures and f"{metric}_high" in figures:
        return Result(value, figures[f"{metric}_low"], figures[f"{metric}_high"])
    if f"{metric} std" in figures:
        return Result(value, std=figures[f"{metric} std"])
    n = counted_on(model.account, key, metric, figures)
    if n and is_share(metric) and 0 <= value <= 100:
        return Result(value, *interval(value, n))
    return Result(value)


def counted_on(account: Account, key: str, metric: str, figures: Mapping[str, float]) -> int | None:
    """How many images (or queries) one figure was counted on, None where the files do not say."""
    if "recall@" in metric:
        n = figures.get("queries")
        return None if n is None else int(n)
    return int(figures["images"]) if "images" in figures else account.images(split(key)[1])


def guessing(account: Account, key: str, metric: str, figures: Mapping[str, float]) -> float | None:
    """What guessing reaches in per cent: one class of C, or k of the other images; None where that is not known."""
    protocol, target = split(key)
    if metric.startswith("overlap@") and figures.get("images", 0) > 1:
        return min(100.0, 100 * float(metric.removeprefix("overlap@")) / (figures["images"] - 1))
    if metric == "mean_error":
        among = figures.get("classes") or account.classes("")
        return 100 - 100 / among if among else None
    if not is_accuracy(metric):
        return None
    if protocol == "robustness":  # a set with some of the main images' classes says how many
        known = figures.get("classes") or account.classes("")
    else:
        known = account.classes(target)
    return 100 / known if known else None


@dataclass(frozen=True)
class Against:
    """One figure of every run's student beside the teacher's.

    Args:
        label: what was measured, and on which set.
        shares: run name -> per cent of the teacher's figure.
        figures: run name -> the figure itself.
        teacher: the teacher's figure.
        guessing: what guessing reaches, as per cent of the teacher's figure; None where that is not known.
        key, metric: the figure.
    """

    label: str
    shares: Mapping[str, float]
    figures: Mapping[str, float]
    teacher: float
    guessing: float | None
    key: str
    metric: str


def against_teacher(rows: Sequence[Model]) -> list[Against]:
    """The figures that stand for each protocol, as shares of the teacher's, in the order of the page.

    A student is its backbone, or its embedding where only that was measured. An error is compared by what is left of
    it to 100 %; what compares with the teacher already (shared neighbors) has 100 % for a teacher; asymmetric figures
    are held against the teacher's own.
    """
    teacher, found = teacher_of(rows), []
    for key in keys_of(rows):
        names = compared(key, metrics_of(rows, key))
        for metric in names:
            theirs = _bound(teacher, key, metric)
            if theirs is None or theirs <= 0:
                continue
            values: dict[str, float] = {}
            luck = None
            for row in rows:
                figures = row.scores.get(key, {})
                if row.is_teacher or row.name in values or metric not in figures:
                    continue
                values[row.name] = figures[metric]
                luck = guessing(row.account, key, metric, figures) if luck is None else luck
            if not values:
                continue
            turned = {name: 100 - value if metric == "mean_error" else value for name, value in values.items()}
            if luck is not None:
                luck = 100 * (100 - luck if metric == "mean_error" else luck) / theirs
            shares = {name: 100 * value / theirs for name, value in turned.items()}
            label = short(key, metric, alone=len(names) == 1)
            found.append(Against(label, shares, turned, theirs, luck, key, metric))
    return found


def _bound(teacher: Model | None, key: str, metric: str) -> float | None:
    """The teacher's figure that a student's is held against."""
    protocol, target = split(key)
    if metric.startswith("overlap@"):
        return 100.0
    if teacher is None:
        return None
    if protocol == "asymmetric_knn":
        key = f"knn@{target}" if target else "knn"
    value = teacher.scores.get(key, {}).get(metric.removeprefix("asymmetric_"))
    return 100 - value if value is not None and metric == "mean_error" else value


COSTS = ("parameters", "flops", "file_mb", r"latency_ms \w+", r"images_per_s@\d+ \w+", r"peak_memory_mb@\d+ \w+")


def costs_against_teacher(rows: Sequence[Model]) -> list[Against]:
    """What the students' backbones cost as shares of the teacher's; throughput as the time that an image takes."""
    teacher, found = teacher_of(rows), []
    theirs_all = {} if teacher is None else teacher.scores.get("cost", {})
    for metric in metrics_of(rows, "cost"):
        theirs = theirs_all.get(metric)
        if not theirs or not any(re.fullmatch(pattern, metric) for pattern in COSTS):
            continue
        values: dict[str, float] = {}
        for row in rows:
            value = row.scores.get("cost", {}).get(metric)
            if not row.is_teacher and row.name not in values and value:
                values[row.name] = value
        speed = metric.startswith("images_per_s")
        shares = {name: share(theirs, value) if speed else share(value, theirs) for name, value in values.items()}
        label = re.sub(r", (ms|MB|batch of .+)$", "", metric_title(metric)).replace(
            "Images a second", "Time in a batch"
        )
        known = {name: value for name, value in shares.items() if value is not None}
        if known:
            found.append(Against(label, known, values, theirs, None, "cost", metric))
    return found
