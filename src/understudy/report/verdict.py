"""What the figures allow one to say of the student, in a sentence or two, and what a reader must know to quote them.

Each caveat is computed from the facts of these runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from understudy.report.numbers import distinguishable, interval, percent, share
from understudy.report.protocols import split
from understudy.report.provenance import RunRecord
from understudy.report.results import Model, Results
from understudy.report.spaces import unit


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
    others = [row for row in rows if not row.is_teacher and not row.main and row.part == student.part]
    figures = [(value, row) for row in others if (value := measure.of(row)) is not None]
    return sorted(figures, key=lambda pair: -pair[0])


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


FEW_PASSES = 50
"""Published runs see each image 200 to 400 times; below this the page says that figures usually still rise."""

COLLAPSED = 0.9
"""Mean cosine of two different images above which a space is called collapsed, if the teacher's is well below."""


def caveats(results: Results) -> list[str]:
    """The sentences, in the order of the page."""
    ours = [*_trained(results.main), *_spaces(results.main)]
    return [*_unmeasured(results), *_uncertain(results), *_compared(results), *ours]


def _unmeasured(results: Results) -> list[str]:
    main, lead, sentences = results.main, headline(results), []
    if not main.student:
        unfinished = "Training has not ended, so parameters, cost and final figures are missing."
        sentences.append(f"{unfinished} Train on: it resumes by itself.")
    if not main.scores:
        sentences.append("Nothing has been measured on held-out images. Run `understudy evaluate` on this folder.")
    elif lead is None or not lead[0].accuracy:
        sentences.append(
            "No accuracy was measured: agreement with the teacher is all this page can judge by, and a student can "
            "agree with a teacher that is bad at your task."
        )
    listed = main.about.get("caveats")
    return sentences + [str(caveat) for caveat in (listed if isinstance(listed, list) else ())]


def _uncertain(results: Results) -> list[str]:
    lead = headline(results)
    n = images_tested(results, lead[0]) if lead else None
    if lead is None or not lead[0].accuracy or not n:
        return []
    measure, student = lead
    low, high = interval(measure.of(student) or 0.0, n)
    return [
        f"The accuracies are counted on {n:,} test images, so the student's {measure.phrase} is known to about "
        f"\u00b1{(high - low) / 2:.1f} points (95 %). That covers the choice of test images only, not that of the seed."
    ]


def _compared(results: Results) -> list[str]:
    main, sentences = results.main, []
    repeats = [record for record in results.records if all(key.endswith("seed") for key in record.changes(main))]
    if len({record.student.get("seed") for record in repeats}) < 2:
        sentences.append(
            "One seed: nothing here tells how far the result would move with another initialization or order of images."
        )
    if len(results.records) == 1:
        sentences.append(
            "No control is shown, so the page cannot say what the method adds. Train the same student another way "
            "(another method, weight 0, no teacher) on the same budget and name its folder too."
        )
    behind = [words for measure in MEASURES if (words := _behind(measure, results)) is not None]
    if behind:
        sentences.append(f"The student is not the best of the runs shown in {'; in '.join(behind)}.")
    for record in results.records[1:]:
        if record.passes is not None and main.passes is not None and abs(record.passes - main.passes) > 0.01:
            sentences.append(
                f"Not the same budget: {record.name} saw every image {record.passes:g} times, "
                f"{main.name} {main.passes:g} times."
            )
        if record.about.get("test_fingerprint") != main.about.get("test_fingerprint"):
            sentences.append(f"{record.name} was evaluated on other images than {main.name}: do not compare the two.")
    return sentences


def _behind(measure: Measure, results: Results) -> str | None:
    """In one measure, the best other run that is better than the main student."""
    for student in results.rows:
        if student.main and (value := measure.of(student)) is not None:
            best, rival = next(iter(rivals(measure, student, results.rows)), (value, student))
            if best <= value:
                return None
            n = images_tested(results, measure) if measure.accuracy else None
            tied = n is not None and n > 0 and not distinguishable(value, best, n)
            slack = ", which the test images cannot tell apart" if tied else ""
            return f"{measure.phrase} ({measure.format(value)}, {rival.name} {measure.format(best)}{slack})"
    return None


def _trained(main: RunRecord) -> list[str]:
    sentences = []
    spec = str(main.teacher.get("spec", ""))
    if spec and not spec.startswith("run:"):
        sentences.append(
            "Whether the teacher was trained with labels, or on images like these test images, cannot be read from its "
            "weights. If it was, so in effect was the student."
        )
    if main.passes is not None and main.passes < FEW_PASSES:
        sentences.append(
            f"Training saw every image {main.passes:g} times; published runs see each 200 to 400 times, and figures "
            "usually still rise at this point."
        )
    skipped = main.about.get("skipped")
    numbers = len(main.student.get("skipped") or ()), int(skipped) if isinstance(skipped, int | float) else 0
    for kind, number in zip(("training", "evaluation"), numbers, strict=True):
        if number:
            sentences.append(f"{number:,} unreadable {kind} image{'s were' if number > 1 else ' was'} skipped.")
    return sentences


def _spaces(main: RunRecord) -> list[str]:
    sentences = []
    teacher, student = (mean_cosine(main.sample.get(side)) for side in ("teacher", "student"))
    if teacher is not None and student is not None and student > COLLAPSED and student - teacher > 0.1:
        sentences.append(
            f"The student's space has collapsed: two different images have a mean cosine of {student:.2f} there, "
            f"{teacher:.2f} in the teacher's. A high row cosine says little in such a space."
        )
    constant = constant_answer(main.sample.get("teacher"))
    if constant is not None and constant.mean() > 0.5:
        sentences.append(
            f"A student that answered every image with the teacher's mean would already reach a column cosine of "
            f"{constant.mean():.2f}: judge column cosines against that, not against 0."
        )
    return sentences


def mean_cosine(embeddings: np.ndarray | None) -> float | None:
    """Mean cosine over all pairs of different rows of (n, D) embeddings; None without two finite rows."""
    if embeddings is None or len(embeddings) < 2 or not np.isfinite(embeddings).all():
        return None
    rows = unit(embeddings)
    n, total = len(rows), rows.sum(axis=0)
    return float((total @ total - (rows * rows).sum()) / (n * (n - 1)))


def constant_answer(embeddings: np.ndarray | None) -> np.ndarray | None:
    """(D,) column cosine with (n, D) embeddings that their mean, given for every image, would reach: |mean| / rms."""
    if embeddings is None or not len(embeddings) or not np.isfinite(embeddings).all():
        return None
    columns = np.asarray(embeddings, np.float64)
    cosines: np.ndarray = np.abs(columns.mean(axis=0)) / np.maximum(np.sqrt((columns**2).mean(axis=0)), 1e-12)
    return cosines
