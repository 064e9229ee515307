"""From a spec string to a backbone: its module, feature width, input contract, and a line on its weights.

`PREFIX:NAME` or `PREFIX:NAME@FILE`; `SPECS` has one entry a prefix. A headless network ends in its pooled feature.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from understudy.artifacts import file_fingerprint, fingerprint
from understudy.errors import MissingDependency, ModelError
from understudy.models.checkpoints import fingerprint_weights, load_into
from understudy.models.contract import IMAGENET_MEAN, IMAGENET_STD, RESAMPLING, Contract
from understudy.models.onnx_encoder import METADATA, OnnxEncoder
from understudy.models.resnet import small_resnet
from understudy.settings import nearest

SMALL = 64
"""At this size or below a fresh network sees the whole image in evaluation; above it, the customary 0.875 of it."""

TRIALS = 3
"""Times that a hub is asked, a second apart, before it counts as out of reach."""


@dataclass
class Backbone:
    """A headless network and all that is known about it.

    Args:
        module: (B, 3, S, S) prepared -> (B, F) pooled features.
        width: F.
        contract: what its input must look like.
        spec: as the user wrote it.
        architecture: the spec that builds the same module with no weights: no `@FILE`, no `run:`.
        weights: one line: what was loaded, dropped, missing; "" for a random initialization.
        trained: whether weights were loaded.
        fingerprint: changes with the weights or the architecture; "" when untrained.
    """

    module: nn.Module
    width: int
    contract: Contract
    spec: str
    architecture: str
    weights: str
    trained: bool
    fingerprint: str


@dataclass(frozen=True)
class Request:
    """One spec, taken apart, for the entries of `SPECS`.

    Args:
        spec: as written.
        name: between the prefix and `@`.
        file: after `@`, or None.
        pretrained: a teacher is wanted: weights are required, and downloaded where the source publishes them.
        image_size: the side the user asked for, or None.
        mean, std: the normalization the user gave, or None.
    """

    spec: str
    name: str
    file: str | None
    pretrained: bool
    image_size: int | None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


@dataclass
class Built:
    """What an entry of `SPECS` hands back; `contract` is the network's own, before the user's overrides."""

    module: nn.Module
    contract: Contract
    weights: str = ""
    architecture: str | None = None
    fingerprint: str | None = None


def build_backbone(
    spec: str,
    *,
    pretrained: bool,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Backbone:
    """Build what a spec stands for.

    Args:
        spec: `timm:NAME`, `torchvision:NAME`, `onnx:FILE`, `run:FOLDER`, `small:resnet20x2`, `python:module:callable`;
            all but onnx and run may be followed by `@FILE`, a local weight file.
        pretrained: True for a teacher: its weights are loaded or downloaded, and it is refused without. False for a
            student: random unless the spec brings weights (`@FILE`, `run:`).
        image_size: input side in pixels; default the network's own.
        mean: three numbers on [0, 1]; default the network's own.
        std: three numbers on [0, 1]; default the network's own.

    Returns:
        The backbone, on the CPU, in training mode.

    Raises:
        ModelError: an unknown spec, unusable weights, a teacher without any, or a size the network cannot take.
    """
    prefix, _, rest = spec.partition(":")
    if prefix not in SPECS or not rest:
        raise ModelError(f"'{spec}' is not a model spec PREFIX:NAME. {nearest(prefix, SPECS)} Example: timm:resnet18.")
    # The name of an ONNX file or a run folder is a path and may itself contain '@'.
    name, _, file = (rest, "", "") if prefix in ("onnx", "run") else rest.partition("@")
    if image_size is not None and image_size < 1:
        raise ModelError(f"An image size is at least 1 pixel; got {image_size}.")
    built = SPECS[prefix](Request(spec, name, file or None, pretrained, image_size, mean, std))
    if pretrained and not built.weights:
        raise ModelError(
            f"{prefix}:{name} has no weights, and a random teacher would only distill noise. Add {prefix}:{name}@FILE, "
            "or train a teacher without labels first (understudy pretrain) and use run:FOLDER."
        )
    contract = built.contract
    if image_size is not None:
        contract = dataclasses.replace(contract, size=image_size)
    if mean is not None:
        contract = dataclasses.replace(contract, mean=tuple(mean))
    if std is not None:
        contract = dataclasses.replace(contract, std=tuple(std))
    architecture = built.architecture or f"{prefix}:{name}"
    digest = built.fingerprint or fingerprint(architecture, fingerprint_weights(built.module)) if built.weights else ""
    return Backbone(
        module=built.module,
        width=_probe_width(built.module, contract, spec),
        contract=contract,
        spec=spec,
        architecture=architecture,
        weights=built.weights,
        trained=bool(built.weights),
        fingerprint=digest,
    )


def _probe_width(module: nn.Module, contract: Contract, spec: str) -> int:
    """F, measured: one blank image through the network says it for every architecture alike."""
    was_training = module.training
    module.eval()
    size = contract.size
    try:
        with torch.no_grad():
            features = module(torch.zeros(1, 3, size, size))
    except ModelError:
        raise
    except Exception as error:  # Whatever a foreign forward raises is about its input here.
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{spec} cannot take {size} x {size} images: {reason or type(error).__name__}.") from error
    finally:
        module.train(was_training)
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != 1:
        found = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise ModelError(f"{spec} must map (1, 3, {size}, {size}) to pooled features (1, F); it gives {found}.")
    return features.shape[1]


def _fresh(size: int, interpolation: str = "bilinear") -> Contract:
    """The contract of a network that has none yet: ImageNet's statistics, as in the paper's scripts."""
    return Contract(size, IMAGENET_MEAN, IMAGENET_STD, interpolation, crop=1.0 if size <= SMALL else 0.875)


def _timm(request: Request) -> Built:
    try:
        import timm
    except ImportError:
        raise MissingDependency("timm: specs need timm: pip install timm.") from None
    name, size = request.name, request.image_size
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or (tag and name not in timm.list_pretrained(f"{architecture}.*")):
        raise ModelError(f"timm has no model '{name}'. {_closest(name, timm.list_models() + timm.list_pretrained())}")
    download = request.pretrained and request.file is None
    if download and not timm.models.is_model_pretrained(name):
        raise ModelError(f"timm publishes no weights for '{name}'. Pass a local file: {request.spec}@FILE.")
    if download:
        module: Any = _downloaded(request, lambda: _published_by_timm(name))
    else:
        module = timm.create_model(name, pretrained=False, num_classes=0)
    weights = load_into(module, request.file) if request.file else ""
    if download:
        weights = f"timm's published weights ({module.pretrained_cfg.get('hf_hub_id') or name}), classifier dropped"
    config = timm.data.resolve_model_data_config(module)
    native = int(config["input_size"][-1])
    interpolation = config["interpolation"] if config["interpolation"] in RESAMPLING else "bicubic"
    contract = Contract(native, config["mean"], config["std"], interpolation, float(config["crop_pct"]))
    if size and size != native and module.pretrained_cfg.get("fixed_input_size"):
        # After the weights: position embeddings are resampled from the size they were trained at.
        if not hasattr(module, "set_input_size"):
            raise ModelError(f"timm:{name} takes exactly {native} x {native} images, not {size} x {size}.")
        try:
            module.set_input_size(img_size=size)
        except (AssertionError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"timm:{name} is made for {native} x {native} images, not {size} x {size}: {error}"
            ) from None
    if not weights and (size or native) <= SMALL:
        contract = dataclasses.replace(contract, crop=1.0)
    return Built(module, contract, weights)


def _published_by_timm(name: str) -> nn.Module:
    """A timm model with its weights; from the cache, or at once an error, where the hub that has them is out of reach.

    The hub's own client takes 23 seconds for each of two file names to give up on a name that cannot be resolved, which
    none of its settings shortens. So it is asked here first, unless it has left a copy: a few refusals within seconds
    are no network, while whatever answers, or is slow to, is left to the client and its patience.
    """
    import timm
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    config = timm.models.get_pretrained_cfg(name)
    if config is not None and config.hf_hub_id:
        place = config.hf_hub_id.split("@")[0]
        try:
            snapshot_download(place, local_files_only=True)
        except LocalEntryNotFoundError:
            for trial in range(TRIALS):
                try:
                    get_hf_file_metadata(hf_hub_url(place, "config.json"))
                    break
                except (HfHubHTTPError, OfflineModeIsEnabled):
                    break  # an answer, or one that the client gives at once
                except Exception as error:  # of the library beneath the client, which has changed more than once
                    if "Timeout" in type(error).__name__:
                        break
                    if trial == TRIALS - 1:
                        raise
                    time.sleep(1)
    model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    return model


def _torchvision(request: Request) -> Built:
    import torchvision

    name = request.name
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ModelError(f"torchvision has no image encoder '{name}'. {_closest(name, known)}")
    options: dict[str, Any] = {}
    if request.image_size and name.startswith("vit_"):
        options["image_size"] = request.image_size
    elif request.image_size and name.startswith("maxvit"):
        options["input_size"] = (request.image_size, request.image_size)
    if request.pretrained and request.file is None:
        published = torchvision.models.get_model_weights(name).DEFAULT
        module = _downloaded(request, lambda: torchvision.models.get_model(name, weights=published, **options))
        preset = published.transforms()
        size, interpolation = preset.crop_size[0], preset.interpolation.value
        contract = Contract(size, tuple(preset.mean), tuple(preset.std), interpolation, size / preset.resize_size[0])
        weights = f"torchvision's published weights ({published}), classifier dropped"
    else:
        if name in ("googlenet", "inception_v3"):  # Their auxiliary classifiers are of no use without labels.
            options |= {"aux_logits": False, "init_weights": True}
        module = torchvision.models.get_model(name, weights=None, **options)
        contract, weights = _fresh(request.image_size or 224), ""
    _cut_classifier(module, name)
    if request.file:
        weights = load_into(module, request.file)
    return Built(module, contract, weights)


def _cut_classifier(module: nn.Module, name: str) -> None:
    """Remove the last linear layer, and the dropout before it, from a torchvision classifier."""
    for attribute in ("fc", "classifier", "heads", "head"):
        last = getattr(module, attribute, None)
        if isinstance(last, nn.Linear):
            setattr(module, attribute, nn.Identity())
            return
        if isinstance(last, nn.Sequential) and isinstance(last[-1], nn.Linear):
            end = len(last) - 1
            while end and isinstance(last[end - 1], nn.Dropout):
                end -= 1
            setattr(module, attribute, last[:end])
            return
    raise ModelError(f"torchvision:{name} does not end in a linear classifier that could be removed. Try timm:{name}.")


def _onnx(request: Request) -> Built:
    module = OnnxEncoder(request.name)
    if not request.pretrained:
        raise ModelError(f"{request.spec} is frozen and cannot be trained: it can only be a teacher.")
    table = module.metadata
    if table is None and request.mean is not None and request.std is not None:
        size = request.image_size or module.fixed_size[0] or 224
        table = {"size": size, "mean": request.mean, "std": request.std}
    if table is None:
        raise ModelError(
            f"{request.name} does not say what input it was trained on. Give --teacher-mean and --teacher-std, or "
            f"write it into the file's metadata, key '{METADATA}', as JSON: "
            '{"size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bicubic"}.'
        )
    contract = Contract.from_table(table)
    for axis, fixed in zip(("high", "wide"), module.fixed_size, strict=True):
        wanted = request.image_size or contract.size
        if fixed is not None and fixed != wanted:
            asked = f"{wanted} was asked for" if request.image_size else f"its own metadata says {wanted}"
            raise ModelError(f"{request.name} takes images exactly {fixed} pixels {axis}; {asked}.")
    digest = fingerprint("onnx", file_fingerprint(request.name))
    return Built(module, contract, f"ONNX file {module.file.name}, frozen as it is", fingerprint=digest)


def _run(request: Request) -> Built:
    from understudy.models.student import load_student  # A student is built on a backbone: the one cycle in this room.

    student = load_student(request.name)
    built = Built(
        student.backbone,
        student.contract,
        f"student of {request.name} ({student.spec}), its head dropped",
        architecture=student.architecture,
    )
    built.module.train()
    return built


def _small(request: Request) -> Built:
    module = small_resnet(request.name)
    weights = load_into(module, request.file) if request.file else ""
    return Built(module, _fresh(request.image_size or 32, "bicubic"), weights)


def _python(request: Request) -> Built:
    """`python:module:callable`: a function or class of the user's, called without arguments, giving a headless module.

    Its attribute `contract` (a Contract or a table of one), if it has one, is its input contract.
    """
    place, _, attribute = request.name.partition(":")
    if not place or not attribute:
        raise ModelError(f"'{request.spec}' must read python:module:callable, e.g. python:my_models:encoder.")
    sys.path.insert(0, os.getcwd())  # The user's own file beside the run, as `python my_script.py` would find it.
    try:
        module = getattr(importlib.import_module(place), attribute)()
    except ModuleNotFoundError as error:
        raise ModelError(f"{request.spec}: there is no Python module '{error.name}' here or installed.") from error
    except AttributeError as error:
        raise ModelError(f"{request.spec}: {error}.") from error
    finally:
        sys.path.remove(os.getcwd())
    if not isinstance(module, nn.Module):
        raise ModelError(f"{request.spec} must return a torch.nn.Module; it returned a {type(module).__name__}.")
    own = getattr(module, "contract", None)
    if own is None:
        contract = _fresh(request.image_size or 224)
    else:
        contract = own if isinstance(own, Contract) else Contract.from_table(own)
    weights = load_into(module, request.file) if request.file else ""
    if request.pretrained and not weights:
        weights = f"as returned by {request.name}"
    if weights and own is None:
        weights += f"; it has no .contract: ImageNet's mean and std at {contract.size} pixels assumed"
    return Built(module, contract, weights)


SPECS: dict[str, Callable[[Request], Built]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "onnx": _onnx,
    "run": _run,
    "small": _small,
    "python": _python,
}
"""Prefix of a model spec -> what builds it."""


def _downloaded(request: Request, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except Exception as error:  # Hub, proxy, certificate, disk: each library below has exceptions of its own.
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(
            f"The weights of {request.spec} could not be downloaded ({reason}). With no network, pass a local file: "
            f"{request.spec}@FILE."
        ) from error


def _closest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
    return f"Nearest: {', '.join(close)}." if close else f"It has {len(known)} others."
