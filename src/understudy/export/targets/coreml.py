"""`coreml`: a package for Apple's devices."""

from __future__ import annotations

import logging
import platform
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from understudy.export.target import NotRunHere, Runner, Target


class CoreMl(Target):
    """Core ML's .mlpackage for iOS 17 and macOS 14 or newer, float16; run only on a Mac."""

    name = "coreml"
    place = "student.mlpackage"
    runtime = "coremltools"
    needs = ("coremltools",)
    extra = "coreml"
    tolerance = 1e-3

    def write(self, place: Path) -> dict[str, Any]:
        """See `Target.write`."""
        size = self.export.student.contract.size
        logging.getLogger("coremltools").setLevel(logging.ERROR)  # versions of PyTorch that it was not tested with
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import coremltools

            batch = coremltools.RangeDim(1, 64, default=1)
            model = coremltools.convert(
                self.export.program.run_decompositions({}), convert_to="mlprogram",
                inputs=[coremltools.TensorType("image", shape=(batch, 3, size, size))],
                outputs=[coremltools.TensorType(name) for name in self.export.outputs],
                minimum_deployment_target=coremltools.target.iOS17,
            )  # fmt: skip
        model.save(str(place))
        return {"outputs": list(self.export.outputs), "precision": "float16"}

    def open(self, place: Path) -> Runner:
        """See `Target.open`."""
        if platform.system() != "Darwin":
            raise NotRunHere("Core ML runs on macOS only")
        import coremltools

        model = coremltools.models.MLModel(str(place))

        def run(images: np.ndarray) -> dict[str, np.ndarray]:
            return dict(model.predict({"image": images}))

        return run
