"""Algebra that the losses share: cosines along either axis, and sums over all processes that keep their gradient.

Everything is taken in at least fp32 whatever autocast says: a sum of squares over a batch overflows fp16 at 65,504.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-12
"""A row or column whose norm is at most this has no direction: its cosine is 0 and so is its gradient."""


def exact(x: Tensor) -> Tensor:
    """The tensor in at least fp32 (float64 stays)."""
    return x if x.dtype == torch.float64 else x.float()


def cosine_from_sums(dot: Tensor, student_square: Tensor, teacher_square: Tensor) -> Tensor:
    """Cosines from sums of products, elementwise; 0 with zero gradient where either norm is at most `EPS`.

    `F.normalize` would divide by eps there: a student column that died would receive a gradient of 1e12.
    """
    alive = (student_square > EPS**2) & (teacher_square > EPS**2)
    ones = torch.ones_like(dot)
    # The inner `where` keeps the unused branch finite: a NaN there would survive the outer one as 0 * NaN.
    norms = torch.where(alive, student_square, ones).sqrt() * torch.where(alive, teacher_square, ones).sqrt()
    return torch.where(alive, dot / norms, torch.zeros_like(dot))


def row_cosine(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """One cosine per image.

    Args:
        student: (B, D) embeddings, raw.
        teacher: (B, D) embeddings, raw.

    Returns:
        (B,) cosines in [-1, 1].
    """
    s, t = exact(student), exact(teacher)
    return cosine_from_sums((s * t).sum(1), s.square().sum(1), t.square().sum(1))


def column_cosine(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"]) -> Float[Tensor, " D"]:
    """One cosine per dimension, taken over the batch; no centring.

    Args:
        student: (B, D) embeddings, raw.
        teacher: (B, D) embeddings, raw.

    Returns:
        (D,) cosines in [-1, 1].
    """
    return row_cosine(student.T, teacher.T)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every process' loss depends on every process' x, so the gradients are summed too. Under DDP, which averages
        # gradients, this gives exactly the single-process gradient; without this sum it would be 1/W of it.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def processes() -> int:
    """How many processes train together; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum over all processes, differentiable: sum forward, sum of gradients backward."""
    if processes() == 1:
        return x
    total: Tensor = _AllReduceSum.apply(x)  # type: ignore[no-untyped-call]
    return total


def gather_rows(x: Float[Tensor, "B D"]) -> Float[Tensor, "G D"]:
    """The rows of all processes in rank order, without gradient; the counts may differ between processes."""
    world = processes()
    if world == 1:
        return x.detach()
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(x)], dtype=torch.int64, device=x.device))
    sizes = [int(count) for count in counts]
    padded = x.new_zeros(max(sizes), x.shape[1])
    padded[: len(x)] = x.detach()
    gathered = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])
