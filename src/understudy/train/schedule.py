"""Learning rate and optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from understudy.train.settings import OptimizerSettings


def learning_rate(step: int, steps: int, warmup_steps: int, settings: OptimizerSettings, epoch_steps: int = 1) -> float:
    """The learning rate of one step: linear warm-up, then cosine to zero, steps down, or constant.

    It moves every step unless `settings.every` says epoch, as all of the authors' codes do: then it moves once an
    epoch, in the warm-up too, and is for a whole epoch what it is in the first step.

    Args:
        step: 0 ... steps - 1.
        steps: length of training.
        warmup_steps: steps of linear warm-up, counted inside `steps`.
        settings: peak rate and schedule.
        epoch_steps: steps of an epoch, one pass over the anchors.
    """
    span = epoch_steps if settings.whole_epochs else 1
    step = step // span * span
    if step < warmup_steps:
        return settings.peak * min(step + span, warmup_steps) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    if settings.schedule == "constant" or progress < settings.hold:
        return settings.peak
    if settings.schedule == "step":
        return settings.peak * settings.decay ** sum(progress >= share for share in settings.milestones)
    return settings.peak * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(
    modules: Iterable[nn.Module], settings: OptimizerSettings, device: torch.device
) -> torch.optim.Optimizer:
    """SGD as the authors ran it (decay on every parameter), or AdamW (no decay on vectors).

    Args:
        modules: the student, and the loss if it has parameters of its own.
        settings: rate, decay, momentum.
        device: fused kernels are used on CPU and CUDA.
    """
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    fused = device.type in ("cpu", "cuda")
    if settings.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=settings.peak, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=fused
        )
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.peak, betas=(settings.momentum, 0.999), fused=fused)
