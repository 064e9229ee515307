"""`hf:ORG/NAME` or `hf:FOLDER`: the image encoders of transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.errors import MissingDependency, ModelError
from understudy.models.families import BuiltNetwork, Family, Request

if TYPE_CHECKING:
    from understudy.models.contract import Contract

CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files of weights, the first that is there is taken; an index names the parts beside it."""


class HuggingFace(Family):
    """Any image encoder of transformers, its input contract from its own image processor; no code of the hub is run."""

    name = "hf"
    form = "hf:ORG/NAME"
    summary = "an image encoder of [transformers](https://github.com/huggingface/transformers) from the hub, "
    summary += "`hf:ORG/NAME@REVISION` of one revision, `hf:FOLDER` from a folder: ViT, DINOv2 and 3, CLIP and SigLIP "
    summary += "(image tower), MAE, ConvNeXt, Swin, timm's"
    paper = """@inproceedings{wolf2020transformers,
  title     = {Transformers: State-of-the-Art Natural Language Processing},
  author    = {Wolf, Thomas and Debut, Lysandre and Sanh, Victor and Chaumond, Julien and Delangue, Clement and others},
  booktitle = {EMNLP: System Demonstrations},
  year      = {2020}
}"""
    after_at = "a revision"
    publishes_weights = True

    @staticmethod
    def build(request: Request) -> BuiltNetwork:
        """See `Family.build`; what follows "@" is a revision of the hub."""
        try:
            import transformers
        except ImportError:
            raise MissingDependency("hf: specs need transformers: pip install 'understudy[hf]'.") from None
        from understudy.models.hf_encoder import build_network, describe, load_network, quiet, read_config
        from understudy.models.hf_processor import processor_contract

        loads = request.pretrained or request.file is not None
        source, folder, weights = request.name, None, ""
        with quiet():
            if not source.startswith("{"):  # else `describe` wrote it, for a student that was saved
                folder, weights = _folder(request, weights=loads)
                source = str(folder)
            config, pooling = read_config(source, request.spec)
            if loads and folder:
                network, pooling = load_network(folder, config, request.spec)
            else:
                network, weights = build_network(config, request.spec, pooling=pooling), ""
            contract = processor_contract(folder, request.spec) if folder else None
        built = _finish(request, network, contract, weights)
        built.architecture = f"hf:{describe(config, pooling=pooling)}"
        built.library = f"transformers {transformers.__version__}" + (f", {built.library}" if built.library else "")
        return built


def _finish(request: Request, network: Any, own: Contract | None, weights: str) -> BuiltNetwork:
    """The headless network at the size that is asked for, with its contract."""
    from understudy.models.contract import Contract
    from understudy.models.families.timm import set_input_size
    from understudy.models.hf_encoder import HfEncoder, side

    if own is None and (request.pretrained or weights) and (request.mean is None or request.std is None):
        raise ModelError(
            f"{request.spec} has no preprocessor_config.json, which says what input it was trained on. Give "
            "--teacher-mean and --teacher-std."
        )
    if network.config.model_type == "timm_wrapper":
        import timm

        module, pretrained = network.timm_model, network.config.pretrained_cfg or {}
        native = (
            side((network.config.model_args or {}).get("img_size")) or pretrained.get("input_size", (3, 224, 224))[-1]
        )
        contract = own or Contract.untrained(request.image_size or native)
        if (size := request.image_size or contract.size) != native and hasattr(module, "set_input_size"):
            set_input_size(module, (size, size), request.spec)
            weights += weights and f"; position embeddings resampled from {native} to {size} pixels"
        return BuiltNetwork(module, contract, weights, library=f"timm {timm.__version__}")
    encoder = HfEncoder(network)
    contract = own or Contract.untrained(request.image_size or encoder.image_size or 224)
    size = request.image_size or contract.size
    words = encoder.settle(size, request.spec)
    if weights:
        weights += f", {words}"
        if encoder.num_prefix_tokens is not None and encoder.image_size not in (None, size):
            weights += f"; position embeddings resampled from {encoder.image_size} to {size} pixels"
    return BuiltNetwork(encoder, contract, weights)


def _folder(request: Request, *, weights: bool) -> tuple[Path, str]:
    """Where the files of a model are, and what that is called."""
    from understudy.models.hub import snapshot

    path = Path(request.name).expanduser()
    if path.is_dir():
        if request.file:
            raise ModelError(f"{request.spec}: what follows @ is a revision of the hub, and a folder has none.")
        return path, f"weights of {path.name}"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", request.name) or request.name.startswith("."):
        raise ModelError(f"There is no folder {request.name}; a model of the hub is called ORG/NAME.")

    def choose(files: Sequence[str]) -> list[str]:
        found = next((name for name in WEIGHTS if name in files), "") if weights else ""
        stem = found.partition(".")[0] + "-" if found.endswith(".index.json") else None
        return [name for name in files if name in (*CONFIGS, found) or (stem and name.startswith(stem))]

    folder = snapshot(request.name, request.file, choose, lambda folder: _whole(folder, weights=weights))
    return folder, f"{request.name} at commit {folder.name}"


def _whole(folder: Path, *, weights: bool) -> bool:
    """Whether a folder of the cache has all that `build` reads."""
    processor = any((folder / name).is_file() for name in CONFIGS[1:])
    if not (processor or "pretrained_cfg" in (folder / "config.json").read_text("utf-8")):
        return False
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if not weights or found is None:
        return not weights
    if found.suffix != ".json":
        return True
    parts = set(json.loads(found.read_text("utf-8")).get("weight_map", {}).values())
    return all((folder / name).is_file() for name in parts)
