"""`onnx:FILE#OUTPUT`: a frozen encoder in an ONNX file."""

from __future__ import annotations

from pathlib import Path

from understudy.errors import ModelError
from understudy.models.families import BuiltNetwork, Family, Request


class Onnx(Family):
    """An ONNX file, run by onnxruntime; the contract is in its metadata or given by the user."""

    name = "onnx"
    form = "onnx:FILE[#OUTPUT]"
    summary = "a frozen encoder as an ONNX file, a teacher only; its input contract is in its metadata "
    summary += "(key `understudy.input`); `#OUTPUT` is one of several outputs"
    takes_file = False
    trainable = False

    @staticmethod
    def build(request: Request) -> BuiltNetwork:
        """See `Family.build`."""
        from understudy.models.contract import Contract
        from understudy.models.onnx_encoder import METADATA, OnnxEncoder

        file, output = split_output(request.name)
        if request.output != "pooled":
            if output not in (None, request.output):
                raise ModelError(f"{request.spec} names one output, and --teacher-output {request.output} another.")
            output = request.output
        module = OnnxEncoder(file, request.image_size, output)
        table = module.metadata
        if module.takes_bytes:
            if request.mean is not None or request.std is not None:
                raise ModelError(
                    f"{file} takes pixels as they are, from 0 to 255: leave out --teacher-mean and --teacher-std."
                )
            size = (table or {}).get("size", request.image_size or module.fixed_size[0] or 224)
            table = {**(table or {}), "size": size, "mean": (0, 0, 0), "std": (1, 1, 1)}
        if table is None and request.mean is not None and request.std is not None:
            size = request.image_size or module.fixed_size[0] or 224
            table = {"size": size, "mean": request.mean, "std": request.std}
        if table is None:
            raise ModelError(
                f"{file} does not say what input it was trained on. Give --teacher-mean and --teacher-std, or "
                f"write it into the file's metadata, key '{METADATA}', as JSON: "
                '{"size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], '
                '"interpolation": "bicubic"}.'
            )
        try:
            contract = Contract.from_table(table)
        except ModelError as error:
            raise ModelError(f"{file}: {error}") from None
        size = request.image_size or contract.size
        for axis, fixed in zip(("high", "wide"), module.fixed_size, strict=True):
            if fixed is not None and fixed != size:
                asked = f"{size} was asked for" if request.image_size else f"its own metadata says {size}"
                raise ModelError(f"{file} takes images exactly {fixed} pixels {axis}; {asked}.")
        weights = f"ONNX file {module.file.name}, frozen as it is" + (f"; output {output}" if output else "")
        return BuiltNetwork(module, contract, weights, fingerprint=module.fingerprint)


def split_output(name: str) -> tuple[str, str | None]:
    """`FILE#OUTPUT` -> the two; a file whose own name has a # is taken as it is."""
    file, mark, output = name.rpartition("#")
    return (file, output) if mark and file and output and not Path(name).expanduser().exists() else (name, None)
