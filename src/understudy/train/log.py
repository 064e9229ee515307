"""What a run says: `metrics.jsonl` always, a live table on a terminal, one line each on a pipe."""

from __future__ import annotations

import sys
import time
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from understudy.artifacts import Run, room_on_disk, sealed_row
from understudy.errors import MissingDependency


class StageProgress:
    """Progress of a stage with a known total: a bar on a terminal, a line every ten seconds on a pipe.

    Call it as `progress(done, total, note)`; use it as a context manager.
    """

    def __init__(self, title: str, quiet: bool = False) -> None:
        self.title, self.quiet = title, quiet
        self.started = self.begun = self.last_line = time.monotonic()
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.done = self.first = 0

    def __enter__(self) -> StageProgress:
        if not self.quiet and sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(self.title, total=1, note="")
            self.bar.start()
        return self

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are done."""
        if done < self.done:  # the next part of the stage
            self.begun, self.first = time.monotonic(), done
        self.done = done
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, total=max(total, 1), note=note)
        elif not self.quiet and time.monotonic() - self.last_line >= 10:
            self.last_line = time.monotonic()
            elapsed = self.last_line - self.begun
            rate = f", {(done - self.first) / elapsed:,.0f}/s" if elapsed >= 1 and "/s" not in note else ""
            notify(f"{self.title}: {done:,} of {total:,}{rate}{note and f', {note}'}")

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        if not self.quiet and self.done:
            seconds = time.monotonic() - self.started
            notify(f"{self.title}: done, {seconds:.1f} s")


def notify(line: str) -> None:
    """One plain line to the user, on standard error: standard output is for results."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


class Log:
    """Metrics of one run, a row each: `kind`, `step` and `time` in all of them.

    A row "start" or "resume" says once what the run is computed with: the machine, `teacher_precision`, and `compiled`,
    a table {"student": bool, "teacher": bool, "device": kind} of what torch.compile has taken. Rows "step" and "signal"
    are numbers over time; "end" is the cost of the whole.

    Args:
        run: where `metrics.jsonl` goes.
        resume_step: rows after this step are dropped: a killed run wrote them, and the resumed one writes them again.
        title: of the live table.
        total: steps in all.
        tensorboard: also write events.
        quiet: print nothing.
    """

    def __init__(
        self, run: Run, *, resume_step: int, title: str, total: int, tensorboard: bool = False, quiet: bool = False
    ) -> None:
        self.run, self.title, self.total, self.quiet = run, title, total, quiet
        run.path.mkdir(parents=True, exist_ok=True)
        earlier = [row for row in run.metrics() if resume_step and row["step"] <= resume_step and row["kind"] != "end"]
        with room_on_disk(run.metrics_path):
            self.file: IO[str] = open(run.metrics_path, "w", encoding="utf-8")  # noqa: SIM115 - closed by close()
            for row in earlier:
                self.file.write(sealed_row(row))
            self.file.flush()
        self.step_row: dict[str, Any] = {}
        self.signal_row: dict[str, Any] = {}
        self.live: Live | None = None
        if not quiet and sys.stderr.isatty():
            self.live = Live(console=Console(stderr=True), refresh_per_second=4)
            self.live.start()
        self.events: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise MissingDependency(
                    "--tensorboard needs the package 'tensorboard'. Install it, or leave the flag out."
                ) from None
            self.events = SummaryWriter(str(run.path / "tensorboard"), purge_step=resume_step or None)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one row and show it."""
        row = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        with room_on_disk(self.run.metrics_path):
            self.file.write(sealed_row(row))
            self.file.flush()
        if self.events is not None and kind in ("step", "signal"):
            for name, value in {**values, **values.get("terms", {})}.items():
                if isinstance(value, int | float):
                    self.events.add_scalar(f"{kind}/{name}", value, step)
        if kind == "step":
            self.step_row = row
        elif kind == "signal":
            self.signal_row = row
        if self.live is not None:
            self.live.update(self._table())
        elif not self.quiet and kind in ("step", "signal"):
            notify(self._line(row))

    def _line(self, row: dict[str, Any]) -> str:
        if row["kind"] == "signal":
            skip = ("kind", "step", "time", "passes")
            shown = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in skip)
            return f"  [{row['step']}/{self.total}] held out: {shown}"
        terms = " ".join(f"{name} {value:.4f}" for name, value in row["terms"].items())
        return (
            f"  [{row['step']}/{self.total}] pass {row['passes']:.2f}  loss {row['loss']:.4f} ({terms})  "
            f"{row['images_per_s']:,.0f} img/s  data {row['data_wait']:.0%} teacher {row['teacher_share']:.0%}  "
            f"lr {row['lr']:.2g}  ETA {clock(row['eta_s'])}"
        )

    def _table(self) -> Group:
        step, signal = self.step_row, self.signal_row
        table = Table(title=self.title, title_justify="left", show_header=False)
        table.add_column("name")
        table.add_column("value", justify="right")
        if step:
            table.add_row("step", f"{step['step']:,} / {self.total:,}   ({step['passes']:.2f} image passes)")
            table.add_row("loss", f"{step['loss']:.4f}")
            for name, value in step["terms"].items():
                table.add_row(f"  {name}", f"{value:.4f}")
            table.add_row("images/s", f"{step['images_per_s']:,.0f}")
            table.add_row("waiting for data", f"{step['data_wait']:.0%}")
            table.add_row("in the teacher", f"{step['teacher_share']:.0%}")
            table.add_row("time left", clock(step["eta_s"]))
        for name, value in signal.items():
            if name not in ("kind", "step", "time", "passes"):
                table.add_row(f"held out: {name}", f"{value:.4g}")
        bar = Progress(BarColumn(bar_width=None), TextColumn("{task.percentage:.0f} %"))
        bar.add_task("", total=self.total, completed=int(step.get("step", 0)))
        return Group(table, bar)

    def close(self) -> None:
        """Stop the live table and close the files."""
        if self.live is not None:
            self.live.stop()
            self.live = None
        if self.events is not None:
            self.events.close()
        self.file.close()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
