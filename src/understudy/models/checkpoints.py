"""The tensors of a weight file -> those that a backbone expects, with one line that says what happened.

Files differ in wrappers (`state_dict`, `model`, `module.`) and in the prefix of the encoder among its siblings
(momentum encoder, projector, predictor, queue). Instead of one rule per project, `recognize` finds every prefix under
which the backbone's own names and shapes occur, takes the one that covers most, and lets `FORMATS` name it and settle
ties. Programs that shard or compile put words inside the names too, which `_readings` takes out.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from understudy.artifacts import fingerprint
from understudy.errors import ModelError
from understudy.models.weight_files import by, read_weights

log = logging.getLogger("understudy")

COVERAGE = 0.9  # share of the backbone's parameters that a file must bring for a student; a teacher needs all of it
WRAPPERS = {"state_dict", "model", "module", "model_state_dict", "model_state", "net", "network", "_orig_mod"}
"""Words in a prefix that only say how the file was saved."""

INSIDE = {"_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module", "_orig_mod", "module"}
"""Words inside a name that only say how the network was wrapped when it was saved."""

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


class Found(NamedTuple):
    """A backbone found among the tensors of a file."""

    tensors: dict[str, Tensor]  # under the backbone's names
    label: str  # name of the format
    prefix: str  # what stands before those names in the file
    state: Mapping[str, Tensor]  # all of the file, names read as they were for this

    @property
    def numbers(self) -> int:
        """How many numbers were found."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def recognize(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Found:
    """Find the backbone among a file's tensors: the names and shapes of its `state_dict()` decide.

    Returns:
        What was found; nothing under no prefix when nothing fits.

    Raises:
        ModelError: two parts of the file under unknown prefixes fit equally well, so that a choice would be a guess.
    """
    covered: Counter[str] = Counter()
    for name, tensor in state.items():
        # A dotted name may be cut into prefix and parameter name at its start and behind every dot.
        for start in (0, *(position + 1 for position, letter in enumerate(name) if letter == ".")):
            parameter = expected.get(name[start:])
            if parameter is not None and not _difference(tensor, parameter):
                covered[name[:start]] += max(1, tensor.numel())
    if not covered:
        return Found({}, "", "", state)
    ties = [prefix for prefix, count in covered.items() if count == max(covered.values())]
    known = [prefix for prefix in ties if _without_wrappers(prefix) in FORMATS]
    if not known and len(ties) > 1:
        raise ModelError(
            f"The file holds this backbone {len(ties)} times, under {', '.join(repr(prefix) for prefix in ties)}. Save "
            "the one you want on its own: torch.save(model.state_dict(), FILE)."
        )
    order = list(FORMATS)
    prefix = min(known, key=lambda prefix: order.index(_without_wrappers(prefix))) if known else ties[0]
    found = ((name, state.get(prefix + name), parameter) for name, parameter in expected.items())
    tensors = {
        name: tensor for name, tensor, parameter in found if tensor is not None and not _difference(tensor, parameter)
    }
    swav = any("prototypes" in name for name in state)
    return Found(tensors, "SwAV" if swav else FORMATS.get(_without_wrappers(prefix), f"'{prefix}'"), prefix, state)


def load_into(
    module: nn.Module, file: str | os.PathLike[str], *, whole: bool = False,
    fit: Callable[[Mapping[str, Sequence[int]]], bool] | None = None,
) -> str:  # fmt: skip
    """Load a weight file into a headless backbone, in place; what is beyond it (classifier, queue ...) is dropped.

    Args:
        module: the backbone.
        file: see `read_weights`.
        whole: refuse a file that leaves anything of the backbone as it was initialized, buffers included: a teacher's.
            Otherwise 90 % of the parameters suffice, and what is missing is logged.
        fit: called with the shapes in the file of what is in the file in another shape; gives the module those shapes
            and returns True if that is all that differs (position embeddings of another grid).

    Returns:
        One line: format, how much was taken, what was dropped, what is missing.

    Raises:
        ModelError: too little is covered; the sentence shows examples of both sides.
    """
    state = read_weights(file)
    try:
        found = _best(state, module.state_dict())
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from None
    if fit is not None:
        found = _fitted(found, module, fit)
    tensors, label, prefix, names = found
    expected = module.state_dict()
    missing = _missing(module, tensors)
    # Counters of BatchNorm batches are absent from older files and have no bearing on the output.
    needed = {name: tensor for name, tensor in expected.items() if not name.endswith("num_batches_tracked")}
    parameters = {name: parameter.numel() for name, parameter in module.named_parameters()}
    share = sum(size for name, size in parameters.items() if name not in missing) / max(1, sum(parameters.values()))
    different = {name: _difference(names[prefix + name], needed[name]) for name in missing if prefix + name in names}
    used = {prefix + name for name in (*tensors, *different)}
    dropped = [name for name in names if name not in used]
    if missing if whole else share < COVERAGE:
        absent = [name for name in missing if name not in different]
        raise ModelError(
            f"{file} covers {math.floor(1000 * share) / 10:g} % of the backbone's parameters"
            + (
                ", and a teacher needs all of them and all buffers."
                if whole
                else f", {100 * COVERAGE:.0f} % are needed."
            )
            + (f" Missing: {_examples(absent)}." if absent else "")
            + "".join(f" {name} {words}." for name, words in list(different.items())[:3])
            + f" In the file but not in the model: {_examples(dropped)}. Is the file from another architecture?"
        )
    module.load_state_dict(tensors, strict=False)
    line = f"{Path(file).name}: {label} format, {len(needed) - len(missing)} of {len(needed)} backbone tensors taken"
    line += f" ({100 * share:.1f} % of the parameters)"
    line += f"; dropped: {_parts(dropped, prefix)}" if dropped else ""
    if not missing:
        return f"{line}; missing: none"
    log.warning("%s leaves %d tensors as they were initialized: %s.", file, len(missing), _examples(missing))
    return f"{line}; missing, left as initialized: {_examples(missing)}"


