"""`timm:NAME`: the networks of timm."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from understudy.errors import MissingDependency, ModelError
from understudy.models.families import BuiltNetwork, Family, Request, closest

if TYPE_CHECKING:
    from torch import nn


class Timm(Family):
    """Any encoder of timm, its classifier removed."""

    name = "timm"
    form = "timm:NAME"
    summary = "any [timm](https://github.com/huggingface/pytorch-image-models) encoder; as a teacher with its "
    summary += "published weights"
    paper = """@misc{wightman2019timm,
  title  = {{PyTorch} Image Models},
  author = {Wightman, Ross},
  year   = {2019},
  doi    = {10.5281/zenodo.4414861}
}"""
    publishes_weights = True
    names_architecture = True

    @staticmethod
    def build(request: Request) -> BuiltNetwork:
        """See `Family.build`; position embeddings are resampled to the size that is asked for."""
        try:
            import timm
        except ImportError:
            raise MissingDependency("timm: specs need timm: pip install timm.") from None
        from understudy.models.contract import SMALL, Contract
        from understudy.sources.decode import RESAMPLING

        name, size = request.name, request.image_size
        architecture, _, tag = name.partition(".")
        if not timm.is_model(architecture) or (tag and name not in timm.list_pretrained(f"{architecture}.*")):
            raise ModelError(
                f"timm has no model '{name}'. {closest(name, timm.list_models() + timm.list_pretrained())}"
            )
        if request.download and not timm.models.is_model_pretrained(name):
            raise ModelError(f"timm publishes no weights for '{name}'. Pass a local file: timm:{name}@FILE.")
        module: Any
        grid = FileGrid()
        if request.download:
            module = request.downloaded(lambda: published(name))
            weights = f"timm's published weights ({module.pretrained_cfg.get('hf_hub_id') or name}), classifier dropped"
        else:
            module = timm.create_model(name, pretrained=False, num_classes=0)
            weights = request.load_file(module, partial(grid.fit, module))
        config = timm.data.resolve_model_data_config(module)
        native = int(config["input_size"][-1])
        interpolation = config["interpolation"] if config["interpolation"] in RESAMPLING else "bicubic"
        fit = "squash" if config.get("crop_mode") == "squash" else "crop"
        contract = Contract(native, config["mean"], config["std"], interpolation, float(config["crop_pct"]), fit)
        side, own = size or native, grid.side or native
        if side != own and (grid.side or module.pretrained_cfg.get("fixed_input_size")):
            # After the weights: position embeddings are resampled from the size they were trained at.
            if not hasattr(module, "set_input_size"):
                raise ModelError(f"timm:{name} takes exactly {native} x {native} images, not {size} x {size}.")
            set_input_size(module, (side, side), f"timm:{name}")
            if weights:
                weights += f"; position embeddings resampled from {own} to {side} pixels"
        if not weights and (size or native) <= SMALL:
            contract = dataclasses.replace(contract, crop=1.0)
        return BuiltNetwork(module, contract, weights, library=f"timm {timm.__version__}")


class FileGrid:
    """Gives a transformer of timm the grid of patches whose position embeddings a weight file has."""

    side: int | None = None
    """Pixels of the side of an image that is cut into that grid, once it is known to be another than the model's."""

    def fit(self, module: Any, shapes: Mapping[str, Sequence[int]]) -> bool:
        """As `checkpoints.load_into` wants it: tries the images whose patches would need so many embeddings."""
        from understudy.models.outputs import patch_size

        patch = patch_size(module)
        if patch is None or not hasattr(module, "set_input_size"):
            return False
        prefix = 0 if getattr(module, "no_embed_class", False) else getattr(module, "num_prefix_tokens", 0)
        sides = {patch * math.isqrt(max(0, shape[1] - prefix)) for shape in shapes.values() if len(shape) == 3}
        # BEiT has an embedding for each offset of two patches, (2 g - 1)^2, and three more.
        sides |= {patch * ((math.isqrt(max(0, shape[0] - 3)) + 1) // 2) for shape in shapes.values() if len(shape) == 2}
        for side in sorted(sides - {0}):
            trial = copy.deepcopy(module)
            try:
                set_input_size(trial, (side, side), "")
            except ModelError:
                continue
            state = trial.state_dict()
            if all(state[name].shape == tuple(shape) for name, shape in shapes.items()):
                set_input_size(module, (side, side), "")
                self.side = side
                return True
        return False


def set_input_size(module: Any, size: tuple[int, int], spec: str) -> None:
    """Resample the position embeddings of a timm network to images of another size; refused where it cannot be."""
    try:
        module.set_input_size(img_size=size)
    except (AssertionError, ValueError, RuntimeError) as error:
        raise ModelError(f"{spec} cannot be set to images of {size[0]} x {size[1]}: {error}") from None


def published(name: str) -> nn.Module:
    """A timm model with its weights; from the cache, or at once an error, where the hub is out of reach."""
    import timm
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from understudy.models.hub import knock

    config = timm.models.get_pretrained_cfg(name)
    if config is not None and config.hf_hub_id:
        repository = config.hf_hub_id.split("@")[0]
        try:
            snapshot_download(repository, local_files_only=True)
        except LocalEntryNotFoundError:
            knock(repository)
    model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    return model
