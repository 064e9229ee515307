"""`executorch`: a program for phones and other small devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from understudy.export.target import Runner, Target


class Executorch(Target):
    """ExecuTorch's .pte for XNNPACK, float32, one image at a time."""

    name = "executorch"
    place = "student.pte"
    runtime = "executorch"
    needs = ("executorch",)
    extra = "executorch"

    def write(self, place: Path) -> dict[str, Any]:
        """See `Target.write`."""
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        from understudy.export.capture import capture

        program = capture(self.export.student, self.export.outputs, free_size=False, single=True)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        place.write_bytes(lowered.to_executorch().buffer)
        return {"outputs": list(self.export.outputs)}

    def open(self, place: Path) -> Runner:
        """See `Target.open`."""
        import torch
        from executorch.runtime import Runtime

        method = Runtime.get().load_program(place).load_method("forward")

        def run(images: np.ndarray) -> dict[str, np.ndarray]:
            rows = [method.execute([torch.from_numpy(image[None])]) for image in images]
            columns = (torch.cat([output.clone() for output in outputs]) for outputs in zip(*rows, strict=True))
            return {name: column.numpy() for name, column in zip(self.export.outputs, columns, strict=True)}

        return run
