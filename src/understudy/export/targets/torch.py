"""`torch`: a program that PyTorch alone opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from understudy.export.target import Runner, Target


class Torch(Target):
    """`torch.export`, .pt2: a graph with its weights, batches of any length; opens without this package."""

    name = "torch"
    place = "student.pt2"
    runtime = "torch"

    def write(self, place: Path) -> dict[str, Any]:
        """See `Target.write`."""
        import torch

        contract = json.dumps(self.export.student.contract.table())
        torch.export.save(self.export.program, place, extra_files={"preprocessing.json": contract})
        return {"outputs": list(self.export.outputs)}

    def open(self, place: Path) -> Runner:
        """See `Target.open`."""
        import torch

        module = torch.export.load(place).module()

        def run(images: np.ndarray) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                outputs = module(torch.from_numpy(images))
            return {name: output.numpy() for name, output in zip(self.export.outputs, outputs, strict=True)}

        return run
