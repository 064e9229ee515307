"""Students beside the teacher: each figure that stands for a protocol, and each cost, as per cent of the teacher's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from understudy.report.numbers import share
from understudy.report.protocols import Display, teacher_key
from understudy.report.results import Model, Results

COSTS = re.compile(r"parameters|flops|file_mb|latency_ms \w+|images_per_s@\d+ \w+|peak_memory_mb@\d+ \w+")
"""Figures of the protocol `cost` that the overview shows."""


@dataclass(frozen=True)
class TeacherShare:
    """One figure of every run's student beside the teacher's.

    `shares` are per cent of the teacher's figure by run, `figures` the figures themselves; `chance` is what guessing
    reaches, as per cent of the teacher's figure, None where that is not known. The key is PROTOCOL or PROTOCOL@SET.
    """

    label: str
    shares: Mapping[str, float]
    figures: Mapping[str, float]
    teacher: float
    chance: float | None
    key: str
    metric: str
    display: Display

    def comparison(self, run: str) -> str:
        """A run's figure and the teacher's in words."""
        ours, theirs = (self.display.format(self.metric, value) for value in (self.figures[run], self.teacher))
        return f"{ours} against {theirs}"


def quality_shares(results: Results) -> list[TeacherShare]:
    """The figures that stand for each protocol, as shares of the teacher's, in the order of the page.

    A student is its backbone, or its embedding where only that was measured. An error is compared by what is left of
    it to 100 %; what compares with the teacher already (shared neighbors) has 100 % for a teacher; asymmetric figures
    are held against the teacher's own.
    """
    entries = []
    for key in results.keys:
        display = results.displays.display(key)
        metrics = display.compared_in(results.metrics(key))
        for metric in metrics:
            is_error = display.is_error(metric)
            teacher = _teacher_figure(results, key, metric)
            teacher = 100 - teacher if teacher is not None and is_error else teacher
            rows: dict[str, Model] = {}
            for row in results.rows:
                if not row.is_teacher and metric in row.scores.get(key, {}):
                    rows.setdefault(row.name, row)
            if teacher is None or teacher <= 0 or not rows:
                continue
            figures = {name: row.scores[key][metric] for name, row in rows.items()}
            chances = [chance for row in rows.values() if (chance := results.chance(row, key, metric)) is not None]
            if is_error:
                figures, chances = {n: 100 - value for n, value in figures.items()}, [100 - one for one in chances]
            label = results.displays.label(key, metric, alone=len(metrics) == 1)
            shares = {name: 100 * value / teacher for name, value in figures.items()}
            chance = 100 * chances[0] / teacher if chances else None
            entries.append(TeacherShare(label, shares, figures, teacher, chance, key, metric, display))
    return entries


def _teacher_figure(results: Results, key: str, metric: str) -> float | None:
    """The teacher's figure that a student's is held against."""
    if results.displays.display(key).is_agreement(metric):
        return 100.0
    if results.teacher is None:
        return None
    return results.teacher.scores.get(teacher_key(key), {}).get(metric.removeprefix("asymmetric_"))


def cost_shares(results: Results) -> list[TeacherShare]:
    """What the students' backbones cost as shares of the teacher's; throughput as the time that an image takes."""
    entries, display = [], results.displays.display("cost")
    for metric in filter(COSTS.fullmatch, results.metrics("cost")):
        teacher = None if results.teacher is None else results.teacher.scores.get("cost", {}).get(metric)
        figures: dict[str, float] = {}
        for row in results.rows:
            value = row.scores.get("cost", {}).get(metric)
            if not row.is_teacher and value:
                figures.setdefault(row.name, value)
        if not teacher or not figures:
            continue
        is_speed = not display.less_is_better(metric)
        shares = {name: share(*((teacher, value) if is_speed else (value, teacher))) for name, value in figures.items()}
        label = re.sub(r", (ms|MB|batch of .+)$", "", display.metric_title(metric))
        label = label.replace("Images a second", "Time in a batch")
        known = {name: value for name, value in shares.items() if value is not None}
        entries.append(TeacherShare(label, known, figures, teacher, None, "cost", metric, display))
    return entries
