"""Precisions of a teacher: which one a device has, and a block in which networks compute in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from understudy.errors import ConfigError
from understudy.hardware import float32_products

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions in which matrix products and convolutions are those of a 16-bit type, the rest as autocast has it."""


def resolve_precision(name: str, device: torch.device) -> str:
    """The precision, "fp32", "tf32", "bf16" or "fp16", that one of these or "auto" stands for on a teacher's device.

    Auto is tf32 on a CUDA device that has it, fp32 elsewhere.

    Raises:
        ConfigError: tf32 on a device without it.
    """
    if name == "auto":
        return "tf32" if has_tf32(device) else "fp32"
    if name == "tf32" and not has_tf32(device):
        raise _no_tf32(device)
    return name


def has_tf32(device: torch.device) -> bool:
    """Whether a device has products of float32 numbers rounded to 10 bits: NVIDIA's from Ampere on."""
    return device.type == "cuda" and torch.cuda.is_available() and torch.cuda.is_tf32_supported()


@contextlib.contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """A block in which networks compute in one precision, whatever is switched on around it.

    Left to itself torch lets convolutions of float32 numbers use TF32 on CUDA devices, and no other product.

    Args:
        precision: "fp32", "tf32", "bf16" or "fp16".
        device: where they compute. Its switches are the process': another thread's networks are not to run meanwhile.

    Raises:
        ConfigError: tf32 on a device that is no CUDA device.
    """
    if precision == "tf32" and device.type != "cuda":
        raise _no_tf32(device)
    backends: tuple[Any, ...] = ()
    if device.type == "cuda":
        backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    elif device.type == "cpu":
        backends = (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)  # type: ignore[attr-defined]
    dtype, switch = HALVES.get(precision), "tf32" if precision == "tf32" else "ieee"
    with float32_products(switch, *backends), torch.autocast(device.type, dtype, enabled=dtype is not None):
        yield


def _no_tf32(device: torch.device) -> ConfigError:
    return ConfigError(
        f"TF32 is arithmetic of NVIDIA GPUs from Ampere on, and '{device}' does not have it. Use --teacher-precision "
        "fp32, bf16, or auto, which is tf32 where there is such a GPU and fp32 elsewhere."
    )
