"""A student as a graph of operators: what every compiled target starts from."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from understudy.errors import first_line
from understudy.export.target import ExportError

if TYPE_CHECKING:
    from understudy.models.student import Student


class Outputs(nn.Module):
    """The student with the outputs that were asked for, as a tuple."""

    def __init__(self, student: Student, names: tuple[str, ...]) -> None:
        super().__init__()
        self.student, self.names = student, names

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, S, S) prepared -> (B, D) or (B, F) for each name."""
        features = self.student.features(image)
        given = {"features": features}
        if "embedding" in self.names:
            given["embedding"] = self.student.to_teacher_space(features)
        return tuple(given[name] for name in self.names)


def capture(student: Student, names: tuple[str, ...], *, free_size: bool, single: bool = False) -> ExportedProgram:
    """The graph of a student, for batches of any length unless single images are asked for.

    Args:
        student: in eval mode, on the CPU.
        names: outputs, "embedding" or "features", in order.
        free_size: images of any height and width too.
        single: one image at a time, for targets that plan their memory ahead.

    Raises:
        ExportError: an operator or a branch of the network that depends on values, or a size that it fixes.
    """
    size = student.contract.size
    example = torch.zeros(1 if single else 2, 3, size, size)
    free = ([] if single else [0]) + ([2, 3] if free_size else [])
    axes = dict.fromkeys(free, Dim.DYNAMIC)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(Outputs(student, names).eval(), (example,), dynamic_shapes=(axes,))
    except Exception as error:  # dynamo's errors share no base class
        fixed = " It may fix the size of its images: leave --free-size out." if free_size else ""
        raise ExportError(
            f"{student.spec} cannot be captured as a graph ({first_line(error)}).{fixed} The target 'folder' holds any "
            "student."
        ) from None
    return program
