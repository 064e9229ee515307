"""`openvino`: an intermediate representation for Intel's runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from understudy.export.target import Runner, Target


class OpenVino(Target):
    """OpenVINO's .xml and .bin, weights in float32, batches of any length."""

    name = "openvino"
    place = "openvino"
    runtime = "openvino"
    needs = ("openvino", "onnxscript")
    extra = "export"
    tolerance = 1e-4

    def write(self, place: Path) -> dict[str, Any]:
        """See `Target.write`."""
        import onnx
        import openvino

        from understudy.export.onnx_graph import model_of

        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "plain.onnx"
            onnx.save(model_of(self.export, with_preprocessing=False), plain)
            openvino.save_model(openvino.convert_model(plain), place / "student.xml", compress_to_fp16=False)
        return {"outputs": list(self.export.outputs)}

    def open(self, place: Path) -> Runner:
        """See `Target.open`."""
        import openvino
        import torch

        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        model = openvino.Core().compile_model(place / "student.xml", "CPU", hints)

        def run(images: np.ndarray) -> dict[str, np.ndarray]:
            outputs = model(images)
            return {name: outputs[number] for number, name in enumerate(self.export.outputs)}

        return run
