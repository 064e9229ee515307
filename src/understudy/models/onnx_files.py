"""An ONNX file before it is used: which files it consists of, their identity, and a first run that cannot do harm.

onnxruntime is native code that follows whatever graph it is given: one that never ends, takes all memory or crashes.
So a file that this process has not seen is loaded and run once in a child, with limits, before it is loaded here. Run
as a module, this file is that child; it needs no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from understudy.artifacts import check_regular, file_fingerprint, fingerprint
from understudy.errors import ModelError, first_line

SECONDS, BYTES_A_SECOND = 60.0, 50e6
"""The first run of a file may take so long, and a second more for so many bytes of weights."""

MEMORY, MEMORY_A_BYTE = 4 * 2**30, 8
"""Bytes of memory that it may reserve, and how many more for each byte of weights."""

TRIED: set[tuple[str, str, int]] = set()
"""Files that have passed in this process, by path, identity and size of their input."""


def external_files(file: Path) -> list[Path]:
    """The files beside an ONNX file that hold tensors of it.

    Raises:
        ModelError: the file is no ONNX model; or a tensor lies outside its folder, or in what is no regular file.
    """
    import onnx

    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # of the protobuf implementation at hand
        raise ModelError(
            f"{file} cannot be loaded as an ONNX model ({first_line(error)}). Is the file whole?"
        ) from None
    locations = {
        entry.value
        for tensor in _tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for location in locations:
        place = PurePosixPath(location)
        if place.is_absolute() or ".." in place.parts:
            raise ModelError(f"{file} keeps tensors in {location!r}, outside its folder: they are not read.")
        try:
            check_regular(file.parent / location)
        except OSError as error:
            raise ModelError(
                f"{file} keeps tensors in {file.parent / location}, which cannot be opened ({error.strerror}). Put all "
                "files of the model into one folder."
            ) from None
    return [file.parent / location for location in sorted(locations)]


def identity(file: Path, external: list[Path]) -> str:
    """Sixteen hex digits of all the bytes that an ONNX model consists of."""
    return fingerprint("onnx", file_fingerprint(file), *map(file_fingerprint, external))


def try_out(file: Path, external: list[Path], size: int | None) -> None:
    """Load and run an ONNX file once in a child process, with limits on time and memory.

    Args:
        file: the model.
        external: the other files of it.
        size: input side in pixels; that of the file unless given.

    Raises:
        ModelError: it cannot be loaded or run, does not end, takes too much memory, or brings its process down.
    """
    key = str(file.resolve()), identity(file, external), size or 0
    if key in TRIED:
        return
    weights = sum(part.stat().st_size for part in (file, *external))
    seconds, memory = SECONDS + weights / BYTES_A_SECOND, MEMORY + MEMORY_A_BYTE * weights
    job = json.dumps({"file": str(file.resolve()), "size": size, "memory": memory, "seconds": seconds})
    command, environment = [sys.executable, "-m", __name__, job], os.environ | {"PYTHONSAFEPATH": "1"}
    try:
        child = subprocess.run(command, capture_output=True, timeout=seconds, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"{file} did not answer for one image within {seconds:.0f} seconds, and was stopped. Does its graph end?"
        ) from None
    said = child.stdout.decode(errors="replace").strip().splitlines()
    if child.returncode or not said:
        ended = f"signal {-child.returncode}" if child.returncode < 0 else f"status {child.returncode}"
        raise ModelError(
            f"{file} brought the process down in which it was tried ({ended}), with at most {memory / 2**30:.0f} GiB "
            "of memory. It is damaged, or its graph takes more than that for one image."
        )
    answer = json.loads(said[-1])
    if "load" in answer:
        raise ModelError(f"{file} cannot be loaded as an ONNX model ({answer['load']}). Is the file whole?")
    if "run" in answer:
        raise ModelError(f"{file} cannot be run on an image of {answer['size']} x {answer['size']} ({answer['run']}).")
    TRIED.add(key)


NUMPY = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


def image_layout(inputs: list[Any]) -> tuple[bool, str] | None:
    """Whether channels come last, and the type, of the one input of a session if it is of images; else None."""
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in NUMPY:
        return None
    _, first, _, last = inputs[0].shape
    if 3 not in (first, last):
        return None
    return first != 3, inputs[0].type


def _tensors(model: Any) -> Iterator[Any]:
    """All tensors of a model, those in branches, loops and functions included."""
    graphs: list[Any] = [model.graph]
    nodes: list[Any] = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            nodes += graph.node
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            continue
        for attribute in nodes.pop().attribute:
            graphs += [attribute.g, *attribute.graphs] if attribute.HasField("g") else list(attribute.graphs)
            yield from [attribute.t] if attribute.HasField("t") else []
            yield from attribute.tensors
            for sparse in [
                *attribute.sparse_tensors,
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
            ]:
                yield from (sparse.values, sparse.indices)


def _child(job: dict[str, Any]) -> dict[str, Any]:
    """What the child does: {} if all went well, else what failed and the runtime's words."""
    import numpy as np
    import onnxruntime

    with contextlib.suppress(ImportError, OSError, ValueError):  # systems without such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
        resource.setrlimit(resource.RLIMIT_CPU, (int(job["seconds"]) + 1, int(job["seconds"]) + 1))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(job["file"], options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return {"load": first_line(error)}
    inputs = session.get_inputs()
    layout = image_layout(inputs)
    if layout is None:
        return {}  # the encoder has the words for it
    channels_last, kind = layout
    batch, *sides = (axis if isinstance(axis, int) else None for axis in inputs[0].shape)
    del sides[2 if channels_last else 0]
    size = job["size"]
    if size is None:
        with contextlib.suppress(Exception):  # the encoder reads it again, with words for what is wrong
            size = np.ravel(json.loads(session.get_modelmeta().custom_metadata_map["understudy.input"])["size"])[0]
    size = int(min(4096, max(1, size))) if isinstance(size, int | np.integer) else 224
    shape = [batch or 1, *(side or size for side in sides)]
    shape.insert(3 if channels_last else 1, 3)
    try:
        session.run(None, {inputs[0].name: np.zeros(shape, NUMPY[kind])})
    except Exception as error:
        return {"run": first_line(error), "size": size}
    return {}


if __name__ == "__main__":
    print(json.dumps(_child(json.loads(sys.argv[1]))))  # noqa: T201
