"""What the measured figures allow one to say: the rows of the table, the verdict, and its caveats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from understudy.models.heads import head_multiply_adds
from understudy.report.numbers import apart, interval, percent
from understudy.report.protocols import (
    compared,
    in_percent,
    is_share,
    less_is_better,
    metric_title,
    ordered,
    protocol_title,
    split,
)
from understudy.report.provenance import Account, Scores

FEW_PASSES = 50
"""Published runs see each image 200 to 400 times; below this the page says that figures usually still rise."""

COLLAPSED = 0.9
"""Mean cosine of two different images above which a space is called collapsed, if the teacher's is well below."""


@dataclass(frozen=True)
class Measure:
    """One figure that every model of the table can have.

    Args:
        protocol: key of the evaluation.
        metric: key inside it.
        title: column heading.
        phrase: how a sentence calls it.
        accuracy: a share of test images, in per cent, so it has a binomial interval.
    """

    protocol: str
    metric: str
    title: str
    phrase: str
    accuracy: bool = False

    def of(self, model: Model) -> float | None:
        """The model's figure, if it was measured."""
        return model.scores.get(self.protocol, {}).get(self.metric)


MEASURES = (
    Measure("knn", "top1@10", "10\u2011NN,\u00a0%", "10-NN accuracy", accuracy=True),
    Measure("linear", "top1", "Linear probe,\u00a0%", "linear-probe accuracy", accuracy=True),
    Measure("linear_sgd", "top1", "Linear, SGD,\u00a0%", "linear-probe accuracy (SGD protocol)", accuracy=True),
    Measure("knn", "top1@1", "1\u2011NN,\u00a0%", "1-NN accuracy", accuracy=True),
    Measure("fidelity", "overlap@11", "11\u2011NN shared,\u00a0%", "overlap of the 11 nearest neighbors"),
    Measure("fidelity", "row_cosine", "Row cosine", "row cosine"),
    Measure("fidelity", "column_cosine", "Column cosine", "column cosine"),
    Measure("fidelity", "cka", "CKA", "linear CKA"),
)
"""Columns of the main table; the first accuracy that was measured is the headline."""

OVERLAP = MEASURES[4]


@dataclass(frozen=True)
class Model:
    """One row of the table: a teacher, or one side of a student.

    Args:
        name: the run's name, or "Teacher".
        part: "backbone" (pooled features), "embed" (the teacher's space), "" for the teacher.
        note: what sets it apart, in a few words.
        account: the run it comes from.
        main: whether it comes from the first run, the one the page is about.
        parameters: of exactly this part, None when unknown.
        flops: multiply-accumulates for one image, None when unknown.
    """

    name: str
    part: str
    note: str
    account: Account
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


def models(accounts: Sequence[Account]) -> list[Model]:
    """Rows of the table: the teacher as the first run that has one measured it, then each run's backbone and embed."""
    main = accounts[0]
    rows = []
    taught = next((account for account in accounts if account.teacher or "teacher" in account.scores), None)
    if taught is not None:
        metadata, scores = taught.teacher, taught.scores.get("teacher", {})
        spec, size, cost = str(metadata.get("spec", "")), metadata.get("parameters"), metadata.get("flops")
        rows.append(Model("Teacher", "", spec, taught, False, size, cost, scores))
    for account in accounts:
        parameters = account.student.get("parameters") or {}
        backbone, head = parameters.get("backbone"), parameters.get("head")
        whole = None if backbone is None or head is None else backbone + head
        note = account.method if account is main else difference(account, main)
        work, head_work = account.student.get("flops"), head_multiply_adds(account.student.get("head") or {})
        whole_work = None if work is None or head_work is None else work + head_work
        for part, key, size, flops in (
            ("backbone", "student", backbone, work),
            ("embed", "student_embed", whole, whole_work),
        ):
            if key in account.scores or (key == "student" and not account.scores):
                scores = account.scores.get(key, {})
                rows.append(Model(account.name, part, note, account, account is main, size, flops, scores))
    return rows


def difference(account: Account, main: Account) -> str:
    """What sets a further run apart from the first, as `key value` pairs, at most four."""
    changes = [
        f"{key.removesuffix('.name')} {ours}" for key, (_, ours) in account.changes(main).items() if ours is not None
    ]
    return ", ".join([*changes[:4], *(["..."] if len(changes) > 4 else [])]) or account.method


def measures(rows: Sequence[Model]) -> list[Measure]:
    """What the page may lead with: the columns of the main table, then what stands for each protocol and set."""
    found = list(MEASURES)
    for key in ordered(key for row in rows for key in row.scores):
        protocol, target = split(key)
        for metric in compared(key, list(dict.fromkeys(m for row in rows for m in row.scores.get(key, {})))):
            if less_is_better(key, metric) or any((one.protocol, one.metric) == (key, metric) for one in found):
                continue
            title = metric_title(metric)
            place = f" on {target}" if target else ""
            found.append(Measure(key, metric, title, f"{protocol_title(protocol)} ({title}){place}", is_share(metric)))
    return found


