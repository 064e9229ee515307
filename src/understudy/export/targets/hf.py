"""`hf`: a folder that transformers opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from understudy.export.target import ExportError, Runner, Target


class HuggingFace(Target):
    """The backbone for `AutoModel.from_pretrained` (timm's wrapper); its features are `pooler_output`."""

    name = "hf"
    place = "hf"
    runtime = "transformers"
    needs = ("transformers",)
    extra = "hf"
    backbone_only = True

    def write(self, place: Path) -> dict[str, Any]:
        """See `Target.write`."""
        from transformers import TimmWrapperConfig, TimmWrapperModel

        from understudy.export.targets.timm import timm_config

        student = self.export.student
        if not student.architecture.startswith("timm:"):
            raise ExportError(
                f"transformers' wrapper opens students that are timm networks; this one is {student.architecture}."
            )
        backbone: Any = student.backbone
        configuration = timm_config(student) | {"num_features": student.width}
        kind: Any = TimmWrapperConfig
        config = kind(
            architecture=student.architecture.removeprefix("timm:").partition(".")[0], do_pooling=True,
            pretrained_cfg=configuration,
        )  # fmt: skip
        model = TimmWrapperModel(config)
        model.timm_model.load_state_dict(backbone.state_dict())
        model.save_pretrained(place)
        return {"architecture": student.architecture, "head": "not held: outputs are the backbone's features"}

    def open(self, place: Path) -> Runner:
        """See `Target.open`."""
        import torch
        from transformers import AutoModel

        model = AutoModel.from_pretrained(place).eval()

        def run(images: np.ndarray) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                return {"features": model(pixel_values=torch.from_numpy(images)).pooler_output.numpy()}

        return run
