"""Sums and rows over all processes that train together, which keep their gradient."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


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


@torch.no_grad()
def max_over_processes(x: Tensor) -> Tensor:
    """The largest of all processes, elementwise, without gradient."""
    largest = x.clone()
    if processes() > 1:
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


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
