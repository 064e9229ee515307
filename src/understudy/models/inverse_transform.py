"""The way back from the transformed space that a student was trained in (`embed.transform`) to the teacher's own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class InverseTransform(nn.Module):
    """x = scale * y @ matrix + mean, behind a student's head.

    Args:
        width: D; the buffers are filled by `train` or by a state dict.
    """

    matrix: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, y: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """(B, D) -> (B, D)."""
        return self.scale * (y @ self.matrix) + self.mean
