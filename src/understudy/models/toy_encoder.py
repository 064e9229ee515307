"""An encoder without weights that knows something of images all the same: the low frequencies of a gray thumbnail."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

SIDE, FREQUENCIES = 8, 5


class ToyEncoder(nn.Module):
    """The first 5 x 5 coefficients, the mean left out, of the cosine transform of the image as 8 x 8 gray pixels.

    The teacher of `--preset tiny`: frozen, deterministic, never random, there without a file. As a model spec,
    `python:understudy.models.toy_encoder:ToyEncoder`.
    """

    contract = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}  # noqa: RUF012 (read, never written)

    def __init__(self) -> None:
        super().__init__()
        place = (torch.arange(SIDE) + 0.5) * math.pi / SIDE
        waves = [
            torch.outer((u * place).cos(), (v * place).cos()) for u in range(FREQUENCIES) for v in range(FREQUENCIES)
        ]
        self.register_buffer("waves", torch.stack(waves[1:]).flatten(1))

    def forward(self, x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 24"]:
        """(B, 3, S, S) -> (B, 24)."""
        gray = nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), SIDE).flatten(1)
        waves: Tensor = self.get_buffer("waves")
        return gray @ waves.T
