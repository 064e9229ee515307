"""The exports of a run: what each target weighs, how long it takes, and how far it is the student."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from understudy.report.numbers import percent
from understudy.report.tables import ABSENT, Cell, Row, Table

HEADINGS = (
    "Target", "Runtime", "Size, MiB", "An image, ms", "Cosine, mean", "Cosine, least", "Neighbors shared, %",
    "With the teacher, %",
)  # fmt: skip


def exports_part(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the template tells of export.json; None where nothing was exported.

    Returns:
        "table", and "sentences" on targets that failed or could not be run.
    """
    targets = _table(record.get("targets"))
    if not targets:
        return None
    student, held_out = _table(record.get("student")), _table(record.get("held_out"))
    rows = [Row("the student", [Cell("PyTorch"), *_costs(student, {}), *[Cell(ABSENT)] * 4], kind="teacher")]
    sentences = []
    for name, entry in targets.items():
        figures = _table(entry)
        if "failed" in figures:
            sentences.append(f"{name} was not exported: {figures['failed']}")
            continue
        costs = [Cell(str(figures.get("runtime", ABSENT))), *_costs(figures, student)]
        parity = _table(figures.get("parity"))
        if not parity:
            sentences.append(f"{name}: {figures.get('why', 'export.json has no figures of it')}.")
            rows.append(Row(name, [*costs, *[Cell(ABSENT)] * 4]))
        for output, compared in parity.items():
            rows.append(Row(name, [*costs, *_agreement(_table(compared))], note=output))
    images, threads = _number(held_out.get("images")), _number(_table(record.get("machine")).get("threads"))
    counted = f" on {images:,.0f} images of {held_out.get('data')}" if images else ""
    pinned = f" on {threads:.0f} threads" if threads else ""
    caption = (
        f"Each target, run by its own runtime{counted}. Below a size its share of the student's file; below the median "
        f"time of an image alone{pinned}, its quartiles; below the neighbors shared with the teacher, the student's."
    )
    return {"table": Table(caption, HEADINGS, rows), "sentences": sentences}


def _costs(figures: Mapping[str, Any], student: Mapping[str, Any]) -> list[Cell]:
    """Size and time, beside the student's size."""
    size, whole = _number(figures.get("bytes")), _number(student.get("bytes"))
    part = percent(100 * size / whole) if size is not None and whole else ""
    latency = {name: _number(value) for name, value in _table(figures.get("latency")).items()}
    middle, low, high = (latency.get(f"{name}_ms") for name in ("median", "low", "high"))
    quartiles = f"{low:.3g} to {high:.3g}" if low is not None and high is not None else ""
    return [
        Cell(ABSENT if size is None else f"{size / 2**20:.3g}", part),
        Cell(ABSENT if middle is None else f"{middle:.3g}", quartiles),
    ]


def _agreement(compared: Mapping[str, Any]) -> list[Cell]:
    """Cosines with the student's rows, and neighbors shared with the student and the teacher."""

    def figure(start: str) -> float | None:
        return next((_number(value) for name, value in compared.items() if name.startswith(start)), None)

    cosines = [Cell(ABSENT if (value := figure(name)) is None else f"{value:.6f}")
               for name in ("cosine_mean", "cosine_min")]  # fmt: skip
    shared, teacher, own = (figure(f"{name}overlap@") for name in ("", "teacher_", "student_teacher_"))
    return [
        *cosines, Cell(ABSENT if shared is None else f"{shared:.1f}"),
        Cell(ABSENT if teacher is None else f"{teacher:.1f}", "" if own is None else f"{own:.1f}"),
    ]  # fmt: skip


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None
