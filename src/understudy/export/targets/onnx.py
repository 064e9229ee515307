"""`onnx`: an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from understudy.export.target import Runner, Target


class Onnx(Target):
    """An ONNX file, batches of any length; with `--with-preprocessing` it takes decoded pictures of any size."""

    name = "onnx"
    place = "student.onnx"
    runtime = "onnxruntime"
    needs = ("onnxscript",)
    extra = "export"
    takes_pictures = True

    def write(self, place: Path) -> dict[str, Any]:
        """See `Target.write`."""
        import onnx

        from understudy.export.onnx_graph import OPSET, model_of

        onnx.save(model_of(self.export, with_preprocessing=self.export.settings.with_preprocessing), place)
        return {"outputs": list(self.export.outputs), "opset": OPSET}

    def open(self, place: Path) -> Runner:
        """See `Target.open`."""
        from understudy.export.onnx_graph import open_model

        return open_model(place)