def _fitted(found: Found, module: nn.Module, fit: Callable[[Mapping[str, Sequence[int]]], bool]) -> Found:
    """What is found once the module has been given the shapes of the file, if it can be."""
    own = module.state_dict()
    others = {name: found.state.get(found.prefix + name) for name in own if name not in found.tensors}
    shapes = {
        name: tensor.shape for name, tensor in others.items() if tensor is not None and tensor.shape != own[name].shape
    }
    return recognize(found.state, module.state_dict()) if shapes and fit(shapes) else found


def fingerprint_weights(module: nn.Module) -> str:
    """Sixteen hex digits of all parameters and buffers, the same on any device."""
    parts: list[Any] = []
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        parts += [name, list(array.shape), str(array.dtype), array.reshape(-1).view(torch.uint8).numpy()]
    return fingerprint(*parts)


def _best(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Found:
    """The reading of a file's names under which most of the backbone is found; the first of equals."""
    best, fault = None, None
    for reading in _readings(state):
        try:
            found = recognize(reading, expected)
        except ModelError as error:
            fault = fault or error
            continue
        if best is None or found.numbers > best.numbers:
            best = found
        if len(best.tensors) == len(expected):
            break
    if best is None:
        assert fault is not None
        raise fault
    return best


def _readings(state: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """The tensors under the names of the file, then without words of wrappers, then with chunks of blocks in a row."""
    yield state
    renamed = {".".join(word for word in name.split(".") if word not in INSIDE): name for name in state}
    if len(renamed) == len(state):  # else two parts differ by such a word alone
        if set(renamed) != set(state):
            yield {name: state[old] for name, old in renamed.items()}
    else:
        renamed = {name: name for name in state}
    chunked = _without_chunks(list(renamed))
    if chunked:
        yield {chunked.get(name, name): state[old] for name, old in renamed.items()}


def _without_chunks(names: list[str]) -> dict[str, str]:
    """`blocks.0.3.norm1.weight` -> `blocks.3.norm1.weight`: blocks that were grouped in chunks to be sharded.

    Within a chunk they are numbered as a whole (DINOv2), or each chunk begins with 0.
    """
    matches = {name: match for name in names if (match := re.fullmatch(r"(.*?)\.(\d+)\.(\d+)\.(.+)", name))}
    numbers: dict[str, set[tuple[int, int]]] = {}
    for match in matches.values():
        numbers.setdefault(match[1], set()).add((int(match[2]), int(match[3])))
    place: dict[tuple[str, int, int], int] = {}
    for stem, pairs in numbers.items():
        running = len({inner for _, inner in pairs}) == len(pairs)
        place |= {(stem, *pair): pair[1] if running else order for order, pair in enumerate(sorted(pairs))}
    return {
        name: f"{match[1]}.{place[match[1], int(match[2]), int(match[3])]}.{match[4]}"
        for name, match in matches.items()
    }


def _missing(module: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """What of a module would be left as it was; a tensor that has two names is loaded by either."""
    expected = module.state_dict()
    loaded = {(expected[name].data_ptr(), expected[name].shape) for name in tensors if expected[name].numel()}
    return [
        name
        for name, tensor in expected.items()
        if name not in tensors
        and not name.endswith("num_batches_tracked")
        and (tensor.data_ptr(), tensor.shape) not in loaded
    ]


def _difference(tensor: Tensor, parameter: Tensor) -> str:
    """Why a tensor of a file cannot take the place of one of the model, in words; "" where it can."""
    if tensor.shape != parameter.shape:
        return f"is {by(tensor.shape)} in the file and {by(parameter.shape)} in the model"
    if tensor.device.type != "cpu":
        return "has a shape in the file, and no numbers"
    whole = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_complex()
    kind = tensor.is_floating_point() == parameter.is_floating_point()
    if not whole or not kind or (tensor.is_floating_point() and tensor.element_size() < 2):
        return f"is {_kind(tensor)} in the file and {_kind(parameter)} in the model"
    return ""


def _kind(tensor: Tensor) -> str:
    sparse = "" if tensor.layout == torch.strided else "sparse "
    return sparse + str(tensor.dtype).removeprefix("torch.")


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
