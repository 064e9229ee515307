"""The machine that something was measured on."""

import os
import platform
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
