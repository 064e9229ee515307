"""`torchvision:NAME`: the classifiers of torchvision, without their classifier."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from understudy.errors import ModelError
from understudy.models.families import BuiltNetwork, Family, Request, closest

if TYPE_CHECKING:
    from torch import nn


class Torchvision(Family):
    """Any classifier of torchvision that ends in a linear layer, which is removed."""

    name = "torchvision"
    form = "torchvision:NAME"
    summary = "any torchvision classifier, its classifier removed; as a teacher with its published weights"
    paper = """@software{torchvision2016,
  title  = {{TorchVision}: {PyTorch}'s Computer Vision library},
  author = {{TorchVision maintainers and contributors}},
  year   = {2016}
}"""
    publishes_weights = True
    names_architecture = True

    @staticmethod
    def build(request: Request) -> BuiltNetwork:
        """See `Family.build`."""
        import torchvision

        from understudy.models.contract import Contract

        name = request.name
        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise ModelError(f"torchvision has no image encoder '{name}'. {closest(name, known)}")
        options: dict[str, Any] = {}
        if request.image_size and name.startswith("vit_"):
            options["image_size"] = request.image_size
        elif request.image_size and name.startswith("maxvit"):
            options["input_size"] = (request.image_size, request.image_size)
        if request.download:
            published = torchvision.models.get_model_weights(name).DEFAULT
            module = request.downloaded(lambda: torchvision.models.get_model(name, weights=published, **options))
            preset = published.transforms()
            size, interpolation = preset.crop_size[0], preset.interpolation.value
            contract = Contract(
                size, tuple(preset.mean), tuple(preset.std), interpolation, size / preset.resize_size[0]
            )
            weights = f"torchvision's published weights ({published}), classifier dropped"
        else:
            if name in ("googlenet", "inception_v3"):  # Their auxiliary classifiers are of no use without labels.
                options |= {"aux_logits": False, "init_weights": True}
            module = torchvision.models.get_model(name, weights=None, **options)
            contract, weights = Contract.untrained(request.image_size or 224), ""
        _remove_classifier(module, name)
        if not weights:
            weights = request.load_file(module, partial(_take_file_grid, module))
            weights += _resample_positions(module)
        library = f"torchvision {torchvision.__version__.partition('+')[0]}"
        return BuiltNetwork(module, contract, weights, library=library)


def _take_file_grid(module: Any, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Give a transformer as many position embeddings as a weight file has, if that is all that differs."""
    from torch import nn

    name = "encoder.pos_embedding"
    shape = shapes.get(name, ())
    own = getattr(getattr(module, "encoder", None), "pos_embedding", None)
    if set(shapes) != {name} or own is None or len(shape) != 3 or shape[2] != own.shape[2]:
        return False
    if math.isqrt(shape[1] - 1) ** 2 != shape[1] - 1:
        return False
    module.encoder.pos_embedding = nn.Parameter(own.new_zeros(*shape))
    return True


def _resample_positions(module: Any) -> str:
    """Bring the position embeddings of a transformer to the size it is set to; says so if they were of another."""
    from torch import nn
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    if not isinstance(module, VisionTransformer):
        return ""
    own = module.encoder.pos_embedding
    grid = math.isqrt(own.shape[1] - 1)
    if grid == module.image_size // module.patch_size:
        return ""
    state = interpolate_embeddings(
        module.image_size, module.patch_size, OrderedDict({"encoder.pos_embedding": own.detach()})
    )
    module.encoder.pos_embedding = nn.Parameter(state["encoder.pos_embedding"])
    return f"; position embeddings resampled from {grid * module.patch_size} to {module.image_size} pixels"


def _remove_classifier(module: nn.Module, name: str) -> None:
    """Remove the last linear layer, and the dropout before it, from a torchvision classifier."""
    from torch import nn

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
