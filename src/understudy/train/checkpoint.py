"""Checkpoints: all that a run needs to go on as if it had never stopped, and nothing else.

Held: student, key encoder, loss buffers, optimizer, gradient scaler, step, counters. Not held: the teacher (its store
and its spec say what it is), the sampler (a pure function of seed and step), random states (each step seeds its own).
"""

from __future__ import annotations

import os
from typing import Any

import torch

from understudy.artifacts import Run, atomic, sweep
from understudy.errors import TrainingError

FORMAT = 1


def save_checkpoint(run: Run, state: dict[str, Any]) -> None:
    """Write the checkpoint by atomic rename: a killed process leaves the previous one whole."""
    with atomic(run.checkpoint_path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load_checkpoint(run: Run, device: torch.device) -> dict[str, Any] | None:
    """The newest checkpoint, or None.

    Raises:
        TrainingError: the file is damaged or of another format.
    """
    sweep(run.checkpoint_path.parent)
    if not run.checkpoint_path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(run.checkpoint_path, map_location=device, weights_only=True)
    except Exception as error:
        raise TrainingError(
            f"The checkpoint {os.fspath(run.checkpoint_path)} cannot be read ({error}). Delete it to train from the "
            "start."
        ) from None
    if state.get("format") != FORMAT:
        raise TrainingError(
            f"The checkpoint {os.fspath(run.checkpoint_path)} has format {state.get('format')!r}, this version reads "
            f"{FORMAT}. Delete it to train from the start, or finish the run with the version that began it."
        )
    return state
