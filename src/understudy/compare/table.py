"""What a comparison found: its rows, its table and its files."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.artifacts import Run, write_json, write_text
from understudy.compare.cell import Cell
from understudy.compare.design import FORMAT, Design
from understudy.compare.search import CRITERION, chosen, judged
from understudy.compare.variants import Variant
from understudy.pipeline import RunSettings
from understudy.settings import flatten

if TYPE_CHECKING:
    from rich.table import Table

COSTS = ("seconds", "images", "student_forwards", "teacher_forwards", "key_forwards")
"""What the end of a run's metrics says of its cost."""


@dataclass(frozen=True)
class VariantRuns:
    """What is made of one variant."""

    variant: Variant  # the row
    settings: RunSettings  # of its runs
    passes: float  # length of its runs
    trials: Sequence[Cell]  # of the learning rate; none where it was given
    cells: Sequence[Cell]  # its runs, one a seed; none where no trial was finished


def result(design: Design, runs: Sequence[VariantRuns]) -> dict[str, Any]:
    """What comparison.json holds: of runs that are not done yet, that they are not."""
    from understudy.report.comparison import statistics

    rows = [row_of(run, design.out) for run in runs]
    displays: dict[str, Any] = {}
    teachers = [row.pop("teacher") for row in rows]
    for row in rows:
        displays |= row.pop("protocols")
    return {
        "format": FORMAT,
        "kind": design.kind,
        "about": {**design.about(), "protocols": displays},
        "teacher": next(filter(None, teachers), {}),
        "variants": rows,
        **statistics(rows, displays),
    }


def write(comparison: Mapping[str, Any], out: Path) -> None:
    """comparison.json, comparison.csv and report.html."""
    from understudy.report.comparison_page import write_page

    write_json(out / "comparison.json", comparison)
    write_text(out / "comparison.csv", as_csv(comparison))
    write_page(out / "comparison.json", out / "report.html")


def table(comparison: Mapping[str, Any]) -> Table:
    """The table of a comparison for a terminal."""
    from rich.table import Table

    from understudy.report.comparison import table_of

    headings, rows = table_of(comparison)
    shown = Table(show_edge=False)
    for position, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if position else "left", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    return shown


def row_of(run: VariantRuns, out: Path) -> dict[str, Any]:
    """One row of comparison.json, with the teacher's figures and the displays of its protocols."""
    rate, edge = chosen(run.trials) if run.trials else (run.settings.optimizer.peak, "")
    row: dict[str, Any] = {
        "label": run.variant.label,
        "changes": dict(run.variant.changes),
        "method": run.settings.method["name"],
        "passes": run.passes,
        "lr": rate,
        "edge": edge,
        "trials": [
            {"lr": trial.settings.optimizer.peak, CRITERION: judged(trial), "failure": trial.failure}
            for trial in run.trials
        ],
        "failure": "No trial of a learning rate was finished." if rate is None else None,
        "in_teacher_space": True,
        "teacher": {},
        "cells": [],
        "protocols": {},
    }
    for cell in run.cells:
        row["cells"].append(entry_of(cell, out))
        if cell.done:
            finished = Run(cell.folder)
            row["in_teacher_space"] = bool(finished.student["in_teacher_space"])
            row["teacher"] = finished.evaluation.get("teacher", {})
            row["protocols"] |= finished.evaluation["about"]["protocols"]
    return row


def entry_of(cell: Cell, out: Path) -> dict[str, Any]:
    """One run of a row: what it cost and what was measured."""
    entry: dict[str, Any] = {
        "seed": cell.settings.seed, "folder": os.path.relpath(cell.folder, out), "failure": cell.failure,
        "lr": cell.settings.optimizer.peak, "figures": {}, "notes": [],
    }  # fmt: skip
    if not cell.done:
        entry["failure"] = entry["failure"] or "It was not run."
        return entry
    run = Run(cell.folder)
    end = next(row for row in reversed(run.metrics()) if row["kind"] == "end")
    entry |= {name: end[name] for name in COSTS}
    for part in ("student", "student_embed"):
        for key, value in flatten(run.evaluation[part]).items():
            if isinstance(value, int | float):
                entry["figures"][f"{part}.{key}"] = value
            elif key.endswith(".error") and value not in entry["notes"]:
                entry["notes"].append(value)
    return entry


def as_csv(comparison: Mapping[str, Any]) -> str:
    """One line a cell: what it is, what it cost, and every figure."""
    rows = []
    for variant in comparison["variants"]:
        for cell in variant["cells"]:
            row = {"variant": variant["label"], "method": variant["method"], **variant["changes"]}
            row |= {key: cell.get(key) for key in ("seed", "lr")} | {"passes": variant["passes"]}
            row |= {name: cell.get(name) for name in COSTS}
            rows.append({**row, "folder": cell["folder"], "failure": cell["failure"], **cell["figures"]})
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    # What a row is before what was measured, also where rows have different keys.
    columns.sort(key=lambda key: key.startswith(("student.", "student_embed.")))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
