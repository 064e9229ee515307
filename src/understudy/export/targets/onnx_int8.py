"""`onnx-int8`: an ONNX file whose products are of 8-bit numbers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from understudy.export.parity import centered_cosines
from understudy.export.target import ExportError, Runner, Target


class OnnxInt8(Target):
    """ONNX, statically quantized per channel (QDQ); layers that lose most stay float until it agrees."""

    name = "onnx-int8"
    place = "student.int8.onnx"
    runtime = "onnxruntime"
    needs = ("onnxscript",)
    extra = "export"
    tolerance = 0.02

    def write(self, place: Path) -> dict[str, Any]:
        """See `Target.write`; the agreement that decides which layers stay float is that on the calibration images."""
        import onnx
        from onnxruntime.quantization import quant_pre_process

        from understudy.export.onnx_graph import model_of, open_model

        images = self.export.calibration()
        with tempfile.TemporaryDirectory() as folder:
            plain, prepared = Path(folder) / "plain.onnx", Path(folder) / "prepared.onnx"
            onnx.save(model_of(self.export, with_preprocessing=False), plain)
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            wanted = _outputs(open_model(plain), images)
            bound = self.export.settings.tolerance or self.tolerance
            _quantize(prepared, place, images, [])
            losses, left = _by_loss(prepared, place, images[:8]), 0
            while (loss := _disagreement(wanted, _outputs(open_model(place), images))) > bound:
                if left == len(losses) - 1:  # with all of them it would be a float network under another name
                    raise ExportError(
                        f"8 bits lose too much of this student: with all but one of {len(losses)} layers in float 1 - "
                        f"centered cosine is still {loss:.2g}, over {bound:g}. Train it longer, or give a larger "
                        "--tolerance."
                    )
                left = min(max(1, 2 * left), len(losses) - 1)
                _quantize(prepared, place, images, losses[:left])
        return {
            "outputs": list(self.export.outputs), "calibration": len(images), "layers": len(losses),
            "float_layers": losses[:left],
        }  # fmt: skip

    def open(self, place: Path) -> Runner:
        """See `Target.open`."""
        from understudy.export.onnx_graph import open_model

        return open_model(place)


def _reader(images: np.ndarray) -> Any:
    """Calibration images as onnxruntime asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    batches = iter(np.array_split(images, -(-len(images) // 32)))

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {"image": batch}

    return Batches()


def _quantize(source: Path, place: Path, images: np.ndarray, excluded: list[str]) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        source, place, _reader(images), quant_format=QuantFormat.QDQ, per_channel=True, nodes_to_exclude=excluded,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def _by_loss(plain: Path, quantized: Path, images: np.ndarray) -> list[str]:
    """The layers, first those in which the quantized model's signal-to-noise ratio falls most."""
    import onnx
    from onnxruntime.quantization import qdq_loss_debug as debug
    from onnxruntime.quantization.registry import QDQRegistry

    activations = []
    for model in (plain, quantized):
        shown = model.with_suffix(".shown.onnx")
        debug.modify_model_output_intermediate_tensors(model, shown)
        activations.append(debug.collect_activations(shown, _reader(images)))
        shown.unlink()
    errors = debug.compute_activation_error(debug.create_activation_matching(activations[1], activations[0]))
    ratio = {name: float(np.nan_to_num(error["xmodel_err"])) for name, error in errors.items()}
    # Sums and poolings round to 8 bits too, so they count as layers.
    layers = [node for node in onnx.load(plain).graph.node if node.op_type in QDQRegistry]
    clean = max(ratio.values(), default=0.0)
    fall = {node.name: ratio.get(node.input[0], clean) - ratio.get(node.output[0], clean) for node in layers}
    return sorted(fall, key=lambda name: -fall[name])


def _outputs(run: Runner, images: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [dict(run(batch)) for batch in np.array_split(images, -(-len(images) // 32))]


def _disagreement(wanted: list[dict[str, np.ndarray]], given: list[dict[str, np.ndarray]]) -> float:
    """The largest mean of 1 - centered cosine among the outputs."""
    losses = []
    for name in wanted[0]:
        first, second = (np.concatenate([batch[name] for batch in side]) for side in (given, wanted))
        losses.append(float(1 - centered_cosines(first, second).mean()))
    return max(losses)
