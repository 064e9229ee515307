"""The tables: models against measures, figures by protocol and set, and the facts of what was done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from understudy.report.markup import Markup, join, tag
from understudy.report.numbers import count, duration, interval
from understudy.report.protocols import (
    in_percent,
    less_is_better,
    metric_title,
    protocol_title,
    quoted,
    set_title,
    split,
    written,
)
from understudy.report.provenance import Account
from understudy.report.results import Result, metrics_of, result
from understudy.report.verdict import MEASURES, Measure, Model, figure, images_tested

ABSENT = "\u2013"

COUNTED_ELSEWHERE = frozenset({"kind", "step", "steps", "images", "time"})
"""Keys of the first metrics line that do not describe the machine."""

Facts = Sequence[tuple[str, Any]]


def result_table(rows: Sequence[Model], n: int | None) -> Markup:
    """A row for each model and a column for each measure that any of them has; the best student of a column marked.

    Args:
        rows: the models.
        n: test images behind the accuracies; their 95 % intervals are left out when it is unknown.
    """
    measures = [measure for measure in MEASURES if any(measure.of(row) is not None for row in rows)]
    headings = ["Model", *(measure.title for measure in measures), "Parameters", "Multiply-adds"]
    body = []
    for row in rows:
        name = join(row.name, tag("span", " · ".join(filter(None, (row.part, row.note))), class_="note"))
        cells = [_cell(measure, row, rows, n) for measure in measures]
        cells += [tag("td", ABSENT if size is None else count(size)) for size in (row.parameters, row.flops)]
        kind = "teacher" if row.is_teacher else "main" if row.main else None
        body.append(tag("tr", tag("th", name, scope="row"), *cells, class_=kind))
    counted = ""
    if n and any(measure.accuracy for measure in measures):
        counted = f" Accuracies on {n:,} test images, with Wilson's 95 % interval below each."
    return table(
        f"Teacher and students under the same protocols.{counted} ★ marks the best student of a column.", headings, body
    )


def _cell(measure: Measure, row: Model, rows: Sequence[Model], n: int | None) -> Markup:
    value = measure.of(row)
    if value is None:
        return tag("td", ABSENT)
    students = [other for model in rows if not model.is_teacher and (other := measure.of(model)) is not None]
    best = not row.is_teacher and value == max(students) > min(students)
    star = tag("span", "★", class_="star", role="img", aria_label="best student") if best else None
    written = figure(measure, value).removesuffix("\u00a0%")
    span = None
    if n and measure.accuracy:
        low, high = interval(value, n)
        span = tag("span", f"{low:.1f} to {high:.1f}", class_="note")
    return tag("td", star, written, span, class_="best" if best else None)


def results_table(rows: Sequence[Model], keys: Sequence[str], *, whole: bool = False) -> Markup:
    """A column for each model, a row for each figure under its protocol and set, with what is known of its certainty.

    Args:
        rows: the models.
        keys: PROTOCOL or PROTOCOL@SET of the figures.
        whole: every figure there is, rather than those that papers quote.
    """
    body = []
    for key in keys:
        protocol, target = split(key)
        names = metrics_of(rows, key)
        shown = [
            (metric, [result(row, key, metric, rows) for row in rows])
            for metric in (names if whole else quoted(key, names))
        ]
        shown = [(metric, results) for metric, results in shown if any(results)]
        if not shown:
            continue
        title = set_title(target) if whole else f"{protocol_title(protocol)}, {set_title(target)}"
        if protocol == "cost":
            title = protocol_title(protocol)
        heading = tag("th", tag("span", title), colspan=str(len(rows) + 1), scope="rowgroup")
        body.append(tag("tr", heading, class_="group"))
        for metric, results in shown:
            unit = ",\u00a0%" if in_percent(key, metric) else ""
            name = join(metric_title(metric) + unit, _less(key, metric))
            cells = (_result_cell(key, metric, found) for found in results)
            body.append(tag("tr", tag("th", name, scope="row"), *cells))
    headings = ["Figure", *(row.label for row in rows)]
    caption = (
        "Every figure, written as in the table above."
        if whole
        else (
            "Below a figure its 95 % interval: Wilson's where images or queries are counted, of resampled images for "
            "fidelity; or, after \u00b1, the standard deviation over draws of the labels. \u2193: less is better."
        )
    )
    return table(caption, headings, body)


def _less(key: str, metric: str) -> Markup | None:
    if not less_is_better(key, metric):
        return None
    return tag("span", "\u00a0\u2193", role="img", aria_label="less is better")


def _result_cell(key: str, metric: str, found: Result | None) -> Markup:
    if found is None:
        return tag("td", ABSENT)
    sure = found.certainty(key, metric)
    return tag("td", written(key, metric, found.value), tag("span", sure, class_="note") if sure else None)


def table(caption: str, headings: Sequence[str], body: Sequence[Markup]) -> Markup:
    """A table that scrolls by itself where the screen is narrower."""
    head = tag("thead", tag("tr", *(tag("th", heading, scope="col") for heading in headings)))
    whole = tag("table", tag("caption", tag("span", caption)), head, tag("tbody", *body))
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def what_was_done(main: Account) -> Markup:
    """Teacher, student, data, training and machine of the main run, as far as its files tell."""
    student, teacher, start = main.student, main.teacher, main.start
    parameters, contract = student.get("parameters") or {}, student.get("contract") or {}
    head, method = student.get("head") or {}, dict(student.get("method") or {})
    size = contract.get("size")
    seconds, images = main.end.get("seconds", student.get("seconds")), main.end.get("images")
    groups: list[tuple[str, Facts]] = [
        ("Teacher", [
            ("Model", teacher.get("spec") or main.config.get("teacher")),
            ("Weights", teacher.get("weights")),
            ("Embedding width", teacher.get("width")),
            ("Parameters", _count(teacher.get("parameters"))),
            ("Multiply-adds per image", _count(teacher.get("flops"))),
            ("Forward passes", _count(main.end.get("teacher_forwards"))),
        ]),
        ("Student", [
            ("Model", student.get("spec") or main.config.get("student")),
            ("Feature width", student.get("width")),
            ("Head", f"{head.get('kind')}, {head.get('width')} to {head.get('out')}" if head else None),
            ("Parameters", _count(parameters.get("backbone"))),
            ("Head's parameters", _count(parameters.get("head"))),
            ("Multiply-adds per image", _count(student.get("flops"))),
            ("Input", f"{size} x {size} pixels" if size else None),
            ("Weights fingerprint", student.get("weights")),
        ]),
        ("Data", [
            ("Training images", main.data.get("spec") or main.config.get("data")),
            ("Number", _count(main.data.get("images"))),
            ("Unreadable, skipped", len(student["skipped"]) if student.get("skipped") else None),
            ("Evaluation images", main.about.get("eval_data") or main.config.get("eval_data")),
            ("Labeled training images", _count(_number(main.about.get("train_images")))),
            ("Test images", _count(images_tested(main))),
            ("Classes", main.about.get("classes")),
            ("Listing fingerprint", main.data.get("fingerprint")),
        ]),
        ("Training", [
            ("Method", main.method),
            *((f"{key}", value) for key, value in method.items() if key != "name"),
            ("Image passes", None if main.passes is None else f"{main.passes:g}"),
            ("Steps", _count(student.get("steps"))),
            ("Batch size", student.get("batch_size") or main.config.get("batch_size")),
            ("Seed", student.get("seed", main.config.get("seed"))),
            ("Time", None if seconds is None else duration(seconds)),
            ("Images per second", _count(images / seconds) if images and seconds else None),
        ]),
        ("Machine", [
            *((key.replace("_", " "), value) for key, value in start.items() if key not in COUNTED_ELSEWHERE),
            ("understudy", student.get("understudy")),
        ]),
    ]  # fmt: skip
    if not teacher and student:
        groups[0] = ("Teacher", [("Model", "none: this method learns without a teacher")])
    return tag("div", *(_facts(title, metadata) for title, metadata in groups), class_="facts")


def _facts(title: str, metadata: Facts) -> Markup | None:
    known = [(key, value) for key, value in metadata if value not in (None, "")]
    if not known:
        return None
    pairs = (join(tag("dt", key), tag("dd", str(value))) for key, value in known)
    return tag("div", tag("h3", title), tag("dl", *pairs), class_="card")


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and value else None


def _count(value: float | None) -> str | None:
    return None if value is None else count(value)
