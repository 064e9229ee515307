"""Weight files of any published format -> the tensors a backbone expects, with one line that says what happened.

Files differ in wrappers (`state_dict`, `model`, `module.`) and in the prefix of the encoder among its siblings
(momentum encoder, projector, predictor, queue). Instead of one rule per project, `recognize` finds every prefix under
which the backbone's own names and shapes occur, takes the one that covers most, and lets `FORMATS` name it and settle
ties. No file is ever unpickled beyond tensors and plain containers.
"""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from understudy.artifacts import fingerprint
from understudy.errors import ModelError, first_line

COVERAGE = 0.9  # share of the backbone's parameters that a file must bring
WRAPPERS = {"state_dict", "model", "module", "model_state_dict", "model_state", "net", "network", "_orig_mod"}
"""Words in a prefix that only say how the file was saved."""

FORMATS: dict[str, str] = {
    "encoder_q": "MoCo v1/v2",
    "base_encoder": "MoCo v3 / SEED",
    "teacher.backbone": "DINO (teacher)",
    "online_network.encoder": "BYOL (online network)",
    "online_encoder": "BYOL (online network)",
    "online": "BYOL (online network)",
    "state_dict_ema": "plain, averaged weights",
    "model_ema": "plain, averaged weights",
    "backbone": "backbone (Barlow Twins, VICReg, DINO, Understudy)",
    "encoder": "encoder (SimSiam, BYOL)",
    "": "plain",
    "student.backbone": "DINO (student)",
    "student": "distilled student",
    "target_network.encoder": "BYOL (target network)",
    "momentum_encoder": "MoCo v3 (momentum encoder)",
    "encoder_k": "MoCo v1/v2 (momentum encoder)",
    "teacher": "teacher of a distillation",
}
"""Prefix without wrapper words -> name of the format; where several cover the backbone alike, the first is taken.

The order follows each project's own evaluation: MoCo reads `encoder_q`, MoCo v3 `base_encoder`, BYOL the online
network, DINO the teacher.
"""