def headline(rows: Sequence[Model]) -> tuple[Measure, Model] | None:
    """The figure that the page leads with, and the main student's row that has it."""
    for measure in measures(rows):
        for row in rows:
            if row.main and measure.of(row) is not None:
                return measure, row
    return None


def teacher_of(rows: Sequence[Model]) -> Model | None:
    """The teacher's row."""
    return next((row for row in rows if row.is_teacher), None)


def rivals(measure: Measure, student: Model, rows: Sequence[Model]) -> list[tuple[float, Model]]:
    """Other runs' rows of the same part that have the figure, best first."""
    found = [
        (value, row)
        for row in rows
        if not row.is_teacher and not row.main and row.part == student.part and (value := measure.of(row)) is not None
    ]
    return sorted(found, key=lambda pair: -pair[0])


def images_tested(account: Account, measure: Measure | None = None) -> int | None:
    """How many test images an accuracy was counted on; without one, how many main ones there are."""
    return account.images(split(measure.protocol)[1] if measure else "")


def share(part: float | None, whole: float | None) -> float | None:
    """Per cent of the whole, None when either is unknown."""
    return None if part is None or not whole else 100 * part / whole


def verdict(rows: Sequence[Model], main: Account) -> str:
    """One plain sentence, or two when there are controls, that says how good the student is; honest when it is bad."""
    found = headline(rows)
    if found is None:
        state = "Training has ended, but" if main.student else "Training has not ended and"
        return f"{state} nothing has been measured yet: this page shows what was done, not how good it is."
    measure, student = found
    value = measure.of(student)
    assert value is not None
    teacher, n = teacher_of(rows), images_tested(main, measure)
    theirs = None if teacher is None else measure.of(teacher)
    size = share(student.parameters, None if teacher is None else teacher.parameters)
    cost = f" with {percent(size)} of its parameters" if size is not None else ""
    counted = f", {n:,} test images" if n and measure.accuracy else ""
    if measure.protocol == "fidelity":
        sentence = f"The student reaches {figure(measure, value)} in {measure.phrase} with the teacher{cost}."
    elif theirs:
        kept = 100 * value / theirs
        verb = "reaches" if kept >= 100 else "keeps" if kept >= 80 else "keeps only"
        sentence = (
            f"The student {verb} {percent(kept)} of the teacher's {measure.phrase}{cost} "
            f"({percent(value)} against {percent(theirs)}{counted})."
        )
    else:
        sentence = f"The student reaches {percent(value)} {measure.phrase}{counted}; no teacher was measured beside it."
    classes = main.classes(split(measure.protocol)[1])
    if measure.accuracy and n and classes and interval(value, n)[0] <= 100 / classes:
        sentence += f" That is no better than guessing among {classes} classes."
    return f"{sentence} {_against(measure, student, value, rows, n)}".strip()


def _against(measure: Measure, student: Model, value: float, rows: Sequence[Model], n: int | None) -> str:
    others = rivals(measure, student, rows)
    if not others:
        return ""
    best, rival = others[0]
    tied = measure.accuracy and n is not None and not apart(value, best, n)
    told = f"{rival.name} ({figure(measure, best)})"
    if tied:
        side = "lower" if best < value else "higher" if best > value else "as high"
        return f"{n:,} test images cannot tell it apart from the best other run, {told}, which is {side}."
    if best > value:
        beaten = sum(other > value for other, _ in others)
        extra = f", and {beaten - 1} more run{'s do' if beaten > 2 else ' does'} better too" if beaten > 1 else ""
        return f"But {told} does better{extra}."
    return f"It is ahead of the best other run, {told}."


def figure(measure: Measure, value: float) -> str:
    """A measured number as the page writes it."""
    return percent(value) if in_percent(measure.protocol, measure.metric) else f"{value:.3f}"


def caveats(accounts: Sequence[Account], rows: Sequence[Model]) -> list[str]:
    """What a reader must know before quoting a number, each sentence computed from the facts of these runs."""
    main, found = accounts[0], headline(rows)
    said = [*_unmeasured(main, found), *_uncertain(main, found)]
    said += _compared(accounts, rows)
    said += _trained(main)
    return said + _spaces(main)


def _unmeasured(main: Account, found: tuple[Measure, Model] | None) -> list[str]:
    said = []
    if not main.student:
        said.append(
            "Training has not ended, so parameters, cost and final figures are missing. Train on: it resumes by itself."
        )
    if not main.scores:
        said.append("Nothing has been measured on held-out images. Run `understudy evaluate` on this folder.")
    elif found is None or not found[0].accuracy:
        said.append(
            "No accuracy was measured: agreement with the teacher is all this page can judge by, and a student can "
            "agree with a teacher that is bad at your task."
        )
    listed = main.about.get("caveats")
    return said + [str(caveat) for caveat in (listed if isinstance(listed, list) else ())]


