"""The teacher: a large encoder frozen for good, with its own input contract, refused if it never learned anything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from understudy.errors import ModelError
from understudy.models.cost import parameters
from understudy.models.encoder import Encoder, build_encoder
from understudy.models.onnx_encoder import onnx_encoders
from understudy.models.outputs import EncoderOutput, forward_outputs
from understudy.models.precision import HALVES, arithmetic, resolve_precision
from understudy.models.probe import answer_alone

EDGE = 8.0
"""How far above the edge of randomness a weight matrix's largest singular value must lie; see `refuse_untrained`."""

CONSTANT = 1e-3
"""Embeddings whose spread is below this share of their length are constant: half precision cannot tell them apart."""


ALIKE = 0.999
"""Mean cosine of different images above which a teacher is said to give nearly one direction; sound ones reach .998."""


class Teacher(nn.Module):
    """A frozen encoder: always in eval mode, never a gradient.

    It differs from a Student in taking raw pixels: its input contract is its own, so `forward` resizes and normalizes.

    Args:
        encoder: from `build_encoder(..., pretrained=True)`.
        precision: what it computes in, "fp32", "tf32", "bf16" or "fp16"; embeddings are float32 all the same.

    Raises:
        ModelError: half precision of an ONNX file, which has its own.
    """

    def __init__(self, encoder: Encoder, precision: str = "fp32") -> None:
        super().__init__()
        for part in onnx_encoders(encoder.module):
            if precision in HALVES:
                raise ModelError(
                    f"{encoder.spec} is computed in the numbers that its file has, and --teacher-precision is "
                    f"{precision}. Leave it out, or convert the file."
                )
            part.tf32 = precision == "tf32"
        self.precision, self.module = precision, encoder.module.requires_grad_(False)
        self.contract, self.spec, self.width = encoder.contract, encoder.spec, encoder.width
        self.weights, self.fingerprint, self.library = encoder.weights, encoder.fingerprint, encoder.library
        self.output = encoder.output
        self.probe: list[float] = []
        """Its answer to an image that nobody took, see `probe`; empty where nobody asked for it."""
        self.parameters_count = parameters(encoder.module)
        self.convolves = sum(isinstance(part, nn.Conv2d) for part in encoder.module.modules()) > 1
        self.eval()

    def train(self, mode: bool = True) -> Teacher:  # noqa: ARG002
        """Stay in eval mode whatever is asked: a teacher whose BatchNorm follows the student's batches drifts."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> Float[Tensor, "B D"]:
        """(B, 3, H, W) in [0, 1], of any size, prepared by this teacher's own contract -> (B, D) float32."""
        return self.features(self.contract.prepare(images))

    # Not inference_mode: its tensors could not be saved for the student's backward pass.
    @torch.no_grad()
    def features(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """(B, 3, S, S) prepared -> (B, D) float32."""
        if self.convolves and x.device.type == "cpu":
            # Half the time for depthwise networks, a fifth less for ResNets; a lone patch embedding gains nothing.
            self.module.to(memory_format=torch.channels_last)
            x = x.contiguous(memory_format=torch.channels_last)
        with arithmetic(self.precision, x.device):
            features: Tensor = self.module(x)
        return features.float()

    @torch.no_grad()
    def forward_outputs(self, images: Tensor, *, attention: bool = False) -> EncoderOutput:
        """Raw pixels, as for `forward` -> what `outputs.forward_outputs` shows of networks that it lets pass."""
        x = self.contract.prepare(images)
        with arithmetic(self.precision, x.device):
            output = forward_outputs(self.module, x, attention=attention)
        tokens = None if output.tokens is None else output.tokens.float()
        return replace(output, embedding=output.embedding.float(), tokens=tokens)


def build_teacher(
    spec: str, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
    image_size: int | None = None, output: str = "pooled", precision: str = "auto", device: torch.device | None = None,
) -> Teacher:  # fmt: skip
    """A teacher with weights, on the CPU.

    Args:
        spec: see `build_encoder`.
        mean: three numbers on [0, 1]; default the network's own.
        std: three numbers on [0, 1]; default the network's own.
        image_size: input side in pixels; default the network's own.
        output: what of the network is the embedding, see `outputs.read_out`.
        precision: "fp32", "tf32", "bf16", "fp16", or "auto", see `resolve_precision`.
        device: where it is going to run, which decides what "auto" is; the CPU unless given.

    Raises:
        ModelError: the spec cannot be built, brings no weights, its weights are those of a random initialization, or
            its embedding of an image changes with what else is in the batch.
        ConfigError: a precision that the device does not have.
    """
    precision = resolve_precision(precision, device or torch.device("cpu"))
    encoder = build_encoder(spec, pretrained=True, image_size=image_size, mean=mean, std=std, output=output)
    refuse_untrained(encoder.module, spec)
    probe = answer_alone(encoder.module, encoder.contract, spec)
    teacher = Teacher(encoder, precision)
    teacher.probe = probe
    return teacher


def refuse_untrained(module: nn.Module, spec: str = "This teacher") -> None:
    """Refuse a network whose parameters are still those of a random initialization.

    Two marks of it; a network is refused only if it bears every one that it can bear:

    - each normalization layer still has one constant weight and bias 0 (gone after the first step of any training);
    - no weight matrix has structure: if entries are independent and of one variance, the largest eigenvalue of W W^T
      ends at the Marchenko-Pastur edge, give or take a Tracy-Widom scale; training pulls eigenvalues far out.

    Measured, largest distance from the edge over a network's matrices, in Tracy-Widom scales: 29 architectures of timm
    and the small ResNets, random: at most 3.5; 18,000 draws of six small shapes, normal, uniform and truncated: at most
    5.1; MobileNetV1 of ImageNet 510, ResNet-56 of CIFAR-10 225 (their median matrices 132 and 32); a small ViT after 10
    steps 22; a ResNet-8 after 160 steps 27, but after 40 steps 3.4, where the first mark alone acquits it. BatchNorm
    statistics are no mark: one forward pass in training mode moves them. Not recognized: random networks whose
    normalization layers start at random values (RepVGG).

    Args:
        module: a headless network, or an ONNX encoder, which is judged by the matrices in its file.
        spec: how the message calls it.

    Raises:
        ModelError: every mark is there.

    Source: the edge and its scale, Johnstone, "On the distribution of the largest eigenvalue in principal components
    analysis", Annals of Statistics 2001; that training leaves outliers, Martin & Mahoney, JMLR 2021.
    """
    norms = [_at_initialization(part) for part in module.modules() if _is_norm(part)]
    if norms and not all(norms):
        return
    matrices = 0
    for matrix in _matrices(module):
        if _distance_from_edge(matrix) > EDGE:  # one is enough: the others need not be judged, which takes time
            return
        matrices += 1
    if not (norms or matrices):
        return
    marks = [f"all {len(norms)} normalization layers have weight constant and bias 0"] if norms else []
    marks += [f"none of {matrices} weight matrices differs from independent random numbers"] if matrices else []
    raise ModelError(
        f"{spec} looks randomly initialized: {' and '.join(marks)}. A random teacher would only distill noise. Load "
        "its weights (SPEC@FILE), or train one without labels first (understudy pretrain)."
    )


def check_embeddings(embeddings: Float[Tensor, "n D"] | Float[np.ndarray, "n D"], spec: str = "This teacher") -> str:
    """Refuse embeddings nothing can be learned from: not finite, or the same for every image.

    Random networks are NOT recognized here: embeddings do not tell them from trained ones. Over 256 images of CIFAR-10
    and of Imagenette, the mean cosine between images is 0.87-0.92 for the MobileNetV1 teacher, 0.53-0.65 for the
    ResNet-56 one, and 0.01 to 0.999 for random networks; the effective rank (participation ratio, rows normalized and
    centered) is 17-19, 9-10, and 2 to 13, but only 2.1 for a ResNet-20 early in its training. `refuse_untrained` looks
    at the parameters instead.

    Args:
        embeddings: (n, D), of different images. One row alone is only checked for being finite.
        spec: how the message calls their origin.

    Returns:
        A sentence where all point nearly the same way, so that cosines tell images apart by their last digits; else "".

    Raises:
        ModelError: says how many rows are not finite, or how small the spread is.
    """
    rows = torch.as_tensor(embeddings).double()
    if broken := int((~rows.isfinite()).any(1).sum()):
        raise ModelError(
            f"{spec} gives embeddings that are not finite (NaN or infinite) for {broken} of {len(rows)} images. Its "
            "weights are broken, or half precision overflows: try --teacher-precision fp32."
        )
    if len(rows) < 2:
        return ""
    length = rows.norm(dim=1).mean().item()
    spread = (rows - rows.mean(0)).norm(dim=1).mean().item()
    if spread <= CONSTANT * length:
        share = f"{spread / length:.1e} of their length" if length else "all are zero"
        raise ModelError(
            f"{spec} gives the same embedding for {len(rows)} images (spread: {share}). Its weights are broken, its "
            "input normalization is wrong (--teacher-mean, --teacher-std), or these images are all alike."
        )
    directions = rows[rows.any(1)]
    directions /= directions.norm(dim=1, keepdim=True)
    count = len(directions)
    cosine = (float(directions.sum(0).square().sum()) - count) / max(1, count * (count - 1))
    if cosine <= ALIKE:
        return ""
    return (
        f"{spec} gives {len(rows)} different images nearly the same direction (their mean cosine is {cosine:.5f}), so "
        "a method of cosines sees hardly any difference. Is its input normalization right (--teacher-mean, "
        "--teacher-std)? If it is, --transform center takes away what all have in common."
    )


def _is_norm(part: nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    return "Norm" in type(part).__name__ and isinstance(weight, Tensor) and weight.ndim == 1


def _at_initialization(norm: Any) -> bool:
    # Residual branches are often started at weight 0, so the constant need not be 1.
    bias = getattr(norm, "bias", None)
    return bool((norm.weight == norm.weight[0]).all()) and (bias is None or not bool(bias.any()))


def _matrices(module: nn.Module) -> Iterator[Tensor]:
    """Floating-point weights as matrices (outputs, inputs), at least 16 on their shorter side."""
    arrays = [array for part in onnx_encoders(module) for array in part.initializers().values()]
    weights = [torch.from_numpy(np.array(array)) for array in arrays if array.dtype.kind == "f"]
    weights += [parameter.detach() for parameter in module.parameters()]
    for weight in weights:
        if weight.ndim >= 2 and weight.is_floating_point():
            # A corner of a random matrix is as random, and quick to judge whatever the network's size.
            matrix = weight.reshape(len(weight), -1)[:512, :2048].double()
            if min(matrix.shape) >= 16 and bool(matrix.any()):
                yield matrix


def _distance_from_edge(matrix: Float[Tensor, "m n"]) -> float:
    """How far the largest eigenvalue lies beyond that of a random matrix, in Tracy-Widom scales."""
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    if not bool(matrix.isfinite().all()):
        return math.inf  # Broken, not random: `check_embeddings` has the words for it.
    # PyTorch's trunc_normal_ in fp32 now and then puts an entry at its bound, 100 deviations out: that is no structure.
    for _ in range(2):
        matrix = (matrix / matrix.square().mean().sqrt()).clamp(-5, 5)
    largest = float(torch.linalg.eigvalsh(matrix @ matrix.T)[-1])
    short, long = math.sqrt(matrix.shape[0] - 1), math.sqrt(matrix.shape[1])
    scale = (short + long) * math.cbrt(1 / short + 1 / long)
    return (largest - (short + long) ** 2) / scale
