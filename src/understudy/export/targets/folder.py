"""`folder`: what `load_student` and `Student.from_pretrained` read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from understudy.export.target import Runner, Target


class Folder(Target):
    """safetensors, configuration with the preprocessing, and the card: a student that this package opens anywhere."""

    name = "folder"
    place = "folder"
    runtime = "understudy"
    tolerance = 1e-9

    def write(self, place: Path) -> dict[str, Any]:
        """See `Target.write`."""
        place.mkdir()
        for file in (self.export.run.weights_path, self.export.run.student_path):
            shutil.copyfile(file, place / file.name)
        return {}

    def open(self, place: Path) -> Runner:
        """See `Target.open`."""
        import torch

        from understudy.models.student import load_student

        student = load_student(place)

        def run(images: np.ndarray) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                features = student.features(torch.from_numpy(images))
                return {"features": features.numpy(), "embedding": student.to_teacher_space(features).numpy()}

        return run
