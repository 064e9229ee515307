"""The tables that verbs print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


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
    """One row per model, one column per headline figure; then a table of each other protocol.

    Args:
        figures: (run, what evaluation.json holds).
        details: a table of the protocols with a headline figure too.
    """
    from rich.console import Console
    from rich.table import Table

    columns = {
        ("knn", "top1@10"): "10-NN", ("knn", "top1@20"): "20-NN", ("linear", "top1"): "linear",
        ("linear_sgd", "top1"): "linear SGD", ("asymmetric_knn", "top1@10"): "asym. 10-NN",
        ("fidelity", "overlap@11"): "overlap@11", ("fidelity", "cka"): "CKA",
        ("fidelity", "row_cosine"): "row cos", ("fidelity", "column_cosine"): "col cos",
    }  # fmt: skip
    models = [(run, name, protocols) for run, found in figures for name, protocols in found.items() if name != "about"]
    used = [
        (key, title) for key, title in columns.items()
        if any(isinstance(protocols.get(key[0], {}).get(key[1]), int | float) for _, _, protocols in models)
    ]  # fmt: skip
    table = Table(show_edge=False)
    table.add_column("model", overflow="fold")
    for _, title in used:
        table.add_column(title, justify="right")
    for run, name, protocols in models:
        cells = []
        for (protocol, figure), _ in used:
            value = protocols.get(protocol, {}).get(figure)
            cells.append(f"{value:.2f}" if isinstance(value, int | float) else "")
        table.add_row(name if not run or name == "teacher" else f"{run}: {name}", *cells)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for protocol in dict.fromkeys(name for _, _, protocols in models for name in protocols):
        names = dict.fromkeys(
            figure for _, _, protocols in models for figure, value in protocols.get(protocol, {}).items()
            if isinstance(value, int | float)
        )  # fmt: skip
        if not names or (not details and any((protocol, figure) in columns for figure in names)):
            continue
        level = next(
            (p[protocol]["interval_level"] for _, _, p in models if "interval_level" in p.get(protocol, {})), 0
        )
        title = f"{protocol}, with {level} % intervals" if level else protocol
        table = Table("figure", title=title, title_justify="left", show_edge=False)
        measured = [model for model in models if protocol in model[2]]
        for run, name, _ in measured:
            table.add_column(f"{run}: {name}".removeprefix(": "), justify="right")
        for figure in names:
            if figure.startswith("interval_") or figure.removesuffix("_low").removesuffix("_high") in names.keys() - {
                figure
            }:
                continue  # it stands behind its figure
            table.add_row(figure, *(_cell(protocols[protocol], figure) for _, _, protocols in measured))
        console.print(table)
    for run, found in figures:
        said: dict[str, tuple[dict[str, None], dict[str, None]]] = {}  # one sentence once, whoever it is about
        for name, protocols in found.items():
            for protocol, values in protocols.items() if name != "about" else ():
                for sentence in (values.get("error"), values.get("note")):
                    if sentence:
                        names, jobs = said.setdefault(sentence, ({}, {}))
                        names[name] = jobs[protocol] = None
        for sentence, (names, jobs) in said.items():
            print(f"{run} {', '.join(names)} {', '.join(jobs)}: {sentence}".strip())
        about = found.get("about", {})
        for sentence in [*about.get("caveats", []), about.get("sample")]:
            if sentence:
                print(f"{run}: {sentence}".removeprefix(": "))


def _cell(figures: dict[str, Any], figure: str) -> str:
    """A figure, and its interval where it has one."""

    def written(value: float) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"

    if not isinstance(figures.get(figure), int | float):
        return ""
    ends = [written(figures[f"{figure}_{end}"]) for end in ("low", "high") if f"{figure}_{end}" in figures]
    return written(figures[figure]) + (f"  {ends[0]} to {ends[1]}" if len(ends) == 2 else "")
