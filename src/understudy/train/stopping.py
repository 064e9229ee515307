"""When a training stops, and when it saves: all processes together, or none."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from understudy.train.distributed import Processes

AGREE_STEPS = 10
"""Several processes ask each other every so many steps whether to stop or to save."""


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event set by SIGTERM or SIGINT; a second SIGINT interrupts at once. The handlers are put back at the end."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, _: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Pauses:
    """Asked after each step whether to save, and whether to stop then.

    Args:
        stop: set when training shall stop.
        minutes: between checkpoints.
        processes: who agree.
    """

    def __init__(self, stop: threading.Event, minutes: float, processes: Processes) -> None:
        self.stop, self.minutes, self.processes = stop, minutes, processes
        self.stopping = False
        self._saved = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after this step; `stopping` then says whether to stop. Every process must ask."""
        self.stopping = self.stop.is_set()
        due = time.monotonic() - self._saved >= 60 * self.minutes
        if self.processes.world > 1:
            asking = step % AGREE_STEPS == 0
            self.stopping = asking and self.processes.agree(self.stopping)
            due = asking and self.processes.agree(due and self.processes.main)
        if self.stopping or due:
            self._saved = time.monotonic()
            return True
        return False
