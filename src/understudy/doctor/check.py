"""One finding, and how findings are printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str  # what was looked at
    status: Status  # "ok"; "warn" (works, but slower or less than it could); "fail" (something will not run)
    found: str  # what was found, with the values
    fix: str = ""  # what to do; empty if nothing is to be done


def render(found: Iterable[Check], console: Console | None = None) -> None:
    """Print the findings as a table, with a closing sentence; to standard output unless given a console."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = list(found)
    colors = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in found:
        text = Text(check.found)
        if check.fix:
            text.append(f"\nfix: {check.fix}", style=colors[check.status])
        table.add_row(Text(check.status, style=colors[check.status]), Text(check.name), text)
    failed = sum(check.status == "fail" for check in found)
    warned = sum(check.status == "warn" for check in found)
    if failed:
        closing = f"{failed} of {len(found)} checks failed; mend them from the top."
    elif warned:
        closing = f"Everything runs; {warned} of {len(found)} checks could be better."
    else:
        closing = f"All {len(found)} checks passed."
    (console or Console()).print(table, Text("\n" + closing), sep="")
