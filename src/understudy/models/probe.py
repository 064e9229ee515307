"""Two images that nobody took, and what a teacher makes of them: whether an embedding is a function of its own image.

The answer to the first of them also tells whether a store was filled by the same function: whatever decides a teacher's
numbers (code, files that it reads, libraries) moves it, whether or not it is part of the teacher's fingerprint.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from understudy.errors import ModelError
from understudy.models.contract import Contract
from understudy.models.outputs import blank_pass

TOLERANCE = 2e-3
"""By how much of its length an embedding may move with its neighbor in the batch. Rounding: 1e-5 in fp32, up to 1e-3 in
half precision inside an ONNX file. Numbers quantized by the batch's range: about 1e-2, which is no rounding."""

DRIFT = 2e-2
"""By how much of its length a teacher's answer may differ from that of another day: machines round unlike each other,
quantized networks most of all."""


def probe_images(contract: Contract) -> Float[Tensor, "2 3 S S"]:
    """Waves of three colors, and bright noise: as unlike each other as two images can be."""
    side = contract.size
    y, x = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    waves = torch.stack([0.5 + 0.4 * torch.sin(2 * math.pi * (k * x + (4 - k) * y)) for k in (1, 2, 3)])
    noise = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
    return contract.normalize(torch.stack([waves, 0.6 + 0.4 * noise]))


def answer_alone(module: nn.Module, contract: Contract, spec: str) -> list[float]:
    """The embedding of the first probe image by a network on the CPU, six digits a number; [] if it is not finite.

    Raises:
        ModelError: the network fails; or the embedding changes from call to call, or with what else is in the batch.
    """
    images, size = probe_images(contract), (contract.size, contract.size)

    def calls(_: Tensor) -> list[Tensor]:
        return [module(images[:1]), module(images), module(images[:1])]

    alone, together, again = blank_pass(module, size, spec, calls)
    if together.ndim != 2 or len(together) != 2:
        raise ModelError(f"{spec} must map two images to two rows; it gives {tuple(together.shape)}.")
    alone, together, again = (rows[0].double() for rows in (alone, together, again))
    if not bool(alone.isfinite().all()):
        return []  # `teacher.check_embeddings` has the words for it
    if (moved := relative(again, alone)) > TOLERANCE:
        raise ModelError(
            f"{spec} gives another embedding each time it sees the same image (they differ by {100 * moved:.2g} % of "
            "their length): something random in it is not turned off by .eval(). A teacher must be a function."
        )
    if (moved := relative(together, alone)) > TOLERANCE:
        raise ModelError(
            f"{spec} gives an image another embedding when another image is in the batch (it moves by "
            f"{100 * moved:.2g} % of its length), so what it teaches would depend on chance neighbors. Export it with "
            "BatchNorm in evaluation mode, and with nothing computed over the batch axis."
        )
    return [float(f"{number:.6g}") for number in alone.tolist()]


def relative(answer: Float[Tensor, " D"], other: Float[Tensor, " D"]) -> float:
    """The distance of two embeddings by the length of the longer one."""
    length = max(float(answer.norm()), float(other.norm()))
    distance = float((answer - other).norm())
    return distance / length if length else 0.0
