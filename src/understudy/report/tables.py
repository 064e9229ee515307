"""The tables as plain rows: models against measures, figures by protocol and set, and the facts of what was done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.report.numbers import count, duration, interval
from understudy.report.protocols import set_title, split
from understudy.report.results import Model, Results
from understudy.report.verdict import MEASURES, Measure, images_tested

ABSENT = "\u2013"

NOT_OF_THE_MACHINE = frozenset({"kind", "step", "steps", "images", "time"})
"""Keys of the first metrics line that do not describe the machine."""


@dataclass(frozen=True)
class Cell:
    """One cell: its text, a smaller note below, whether it is its column's best, and what a star beside it means."""

    text: str
    note: str = ""
    best: bool = False
    star: str = ""


@dataclass(frozen=True)
class Row:
    """One row: its heading and cells (None over the rows below it), and a smaller note below the heading.

    `kind` is a class of the style sheet; `less` says that less is better in it.
    """

    title: str
    cells: Sequence[Cell] | None = None
    note: str = ""
    kind: str = ""
    less: bool = False


@dataclass(frozen=True)
class Table:
    """A table: what it shows, a heading for each column, and its rows."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Row]


def glance_table(results: Results) -> Table:
    """A row for each model and a column for each measure that any of them has; the best student of a column marked.

    The 95 % intervals of accuracies are left out where the number of test images is unknown.
    """
    n, models = images_tested(results), results.rows
    measures = [measure for measure in MEASURES if any(measure.of(row) is not None for row in models)]
    rows = []
    for row in models:
        cells = [_measure_cell(measure, row, models, n) for measure in measures]
        cells += [Cell(ABSENT if size is None else count(size)) for size in (row.parameters, row.flops)]
        kind = "teacher" if row.is_teacher else "main" if row.main else ""
        rows.append(Row(row.name, cells, " · ".join(filter(None, (row.part, row.note))), kind))
    counted = ""
    if n and any(measure.accuracy for measure in measures):
        counted = f" Accuracies on {n:,} test images, with Wilson's 95 % interval below each."
    return Table(
        f"Teacher and students under the same protocols.{counted} ★ marks the best student of a column.",
        ["Model", *(measure.title for measure in measures), "Parameters", "Multiply-adds"],
        rows,
    )


def _measure_cell(measure: Measure, row: Model, models: Sequence[Model], n: int | None) -> Cell:
    value = measure.of(row)
    if value is None:
        return Cell(ABSENT)
    students = [other for model in models if not model.is_teacher and (other := measure.of(model)) is not None]
    best = not row.is_teacher and value == max(students) > min(students)
    note = ""
    if n and measure.accuracy:
        low, high = interval(value, n)
        note = f"{low:.1f} to {high:.1f}"
    return Cell(measure.format(value).removesuffix("\u00a0%"), note, best, "best student" if best else "")


def figures_table(results: Results, models: Sequence[Model], keys: Sequence[str], *, whole: bool = False) -> Table:
    """A column for each model, a row for each figure under its protocol and set, with what is known of its certainty.

    Of the figures of these keys all (`whole`), or those that papers quote.
    """
    rows = []
    for key in keys:
        (protocol, target), display = split(key), results.displays.display(key)
        metrics = results.metrics(key) if whole else display.quoted_in(results.metrics(key))
        measured_rows = []
        for metric in metrics:
            measured = [results.measurement(row, key, metric) for row in models]
            if any(measured):
                pairs = [(display.format(metric, it.value), it.certainty(display, metric)) if it else (ABSENT,)
                         for it in measured]  # fmt: skip
                cells = [Cell(*pair) for pair in pairs]
                unit = ",\u00a0%" if display.in_percent(metric) else ""
                less = display.less_is_better(metric)
                measured_rows.append(Row(display.metric_title(metric) + unit, cells, less=less))
        if measured_rows:
            title = set_title(target) if whole else f"{display.title}, {set_title(target)}"
            rows += [Row(display.title if protocol == "cost" else title), *measured_rows]
    caption = (
        "Below a figure its 95 % interval: Wilson's where images or queries are counted, of resampled images for "
        "fidelity; or, after \u00b1, the standard deviation over draws of the labels. \u2193: less is better."
    )
    if whole:
        caption = "Every figure, written as in the table above."
    return Table(caption, ["Figure", *(row.label for row in models)], rows)


def in_words(value: Any) -> str:
    """A value of a settings or metrics file as people write it: lists by commas, tables by names, yes and no."""
    if isinstance(value, Mapping):
        pairs = ((str(key).replace("_", " "), in_words(one)) for key, one in value.items() if one not in (None, ""))
        return ", ".join(f"on {one}" if key == "device" else f"{key} {one}" for key, one in pairs)
    if isinstance(value, list | tuple):
        parts = (in_words(one) for one in value)
        return ("; " if any(isinstance(one, Mapping | list | tuple) for one in value) else ", ").join(parts)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def known_facts(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts in words, those that are not known left out."""
    known = {key: in_words(value) for key, value in facts.items() if value not in (None, "", [], {})}
    return {key.replace("_", " "): words for key, words in known.items() if words}