def read_weights(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a weight file under dotted names, on the CPU: `{"state_dict": {"a.b": t}}` is `state_dict.a.b`.

    A file is .safetensors, .npz (arrays by parameter name), or what `torch.save` wrote (.pth, .pt, .pth.tar, .ckpt).

    Raises:
        ModelError: the file is missing, is no weight file, or holds Python objects that would have to be unpickled.
    """
    file = Path(file)
    if not file.is_file():
        raise ModelError(f"The weight file {file} does not exist. Check what follows '@' in the model spec.")
    if file.suffix == ".onnx":
        raise ModelError(f"{file} is an ONNX model, not a weight file. Use it as a teacher of its own: onnx:{file}.")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return {name.replace("/", "."): torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
        # Checkpoints often carry their command line (DINO, MAE) and NumPy scalars; both are plain data.
        scalar = np.float64(0).__reduce__()[0]
        harmless: list[Any] = [argparse.Namespace, np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType, scalar]
        harmless.append((scalar, "numpy.core.multiarray.scalar"))  # its name before NumPy 2
        with torch.serialization.safe_globals(harmless):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{file} holds more than tensors, or is no weight file ({first_line(error)}). Nothing is unpickled here: "
            "in the program that wrote it, save only the tensors, torch.save(model.state_dict(), FILE)."
        ) from None
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise ModelError(
            f"{file} cannot be read as a weight file ({first_line(error)}). Is the download whole?"
        ) from None
    tensors = dict(_flatten(content))
    if not tensors:
        raise ModelError(f"{file} holds no tensors under names (its content is a {type(content).__name__}).")
    return tensors


def recognize(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str, str]:
    """Find the backbone among a file's tensors: the names and shapes of its `state_dict()` decide.

    Returns:
        The tensors found, under the backbone's names; the name of the format; the prefix they had in the file. All
        three empty when nothing fits.

    Raises:
        ModelError: two parts of the file under unknown prefixes fit equally well, so that a choice would be a guess.
    """
    covered: Counter[str] = Counter()
    for name, tensor in state.items():
        # A dotted name may be cut into prefix and parameter name at its start and behind every dot.
        for start in (0, *(position + 1 for position, letter in enumerate(name) if letter == ".")):
            parameter = expected.get(name[start:])
            if parameter is not None and parameter.shape == tensor.shape:
                covered[name[:start]] += max(1, tensor.numel())
    if not covered:
        return {}, "", ""
    ties = [prefix for prefix, count in covered.items() if count == max(covered.values())]
    known = [prefix for prefix in ties if _without_wrappers(prefix) in FORMATS]
    if not known and len(ties) > 1:
        raise ModelError(
            f"The file holds this backbone {len(ties)} times, under {', '.join(repr(prefix) for prefix in ties)}. Save "
            "the one you want on its own: torch.save(model.state_dict(), FILE)."
        )
    order = list(FORMATS)
    prefix = min(known, key=lambda prefix: order.index(_without_wrappers(prefix))) if known else ties[0]
    found = ((name, state.get(prefix + name), parameter.shape) for name, parameter in expected.items())
    tensors = {name: tensor for name, tensor, shape in found if tensor is not None and tensor.shape == shape}
    swav = any("prototypes" in name for name in state)
    return tensors, "SwAV" if swav else FORMATS.get(_without_wrappers(prefix), f"'{prefix}'"), prefix


def load_into(module: nn.Module, file: str | os.PathLike[str]) -> str:
    """Load a weight file into a headless backbone, in place; what is beyond it (classifier, queue ...) is dropped.

    Returns:
        One line: format, how much was taken, what was dropped, what is missing.

    Raises:
        ModelError: less than 90 % of the backbone's parameters are covered; the sentence shows examples of both sides.
    """
    state = read_weights(file)
    expected = module.state_dict()
    tensors, label, prefix = recognize(state, expected)
    # Counters of BatchNorm batches are absent from older files and have no bearing on the output.
    needed = {name: tensor for name, tensor in expected.items() if not name.endswith("num_batches_tracked")}
    parameters = {name: parameter.numel() for name, parameter in module.named_parameters()}
    share = sum(size for name, size in parameters.items() if name in tensors) / max(1, sum(parameters.values()))
    missing = [name for name in needed if name not in tensors]
    reshaped = {name: (state[prefix + name].shape, needed[name].shape) for name in missing if prefix + name in state}
    used = {prefix + name for name in (*tensors, *reshaped)}
    dropped = [name for name in state if name not in used]
    if share < COVERAGE:
        shapes = "".join(
            f" {name} is {_by(in_file)} in the file and {_by(in_model)} in the model."
            for name, (in_file, in_model) in list(reshaped.items())[:3]
        )
        raise ModelError(
            f"{file} covers {100 * share:.0f} % of the backbone's parameters, {100 * COVERAGE:.0f} % are needed. "
            f"Missing: {_examples([name for name in missing if name not in reshaped])}.{shapes} In the file but not in "
            f"the model: {_examples(dropped)}. Is the file from another architecture?"
        )
    module.load_state_dict(tensors, strict=False)
    line = f"{Path(file).name}: {label} format, {len(needed) - len(missing)} of {len(needed)} backbone tensors taken"
    line += f" ({100 * share:.1f} % of the parameters)"
    line += f"; dropped: {_parts(dropped, prefix)}" if dropped else ""
    return line + (f"; missing, left as initialized: {_examples(missing)}" if missing else "; missing: none")


def fingerprint_weights(module: nn.Module) -> str:
    """Sixteen hex digits of all parameters and buffers, the same on any device."""
    parts: list[Any] = []
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        parts += [name, list(array.shape), str(array.dtype), array.reshape(-1).view(torch.uint8).numpy()]
    return fingerprint(*parts)


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix[:-1], content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}{key}.")


def _words(name: str) -> list[str]:
    return [word for word in name.split(".") if word and word not in WRAPPERS]


def _without_wrappers(prefix: str) -> str:
    return ".".join(_words(prefix))


def _parts(names: list[str], prefix: str) -> str:
    """The parts of the file beside the backbone, from their tensors' names: `fc (4), encoder_k (320), queue (1)`."""
    backbone = _words(prefix)

    def part(name: str) -> str:
        words = _words(name)
        pairs = enumerate(zip(words, backbone, strict=False))
        depth = next((i for i, (word, other) in pairs if word != other), len(backbone))
        return words[min(depth, len(words) - 1)] if words else name

    parts = Counter(map(part, names))
    return ", ".join(f"{part} ({count})" for part, count in parts.most_common(5)) + (", ..." if len(parts) > 5 else "")


def _examples(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
