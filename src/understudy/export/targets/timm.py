"""`timm`: a folder that timm opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from understudy.export.target import ExportError, Runner, Target


class Timm(Target):
    """The backbone as a folder for `timm.create_model("local-dir:FOLDER")`, with its input's mean, std and crop."""

    name = "timm"
    place = "timm"
    runtime = "timm"
    backbone_only = True

    def write(self, place: Path) -> dict[str, Any]:
        """See `Target.write`."""
        import timm

        student = self.export.student
        if not student.architecture.startswith("timm:"):
            raise ExportError(f"timm opens students that are timm networks; this one is {student.architecture}.")
        module: Any = student.backbone
        config = dict(module.pretrained_cfg)
        module.pretrained_cfg = {**config, **timm_config(student), "architecture": config.get("architecture")}
        try:
            timm.models.save_for_hf(module, place, safe_serialization=True)
        finally:
            module.pretrained_cfg = config
        return {"architecture": student.architecture, "head": "not held: outputs are the backbone's features"}

    def open(self, place: Path) -> Runner:
        """See `Target.open`."""
        import timm
        import torch

        module = timm.create_model(f"local-dir:{place}", pretrained=True, num_classes=0).eval()

        def run(images: np.ndarray) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                return {"features": module(torch.from_numpy(images)).numpy()}

        return run


def timm_config(student: Any) -> dict[str, Any]:
    """A student's input contract in timm's words."""
    contract = student.contract
    return {
        "input_size": (3, contract.size, contract.size), "mean": contract.mean, "std": contract.std,
        "interpolation": contract.interpolation, "crop_pct": contract.crop, "crop_mode": "center", "num_classes": 0,
    }  # fmt: skip
