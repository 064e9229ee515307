"""A frozen encoder in an ONNX file, which onnxruntime runs, as an nn.Module."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from understudy.artifacts import fingerprint
from understudy.errors import MissingDependency, ModelError, first_line
from understudy.models.onnx_files import external_files, identity, image_layout, try_out
from understudy.models.weight_files import existing_file

METADATA = "understudy.input"  # metadata key of the input contract: JSON with size, mean, std, interpolation (and crop)

INPUTS = {
    "tensor(float)": (torch.float32, np.float32),
    "tensor(float16)": (torch.float16, np.float16),
    "tensor(uint8)": (torch.uint8, np.uint8),
}
"""Numbers that an image may have, as ONNX names them."""

FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")

log = logging.getLogger("understudy")


class OnnxEncoder(nn.Module):
    """Prepared images in, embeddings out; nothing in it can be trained.

    It follows its input: images on a CUDA device are computed there if onnxruntime can, else on the CPU with a logged
    warning. The file has one input of images, (batch, 3, H, W) or (batch, H, W, 3), of float32, float16 or uint8, which
    are pixels as they are; and an output (batch, D) of floating point: the one that is asked for, the one named
    "embedding", or the only one.

    Args:
        file: the ONNX file; tensors may lie in other files beside it.
        side: of the input in pixels at which it is first tried; that of the file unless given.
        output: name of the output that is the embedding.

    Raises:
        ModelError: the file cannot be loaded or run, or its inputs and outputs are of another kind.
    """

    def __init__(self, file: str | os.PathLike[str], side: int | None = None, output: str | None = None) -> None:
        super().__init__()
        self.file = existing_file(file, "ONNX file", "Check the path after 'onnx:'.")
        self.tf32 = False  # whether products may be TF32 on a CUDA device; set before the first pass there
        external = external_files(self.file)
        self.fingerprint = identity(self.file, external)
        """Of all bytes that it consists of, external tensors included, and of the output, if not the file's own."""
        try_out(self.file, external, side)
        self._sessions: dict[torch.device, Any] = {}
        session = self._session(torch.device("cpu"))
        inputs, outputs = session.get_inputs(), session.get_outputs()
        layout = image_layout(inputs)
        if layout is None:
            raise ModelError(
                f"{self.file} must take one input of images, (batch, 3, H, W) or (batch, H, W, 3), of float32, float16 "
                f"or uint8; it takes {_listed(inputs)}."
            )
        self.channels_last, self._type = layout
        self._input, self._output = inputs[0].name, self._choose(outputs, output)
        # Free axes have a name or none; fixed ones a number.
        batch, *size = (axis if isinstance(axis, int) else None for axis in inputs[0].shape)
        del size[2 if self.channels_last else 0]
        self.fixed_batch: int | None = batch
        self.fixed_size: tuple[int | None, int | None] = (size[0], size[1])
        self.metadata: dict[str, Any] | None = self._read_metadata(session)

    @property
    def takes_bytes(self) -> bool:
        """Whether it takes pixels as they are, from 0 to 255."""
        return self._type == "tensor(uint8)"

    def _choose(self, outputs: list[Any], wanted: str | None) -> str:
        """The name of the output that is the embedding."""
        own = [value for value in outputs if value.name == "embedding"] or outputs
        chosen = own if wanted is None else [value for value in outputs if value.name == wanted]
        if len(chosen) != 1 or chosen[0].type not in FLOATS:
            asked = "" if wanted is None else f", and '{wanted}' was asked for"
            raise ModelError(
                f"{self.file} must have one output of floating point, or one named 'embedding'; it has "
                f"{_listed(outputs)}{asked}. Name one of several: onnx:FILE#OUTPUT."
            )
        if chosen != own:
            self.fingerprint = fingerprint(self.fingerprint, "output", chosen[0].name)
        return str(chosen[0].name)

    def _session(self, device: torch.device) -> Any:
        if device in self._sessions:
            return self._sessions[device]
        try:
            import onnxruntime
        except ImportError:
            raise MissingDependency("ONNX teachers need onnxruntime: pip install onnxruntime.") from None
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.type == "cuda":
            if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
                cuda = {"device_id": device.index or 0, "use_tf32": int(self.tf32)}
                providers.insert(0, ("CUDAExecutionProvider", cuda))
            else:
                log.warning(
                    "%s runs on the CPU though its images are on a CUDA device: this onnxruntime has no CUDA provider. "
                    "For speed: pip uninstall onnxruntime && pip install onnxruntime-gpu.",
                    self.file,
                )
                self._sessions[device] = self._session(torch.device("cpu"))
                return self._sessions[device]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Idle threads of onnxruntime would spin on the cores that the student's step needs: a tenth more CPU time.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # its errors are raised too, and said by us
        try:
            self._sessions[device] = onnxruntime.InferenceSession(self.file, options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions share no base class but this one.
            raise ModelError(
                f"{self.file} cannot be loaded as an ONNX model ({first_line(error)}). Is the file whole?"
            ) from None
        return self._sessions[device]

    def _read_metadata(self, session: Any) -> dict[str, Any] | None:
        if (text := session.get_modelmeta().custom_metadata_map.get(METADATA)) is None:
            return None
        try:
            table = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(
                f"The metadata '{METADATA}' of {self.file} is not valid JSON: {first_line(error)}."
            ) from None
        if not isinstance(table, dict):
            raise ModelError(
                f"The metadata '{METADATA}' of {self.file} must be a JSON table; it is {first_line(text)}."
            )
        return table

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """(B, 3, S, S) prepared -> (B, D) float32, on the device of `x`."""
        for axis, fixed, side in zip(("high", "wide"), self.fixed_size, x.shape[-2:], strict=True):
            if fixed is not None and fixed != side:
                raise ModelError(f"{self.file} takes images exactly {fixed} pixels {axis}; it was given {side}.")
        x = x.detach().float()
        if self.fixed_batch is None:
            return self._run(x)
        chunks = []
        for chunk in x.split(self.fixed_batch):
            padding = chunk.new_zeros(self.fixed_batch - len(chunk), *chunk.shape[1:])
            chunks.append(self._run(torch.cat([chunk, padding]))[: len(chunk)])
        return torch.cat(chunks)

    def _run(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        session = self._session(x.device)
        images = x if "CUDAExecutionProvider" in session.get_providers() else x.cpu()
        if self.takes_bytes:
            images = (images * 255).round().clamp(0, 255)  # prepared they lie in [0, 1]
        dtype, number = INPUTS[self._type]
        images = (images.permute(0, 2, 3, 1) if self.channels_last else images).to(dtype).contiguous()
        if images.is_cuda:
            torch.cuda.current_stream(images.device).synchronize()  # onnxruntime reads on a stream of its own.
        device = (images.device.type, images.device.index or 0)
        binding = session.io_binding()
        binding.bind_input(self._input, *device, number, tuple(images.shape), images.data_ptr())
        binding.bind_output(self._output, *device)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # of onnxruntime, as above
            raise ModelError(f"{self.file} cannot be run on {tuple(x.shape)} images ({first_line(error)}).") from None
        output = torch.from_numpy(binding.copy_outputs_to_cpu()[0])
        if output.ndim < 2 or output.shape[0] != len(x) or output[0].numel() != output.shape[1]:
            raise ModelError(
                f"The output '{self._output}' of {self.file} must be (batch, D); for {len(x)} images it is "
                f"{tuple(output.shape)}. Pool and flatten before exporting."
            )
        return output.flatten(1).float().to(x.device)

    def initializers(self) -> dict[str, np.ndarray]:
        """The weights stored in the file, by name; the runtime itself does not show them.

        Raises:
            ModelError: a tensor has other numbers than it says.
        """
        from onnx import load, numpy_helper

        folder = str(self.file.parent)
        try:
            return {tensor.name: numpy_helper.to_array(tensor, folder) for tensor in load(self.file).graph.initializer}
        except Exception as error:  # of onnx, whatever the tensor's type
            raise ModelError(f"{self.file} has weights that cannot be read ({first_line(error)}).") from None


def _listed(values: list[Any]) -> str:
    return ", ".join(f"{value.name} {value.type} {value.shape}" for value in values)


def onnx_encoders(module: nn.Module) -> list[OnnxEncoder]:
    """The ONNX files among the parts of a network."""
    return [part for part in module.modules() if isinstance(part, OnnxEncoder)]
