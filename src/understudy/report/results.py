"""Every model's figures with what is known of their certainty: counted images, draws, resamples, and guessing."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from understudy.models.heads import head_multiply_adds
from understudy.report.numbers import interval
from understudy.report.protocols import CERTAINTY, Display, Displays, split
from understudy.report.provenance import RunRecord, Scores


@dataclass(frozen=True)
class Model:
    """One row of the table: a teacher, or one side of a student.

    The part is "backbone" (pooled features), "embed" (the teacher's space) or "" for the teacher; the note says in a
    few words what sets it apart; `main` that it is of the run the page is about. Parameters and multiply-accumulates
    for one image are those of exactly this part, None when unknown. Scores are its figures by protocol and set.
    """

    name: str
    part: str
    note: str
    record: RunRecord
    main: bool
    parameters: float | None
    flops: float | None
    scores: Scores

    @property
    def is_teacher(self) -> bool:
        """Whether this is the teacher's row."""
        return not self.part

    @property
    def label(self) -> str:
        """Name and part in one."""
        return f"{self.name} ({self.part})" if self.part else self.name


@dataclass(frozen=True)
class Measurement:
    """One figure of one model, and the ends of its 95 % interval or its standard deviation over draws, if known."""

    value: float
    low: float | None = None
    high: float | None = None
    std: float | None = None

    @property
    def error_bar(self) -> tuple[float, float]:
        """How far what is known of its certainty reaches below and above it."""
        if self.std is not None:
            return self.std, self.std
        return (0.0, 0.0) if self.low is None or self.high is None else (self.value - self.low, self.high - self.value)

    def certainty(self, display: Display, metric: str) -> str:
        """The interval or the standard deviation in words, "" where neither is known."""
        if self.std is not None:
            return f"± {display.format(metric, self.std)}"
        if self.low is None or self.high is None:
            return ""
        return f"{display.format(metric, self.low)} to {display.format(metric, self.high)}"


@dataclass(frozen=True)
class Results:
    """All that a page shows of what was measured.

    The first record is the run that the page is about. Rows are the teacher as the first run that has one measured it,
    then each run's backbone and embedding.
    """

    records: Sequence[RunRecord]
    rows: Sequence[Model]
    displays: Displays

    @classmethod
    def of(cls, records: Sequence[RunRecord]) -> Results:
        """Those of some runs."""
        return cls(records, _models(records), Displays.of([record.about for record in records]))

    @property
    def main(self) -> RunRecord:
        """The run that the page is about."""
        return self.records[0]

    @property
    def teacher(self) -> Model | None:
        """The teacher's row."""
        return next((row for row in self.rows if row.is_teacher), None)

    @property
    def run_names(self) -> list[str]:
        """Names of the runs, in the order of their colors."""
        return list(dict.fromkeys(row.name for row in self.rows if not row.is_teacher))

    @functools.cached_property
    def keys(self) -> list[str]:
        """All that was measured, PROTOCOL or PROTOCOL@SET, in the order of the page."""
        return self.displays.ordered(key for row in self.rows for key, figures in row.scores.items() if figures)

    def metrics(self, key: str) -> list[str]:
        """The figures that any model has of one protocol on one set, without those that tell how sure another one is.

        The teacher's side of a comparison ("effective_rank_teacher") is no figure of its own: it stands in its column.
        """
        names, counts = self.all_metrics(key), self.displays.display(key).counts
        figures = [name for name in names if not CERTAINTY.fullmatch(name) and name not in counts]
        return [name for name in figures if not name.endswith("_teacher") or name.removesuffix("_teacher") not in names]

    def all_metrics(self, key: str) -> list[str]:
        """Every name that any model's table has for one protocol on one set."""
        return list(dict.fromkeys(metric for row in self.rows for metric in row.scores.get(key, {})))

    def measurement(self, row: Model, key: str, metric: str) -> Measurement | None:
        """One figure of one model with its interval, None where it was not measured.

        The teacher's side of a comparison is found among its students' figures.
        """
        figures, name = row.scores.get(key, {}), metric
        if row.is_teacher and not figures:
            name = f"{metric}_teacher"
            figures = next((one.scores[key] for one in self.rows if name in one.scores.get(key, {})), {})
        if name not in figures:
            return None
        value = figures[name]
        if f"{name}_low" in figures and f"{name}_high" in figures:
            return Measurement(value, figures[f"{name}_low"], figures[f"{name}_high"])
        if f"{name} std" in figures:
            return Measurement(value, std=figures[f"{name} std"])
        n = _counted_on(row.record, key, metric, figures)
        if n and name in self.displays.display(key).shares and 0 <= value <= 100:
            return Measurement(value, *interval(value, n))
        return Measurement(value)

    def chance(self, row: Model, key: str, metric: str) -> float | None:
        """What guessing reaches in per cent: one class of C, or k of the other images; None where that is not known."""
        figures, record, target = row.scores.get(key, {}), row.record, split(key)[1]
        display = self.displays.display(key)
        if display.is_agreement(metric) and figures.get("images", 0) > 1:
            return min(100.0, 100 * float(metric.rpartition("@")[2]) / (figures["images"] - 1))
        is_error = display.is_error(metric)
        if not is_error and metric not in display.accuracies:
            return None
        # A set with some of the main images' classes says how many they are, or is asked about all of them.
        own = record.classes(target) or (record.classes("") if record.has_set(target) else None)
        among = figures.get("classes") or own
        return None if not among else 100 - 100 / among if is_error else 100 / among


def _counted_on(record: RunRecord, key: str, metric: str, figures: Mapping[str, float]) -> int | None:
    """How many images (or queries) one figure was counted on, None where the files do not say."""
    noun = "queries" if "recall@" in metric else "images"
    return int(figures[noun]) if noun in figures else record.images(split(key)[1]) if noun == "images" else None


def _models(records: Sequence[RunRecord]) -> list[Model]:
    main, rows = records[0], []
    taught = next((record for record in records if record.teacher or "teacher" in record.scores), None)
    if taught is not None:
        facts, scores = taught.teacher, taught.scores.get("teacher", {})
        size, cost = facts.get("parameters"), facts.get("flops")
        rows.append(Model("Teacher", "", str(facts.get("spec", "")), taught, False, size, cost, scores))
    for record in records:
        parameters, cost = record.student.get("parameters") or {}, record.student.get("flops")
        backbone, head = parameters.get("backbone"), parameters.get("head")
        head_cost = head_multiply_adds(record.student.get("head") or {})
        note = record.method if record is main else difference(record, main)
        for part, name, size, flops in (
            ("backbone", "student", backbone, cost),
            ("embed", "student_embed", _sum(backbone, head), _sum(cost, head_cost)),
        ):
            if name in record.scores or (name == "student" and not record.scores):
                scores = record.scores.get(name, {})
                rows.append(Model(record.name, part, note, record, record is main, size, flops, scores))
    return rows


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second


def difference(record: RunRecord, main: RunRecord) -> str:
    """What sets a further run apart from the first, as `key value` pairs, at most four."""
    known = {key: ours for key, (_, ours) in record.changes(main).items() if ours is not None}
    changes = [f"{key.removesuffix('.name')} {ours}" for key, ours in known.items()]
    return ", ".join([*changes[:4], *(["..."] if len(changes) > 4 else [])]) or record.method
