"""What an export target declares, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from understudy.errors import UnderstudyError

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

    from understudy.artifacts import Run
    from understudy.export.settings import ExportSettings
    from understudy.models.student import Student

Runner = Callable[["np.ndarray"], Mapping[str, "np.ndarray"]]
"""Prepared images (B, 3, S, S), or pictures (B, H, W, 3), to the outputs by name: "embedding", "features"."""


class ExportError(UnderstudyError):
    """A student that a target cannot hold, or that is another one there; the message has operator, layer or figures."""


class NotRunHere(Exception):
    """The file is written, and its runtime does not exist on this machine; the message says why."""


@dataclass
class Exportable:
    """A student on its way out."""

    student: Student
    run: Run
    settings: ExportSettings
    calibration: Callable[[], np.ndarray]
    """(n, 3, S, S) prepared training images."""
    argument: str = ""
    """What follows the colon of the target, e.g. the name of a repository."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what the network gives, in order."""
        return {"embed": ("embedding",), "features": ("features",), "both": ("embedding", "features")}[
            self.settings.output
        ]

    @cached_property
    def program(self) -> ExportedProgram:
        """The student as a graph of operators, for batches of any length.

        Raises:
            ExportError: it cannot be captured.
        """
        from understudy.export.capture import capture

        return capture(self.student, self.outputs, free_size=self.settings.free_size)


class Target(ABC):
    """One way out. The docstring's first line is what the docs say of it."""

    name: ClassVar[str]
    place: ClassVar[str]  # file or folder below the export folder
    runtime: ClassVar[str]  # what judges it
    needs: ClassVar[tuple[str, ...]] = ()  # packages beyond those of understudy
    extra: ClassVar[str] = ""  # the extra that brings them
    tolerance: ClassVar[float] = 1e-5  # largest mean of 1 - centered cosine to the student
    backbone_only: ClassVar[bool] = False  # whether it holds no head, so that its output is the features
    takes_name: ClassVar[bool] = False  # whether a name follows a colon
    takes_pictures: ClassVar[bool] = False  # whether it heeds `with_preprocessing`

    def __init__(self, export: Exportable) -> None:
        self.export = export

    @abstractmethod
    def write(self, place: Path) -> dict[str, Any]:
        """Write the student at a path that does not exist yet.

        Returns:
            What export.json says of it besides the figures.

        Raises:
            ExportError: the target cannot hold this student.
        """

    @abstractmethod
    def open(self, place: Path) -> Runner:
        """What runs the written file, by its own runtime.

        Raises:
            NotRunHere: that does not exist on this machine.
        """

    def deliver(self, place: Path) -> dict[str, Any]:
        """What is left to do when the student has been judged and lies at its place; its result is recorded too."""
        assert place.exists()
        return {}
