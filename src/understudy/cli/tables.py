"""The tables that verbs print."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from understudy.evaluate.protocols import PROTOCOLS

if TYPE_CHECKING:
    from rich.table import Table

Protocols = Mapping[str, Mapping[str, Any]]
"""What one model has in evaluation.json: figures by protocol."""


@dataclass(frozen=True)
class Model:
    """One row: a model of a run, and its figures by protocol."""

    run: str
    name: str
    protocols: Protocols

    @property
    def title(self) -> str:
        """How the row is called; the teacher is the same for all runs."""
        return self.name if not self.run or self.name == "teacher" else f"{self.run}: {self.name}"


def print_table(runs: Sequence[Any]) -> None:
    """The figures of finished runs as a table on standard output; the first run brings the teacher's row."""
    rows = []
    for position, folder in enumerate(runs):
        figures = folder.evaluation
        if position:
            figures = {name: value for name, value in figures.items() if name != "teacher"}
        rows.append((folder.path.name, figures))
    print_figures(rows)


def print_figures(figures: Sequence[tuple[str, dict[str, Any]]], *, details: bool = False) -> None:
    """One row per model, one column per headline figure; then a table of each other protocol, and the sentences.

    Figures are (run, what evaluation.json holds); with `details` protocols with a headline figure have a table too.
    """
    from rich.console import Console

    models = [Model(run, name, found[name]) for run, found in figures for name in found if name != "about"]
    columns = headline_columns(models)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(headline_table(models, columns))
    for protocol in dict.fromkeys(name for model in models for name in model.protocols):
        if details or all(protocol != column[0] for column in columns):
            table = protocol_table(protocol, [model for model in models if protocol in model.protocols])
            if table is not None:
                console.print(table)
    for run, found in figures:
        for sentence in sentences(found):
            print(f"{run} {sentence}".strip())
        about = found.get("about", {})
        for sentence in filter(None, [*about.get("caveats", []), about.get("sample")]):
            print(f"{run}: {sentence}".removeprefix(": "))


def headline_columns(models: Sequence[Model]) -> dict[tuple[str, str], str]:
    """(protocol, figure) of the columns and their titles, as the protocols declare them."""
    columns = {}
    for protocol, declared in PROTOCOLS.items():
        numbers = _numbers(protocol, models)
        shown = declared.display.table(numbers)
        for pattern in declared.display.headline:
            for figure in filter(re.compile(pattern).fullmatch, numbers):
                columns[protocol, figure] = shown["labels"].get(figure, shown["short"])
    return columns


def headline_table(models: Sequence[Model], columns: Mapping[tuple[str, str], str]) -> Table:
    """One row per model."""
    from rich.table import Table

    table = Table(show_edge=False)
    table.add_column("model", overflow="fold")
    for title in columns.values():
        table.add_column(title, justify="right")
    for model in models:
        values = [model.protocols.get(protocol, {}).get(figure) for protocol, figure in columns]
        table.add_row(model.title, *(f"{value:.2f}" if isinstance(value, int | float) else "" for value in values))
    return table


def protocol_table(protocol: str, models: Sequence[Model]) -> Table | None:
    """One row per figure of a protocol, each with its interval behind it; None without a number."""
    from rich.table import Table

    numbers = _numbers(protocol, models)
    if not numbers:
        return None
    measured = [model.protocols[protocol] for model in models]
    level = next((values["interval_level"] for values in measured if "interval_level" in values), 0)
    title = f"{protocol}, with {level} % intervals" if level else protocol
    table = Table("figure", title=title, title_justify="left", show_edge=False)
    for model in models:
        table.add_column(f"{model.run}: {model.name}".removeprefix(": "), justify="right")
    for figure in numbers:
        of = figure.removesuffix("_low").removesuffix("_high")
        if not figure.startswith("interval_") and (of == figure or of not in numbers):  # an end is behind its figure
            table.add_row(figure, *(_cell(values, figure) for values in measured))
    return table


def sentences(evaluation: Mapping[str, Any]) -> list[str]:
    """Errors and notes, each once, with the models and protocols that it is about."""
    about: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for model, protocols in evaluation.items():
        for protocol, values in protocols.items() if model != "about" else ():
            for sentence in filter(None, (values.get("error"), values.get("note"))):
                models, names = about.setdefault(sentence, ({}, {}))
                models[model] = names[protocol] = None
    return [f"{', '.join(models)} {', '.join(names)}: {sentence}" for sentence, (models, names) in about.items()]


def _numbers(protocol: str, models: Sequence[Model]) -> list[str]:
    """Names of a protocol's figures that are numbers, in order."""
    found = (model.protocols.get(protocol, {}).items() for model in models)
    return list(dict.fromkeys(figure for items in found for figure, value in items if isinstance(value, int | float)))


def _cell(figures: Mapping[str, Any], figure: str) -> str:
    """A figure, and its interval where it has one."""

    def written(value: float) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"

    if not isinstance(figures.get(figure), int | float):
        return ""
    ends = [written(figures[f"{figure}_{end}"]) for end in ("low", "high") if f"{figure}_{end}" in figures]
    return written(figures[figure]) + (f"  {ends[0]} to {ends[1]}" if len(ends) == 2 else "")
