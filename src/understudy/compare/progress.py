"""How far a comparison is: a line for every run that ends, and on a terminal what is running and the table so far."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.artifacts import Run
from understudy.compare.cell import Cell
from understudy.compare.search import CRITERION

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table

SHOWN = {"10-NN": ("knn", "top1@10"), "linear": ("linear", "top1"), CRITERION: ("fidelity", CRITERION)}
"""Figures of the student in the line of a run."""


class Progress:
    """What is done, what is running, and the time left as the image passes tell.

    A context manager: on a terminal the state is shown while it is open. `count` and `passes` are runs and image passes
    in all.
    """

    def __init__(self, title: str, count: int, passes: float) -> None:
        self.title, self.count, self.passes = title, count, passes
        self.table: Callable[[], Table] | None = None
        """The table so far, once there is one."""
        self.done = 0
        self.skipped = self.made = self.seconds = 0.0
        self.mark = time.monotonic()
        self.running: dict[Path, tuple[Cell, float]] = {}
        self.live: Live | None = None
        self.shown_table: Table | None = None

    def skip(self, cell: Cell) -> None:
        """A run that was there already."""
        self.done += 1
        self.skipped += cell.settings.passes

    def started(self, cell: Cell) -> None:
        """A run has begun."""
        self.running[cell.folder] = (cell, time.monotonic())

    def ended(self, cell: Cell) -> None:
        """A run is done or has failed: a line, and a new table."""
        from understudy.train.log import notify

        self.running.pop(cell.folder, None)
        now = time.monotonic()
        self.seconds, self.mark = self.seconds + now - self.mark, now
        self.done += 1
        self.made += cell.settings.passes
        outcome = f"failed: {cell.failure}" if cell.failure else figures(cell)
        notify(f"[{self.share():4.0%}] {cell.role} {cell.title}: {outcome}; {self.state()}")
        if self.live is not None and self.table is not None:
            self.shown_table = self.table()

    def share(self) -> float:
        """The part of all image passes that is done."""
        return min(1.0, (self.skipped + self.made) / max(self.passes, 1e-9))

    def state(self) -> str:
        """Runs done, running, and the time left."""
        from understudy.train.log import clock

        begun = sum(fraction(cell) * cell.settings.passes for cell, _ in self.running.values())
        rest = max(0.0, self.passes - self.skipped - self.made - begun)
        seconds = self.seconds + time.monotonic() - self.mark
        left = f"about {clock(rest * seconds / (self.made + begun))} left" if self.made + begun else "time left unknown"
        if not rest and self.running:
            left = "all trained, evaluating"
        return f"{self.done} of {self.count} runs done, {len(self.running)} running, {left}"

    def __enter__(self) -> Progress:
        self.mark = time.monotonic()  # what is shared by all has been made
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(
                console=Console(stderr=True), get_renderable=self.page, refresh_per_second=1, transient=True
            )
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.running.clear()
        if self.live is not None:
            self.live.stop()
            self.live = None

    def page(self) -> Group:
        """What a terminal shows."""
        from rich.console import Group
        from rich.text import Text

        from understudy.train.log import clock

        now = time.monotonic()
        lines = [Text(f"{self.title}: {self.state()}", style="bold")]
        for cell, begun in self.running.values():
            stage = "evaluating" if fraction(cell) == 1 else f"{fraction(cell):.0%}"
            lines.append(Text(f"  {cell.role} {cell.title}: {stage}, {clock(now - begun)}"))
        return Group(*([self.shown_table] if self.shown_table is not None else []), *lines)


def figures(cell: Cell) -> str:
    """The headline figures of a run that is done."""
    if cell.role == "timing":
        return "done"
    evaluation = Run(cell.folder).evaluation["student"]
    found = {title: evaluation.get(protocol, {}).get(name) for title, (protocol, name) in SHOWN.items()}
    return ", ".join(f"{title} {value:.2f}" for title, value in found.items() if value is not None) or "done"


def fraction(cell: Cell) -> float:
    """How much of a running cell's training is done, as the end of its metrics tells."""
    try:
        with open(Run(cell.folder).metrics_path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4096))
            lines = file.read().splitlines()
    except OSError:
        return 0.0
    for line in reversed(lines):
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:  # being written, or cut at its beginning
            continue
        if "passes" in row:
            return float(min(1.0, row["passes"] / cell.settings.passes))
    return 0.0
