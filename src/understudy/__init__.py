"""Understudy: a large frozen encoder, distilled without labels into a small one that can stand in for it.

run = understudy.distill(data="photos/", teacher="timm:vit_base_patch16_224", student="timm:resnet18")
student = understudy.load_student(run.path)
vectors = student.embed(student.preprocess(image)[None])   # in the teacher's space
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from understudy.errors import UnderstudyError
from understudy.parent import PARENT as PARENT

if TYPE_CHECKING:
    from understudy.artifacts import Run
    from understudy.models.student import Student, load_student
    from understudy.models.transformer import StudentTransformer
    from understudy.pipeline import distill

__version__ = "0.1.0"
__all__ = ["Run", "Student", "StudentTransformer", "UnderstudyError", "__version__", "distill", "load_student"]

_HOMES = {
    "Run": "understudy.artifacts",
    "distill": "understudy.pipeline",
    "load_student": "understudy.models.student",
    "Student": "understudy.models.student",
    "StudentTransformer": "understudy.models.transformer",
}


def __getattr__(name: str) -> Any:
    """Import torch and numpy only when a name that needs them is used."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'understudy' has no attribute {name!r}")
