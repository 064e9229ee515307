"""The end of a training: the student with the way back into the teacher's space, and where it comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from understudy.artifacts import Run
from understudy.embed.embedding import Inference, extract
from understudy.embed.transform import Transform
from understudy.losses import Loss
from understudy.models.cost import flops
from understudy.models.sharded import ShardedTeacher
from understudy.models.student import InverseTransform, Student, save_student
from understudy.models.teacher import Teacher
from understudy.sources.source import Source
from understudy.train.state import TrainState

SCALE_IMAGES = 2048
"""Training images that the scale of the inverse transform is fitted on."""


def finish(state: TrainState, run: Run) -> float:
    """Write the finished student into its run folder.

    Returns:
        Seconds of training.
    """
    seconds = state.seconds
    state.student.eval()
    transform, store = state.data.transform, state.data.store
    if transform is not None and store is not None:
        fit_inverse_transform(state.student, transform, state.data.source, store.embeddings(), state.device)
    save_student(state.student, run, metadata(state, seconds))
    run.previous_path.unlink(missing_ok=True)
    return seconds


def fit_inverse_transform(
    student: Student, transform: Transform, source: Source, rows: np.ndarray, device: torch.device
) -> None:
    """Fill the student's inverse transform, and fit the one factor that its loss may have left open.

    A loss of cosines does not see the length of an embedding, but adding the mean back does: the factor is the least
    squares one over `SCALE_IMAGES` training images.

    Args:
        student: trained in the transformed space.
        transform: of the teacher's space.
        source: training images.
        rows: (N, D) the teacher's embeddings of them.
        device: of the student.
    """
    inverse_transform = student.inverse_transform
    assert isinstance(inverse_transform, InverseTransform)
    sample = np.unique(np.linspace(0, len(source) - 1, min(SCALE_IMAGES, len(source))).astype(np.int64))
    outputs, readable, _ = extract(student, student.contract, source.subset(sample), Inference(device, workers=0))
    targets = transform.apply(rows[sample[readable]].astype(np.float64))
    factor = float((outputs * targets).sum() / max(float(np.square(outputs, dtype=np.float64).sum()), 1e-30))
    inverse_transform.scale.fill_(factor if factor > 0 else 1.0)  # negative: nothing was learned that could be scaled
    inverse_transform.matrix.copy_(torch.from_numpy(transform.inverse))
    inverse_transform.mean.copy_(torch.from_numpy(transform.mean))


def compute_cost(images: int, loss: Loss) -> dict[str, int]:
    """Images and forward passes of a training, for tables of cost."""
    return {
        "images": images,
        "student_forwards": round(
            images * (len(loss.needs.student_views) + loss.needs.cutmix + loss.needs.masks * loss.mask_probability)
        ),
        "teacher_forwards": images * len(loss.needs.teacher_views) if loss.needs.teacher else 0,
        "key_forwards": images * len(loss.needs.key_views) if loss.needs.key else 0,
    }


def costs_of(state: TrainState) -> dict[str, int]:
    """The cost of a finished training; recorded views were computed once. Every process must call it."""
    costs = compute_cost(state.steps * state.batches.batch_size, state.loss)
    if state.recorded is not None:
        costs["teacher_forwards"] = state.processes.total(state.recorded.computed)
    return costs


def metadata(state: TrainState, seconds: float) -> dict[str, Any]:
    """Where a student comes from, for student.json."""
    source = state.data.source
    return {
        "method": dict(state.settings.method),
        "in_teacher_space": state.loss.in_teacher_space,
        "teacher": None if state.teacher is None else teacher_metadata(state.teacher),
        "data": {
            "spec": source.spec,
            "images": len(source),
            "fingerprint": source.fingerprint,
            "listing": state.data.listing or source.fingerprint,
        },
        "passes": min(state.settings.passes, round(state.passes, 4)),
        "steps": state.steps,
        "batch_size": state.batches.batch_size,
        "seed": state.settings.seed,
        "seconds": round(seconds, 1),
        "flops": flops(state.student),
        "skipped": sorted(state.skipped.items()),
    }


def teacher_metadata(teacher: Teacher) -> dict[str, Any]:
    """What a teacher is, for student.json."""
    return {
        "spec": teacher.spec,
        "fingerprint": teacher.fingerprint,
        "weights": teacher.weights,
        "width": teacher.width,
        "parameters": teacher.parameters_count,
        "flops": teacher.flops if isinstance(teacher, ShardedTeacher) else flops(teacher),
        "contract": teacher.contract.table(),
        "precision": teacher.precision,
        "output": teacher.output,
    }
