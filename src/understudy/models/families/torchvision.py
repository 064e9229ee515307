"""`torchvision:NAME`: the classifiers of torchvision, without their classifier."""

from __future__ import annotations

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
        return BuiltNetwork(module, contract, weights or request.load_file(module))


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
