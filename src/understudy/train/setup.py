"""The pieces that a training is put together from, each built from the settings that decide it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from understudy.artifacts import Store
from understudy.embed.recorded import Recorded, RecordedViews
from understudy.embed.transform import Transform
from understudy.errors import ConfigError
from understudy.losses import Loss
from understudy.models.outputs import require_outputs
from understudy.models.settings import StudentSettings
from understudy.models.student import Student, build_student
from understudy.models.teacher import Teacher
from understudy.sources.source import Source
from understudy.train.settings import TrainSettings
from understudy.views.augmentation import at_ratio, recipe_for
from understudy.views.reader import TeacherInput, Views
from understudy.views.settings import ViewSettings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainingData:
    """The images of a training with everything that belongs to them row by row.

    Args:
        source: training images; row i of `graph` belongs to image i.
        graph: (N, K) int32 neighbors, or None when `neighbors.k` is 0.
        store: the teacher's embeddings of these images; None when no setting needs them.
        transform: of the teacher's space, fitted on that store; None when the settings name none.
        listing: fingerprint of all images that were listed; that of `source` unless given. They differ where unreadable
            images were left out.
    """

    source: Source
    graph: np.ndarray | None = None
    store: Store | None = None
    transform: Transform | None = None
    listing: str = ""


def build_trained_student(
    settings: StudentSettings, loss: Loss, teacher: Teacher | None, device: torch.device
) -> Student:
    """The student on its device, as wide as loss or teacher ask; the global random state decides its weights."""
    student = build_student(settings, loss.embed_dim or (teacher.width if teacher is not None else 0))
    return student.to(device, memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def requested_outputs(loss: Loss) -> dict[str, Any]:
    """Keywords of `forward_outputs` for a method that compares what lies under the embedding; empty for the others."""
    return {"attention": loss.needs.attention} if loss.needs.tokens or loss.needs.attention else {}


def require_requested_outputs(settings: TrainSettings, loss: Loss, student: Student, teacher: Teacher | None) -> None:
    """Refuse networks and settings that cannot give a method its tokens or attention.

    Raises:
        ModelError: a network has neither.
        ConfigError: recorded views, or torch.compile.
    """
    requested = requested_outputs(loss)
    if not requested:
        return
    require_outputs(student.backbone, student.spec, **requested)
    if teacher is not None:
        require_outputs(teacher.module, teacher.spec, **requested)
    name = settings.method["name"]
    if settings.views.teacher == "recorded":
        raise ConfigError(
            f"Method '{name}' compares tokens or attention, and recorded views hold embeddings only. Use "
            "--views.teacher live."
        )
    if settings.compile == "true":
        raise ConfigError(
            f"Method '{name}' reads tokens or attention through hooks, which torch.compile does not see. Leave out "
            "--compile true."
        )


def build_views(settings: ViewSettings, seed: int, loss: Loss, student: Student, teacher: Teacher | None) -> Views:
    """What is cut from each image: the same crops in the same colors for both networks, each at its own size.

    A small student of a large teacher costs what its own pixels cost once the teacher's views are recorded, which serve
    students of any size.
    """
    size = student.contract.size
    teacher_size = teacher.contract.size if teacher is not None and loss.needs.teacher else size
    return Views(
        size,
        recipe_for(settings.recipe, max(size, teacher_size)),
        seed if settings.seed is None else settings.seed,
        per_image=loss.needs.views,
        pool=settings.pool_size,
        teacher=None if teacher_size == size else TeacherInput(teacher_size, loss.needs.teacher_views),
    )


def build_recorded(
    settings: ViewSettings, views: Views, store: Store | None, teacher: Teacher | None, batch_size: int
) -> tuple[RecordedViews | None, Views]:
    """The teacher's recorded views beside its store, or None where it runs on every view; and views without those."""
    if teacher is None or settings.teacher != "recorded":
        return None, views
    assert store is not None
    size = teacher.contract.size
    recorded = RecordedViews(
        store, teacher, recipe=at_ratio(views.recipe, size / max(size, views.size)), size=size, seed=views.seed,
        batch_size=batch_size, dtype=settings.dtype,
    )  # fmt: skip
    if views.teacher is not None:
        views = replace(views, teacher=replace(views.teacher, recorded=Recorded(recorded.folder)))
    return recorded, views


def choose_arithmetic(precision: str, device: torch.device) -> tuple[str, torch.autocast, torch.amp.GradScaler]:
    """Name, autocast and gradient scaler of the student's precision; "auto" is bf16 on a GPU, fp32 elsewhere."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    autocast = torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
    return precision, autocast, torch.amp.GradScaler(device.type, enabled=precision == "fp16")
