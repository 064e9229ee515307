"""Feature maps of a backbone, for what needs to know where as well as what: detection, segmentation, propagation.

Nothing is rebuilt: the maps come out of a copy of the very module with the very weights. timm's networks give them
themselves (`forward_intermediates`), transformers of other libraries give their tokens; of any other network one blank
image shows which part ends each resolution.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from understudy.errors import ModelError
from understudy.models.families.timm import set_input_size
from understudy.models.onnx_encoder import onnx_encoders
from understudy.models.outputs import ReadOut, blank_pass, patch_size, prefix_tokens, record_outputs, token_reader

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
        self.module, self.size, self.fixed, self._read = module, size, fixed, read
        maps = blank_pass(module, size, spec, read)
        levels = {_level(size, m.shape[2]): position for position, m in enumerate(maps)}  # of equal strides the last
        if not levels:
            raise ModelError(
                f"{spec} shows no feature maps for images of {size[0]} x {size[1]}: none of its parts puts out "
                "(1, C, h, w) with h > 1."
            )
        self._positions = [levels[level] for level in sorted(levels)]
        shapes = [maps[position].shape for position in self._positions]
        self.channels = tuple(channels for _, channels, _, _ in shapes)
        self.strides = tuple(size[0] / height for _, _, height, _ in shapes)
        self.tokens = len(maps) > 1 and len(shapes) == 1

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """(B, 3, H, W) prepared -> [(B, C, h, w), ...], finest first."""
        assert not self.fixed or tuple(x.shape[-2:]) == self.size, f"made for {self.size}, got {tuple(x.shape)}"
        maps = self._read(x)
        return [maps[position] for position in self._positions]


def dense_features(module: nn.Module, size: tuple[int, int], *, spec: str = "This encoder") -> DenseFeatures:
    """A copy of a backbone that gives its feature maps.

    Args:
        module: `Encoder.module`, `Teacher.module` or `Student.backbone`: a headless network, left untouched.
        size: (H, W) of the images it will be given; exactly for a network with a fixed grid (`fixed`), whose position
            embeddings are resampled to it, about for a convolutional one.
        spec: how messages call the network.

    Returns:
        The maps, on the module's device, in the module's mode.

    Raises:
        ModelError: an ONNX file, a size the network cannot take, or a network without feature maps.
    """
    from torchvision.models import VisionTransformer

    if onnx_encoders(module):
        raise ModelError(
            f"{spec} is an ONNX file: it gives pooled features only, no feature maps and no gradients. Dense protocols "
            "need the network itself, e.g. timm:NAME@FILE."
        )
    module = copy.deepcopy(module.network if isinstance(module, ReadOut) else module)
    if hasattr(module, "forward_intermediates"):
        # timm marks networks of one size in their configuration; those that can be set to another have the method.
        resizable = hasattr(module, "set_input_size")
        fixed = resizable or bool(getattr(module, "pretrained_cfg", {}).get("fixed_input_size"))
        if resizable:
            set_input_size(module, size, spec)
        # A ViT's last block is read through the final norm, as DINO and DINOv2 do; a pyramid has none for its levels.
        reductions = {entry["reduction"] for entry in getattr(module, "feature_info", []) if isinstance(entry, dict)}
        maps: Any = module.forward_intermediates
        read = partial(maps, norm=len(reductions) == 1, intermediates_only=True)
        return DenseFeatures(module, read, size, spec, fixed=fixed)
    tokens, patch = token_reader(module), patch_size(module)
    if tokens is not None and patch is not None:
        if isinstance(module, VisionTransformer):
            _resize_torchvision(module, size, spec)
        elif hasattr(module, "set_input_size"):
            set_input_size(module, size, spec)
        return DenseFeatures(module, partial(_grid, tokens, prefix_tokens(module), patch), size, spec, fixed=True)
    return DenseFeatures(module, _tapping_reader(module, size, spec), size, spec, fixed=False)


def _level(size: tuple[int, int], height: int) -> int:
    """The stride of a map as a power of two. Networks without padding come near it: 299 / 35 is 8."""
    return round(math.log2(size[0] / height))


def _resize_torchvision(module: Any, size: tuple[int, int], spec: str) -> None:
    from torchvision.models.vision_transformer import interpolate_embeddings

    if size[0] != size[1]:
        raise ModelError(f"{spec} takes square images only, not {size[0]} x {size[1]}. timm's ViTs take any.")
    if size[0] % module.patch_size:
        raise ModelError(f"{spec} has patches of {module.patch_size} pixels, which do not divide {size[0]}.")
    if size[0] != module.image_size:
        state = interpolate_embeddings(size[0], module.patch_size, module.state_dict())
        module.encoder.pos_embedding = nn.Parameter(state["encoder.pos_embedding"])
        module.seq_length = module.encoder.pos_embedding.shape[1]
        module.image_size = size[0]


def _grid(tokens: Callable[[Tensor], Tensor], prefix: int, patch: int, x: Tensor) -> list[Tensor]:
    """The tokens of the patches as a map, twice: tokens, not the only map of a small CNN."""
    grid = tokens(x)[:, prefix:].mT.unflatten(2, (x.shape[-2] // patch, x.shape[-1] // patch))
    return [grid, grid]


def _tapping_reader(module: nn.Module, size: tuple[int, int], spec: str) -> Reader:
    """Maps read off the parts of any network: for each stride the outermost part, and of those the last."""
    from torchvision.ops.misc import SqueezeExcitation

    def layout(output: Any) -> tuple[bool, int] | None:
        """(whether channels come last, level) of an output that is a map."""
        if not isinstance(output, Tensor) or output.ndim != 4:
            return None
        for channels_last, (h, w) in ((False, output.shape[2:]), (True, output.shape[1:3])):
            # A map has the image's proportions; a single position is pooled.
            if h > 1 and w > 1 and abs(math.log2(size[0] / h) - math.log2(size[1] / w)) < 0.2:
                return channels_last, _level(size, h)
        return None

    pooling = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, SqueezeExcitation)
    parts = {name: part for name, part in module.named_modules() if name and not isinstance(part, pooling)}
    with record_outputs(parts, layout) as calls:
        blank_pass(module, size, spec, module)
    times = Counter(name for name, _ in calls)  # a part used twice, such as a shared ReLU, marks no place
    taps: dict[int, tuple[str, bool]] = {}
    for name, shown in calls:
        if shown is not None and times[name] == 1:
            channels_last, level = shown
            if level not in taps or name.count(".") <= taps[level][0].count("."):
                taps[level] = (name, channels_last)
    order = [taps[level] for level in sorted(taps)]

    def read(x: Tensor) -> list[Tensor]:
        with record_outputs({name: parts[name] for name, _ in order}) as calls:
            module(x)
        maps = dict(calls)
        return [maps[name].movedim(3, 1) if channels_last else maps[name] for name, channels_last in order]

    return read
