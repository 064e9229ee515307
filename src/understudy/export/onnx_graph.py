"""ONNX models of a student: written from its graph, with the preprocessing in front where it is asked for, and run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import compose, numpy_helper, parser

from understudy.errors import first_line
from understudy.export.target import Exportable, ExportError, Runner

if TYPE_CHECKING:
    from understudy.models.contract import Contract

OPSET = 18

RESIZE = {
    "nearest": 'mode="nearest", nearest_mode="round_prefer_ceil"',
    "bilinear": 'mode="linear", antialias=1, exclude_outside=1',
    "bicubic": 'mode="cubic", cubic_coeff_a=-0.5, antialias=1, exclude_outside=1',
}
"""PIL's ways of resizing as attributes of ONNX's Resize."""

PREPARE = """<ir_version: {ir}, opset_import: ["" : {opset}]>
prepare (uint8[B, H, W, 3] pictures) => (float[B, 3, {size}, {size}] prepared) {{
    channels = Transpose <perm = [0, 3, 1, 2]> (pictures)
    sides = Shape <start = 2, end = 4> (channels)
    shorter = ReduceMin <keepdims = 1> (sides)
    short_side = Constant <value_ints = [{short}]> ()
    scaled = Mul (sides, short_side)
    resized_sides = Div (scaled, shorter)
    lead = Shape <start = 0, end = 2> (channels)
    resized_shape = Concat <axis = 0> (lead, resized_sides)
    resized = Resize <coordinate_transformation_mode = "half_pixel", {resize}> (channels, , , resized_shape)
    size = Constant <value_ints = [{size}]> ()
    margin = Sub (resized_sides, size)
    margin_float = Cast <to = 1> (margin)
    two = Constant <value_float = 2.0> ()
    half = Div (margin_float, two)
    start_float = Round (half)
    start = Cast <to = 7> (start_float)
    end = Add (start, size)
    axes = Constant <value_ints = [2, 3]> ()
    square = Slice (resized, start, end, axes)
    square_float = Cast <to = 1> (square)
    white = Constant <value_float = 255.0> ()
    unit = Div (square_float, white)
    centered = Sub (unit, mean)
    prepared = Div (centered, std)
}}"""
"""`Contract.preprocess` of decoded pictures: the shorter side to its length, the square in the middle, normalized."""


def model_of(export: Exportable, *, with_preprocessing: bool) -> onnx.ModelProto:
    """The student as an ONNX model.

    Its input "image" holds prepared images (B, 3, S, S), or its input "pictures" decoded ones, uint8 (B, H, W, 3); its
    outputs are "embedding" and "features". The input contract is in its metadata: it can be an `onnx:` teacher.

    Raises:
        ExportError: ONNX has no such operator, or no such interpolation.
    """
    import torch

    from understudy.models.onnx_encoder import METADATA

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = torch.onnx.export(
                export.program, dynamo=True, opset_version=OPSET, input_names=["image"],
                output_names=list(export.outputs), verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter's errors share no base class
        raise ExportError(
            f"{export.student.spec} has an operator that ONNX cannot hold ({first_line(error)}). The targets 'torch' "
            "and 'folder' hold it."
        ) from None
    assert written is not None
    model: onnx.ModelProto = written.model_proto
    if with_preprocessing:
        front = _preprocessing(export.student.contract, model.ir_version)
        model = compose.merge_models(
            compose.add_prefix(front, "prepare_", rename_inputs=False, rename_outputs=False), model,
            io_map=[("prepared", "image")],
        )  # fmt: skip
    onnx.helper.set_model_props(model, {METADATA: json.dumps(export.student.contract.table())})
    onnx.checker.check_model(model)
    return model


def _preprocessing(contract: Contract, ir_version: int) -> onnx.ModelProto:
    """Decoded pictures (B, H, W, 3) uint8 to prepared images (B, 3, S, S), as `Contract.preprocess` does it."""
    if contract.fit != "crop":
        raise ExportError(
            f"This student's images are fitted into a square by '{contract.fit}', which the graph does not do: leave "
            "--with-preprocessing out."
        )
    if contract.interpolation not in RESIZE:
        raise ExportError(
            f"ONNX has no {contract.interpolation} interpolation, which this student's images are resized with: leave "
            f"--with-preprocessing out, or train with --crop and one of {', '.join(RESIZE)}."
        )
    model = parser.parse_model(
        PREPARE.format(
            ir=ir_version, opset=OPSET, size=contract.size, short=round(contract.size / contract.crop),
            resize=RESIZE[contract.interpolation],
        )
    )  # fmt: skip
    for name, values in (("mean", contract.mean), ("std", contract.std)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.float32).reshape(1, 3, 1, 1), name))
    return model


def open_model(place: Path) -> Runner:
    """An ONNX file in onnxruntime, on as many threads as PyTorch uses."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(place, options, providers=["CPUExecutionProvider"])
    [taken] = session.get_inputs()
    names = [value.name for value in session.get_outputs()]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {taken.name: images}), strict=True))

    return run
