"""The machine that something was measured on, and how it multiplies."""

import contextlib
import os
import platform
from collections.abc import Iterator
from typing import Any

import torch


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine and the versions, as every record of time must carry them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "device_name": name,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.system(),
    }


@contextlib.contextmanager
def float32_products(precision: str, *backends: Any) -> Iterator[None]:
    """A block in which these of torch's backends multiply float32 numbers as "ieee" has it, or as "tf32"."""
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = precision
        yield
    finally:
        for backend, switch in zip(backends, before, strict=True):
            backend.fp32_precision = switch
