"""What a reader must know before quoting a number, each sentence computed from the facts of these runs."""

from __future__ import annotations

import numpy as np

from understudy.report.numbers import distinguishable, interval
from understudy.report.provenance import RunRecord
from understudy.report.results import Results
from understudy.report.spaces import unit
from understudy.report.verdict import MEASURES, Measure, headline, images_tested, rivals

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
    for kind, number in (
        ("training", len(main.student.get("skipped") or ())),
        ("evaluation", int(skipped) if isinstance(skipped, int | float) else 0),
    ):
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
