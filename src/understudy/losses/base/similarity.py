"""Algebra that the losses share: cosines, correlations, divergences; sums over all processes that keep their gradient.

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


def exact_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype of at least fp32, the teacher without gradient."""
    s, t = exact(student), exact(teacher.detach())
    dtype = torch.promote_types(s.dtype, t.dtype)
    return s.to(dtype), t.to(dtype)


def unit_rows(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """Rows of norm 1; a row whose norm is at most `EPS` becomes 0 and receives no gradient."""
    square = x.square().sum(-1, keepdim=True)
    alive = ~(square <= EPS**2)  # NaN counts as alive and goes through: a broken batch must not look like a dead row
    return torch.where(alive, x / torch.where(alive, square, torch.ones_like(square)).sqrt(), torch.zeros_like(x))


def cosine_from_sums(
    dot: Tensor,
    student_square: Tensor,
    teacher_square: Tensor,
    student_floor: float | Tensor = EPS**2,
    teacher_floor: float | Tensor = EPS**2,
) -> Tensor:
    """Cosines from sums of products, elementwise; 0 with zero gradient where either square is at most its floor.

    `F.normalize` would divide by eps there: a student column that died would receive a gradient of 1e12.
    """
    # NaN counts as alive and goes through: a broken batch must not look like a dead column.
    alive = ~((student_square <= student_floor) | (teacher_square <= teacher_floor))
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
    """One cosine per dimension, taken over the batch; no centering.

    Args:
        student: (B, D) embeddings, raw.
        teacher: (B, D) embeddings, raw.

    Returns:
        (D,) cosines in [-1, 1].
    """
    return row_cosine(student.T, teacher.T)


def row_correlation(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """Pearson's correlation of each image's D numbers; 0 with zero gradient where either row is constant.

    Args:
        student: (B, D) embeddings, raw.
        teacher: (B, D) embeddings, raw.

    Returns:
        (B,) correlations in [-1, 1].
    """
    return column_correlation(student.T, teacher.T, everywhere=False)


def column_correlation(
    student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"], *, everywhere: bool = True
) -> Float[Tensor, " D"]:
    """Pearson's correlation of each dimension over the batch; 0 with zero gradient where either column is constant.

    In two messages, the means first: products summed before the means are taken off would lose, in fp32, all digits of
    a column whose mean is large beside its spread.

    Args:
        student: (B, D) embeddings, raw.
        teacher: (B, D) embeddings, raw.
        everywhere: over the batch of all processes, or over this process' rows only.

    Returns:
        (D,) correlations in [-1, 1].
    """
    s, t = exact(student), exact(teacher)

    def total(x: Tensor) -> Tensor:
        return sum_over_processes(x) if everywhere else x

    with torch.no_grad():  # centered products sum to zero, so nothing flows through the means
        sums = total(torch.cat([s.sum(0), t.sum(0), s.new_full((1,), float(len(s)))]))
        count = sums[-1]
        s_mean, t_mean = sums[:-1].reshape(2, -1) / count
    u, v = s - s_mean, t - t_mean
    products = total(torch.cat([(u * v).sum(0), u.square().sum(0), v.square().sum(0)]))
    dot, student_square, teacher_square = products.reshape(3, -1)
    floors = _rounding(s_mean, count), _rounding(t_mean, count)
    return cosine_from_sums(dot, student_square, teacher_square, *floors)


def _rounding(mean: Tensor, count: Tensor) -> Tensor:
    """The sum of squares of `count` equal numbers less their computed mean: no more than rounding."""
    return EPS**2 + count * (16 * torch.finfo(mean.dtype).eps * mean) ** 2


def infonce(positive: Float[Tensor, " B"], negatives: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """-log softmax of the positive among the negatives, per image, in nats; exactly 0 where there are no negatives.

    Args:
        positive: (B,) logits of the right answers.
        negatives: (B,) logsumexp of the logits of the wrong ones: several positives may share it.
    """
    return torch.logaddexp(positive, negatives) - positive


def relative_entropy(target: Float[Tensor, "B Q"], logits: Float[Tensor, "B Q"]) -> Float[Tensor, " B"]:
    """KL(softmax(target) || softmax(logits)) per image, in nats; 0 where Q is 0."""
    log_p, log_q = target.log_softmax(1), logits.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
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
    total: Tensor = _AllReduceSum.apply(x)
    return total


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = _parts(x)
        start = sum(len(part) for part in parts[: dist.get_rank()])
        ctx.mine = slice(start, start + len(x))
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every process compared its own rows with mine: what they ask of my rows is summed, as above.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.mine]


def all_rows(x: Float[Tensor, "B D"]) -> Float[Tensor, "G D"]:
    """The rows of all processes in rank order, with gradient.

    A loss that compares this process' rows with all rows, averaged over its own, is then the loss of the global batch,
    and DDP's average of the gradients is its gradient, if all processes hold equally many rows.
    """
    if processes() == 1:
        return x
    rows: Tensor = _AllRows.apply(x)
    return rows


def gather_rows(x: Float[Tensor, "B D"]) -> Float[Tensor, "G D"]:
    """The rows of all processes in rank order, without gradient; the counts may differ between processes."""
    return x.detach() if processes() == 1 else torch.cat(_parts(x))


def _parts(x: Tensor) -> list[Tensor]:
    world = processes()
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(x)], dtype=torch.int64, device=x.device))
    sizes = [int(count) for count in counts]
    padded = x.new_zeros(max(sizes), x.shape[1])
    padded[: len(x)] = x.detach()
    gathered = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(gathered, padded)
    return [part[:size] for part, size in zip(gathered, sizes, strict=True)]