def what_was_done(results: Results) -> dict[str, dict[str, str]]:
    """Teacher, student, data, training and machine of the main run, as far as its files tell."""
    main = results.main
    student, teacher, config, about = main.student, main.teacher, main.config, main.about
    groups: dict[str, dict[str, Any]] = {
        "Teacher": {
            "Model": teacher.get("spec") or config.get("teacher"), "Weights": teacher.get("weights"),
            "Embedding width": teacher.get("width"), "Parameters": _count(teacher.get("parameters")),
            "Multiply-adds per image": _count(teacher.get("flops")),
            "Forward passes": _count(main.end.get("teacher_forwards")),
        },
        "Student": _student_facts(student, config),
        "Data": {
            "Training images": main.data.get("spec") or config.get("data"), "Number": _count(main.data.get("images")),
            "Unreadable, skipped": len(student.get("skipped") or ()) or None,
            "Evaluation images": about.get("eval_data") or config.get("eval_data"),
            "Labeled training images": _count(about.get("train_images") or None),
            "Test images": _count(images_tested(results)), "Classes": about.get("classes"),
            "Listing fingerprint": main.data.get("fingerprint"),
        },
        "Training": _training_facts(results),
        "Machine": {
            **{key: value for key, value in main.start.items() if key not in NOT_OF_THE_MACHINE},
            "understudy": student.get("understudy"),
        },
    }  # fmt: skip
    if student and not teacher:
        groups["Teacher"] = {"Model": "none: this method learns without a teacher"}
    known = {title: known_facts(facts) for title, facts in groups.items()}
    return {title: facts for title, facts in known.items() if facts}


def _student_facts(student: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    parameters, head = student.get("parameters") or {}, student.get("head") or {}
    size = (student.get("contract") or {}).get("size")
    return {
        "Model": student.get("spec") or config.get("student"), "Feature width": student.get("width"),
        "Head": f"{head.get('kind')}, {head.get('width')} to {head.get('out')}" if head else None,
        "Parameters": _count(parameters.get("backbone")), "Head's parameters": _count(parameters.get("head")),
        "Multiply-adds per image": _count(student.get("flops")), "Input": f"{size} x {size} pixels" if size else None,
        "Weights fingerprint": student.get("weights"),
    }  # fmt: skip


def _training_facts(results: Results) -> dict[str, Any]:
    main = results.main
    student, images = main.student, main.end.get("images")
    seconds = main.end.get("seconds", student.get("seconds"))
    return {
        "Method": main.method, **{key: value for key, value in (student.get("method") or {}).items() if key != "name"},
        "Image passes": None if main.passes is None else f"{main.passes:g}", "Steps": _count(student.get("steps")),
        "Batch size": student.get("batch_size") or main.config.get("batch_size"),
        "Seed": student.get("seed", main.config.get("seed")), "Time": None if seconds is None else duration(seconds),
        "Images per second": _count(images / seconds) if images and seconds else None,
    }  # fmt: skip


def _count(value: Any) -> str | None:
    return count(value) if isinstance(value, int | float) else None
