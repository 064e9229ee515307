"""Everything that the doctor looks at, in the order in which it should be mended."""

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

from understudy.doctor.check import Check
from understudy.doctor.inputs import data_source, teacher_model
from understudy.doctor.libraries import library, packages, python, torch_import, torchvision_import
from understudy.doctor.machine import bytecode, device, disk, onnx_device, open_files, shared_memory, threads
from understudy.doctor.probes import compiled, installed_version, nvidia_driver, probe_libraries, usable_cores


def checks(data: str | None = None, teacher: str | None = None, store: str | None = None) -> list[Check]:
    """Look at the installation, the machine and, where named, the data (up to 64 images) and the teacher.

    `store` is the folder that embeddings will be written to, "store" unless given.

    Returns:
        The findings in the order in which they should be mended.
    """
    probes = probe_libraries()
    torch = probes["torch"]
    found = [
        python(sys.version_info[:3], sys.maxsize > 2**32),
        packages(importlib.metadata.requires("understudy") or [], installed_version),
        torch_import(torch),
        torchvision_import(probes["torchvision"], torch),
        *(library(name, probes[name]) for name in ("timm", "onnxruntime", "faiss", "pyarrow", "sklearn")),
        device(torch, nvidia_driver()),
        onnx_device(probes["onnxruntime"], torch),
        threads(torch.get("threads"), usable_cores()),
        bytecode(os.environ.get("PYTHONDONTWRITEBYTECODE", ""), compiled("torch")),
        *shared_memory(Path("/dev/shm")),
        *open_files(),
    ]
    images: list[Any] = []
    rows = width = None
    if data is not None:
        check, images, rows = data_source(data)
        found.append(check)
    if teacher is not None:
        if "error" in torch:
            found.append(Check("teacher", "fail", f"{teacher} was not tried, because torch cannot be imported"))
        else:
            check, width = teacher_model(teacher, images)
            found.append(check)
    need = rows * width * 2 if rows and width else None
    return [*found, disk(Path(store or "store").expanduser(), need)]
