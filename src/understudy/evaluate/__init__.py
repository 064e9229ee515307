"""Evaluation: one protocol, one file; frozen features in, `{name: value}` out.

`EVALUATIONS` is the plain dict of protocols; `run.evaluate_run` applies them to a finished run and writes its
evaluation.json, `run.evaluate_model` to any encoder.
"""

from __future__ import annotations

from typing import Any

__all__ = ["EVALUATIONS"]


def __getattr__(name: str) -> Any:
    # Importing the protocols imports torch; the command line reads only `evaluate.settings` for `--help`.
    if name == "EVALUATIONS":
        from understudy.evaluate.protocols import EVALUATIONS

        return EVALUATIONS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
