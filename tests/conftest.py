"""What every test file shares: shape checks at run time, a thread a worker, order, skips, and the real data."""

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


MAY_BE_SKIPPED = ("needs a CUDA device",)
"""The only reasons for which a test may be skipped where CI runs; elsewhere a machine may lack a browser or data."""

skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason not in MAY_BE_SKIPPED:
            skipped.append(f"{report.nodeid}: {reason}")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        skipped.append(f"{report.nodeid}: {report.longrepr[2]}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if os.environ.get("CI") and skipped and "PYTEST_XDIST_WORKER" not in os.environ and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("CI") and skipped:
        terminalreporter.section("skipped, which CI does not allow")
        terminalreporter.write_line("\n".join(skipped))


@pytest.fixture
def shared() -> Path:
    """The folder of real data and teachers; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data of ../shared, which is not beside this checkout")
    return SHARED
