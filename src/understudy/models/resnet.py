"""ResNets for 32 x 32 images: 8, 14, 20, 32 or 56 layers, 16-32-64 channels times a width multiplier.

They differ from the ImageNet ResNets of timm and torchvision in their stem (one 3 x 3 convolution, no pooling), in
having three stages, and in their shortcuts: option A of the paper, subsampling with zero-padded channels, without
parameters. Parameter names are those of akamaster/pytorch_resnet_cifar10, so its published weights load as they are.

Source: He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
"""

from __future__ import annotations

import re

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from understudy.errors import ModelError
from understudy.settings import nearest

DEPTHS = (8, 14, 20, 32, 56)
WIDEST = 64  # times the usual channels: a name in a file must not ask for all memory


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters (option A); a stride is of the first and the last."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = channels - channels_in

    def forward(self, x: Float[Tensor, "B C_in H W"]) -> Float[Tensor, "B C h w"]:
        """(B, C_in, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.padding:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.padding // 2, self.padding - self.padding // 2))
        return F.relu(out + x)


class SmallResNet(nn.Module):
    """A CIFAR ResNet of 6 n + 2 layers, n blocks in each of three stages, that ends in its pooled feature.

    Its channels are 16, 32, 64 times the width.
    """

    def __init__(self, depth: int, width: float = 1.0) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        first, second, third = (max(1, round(channels * width)) for channels in (16, 32, 64))
        self.conv1 = nn.Conv2d(3, first, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = self._stage(first, first, blocks, stride=1)
        self.layer2 = self._stage(first, second, blocks, stride=2)
        self.layer3 = self._stage(second, third, blocks, stride=2)
        self.width = third
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        """(B, 3, S, S) prepared -> (B, 64 W) pooled."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return torch.mean(x, dim=(2, 3))


def small_resnet(name: str) -> SmallResNet:
    """A network from a name such as "resnet20", "resnet20x2" (twice the channels) or "resnet8x0.5".

    Raises:
        ModelError: another name, depth or a width that is not positive or above 64.
    """
    match = re.fullmatch(r"resnet(\d+)(?:x(\d+(?:\.\d+)?))?", name)
    if not match or int(match[1]) not in DEPTHS or not 0 < float(match[2] or 1) <= WIDEST:
        known = nearest(name, [f"resnet{depth}" for depth in DEPTHS])
        raise ModelError(f"Unknown network 'small:{name}'. {known} Append x2, x0.5 ... for another width.")
    return SmallResNet(int(match[1]), float(match[2] or 1))
