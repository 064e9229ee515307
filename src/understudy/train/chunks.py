"""The exact loss of a batch too large for memory: the student sees it in parts, twice.

First without gradient, which gives all embeddings, the loss of the whole batch and its gradient with respect to them;
then part by part with gradient, each fed its share of that. What a loss compares across the batch stays whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from understudy.losses import Terms

Forward = Callable[[nn.Module, slice], dict[str, Tensor]]
"""forward(network, part): the network's outputs for a part of the batch, by the loss' keywords."""


def in_chunks(
    forward: Forward,
    backward: Callable[[dict[str, Tensor]], Terms],
    student: nn.Module,
    wrapped: nn.Module,
    parts: tuple[slice, ...],
    axes: Callable[[str], int],
    seed: int,
) -> Terms:
    """One step's loss and gradients, as if all parts had gone through the student at once.

    Differs from accumulating gradients, which would sum the losses of the parts. BatchNorm sees each part for itself,
    as it does on several processes, and moves its running statistics once for each.

    Args:
        forward: the forward pass.
        backward: the loss of the outputs for the whole batch, with its backward pass.
        student: the network itself, for the pass without gradient.
        wrapped: the same, as DDP where there are several processes: gradients are exchanged after the last part.
        parts: of the batch, in order.
        axes: along which axis the images of each tensor lie.
        seed: of whatever is random in the student; the same in both passes.

    Returns:
        The terms; gradients lie in the parameters.

    Source: the two-pass form of methods.md section 3; Gao et al., "Scaling Deep Contrastive Learning Batch Size under
        Memory Limited Setup", 2021, arXiv 2101.06983.
    """
    before = [buffer.clone() for buffer in student.buffers()]
    pieces = []
    with torch.no_grad():
        for number, part in enumerate(parts):
            torch.manual_seed(seed + number)
            pieces.append(forward(student, part))
        for buffer, value in zip(student.buffers(), before, strict=True):
            buffer.copy_(value)  # the first pass must leave no trace
    whole = {name: torch.cat([piece[name] for piece in pieces], axes(name)).requires_grad_() for name in pieces[0]}
    sizes = {name: [piece[name].shape[axes(name)] for piece in pieces] for name in whole}
    del pieces
    terms = backward(whole)
    shares = {
        name: tensor.grad.split(sizes[name], axes(name)) for name, tensor in whole.items() if tensor.grad is not None
    }
    for number, part in enumerate(parts):
        waits = isinstance(wrapped, DistributedDataParallel) and number < len(parts) - 1
        with wrapped.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            torch.manual_seed(seed + number)
            outputs = forward(wrapped, part)
            torch.autograd.backward([outputs[name] for name in shares], [share[number] for share in shares.values()])
    return terms
