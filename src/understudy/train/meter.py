"""Losses, rates and shares of time between two rows of the log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from understudy.errors import TrainingError
from understudy.losses import Terms
from understudy.sources.source import Source
from understudy.views.reader import ImageBatch


@dataclass(frozen=True)
class _Pending:
    """A step whose losses still lie on the device."""

    step: int
    index: np.ndarray
    total: Tensor
    parts: dict[str, Tensor]


class Meter:
    """Losses, rates and shares between two rows of the log, read back from the device as rarely as possible.

    Args:
        device: of the training.
        batch_size: images per step, over all processes.
        steps: length of training.
    """

    def __init__(self, device: torch.device, batch_size: int, steps: int) -> None:
        self.device, self.batch_size, self.steps = device, batch_size, steps
        self._pending: list[_Pending] = []
        self._losses: list[dict[str, float]] = []
        self._teacher_events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._waiting_s = self._teacher_s = self._paused_s = 0.0
        self._since = time.monotonic()
        self._total_s = self._total_waiting_s = 0.0  # up to the last row

    @property
    def pending(self) -> int:
        """Steps whose losses were not read back yet."""
        return len(self._pending)

    @property
    def data_wait(self) -> float:
        """Share of the time since the start, or since it was resumed, that went into waiting for data."""
        return self._total_waiting_s / max(self._total_s, 1e-9)

    @property
    def seconds_since_row(self) -> float:
        """Seconds since the last row."""
        return time.monotonic() - self._since

    def waiting(self, batches: Iterable[ImageBatch]) -> Iterator[ImageBatch]:
        """The batches; the time until each is there counts as waiting for data."""
        begun = time.monotonic()
        for batch in batches:
            self._waiting_s += time.monotonic() - begun
            yield batch
            begun = time.monotonic()

    @contextlib.contextmanager
    def in_teacher(self) -> Iterator[None]:
        """Time spent in the teacher: device events on a GPU, where the host only queues the work."""
        if self.device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._teacher_events.append((start, end))
        else:
            begun = time.monotonic()
            yield
            self._teacher_s += time.monotonic() - begun

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count as training."""
        begun = time.monotonic()
        yield
        self._paused_s += time.monotonic() - begun

    def add(self, step: int, batch: ImageBatch, terms: Terms) -> None:
        """Keep a step's losses on the device."""
        parts = {name: value.detach() for name, value in terms.parts.items()}
        self._pending.append(_Pending(step, np.asarray(batch.index), terms.total.detach(), parts))

    def flush(self, source: Source) -> None:
        """Read the pending losses back.

        Raises:
            TrainingError: one of them is NaN or inf; the sentence names the batch's images.
        """
        if not self._pending:
            return
        names = list(self._pending[0].parts)
        rows = [torch.stack([step.total, *(step.parts[name] for name in names)]).float() for step in self._pending]
        values = torch.stack(rows).cpu()
        pending, self._pending = self._pending, []
        for row, step in zip(values.tolist(), pending, strict=True):
            if not np.isfinite(row).all():
                images = ", ".join(source.name(int(i)) for i in step.index)
                terms = ", ".join(f"{name} {value}" for name, value in zip(["total", *names], row, strict=True))
                raise TrainingError(
                    f"The loss is not finite at step {step.step} ({terms}). Nothing was saved since the last "
                    "checkpoint. Lower --optimizer.lr, set --optimizer.clip 1, or use --precision fp32; then run the "
                    f"same command in a new --out. The images of the batch: {images}"
                )
            self._losses.append(dict(zip(["total", *names], row, strict=True)))

    def row(self, step: int) -> dict[str, Any]:
        """Means over the steps since the last row, and start anew."""
        wall = max(1e-9, self.seconds_since_row - self._paused_s)
        for start, end in self._teacher_events:
            self._teacher_s += start.elapsed_time(end) / 1000
        count = max(1, len(self._losses))
        names = self._losses[0] if self._losses else {}
        mean = {name: sum(losses[name] for losses in self._losses) / count for name in names}
        rate = len(self._losses) * self.batch_size / wall
        result = {
            "loss": mean.pop("total", 0.0),
            "terms": mean,
            "images_per_s": rate,
            "data_wait": self._waiting_s / wall,
            "teacher_share": min(1.0, self._teacher_s / wall),
            "eta_s": (self.steps - step) * self.batch_size / max(rate, 1e-9),
        }
        self._total_s += wall
        self._total_waiting_s += self._waiting_s
        self._losses, self._teacher_events = [], []
        self._waiting_s = self._teacher_s = self._paused_s = 0.0
        self._since = time.monotonic()
        return result
