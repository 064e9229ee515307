"""Checkpoints: all that a run needs to go on as if it had never stopped, and nothing else.

Held: student, key encoder, loss buffers, optimizer, gradient scaler, step, counters. Not held: the teacher (its store
and its spec say what it is), the sampler (a pure function of seed and step), random states (each step seeds its own).
The newest one and the one before lie in the run folder, each with its checksum behind it.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from understudy.artifacts import Run, atomic, sweep, verdict_on
from understudy.errors import TrainingError, first_line

FORMAT = 1

TABLES = ("skipped", "compiled", "student", "loss", "optimizer", "scaler")
"""Entries of a checkpoint that are tables."""

log = logging.getLogger("understudy")


def save_checkpoint(run: Run, state: dict[str, Any]) -> None:
    """Write the checkpoint and keep the one before: a killed process leaves at least one of them whole."""
    with atomic(run.checkpoint_path, sealed=True) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)
        if run.checkpoint_path.exists():
            os.replace(run.checkpoint_path, run.previous_path)


def load_checkpoint(run: Run, device: torch.device, steps: int) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, or None where there is none.

    Args:
        run: its folder.
        device: that the tensors are put on.
        steps: of the whole training.

    Raises:
        TrainingError: all that there are, are damaged, of another format, or hold what cannot be.
    """
    sweep(run.checkpoint_path.parent)
    faults: list[TrainingError] = []
    for path in (run.checkpoint_path, run.previous_path):
        if not os.path.lexists(path):
            continue
        try:
            state = _load(path, device, steps)
        except TrainingError as error:
            faults.append(error)
            continue
        if faults:
            log.warning(f"{faults[0]} Training goes on from {path}, at step {state['step']:,}.")
        return state
    if faults:
        raise TrainingError(f"{faults[0]} Delete {run.checkpoint_path.parent} to train from the start.")
    return None


def _load(path: Path, device: torch.device, steps: int) -> dict[str, Any]:
    try:
        verdict = verdict_on(path)
        state = None if verdict == "damaged" else torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise TrainingError(f"The checkpoint {path} cannot be read ({error.strerror}).") from None
    except Exception as error:
        raise TrainingError(f"The checkpoint {path} cannot be read ({first_line(error)}).") from None
    if verdict == "damaged":
        raise TrainingError(f"The checkpoint {path} is damaged: it is not what was written, as its checksum shows.")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        other = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise TrainingError(
            f"The checkpoint {path} has format {other!r}, this version reads {FORMAT}: finish the run with the version "
            "that began it."
        )
    if fault := _fault(state, steps):
        raise TrainingError(f"The checkpoint {path} holds what cannot be: {fault}.")
    return state


def _fault(state: Mapping[str, Any], steps: int) -> str:
    """What is wrong with the values of a checkpoint; "" if nothing."""
    step, seconds, views = (state.get(name) for name in ("step", "seconds", "teacher_views"))
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= steps:
        return f"step {str(step)[:40]} of a training of {steps:,} steps"
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        return f"{str(seconds)[:40]} seconds of training"
    if not isinstance(views, int) or views < 0:
        return f"{str(views)[:40]} views recorded"
    for name in TABLES:
        if not isinstance(state.get(name), Mapping):
            return f"no {name}"
    for name, value in state["student"].items():
        if not isinstance(value, torch.Tensor):
            return f"a student whose {name} is no tensor"
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return f"a student whose {name} is not finite"
    return ""
