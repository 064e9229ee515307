"""`onnx:FILE`: a frozen encoder in an ONNX file."""

from __future__ import annotations

from understudy.errors import ModelError
from understudy.models.families import BuiltNetwork, Family, Request


class Onnx(Family):
    """An ONNX file, run by onnxruntime; the contract is in its metadata or given by the user."""

    name = "onnx"
    form = "onnx:FILE"
    summary = "a frozen encoder as an ONNX file, a teacher only; its input contract is in its metadata "
    summary += "(key `understudy.input`)"
    takes_file = False
    trainable = False

    @staticmethod
    def build(request: Request) -> BuiltNetwork:
        """See `Family.build`."""
        from understudy.models.contract import Contract
        from understudy.models.onnx_encoder import METADATA, OnnxEncoder

        module = OnnxEncoder(request.name, request.image_size)
        table = module.metadata
        if table is None and request.mean is not None and request.std is not None:
            size = request.image_size or module.fixed_size[0] or 224
            table = {"size": size, "mean": request.mean, "std": request.std}
        if table is None:
            raise ModelError(
                f"{request.name} does not say what input it was trained on. Give --teacher-mean and --teacher-std, or "
                f"write it into the file's metadata, key '{METADATA}', as JSON: "
                '{"size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], '
                '"interpolation": "bicubic"}.'
            )
        try:
            contract = Contract.from_table(table)
        except ModelError as error:
            raise ModelError(f"{request.name}: {error}") from None
        size = request.image_size or contract.size
        for axis, fixed in zip(("high", "wide"), module.fixed_size, strict=True):
            if fixed is not None and fixed != size:
                asked = f"{size} was asked for" if request.image_size else f"its own metadata says {size}"
                raise ModelError(f"{request.name} takes images exactly {fixed} pixels {axis}; {asked}.")
        return BuiltNetwork(
            module, contract, f"ONNX file {module.file.name}, frozen as it is", fingerprint=module.fingerprint
        )