def _uncertain(main: Account, found: tuple[Measure, Model] | None) -> list[str]:
    n = images_tested(main, found[0]) if found else None
    if found is None or not found[0].accuracy or not n:
        return []
    measure, student = found
    low, high = interval(measure.of(student) or 0.0, n)
    return [
        f"The accuracies are counted on {n:,} test images, so the student's {measure.phrase} is known to about "
        f"\u00b1{(high - low) / 2:.1f} points (95 %). That covers the choice of test images only, not that of the seed."
    ]


def _compared(accounts: Sequence[Account], rows: Sequence[Model]) -> list[str]:
    main, said = accounts[0], []
    repeats = [account for account in accounts if all(key.endswith("seed") for key in account.changes(main))]
    if len({account.student.get("seed") for account in repeats}) < 2:
        said.append(
            "One seed: nothing here tells how far the result would move with another initialization or order of images."
        )
    if len(accounts) == 1:
        said.append(
            "No control is shown, so the page cannot say what the method adds. Train the same student another way "
            "(another method, weight 0, no teacher) on the same budget and name its folder too."
        )
    behind = [told for measure in MEASURES if (told := _behind(measure, main, rows)) is not None]
    if behind:
        said.append(f"The student is not the best of the runs shown in {'; in '.join(behind)}.")
    for account in accounts[1:]:
        if account.passes is not None and main.passes is not None and abs(account.passes - main.passes) > 0.01:
            said.append(
                f"Not the same budget: {account.name} saw every image {account.passes:g} times, "
                f"{main.name} {main.passes:g} times."
            )
        if account.about.get("test_fingerprint") != main.about.get("test_fingerprint"):
            said.append(f"{account.name} was evaluated on other images than {main.name}: do not compare the two.")
    return said


def _behind(measure: Measure, main: Account, rows: Sequence[Model]) -> str | None:
    """In one measure, the best other run that is better than the main student."""
    for student in rows:
        if student.main and (value := measure.of(student)) is not None:
            best, rival = next(iter(rivals(measure, student, rows)), (value, student))
            if best <= value:
                return None
            n = images_tested(main, measure) if measure.accuracy else None
            slack = ", which the test images cannot tell apart" if n and not apart(value, best, n) else ""
            return f"{measure.phrase} ({figure(measure, value)}, {rival.name} {figure(measure, best)}{slack})"
    return None


def _trained(main: Account) -> list[str]:
    said = []
    spec = str(main.teacher.get("spec", ""))
    if spec and not spec.startswith("run:"):
        said.append(
            "Whether the teacher was trained with labels, or on images like these test images, cannot be read from its "
            "weights. If it was, so in effect was the student."
        )
    if main.passes is not None and main.passes < FEW_PASSES:
        said.append(
            f"Training saw every image {main.passes:g} times; published runs see each 200 to 400 times, and figures "
            "usually still rise at this point."
        )
    for kind, skipped in (
        ("training", len(main.student.get("skipped") or ())),
        ("evaluation", _skipped(main)),
    ):
        if skipped:
            said.append(f"{skipped:,} unreadable {kind} image{'s were' if skipped > 1 else ' was'} skipped.")
    return said


def _skipped(main: Account) -> int:
    value = main.about.get("skipped")
    return int(value) if isinstance(value, int | float) else 0


def _spaces(main: Account) -> list[str]:
    said = []
    teacher, student = (mean_cosine(main.sample.get(key)) for key in ("teacher", "student"))
    if teacher is not None and student is not None and student > COLLAPSED and student - teacher > 0.1:
        said.append(
            f"The student's space has collapsed: two different images have a mean cosine of {student:.2f} there, "
            f"{teacher:.2f} in the teacher's. A high row cosine says little in such a space."
        )
    constant = constant_answer(main.sample.get("teacher"))
    if constant is not None and constant.mean() > 0.5:
        said.append(
            f"A student that answered every image with the teacher's mean would already reach a column cosine of "
            f"{constant.mean():.2f}: judge column cosines against that, not against 0."
        )
    return said


def mean_cosine(embeddings: np.ndarray | None) -> float | None:
    """Mean cosine over all pairs of different rows of (n, D) embeddings; None without two finite rows."""
    if embeddings is None or len(embeddings) < 2 or not np.isfinite(embeddings).all():
        return None
    rows = np.asarray(embeddings, np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    n, total = len(rows), rows.sum(axis=0)
    return float((total @ total - (rows * rows).sum()) / (n * (n - 1)))


def constant_answer(embeddings: np.ndarray | None) -> np.ndarray | None:
    """(D,) column cosine with (n, D) embeddings that their mean, given for every image, would reach: |mean| / rms."""
    if embeddings is None or not len(embeddings) or not np.isfinite(embeddings).all():
        return None
    columns = np.asarray(embeddings, np.float64)
    cosines: np.ndarray = np.abs(columns.mean(axis=0)) / np.maximum(np.sqrt((columns**2).mean(axis=0)), 1e-12)
    return cosines
