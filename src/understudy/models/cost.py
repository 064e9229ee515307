"""What a network costs: parameters, and multiply-accumulates of one image."""

from __future__ import annotations

from math import prod

from torch import nn

from understudy.models.contract import Contract
from understudy.models.onnx_encoder import OnnxEncoder, onnx_encoders
from understudy.models.outputs import blank_pass


def parameters(module: nn.Module) -> int:
    """Number of trained values: parameters of a module, floating-point initializers of an ONNX file."""
    arrays = [array for encoder in onnx_encoders(module) for array in encoder.initializers().values()]
    floats = sum(array.size for array in arrays if array.dtype.kind == "f")
    return floats + sum(parameter.numel() for parameter in module.parameters())


def flops(model: nn.Module, size: int | None = None) -> int | None:
    """Multiply-accumulates of one image through `model.features` (or `model` itself where it has none).

    The convention of the papers' tables: one multiply-accumulate counts once (ResNet-50 at 224 x 224: 4.1e9), and only
    convolutions and matrix products count.

    Args:
        model: a Teacher, a Student or a bare module; ONNX teachers are counted from their graph.
        size: input side in pixels; default the model's own contract.

    Returns:
        The count, or None where the ONNX graph's shapes cannot be inferred.
    """
    if size is None:
        contract = model.contract
        assert isinstance(contract, Contract)
        size = contract.size
    if encoders := onnx_encoders(model):
        return _graph_multiply_adds(encoders[0], size)
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Fused attention kernels of the CPU are not in the counter's table; the plain one is made of counted products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        blank_pass(model, (size, size), "This network", getattr(model, "features", model))
    return int(counter.get_total_flops()) // 2


def _graph_multiply_adds(encoder: OnnxEncoder, size: int) -> int | None:
    import onnx

    model = onnx.load(encoder.file, load_external_data=False)
    for axis, value in zip((0, 2, 3), (1, size, size), strict=True):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = value
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # of a graph that the runtime takes and this does not understand
        return None
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        shapes[value.name] = tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
    # Output names of the graph may keep a symbolic batch axis; one image is asked about.
    total = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        output, weight = shapes.get(node.output[0], ()), shapes.get(node.input[1], ())
        output = (1, *output[1:]) if output and output[0] == 0 else output
        if not output or len(weight) < 2 or 0 in output or 0 in weight:
            return None
        if node.op_type == "Conv":
            inner = prod(weight[1:])
        elif node.op_type == "Gemm":
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            inner = weight[1] if transposed else weight[0]
        else:
            inner = weight[-2]
        total += prod(output) * inner
    return total
