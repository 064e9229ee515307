"""A feature pyramid over any backbone, as torchvision's detectors take it: 256 channels at strides 4, 8, 16, 32, 64.

A network with levels of its own gets the feature pyramid network of Lin et al.; one with a single map (a ViT, a small
ResNet that never falls below a quarter of the resolution) the simple feature pyramid of Li et al., grown out of it.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from understudy.errors import ModelError
from understudy.models.dense import dense_features
from understudy.models.outputs import patch_size

CHANNELS = 256
STRIDES = (4, 8, 16, 32)  # of the levels "0" to "3"; "pool" is the last of them subsampled once more


class Pyramid(nn.Module):
    """Images to the five levels of a pyramid, finest first, named "0" to "3" and "pool".

    Normalization layers of the backbone stay as they were trained, statistics and all, as in torchvision's own
    detectors: a few large images are no batch to take statistics from.

    Args:
        module: a headless network; a copy of it is made and trained.
        size: side of the square images of a network with a fixed grid; about the size of images of any other.
        spec: how messages call the network.

    Raises:
        ModelError: see `dense_features` and `SimplePyramid`.
    """

    def __init__(self, module: nn.Module, size: int, *, spec: str = "This encoder") -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        self.out_channels = CHANNELS
        patch = patch_size(module)
        self.side = size if patch is None else max(1, round(size / patch)) * patch
        self.body = dense_features(module, (self.side, self.side), spec=spec)
        self.fixed = self.body.fixed
        positions = {round(math.log2(stride)): position for position, stride in enumerate(self.body.strides)}
        self.levels = [positions[level] for level in (2, 3, 4, 5) if level in positions]
        self.simple = len(self.levels) < len(STRIDES)
        if self.simple:
            level = round(math.log2(self.body.strides[-1]))
            self.neck: nn.Module = SimplePyramid(self.body.channels[-1], CHANNELS, level)
        else:
            channels = [self.body.channels[position] for position in self.levels]
            self.neck = FeaturePyramidNetwork(channels, CHANNELS, LastLevelMaxPool())
        self.body.requires_grad_(True)  # a teacher is frozen, its copy in a detector is not
        self._norms = [part for part in self.body.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        for norm in self._norms:
            norm.requires_grad_(False)

    def train(self, mode: bool = True) -> Pyramid:
        """Training for all but the BatchNorm of the backbone."""
        super().train(mode)
        for norm in self._norms:
            norm.eval()
        return self

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> OrderedDict[str, Tensor]:
        """(B, 3, H, W) normalized, sides multiples of 32 -> {"0": (B, 256, H / 4, W / 4), ..., "pool": ...}."""
        height, width = x.shape[-2:]
        if self.fixed and (height, width) != (self.side, self.side):
            # A grid of patches that does not divide the canvas: the nearest one that does.
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)
        maps = self.body(x)
        if self.simple:
            coarsest = 2 ** round(math.log2(self.body.strides[-1]))
            grid = (height // coarsest, width // coarsest)
            last = maps[-1]
            if last.shape[-2:] != grid:  # patches of 14 pixels: torchvision's detectors know powers of two only
                last = F.interpolate(last, grid, mode="bilinear", align_corners=False)
            return self.neck(last)  # type: ignore[no-any-return]
        chosen = OrderedDict((str(name), maps[position]) for name, position in enumerate(self.levels))
        return self.neck(chosen)  # type: ignore[no-any-return]


class SimplePyramid(nn.Module):
    """Four levels out of one map: transposed convolutions upwards, max pooling downwards, 1 x 1 and 3 x 3 to 256.

    Args:
        channels: of the map.
        out: of every level.
        level: log2 of the map's stride.

    Raises:
        ModelError: a stride above 64, from which stride 4 is too far.

    Source: Li, Mao, Girshick & He, "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022,
    section 3 and appendix A.2: from stride 16 two transposed convolutions (LayerNorm and GELU between), one, none,
    pooling.
    """

    def __init__(self, channels: int, out: int, level: int) -> None:
        super().__init__()
        from torchvision.models.convnext import LayerNorm2d

        if not 0 <= level <= 6:
            raise ModelError(f"No pyramid is grown from a map of stride {2**level}; it takes strides 1 to 64.")
        self.branches = nn.ModuleList()
        for target in (2, 3, 4, 5):
            steps: list[nn.Module] = []
            width = channels
            for step in range(level - target):
                if step:
                    steps += [LayerNorm2d(width), nn.GELU()]
                steps.append(nn.ConvTranspose2d(width, max(width // 2, 32), 2, 2))
                width = max(width // 2, 32)
            if target > level:
                steps.append(nn.MaxPool2d(2 ** (target - level)))
            steps += [nn.Conv2d(width, out, 1, bias=False), LayerNorm2d(out)]
            steps += [nn.Conv2d(out, out, 3, padding=1, bias=False), LayerNorm2d(out)]
            self.branches.append(nn.Sequential(*steps))

    def forward(self, x: Float[Tensor, "B C h w"]) -> OrderedDict[str, Tensor]:
        """(B, C, h, w) -> {"0": stride 4, ..., "3": stride 32, "pool": stride 64}."""
        levels = OrderedDict((str(name), branch(x)) for name, branch in enumerate(self.branches))
        levels["pool"] = F.max_pool2d(levels["3"], 1, 2)
        return levels
