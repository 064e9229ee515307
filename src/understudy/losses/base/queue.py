"""The FIFO of past embeddings that contrastive and relational methods compare against."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from understudy.errors import ConfigError, ShapeError
from understudy.losses.base.loss import Loss
from understudy.losses.base.processes import gather_rows


class Queue(nn.Module):
    """First in, first out, fixed size, the same on every process.

    Rows and pointer are buffers, so a checkpoint holds them. The width is taken from the first push. Before the queue
    is full, `rows` returns only what was really pushed: no zero or random row is ever scored as if it were an image.
    Of a batch larger than the queue the last rows stay, as if pushed one by one; LightlyTrain keeps the first.

    Args:
        size: Q, how many rows are kept at most.
    """

    keys: Tensor
    pushed: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"A queue must hold at least 1 row; got {size}.")
        self.size = int(size)
        self.register_buffer("keys", torch.empty(0, 0))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))
        self._count = 0  # `pushed` as a Python number: reading a buffer on a GPU would wait for it

    def rows(self) -> Float[Tensor, "Q D"]:
        """The rows pushed so far, at most `size` of them; (0, 0) before the first push. Not in order of age."""
        return self.keys[: min(self._count, self.size)]

    def scores(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B Q"]:
        """Inner products of each row of x with each row held; (B, 0) before the first push.

        Softmaxes and sums over no row are well defined: an InfoNCE without negatives and a divergence between
        distributions over nothing are exactly 0, and so are their gradients.

        Raises:
            ShapeError: the width differs from the rows in the queue.
        """
        rows = self.rows()
        if len(rows) == 0:
            return x @ x.new_zeros(0, x.shape[1]).T
        self._check_width(x)
        # A copy where there is a gradient: the next push writes into the rows that the backward pass reads.
        return x @ rows.to(x.dtype, copy=x.requires_grad).T

    @torch.no_grad()
    def push(self, x: Float[Tensor, "B D"]) -> None:
        """Append the rows of all processes, in rank order; the oldest rows leave.

        Raises:
            ShapeError: the width differs from the rows already in the queue.
        """
        x = gather_rows(x)
        if self.keys.shape[1] == 0:
            self.keys = x.new_zeros(self.size, x.shape[1])
        self._check_width(x)
        x = x[-self.size :].to(self.keys.dtype)
        slots = (self._count + torch.arange(len(x), device=x.device)) % self.size
        self.keys[slots] = x
        self._count += len(x)
        self.pushed.fill_(self._count)

    def _check_width(self, x: Tensor) -> None:
        if x.shape[1] != self.keys.shape[1]:
            raise ShapeError(f"The queue holds rows of width {self.keys.shape[1]}, got width {x.shape[1]}.")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The width is only known once something was pushed: take it from the checkpoint.
        saved = state_dict.get(prefix + "keys")
        if saved is not None:
            self.keys = self.keys.new_zeros(saved.shape, dtype=saved.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._count = int(self.pushed)


class QueueLoss(Loss):
    """A method with one queue, as long as its setting `queue`, and keys of the average of its setting `momentum`."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.queue = Queue(settings.queue)
        if self.needs.key:
            self.key_momentum = settings.momentum
