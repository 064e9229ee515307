"""What every test file shares: run-time shape checks, one thread a worker, and the real data beside the checkout."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Real images and real teachers, beside the checkout and not part of it; `shared` skips where they are absent."""


def checked(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """The beartype decorator that the import hook below puts on every function; an int passes for a float."""
    from beartype import BeartypeConf, beartype

    return beartype(function, *args, conf=BeartypeConf(is_pep484_tower=True), **kwargs)


def pytest_configure() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Each worker is a process with its own pool of threads; read when torch and numpy are first imported.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    from jaxtyping import install_import_hook

    # Every annotated shape of the package is checked at every call that a test makes, so Float[Tensor, "B D"] is a
    # promise and not a comment.
    install_import_hook("understudy", "conftest.checked")


@pytest.fixture
def shared() -> Path:
    """The folder of real data and teachers; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data of ../shared, which is not beside this checkout")
    return SHARED
