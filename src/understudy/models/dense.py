"""Feature maps of a backbone, for what needs to know where as well as what: detection, segmentation, propagation.

Nothing is rebuilt: the maps come out of a copy of the very module with the very weights. timm's networks give them
themselves (`forward_intermediates`), torchvision's ViT gives its tokens; of any other network one blank image shows
which part ends each resolution.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from understudy.errors import ModelError
from understudy.models.onnx_encoder import OnnxEncoder

Reader = Callable[[Tensor], list[Tensor]]


class DenseFeatures(nn.Module):
    """Prepared images to feature maps, finest first, one for each stride.

    Args:
        module: a headless network; it is kept as it is given.
        read: its maps of a batch, in the order in which they are computed.
        size: (H, W) of the images.
        spec: how messages call the network.
        fixed: whether it takes images of this size only.

    Attributes:
        channels: of each map.
        strides: pixels from one position to the next, on average: H / h.
        tokens: whether the network works on one grid of tokens from its first layer to its last (a ViT), so that
            there is one map.
    """

    def __init__(self, module: nn.Module, read: Reader, size: tuple[int, int], spec: str, *, fixed: bool) -> None:
        super().__init__()
        self.module = module
        self.size = size
        self.fixed = fixed
        self._read = read
        maps = _probe(module, read, size, spec)
        levels = {_level(size, one): position for position, one in enumerate(maps)}  # of equal strides the last
        if not levels:
            raise ModelError(
                f"{spec} shows no feature maps for images of {size[0]} x {size[1]}: none of its parts puts out "
                "(1, C, h, w) with h > 1."
            )
        self._positions = [levels[level] for level in sorted(levels)]
        chosen = [maps[position] for position in self._positions]
        self.channels = tuple(one.shape[1] for one in chosen)
        self.strides = tuple(size[0] / one.shape[2] for one in chosen)
        self.tokens = len(maps) > 1 and len(chosen) == 1

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """(B, 3, H, W) prepared -> [(B, C, h, w), ...], finest first."""
        assert not self.fixed or tuple(x.shape[-2:]) == self.size, f"made for {self.size}, got {tuple(x.shape)}"
        maps = self._read(x)
        return [maps[position] for position in self._positions]


def dense_features(module: nn.Module, size: tuple[int, int], *, spec: str = "This encoder") -> DenseFeatures:
    """A copy of a backbone that gives its feature maps.

    Args:
        module: `Backbone.module`, `Teacher.module` or `Student.backbone`: a headless network, left untouched.
        size: (H, W) of the images it will be given; exactly for a network with a fixed grid (`fixed`), whose position
            embeddings are resampled to it, about for a convolutional one.
        spec: how messages call the network.

    Returns:
        The maps, on the module's device, in the module's mode.

    Raises:
        ModelError: an ONNX file, a size the network cannot take, or a network without feature maps.
    """
    if any(isinstance(part, OnnxEncoder) for part in module.modules()):
        raise ModelError(
            f"{spec} is an ONNX file: it gives pooled features only, no feature maps and no gradients. Dense protocols "
            "need the network itself, e.g. timm:NAME@FILE."
        )
    module = copy.deepcopy(module)
    if hasattr(module, "forward_intermediates"):
        # timm marks networks of one size in their configuration; those that can be set to another have the method.
        fixed = hasattr(module, "set_input_size") or bool(getattr(module, "pretrained_cfg", {}).get("fixed_input_size"))
        return DenseFeatures(_resized_timm(module, size, spec), _timm_reader(module), size, spec, fixed=fixed)
    if _is_torchvision_vit(module):
        resized = _resized_torchvision(module, size, spec)
        return DenseFeatures(resized, _torchvision_reader(module), size, spec, fixed=True)
    return DenseFeatures(module, _tapping_reader(module, size, spec), size, spec, fixed=False)


def patch_size(module: nn.Module) -> int | None:
    """Pixels of the side of a patch, for a network that cuts its image into a grid of patches."""
    found = getattr(getattr(module, "patch_embed", None), "patch_size", None) or getattr(module, "patch_size", None)
    found = found[0] if isinstance(found, tuple) else found
    return found if isinstance(found, int) else None


def _level(size: tuple[int, int], one: Tensor) -> int:
    """The stride as a power of two. Networks without padding come near it: 299 / 35 is 8."""
    return round(math.log2(size[0] / one.shape[2]))


def _probe(module: nn.Module, read: Reader, size: tuple[int, int], spec: str) -> list[Tensor]:
    """The maps of one blank image, in evaluation mode."""
    was_training = module.training
    module.eval()
    blank = torch.zeros(1, 3, *size, device=next(module.parameters()).device)
    try:
        with torch.no_grad():
            return read(blank)
    except Exception as error:  # Whatever a foreign forward raises is about its input here.
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(f"{spec} cannot take images of {size[0]} x {size[1]}: {reason}.") from error
    finally:
        module.train(was_training)


def _resized_timm(module: Any, size: tuple[int, int], spec: str) -> nn.Module:
    if hasattr(module, "set_input_size"):
        try:
            module.set_input_size(img_size=size)
        except (AssertionError, ValueError, RuntimeError) as error:
            raise ModelError(f"{spec} cannot be set to images of {size[0]} x {size[1]}: {error}") from None
    found: nn.Module = module
    return found


def _timm_reader(module: Any) -> Reader:
    def read(x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = module.forward_intermediates(x, norm=tokens, intermediates_only=True)
        return maps

    # A ViT's last block is read through the final norm, as DINO and DINOv2 do; a pyramid has none for its levels.
    reductions = {entry["reduction"] for entry in getattr(module, "feature_info", []) if isinstance(entry, dict)}
    tokens = len(reductions) == 1
    return read


def _is_torchvision_vit(module: nn.Module) -> bool:
    from torchvision.models import VisionTransformer

    return isinstance(module, VisionTransformer)


def _resized_torchvision(module: Any, size: tuple[int, int], spec: str) -> nn.Module:
    from torchvision.models.vision_transformer import interpolate_embeddings

    found: nn.Module = module
    if size[0] != size[1]:
        raise ModelError(f"{spec} takes square images only, not {size[0]} x {size[1]}. timm's ViTs take any.")
    if size[0] % module.patch_size:
        raise ModelError(f"{spec} has patches of {module.patch_size} pixels, which do not divide {size[0]}.")
    if size[0] != module.image_size:
        state = interpolate_embeddings(size[0], module.patch_size, module.state_dict())
        module.encoder.pos_embedding = nn.Parameter(state["encoder.pos_embedding"])
        module.seq_length = module.encoder.pos_embedding.shape[1]
        module.image_size = size[0]
    return found


def _torchvision_reader(module: Any) -> Reader:
    def read(x: Tensor) -> list[Tensor]:
        kept: list[Tensor] = []
        hook = module.encoder.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        try:
            module(x)
        finally:
            hook.remove()
        side = x.shape[-1] // module.patch_size
        one = kept[0][:, 1:].transpose(1, 2).unflatten(2, (side, side))  # without the class token
        return [one, one]  # twice: tokens, not the only map of a small CNN

    return read


def _tapping_reader(module: nn.Module, size: tuple[int, int], spec: str) -> Reader:
    """Maps read off the parts of any network: for each stride the outermost part, and of those the last."""
    from torchvision.ops.misc import SqueezeExcitation

    ran: list[tuple[str, bool, int]] = []  # name, channels last, level; in the order of execution

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                for last, (h, w) in ((False, output.shape[2:]), (True, output.shape[1:3])):
                    # A map has the image's proportions; a single position is pooled.
                    if h > 1 and w > 1 and abs(math.log2(size[0] / h) - math.log2(size[1] / w)) < 0.2:
                        ran.append((name, last, round(math.log2(size[0] / h))))
                        return
            ran.append((name, False, -1))

        return hook

    pooling = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, SqueezeExcitation)
    parts = {name: part for name, part in module.named_modules() if name and not isinstance(part, pooling)}
    hooks = [part.register_forward_hook(note(name)) for name, part in parts.items()]
    try:
        _probe(module, lambda x: [module(x)], size, spec)
    finally:
        for hook in hooks:
            hook.remove()
    calls = Counter(name for name, _, _ in ran)  # a part used twice, such as a shared ReLU, marks no place
    taps: dict[int, tuple[str, bool]] = {}
    for name, last, level in ran:
        if level >= 0 and calls[name] == 1 and (level not in taps or name.count(".") <= taps[level][0].count(".")):
            taps[level] = (name, last)
    order = [taps[level] for level in sorted(taps)]

    def read(x: Tensor) -> list[Tensor]:
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                kept[name] = output

            return hook

        hooks = [parts[name].register_forward_hook(keep(name)) for name, _ in order]
        try:
            module(x)
        finally:
            for hook in hooks:
                hook.remove()
        return [kept[name].movedim(3, 1) if last else kept[name] for name, last in order]

    return read
