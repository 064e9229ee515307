"""What a training shows while it runs: rows of metrics.jsonl, a live table, signals on held-out images, sentences."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from understudy.artifacts import Run
from understudy.hardware import hardware
from understudy.losses import Terms
from understudy.train.log import Log, notify
from understudy.train.meter import Meter
from understudy.train.signals import Probe, verdict
from understudy.train.state import TrainState
from understudy.views.loader import Loader
from understudy.views.reader import ImageBatch
from understudy.views.tuning import reading_advice

LOG_SECONDS = 10.0
FLUSH_STEPS = {"cpu": 1, "cuda": 50, "mps": 50}
"""How many steps may pass before the losses are read back; reading one waits for the GPU."""


class Monitor:
    """The eyes on a training. Only process 0 writes; the others check their losses.

    Args:
        state: the training.
        run: whose metrics.jsonl is written.
        probe: held-out images for the live signals.
        quiet: print nothing.
    """

    def __init__(self, state: TrainState, run: Run, probe: Probe | None = None, quiet: bool = False) -> None:
        self.state, self.run, self.probe = state, run, probe
        self.quiet = quiet or not state.processes.main
        self.meter = Meter(state.device, state.batches.batch_size, state.steps)
        self.log: Log | None = None
        self._first = state.step
        count = state.settings.probes
        self._signal_steps = {round((i + 1) * state.steps / count) for i in range(count)}

    def notify(self, sentence: str) -> None:
        """One line to the user."""
        if not self.quiet:
            notify(sentence)

    @property
    def title(self) -> str:
        """Method, teacher and student."""
        settings = self.state.settings
        return f"{settings.method['name']}: {settings.teacher or 'no teacher'} -> {settings.student}"

    def announce(self) -> None:
        """Say what is going to be trained, how long and how."""
        state, views = self.state, self.state.views
        begin = "resumed at step" if self._first else "from step"
        self.notify(f"{self.title}, {begin} {self._first:,} of {state.steps:,}")
        size = f"{views.size}" if views.teacher is None else f"{views.size} (teacher {views.teacher.size})"
        settings = state.settings
        length = state.batches.describe(settings.passes, whole_epochs=settings.optimizer.whole_epochs)
        self.notify(f"  {length}; {views.recipe.name} views of {size} px; {state.precision} on {state.device}")
        live = state.recorded is None and state.loss.needs.teacher and not state.requested
        if live and 0 < views.pool < settings.passes * views.per_image:
            self.notify(
                f"  An image has {views.pool:,} different views, and the live teacher runs on each of them again and "
                "again: with --views.teacher recorded it runs once on each."
            )

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Write metrics.jsonl in this block; whatever ends it, the live table is stopped and the files are closed."""
        if self.state.processes.main:
            self.log = Log(
                self.run, resume_step=self._first, title=self.title, total=self.state.steps,
                tensorboard=self.state.settings.tensorboard, quiet=self.quiet,
            )  # fmt: skip
        try:
            self._write_start()
            yield
        except BaseException:
            if self.log is not None:
                with contextlib.suppress(OSError):  # a full disk was reported already
                    self.log.close()
            raise
        if self.log is not None:
            self.log.close()

    def _write_start(self) -> None:
        state = self.state
        assert state.compiled is not None
        if self.log is not None:
            self.log.write(
                "resume" if self._first else "start", self._first, steps=state.steps, images=len(state.data.source),
                compiled=dataclasses.asdict(state.compiled),
                teacher_precision=None if state.teacher is None else state.teacher.precision,
                **hardware(state.device),
            )  # fmt: skip

    def check(self, batch: ImageBatch, terms: Terms) -> None:
        """Take in a step's losses; on a CPU at once, so that a bad batch never touches the weights.

        Raises:
            TrainingError: one of them is not finite.
        """
        self.meter.add(self.state.step, batch, terms)
        if self.meter.pending >= FLUSH_STEPS[self.state.device.type]:
            self.flush()

    def flush(self) -> None:
        """Read all losses back from the device.

        Raises:
            TrainingError: one of them is not finite.
        """
        self.meter.flush(self.state.data.source)

    def show(self) -> None:
        """After a step: a row of losses now and then, and the signals where it is their turn.

        Losses are read back only to be shown; the ETA and shares come from the host clock and device events.
        """
        state, step = self.state, self.state.step
        if self.log is None:
            return
        if step in (self._first + 1, state.steps) or self.meter.seconds_since_row >= LOG_SECONDS:
            self.flush()
            rate = state.optimizer.param_groups[0]["lr"]
            self.log.write("step", step, passes=state.passes, lr=rate, **self.meter.row(step))
        if self.probe is not None and step in self._signal_steps:
            with self.meter.paused():
                signals = self.probe.measure(state.student, state.device)
                self.log.write("signal", step, passes=state.passes, **signals)

    def stopped(self) -> None:
        """Say that training was asked to stop."""
        if self.state.processes.main:
            notify(f"Stopped at step {self.state.step:,} of {self.state.steps:,}; the same command goes on from here.")

    def finished(self, loader: Loader, seconds: float, costs: dict[str, int]) -> None:
        """The last row, and what the user should know of the training.

        Args:
            loader: that gave the batches.
            seconds: of training.
            costs: images and forward passes.
        """
        state, data_wait, workers = self.state, self.meter.data_wait, loader.workers.count
        if self.log is None:
            return
        self.log.write("end", state.step, seconds=seconds, data_wait=data_wait, workers=workers, **costs)
        advice = reading_advice(data_wait, workers, max(state.views.size, state.teacher_size), state.processes.world)
        if advice:
            self.notify(advice)
        if state.skipped:
            self.notify(
                f"{len(state.skipped)} images could not be read and were skipped; they are listed in "
                f"{self.run.student_path}."
            )
        signals = {name: value for name, value in self.log.signal_row.items() if isinstance(value, float)}
        if self.log.signal_row:
            self.notify("  " + verdict(signals))
