"""What the measured figures allow one to say of the student, in a sentence or two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from understudy.report.numbers import distinguishable, interval, percent, share
from understudy.report.protocols import split
from understudy.report.results import Model, Results


@dataclass(frozen=True)
class Measure:
    """One figure that every model of the table can have, with its column heading and how a sentence calls it.

    An accuracy is a share of test images, in per cent, and so has a binomial interval.
    """

    protocol: str
    metric: str
    title: str
    phrase: str
    accuracy: bool = False
    percent: bool = True

    def of(self, model: Model) -> float | None:
        """The model's figure, if it was measured."""
        return model.scores.get(self.protocol, {}).get(self.metric)

    def format(self, value: float) -> str:
        """The figure as a sentence has it."""
        return percent(value) if self.percent else f"{value:.3f}"


OVERLAP = Measure("fidelity", "overlap@11", "11\u2011NN shared,\u00a0%", "overlap of the 11 nearest neighbors")

MEASURES = (
    Measure("knn", "top1@10", "10\u2011NN,\u00a0%", "10-NN accuracy", accuracy=True),
    Measure("linear", "top1", "Linear probe,\u00a0%", "linear-probe accuracy", accuracy=True),
    Measure("linear_sgd", "top1", "Linear, SGD,\u00a0%", "linear-probe accuracy (SGD protocol)", accuracy=True),
    Measure("knn", "top1@1", "1\u2011NN,\u00a0%", "1-NN accuracy", accuracy=True),
    OVERLAP,
    Measure("fidelity", "row_cosine", "Row cosine", "row cosine", percent=False),
    Measure("fidelity", "column_cosine", "Column cosine", "column cosine", percent=False),
    Measure("fidelity", "cka", "CKA", "linear CKA", percent=False),
)
"""Columns of the main table; the first accuracy that was measured is the headline."""


def measures(results: Results) -> list[Measure]:
    """What the page may lead with: the columns of the main table, then what stands for each protocol and set."""
    entries = list(MEASURES)
    known = {(entry.protocol, entry.metric) for entry in entries}
    for key in results.keys:
        display, target = results.displays.display(key), split(key)[1]
        for metric in display.compared_in(results.all_metrics(key)):
            if display.less_is_better(metric) or (key, metric) in known:
                continue
            title = display.metric_title(metric)
            phrase = f"{display.title} ({title})" + (f" on {target}" if target else "")
            accuracy = metric in display.shares
            entries.append(Measure(key, metric, title, phrase, accuracy, display.in_percent(metric)))
    return entries


def headline(results: Results) -> tuple[Measure, Model] | None:
    """The figure that the page leads with, and the main student's row that has it."""
    for measure in measures(results):
        for row in results.rows:
            if row.main and measure.of(row) is not None:
                return measure, row
    return None


def rivals(measure: Measure, student: Model, rows: Sequence[Model]) -> list[tuple[float, Model]]:
    """Other runs' rows of the same part that have the figure, best first."""
    others = [
        (value, row)
        for row in rows
        if not row.is_teacher and not row.main and row.part == student.part and (value := measure.of(row)) is not None
    ]
    return sorted(others, key=lambda pair: -pair[0])


def images_tested(results: Results, measure: Measure | None = None) -> int | None:
    """How many test images an accuracy was counted on; without one, how many main ones there are."""
    return results.main.images(split(measure.protocol)[1] if measure else "")


def verdict(results: Results) -> str:
    """One plain sentence, or two when there are controls, that says how good the student is; honest when it is bad."""
    main, lead = results.main, headline(results)
    if lead is None:
        state = "Training has ended, but" if main.student else "Training has not ended and"
        return f"{state} nothing has been measured yet: this page shows what was done, not how good it is."
    measure, student = lead
    value = measure.of(student)
    assert value is not None
    n = images_tested(results, measure)
    sentence = _against_teacher(results, measure, student, value)
    classes = main.classes(split(measure.protocol)[1])
    if measure.accuracy and n and classes and interval(value, n)[0] <= 100 / classes:
        sentence += f" That is no better than guessing among {classes} classes."
    return f"{sentence} {_against_runs(results, measure, student, value)}".strip()


def _against_teacher(results: Results, measure: Measure, student: Model, value: float) -> str:
    teacher, n = results.teacher, images_tested(results, measure)
    theirs = None if teacher is None else measure.of(teacher)
    size = share(student.parameters, None if teacher is None else teacher.parameters)
    cost = f" with {percent(size)} of its parameters" if size is not None else ""
    counted = f", {n:,} test images" if n and measure.accuracy else ""
    if measure.protocol == OVERLAP.protocol:
        return f"The student reaches {measure.format(value)} in {measure.phrase} with the teacher{cost}."
    if not theirs:
        return f"The student reaches {percent(value)} {measure.phrase}{counted}; no teacher was measured beside it."
    ratio = 100 * value / theirs
    verb = "reaches" if ratio >= 100 else "keeps" if ratio >= 80 else "keeps only"
    return (
        f"The student {verb} {percent(ratio)} of the teacher's {measure.phrase}{cost} "
        f"({percent(value)} against {percent(theirs)}{counted})."
    )


def _against_runs(results: Results, measure: Measure, student: Model, value: float) -> str:
    others, n = rivals(measure, student, results.rows), images_tested(results, measure)
    if not others:
        return ""
    best, rival = others[0]
    name = f"{rival.name} ({measure.format(best)})"
    if measure.accuracy and n is not None and not distinguishable(value, best, n):
        side = "lower" if best < value else "higher" if best > value else "as high"
        return f"{n:,} test images cannot tell it apart from the best other run, {name}, which is {side}."
    if best > value:
        beaten = sum(other > value for other, _ in others)
        extra = f", and {beaten - 1} more run{'s do' if beaten > 2 else ' does'} better too" if beaten > 1 else ""
        return f"But {name} does better{extra}."
    return f"It is ahead of the best other run, {name}."
