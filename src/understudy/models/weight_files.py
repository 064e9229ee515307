"""Weight files -> all their tensors under dotted names.

A weight file is foreign data. No code in it runs: pickles are read with PyTorch's restricted reader, and what else they
may name is replaced by things that do nothing. What it claims to hold is compared with its size on the disk before any
of it is unpacked.
"""

from __future__ import annotations

import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from understudy.artifacts import check_regular
from understudy.errors import ModelError, first_line

UNPACKED, SMALLEST = 20, 64 * 2**20
"""A compressed file may unpack to so many times its size, or to so many bytes: numbers of weights hardly shrink."""

DEPTH, LONGEST = 32, 512  # containers within each other, and letters of a parameter's name


def existing_file(path: str | os.PathLike[str], kind: str, advice: str) -> Path:
    """The path of a regular file, `~` replaced by the home folder.

    Raises:
        ModelError: there is none, or it is a folder, a pipe, a device or a socket, which are never opened.
    """
    file = Path(path)
    try:
        file = file.expanduser()
        check_regular(file)
    except FileNotFoundError:
        raise ModelError(f"The {kind} {file} does not exist. {advice}") from None
    except (OSError, RuntimeError) as error:  # the latter: the home folder of nobody
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ModelError(f"The {kind} {file} cannot be opened ({reason}). {advice}") from None
    return file


def read_weights(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a weight file under dotted names, on the CPU: `{"state_dict": {"a.b": t}}` is `state_dict.a.b`.

    A file is .safetensors, .npz (arrays by parameter name), or what `torch.save` wrote (.pth, .pt, .pth.tar, .ckpt).

    Raises:
        ModelError: the file is missing, is no weight file, claims more than it can hold, or holds Python objects that
            would have to be unpickled.
    """
    file = existing_file(file, "weight file", "Check what follows '@' in the model spec.")
    suffix = file.suffix.lower()
    if suffix == ".onnx":
        raise ModelError(f"{file} is an ONNX model, not a weight file. Use it as a teacher of its own: onnx:{file}.")
    content: Any = None
    try:
        if suffix == ".safetensors":
            return load_file(file)
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                _refuse_bomb(archive, file)
                if suffix == ".npz":
                    return _arrays(archive, file)
        with torch.serialization.safe_globals(list(HARMLESS)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused anyway
            content = torch.load(file, map_location="cpu", weights_only=True)
        tensors = _tensors(content, file)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{file} holds more than tensors, or is no weight file ({first_line(error)}). Nothing is unpickled here: "
            "in the program that wrote it, save only the tensors, torch.save(model.state_dict(), FILE)."
        ) from None
    except Exception as error:  # What three readers raise at bytes of any kind has no common class.
        raise ModelError(
            f"{file} cannot be read as a weight file ({first_line(error)}). Is the download whole?"
        ) from None
    if not tensors:
        raise ModelError(f"{file} holds no tensors under names (its content is a {type(content).__name__}).")
    return tensors


class Ignored:
    """Stands for an object of a checkpoint that is no tensor: takes whatever it is made from and keeps nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


HARMLESS: tuple[tuple[Any, str], ...] = tuple(
    (Ignored, name)
    for name in (
        "argparse.Namespace", "numpy.dtype", "numpy.dtypes.Float64DType", "numpy.dtypes.Int64DType",
        "numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar",  # since and before NumPy 2
    )
)  # fmt: skip
"""Checkpoints often carry their command line (DINO, MAE) and NumPy scalars, which nobody needs here."""


def _refuse_bomb(archive: zipfile.ZipFile, file: Path) -> None:
    """Refuse an archive that unpacks to far more than weights could.

    Raises:
        ModelError: says how much.
    """
    packed, unpacked = file.stat().st_size, sum(entry.file_size for entry in archive.infolist())
    if unpacked > max(SMALLEST, UNPACKED * packed):
        raise ModelError(
            f"{file} has {packed:,} bytes and would unpack to {unpacked:,}, more than {UNPACKED} times as many: "
            "weights do not shrink like that. It was not unpacked; save them without compression if they are real."
        )


def _arrays(archive: zipfile.ZipFile, file: Path) -> dict[str, Tensor]:
    """The arrays of numbers of an .npz file."""
    tensors = {}
    for entry in archive.infolist():
        with archive.open(entry) as member:
            reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            version = np.lib.format.read_magic(member)
            if version not in reader:
                raise ValueError(f"{entry.filename} has .npy version {version}")
            shape, columns_first, dtype = reader[version](member)
            if dtype.hasobject:
                raise ValueError(f"{entry.filename} holds Python objects")
            size = math.prod(shape) * dtype.itemsize
            if size != entry.file_size - member.tell():
                raise ModelError(
                    f"{file}: {entry.filename} says that it has {size:,} bytes of numbers ({by(shape)} {dtype}), and "
                    f"there are {entry.file_size - member.tell():,}. Is the download whole?"
                )
            if dtype.kind in "fiub":
                array = np.frombuffer(bytearray(member.read(size)), dtype).reshape(
                    shape[::-1] if columns_first else shape
                )
                array = (array.T if columns_first else array).astype(dtype.newbyteorder("="), copy=False)
                name = entry.filename.removesuffix(".npy").replace("/", ".")
                tensors[name] = torch.from_numpy(np.ascontiguousarray(array).reshape(shape))
    return tensors


def _tensors(content: Any, file: Path) -> dict[str, Tensor]:
    """The tensors of containers within containers, each container once, under dotted names."""
    tensors: dict[str, Tensor] = {}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen: set[int] = set()
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Tensor):
            if len(name := ".".join(path)) <= LONGEST:
                tensors[name] = value
        elif isinstance(value, Mapping) and id(value) not in seen:
            if len(path) >= DEPTH:
                raise ModelError(
                    f"{file} has containers within containers, more than {DEPTH} deep: these are no weights."
                )
            seen.add(id(value))
            waiting += reversed([((*path, str(key)), inner) for key, inner in value.items()])
    return tensors


def by(shape: tuple[int, ...]) -> str:
    """A shape as messages show it: `16 x 3 x 3 x 3`."""
    return " x ".join(map(str, shape)) or "one number"
