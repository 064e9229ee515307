"""Feature maps: the very tensors that the network computes, at the strides they claim."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from understudy.errors import ModelError
from understudy.models.dense import dense_features
from understudy.models.encoder import build_encoder
from understudy.models.pyramid import Pyramid


def built(spec: str) -> nn.Module:
    torch.manual_seed(0)
    return build_encoder(spec, pretrained=False).module.eval()


@pytest.mark.parametrize(
    ("spec", "size", "strides", "channels"),
    [
        ("timm:test_resnet", (64, 96), (2, 4, 8, 16, 32), (32, 32, 48, 192, 96)),
        ("timm:test_vit", (96, 64), (16,), (64,)),
        ("torchvision:resnet18", (64, 96), (2, 4, 8, 16, 32), (64, 64, 128, 256, 512)),
        ("torchvision:mobilenet_v3_small", (96, 96), (2, 4, 8, 16, 32), (16, 16, 24, 48, 576)),
        ("torchvision:swin_t", (96, 96), (4, 8, 16, 32), (96, 192, 384, 768)),  # channels last inside
        ("torchvision:googlenet", (96, 96), (2, 4, 8, 16, 32), (64, 192, 480, 832, 1024)),
        ("small:resnet8x0.5", (32, 48), (1, 2, 4), (8, 16, 32)),
    ],
)
def test_maps_have_the_strides_and_channels_they_claim(
    spec: str, size: tuple[int, int], strides: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    maps = dense_features(built(spec), size)
    assert (maps.strides, maps.channels) == (strides, channels)
    assert maps.tokens == (len(strides) == 1)
    with torch.no_grad():
        found = maps(torch.rand(2, 3, *size))
    expected = [(2, c, size[0] // s, size[1] // s) for s, c in zip(strides, channels, strict=True)]
    assert [tuple(one.shape) for one in found] == expected


@torch.no_grad()
def test_maps_are_those_of_the_network_itself() -> None:
    images = torch.rand(2, 3, 64, 64)
    resnet = built("torchvision:resnet18")
    stem = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
    by_hand = [resnet.layer1(stem)]
    for layer in (resnet.layer2, resnet.layer3, resnet.layer4):
        by_hand.append(layer(by_hand[-1]))
    found = dense_features(resnet, (64, 64))(images)[1:]
    assert all(torch.equal(one, two) for one, two in zip(found, by_hand, strict=True))

    small = built("small:resnet8")
    by_hand = [small.layer1(F.relu(small.bn1(small.conv1(images))))]
    by_hand += [small.layer2(by_hand[0]), small.layer3(small.layer2(by_hand[0]))]
    found = dense_features(small, (64, 64))(images)
    assert all(torch.equal(one, two) for one, two in zip(found, by_hand, strict=True))
    torch.testing.assert_close(found[-1].mean((2, 3)), small(images))

    vit = built("timm:test_vit")  # at its own 160 pixels nothing is resampled
    images = torch.rand(2, 3, 160, 160)
    tokens = vit.forward_features(images)[:, vit.num_prefix_tokens :]
    found = dense_features(vit, (160, 160))(images)
    torch.testing.assert_close(found[0].flatten(2).transpose(1, 2), tokens)
    # Row after row: the position below (0, 0) is a grid's width further on.
    torch.testing.assert_close(found[0][:, :, 1, 0], tokens[:, 10])


@torch.no_grad()
def test_torchvisions_vit_gives_its_tokens_at_other_sizes() -> None:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64).eval()
    vit.heads = nn.Identity()
    images = torch.rand(1, 3, 64, 64)
    tokens: list[Tensor] = []
    hook = vit.encoder.register_forward_hook(lambda _m, _i, output: tokens.append(output))
    vit(images)
    hook.remove()
    found = dense_features(vit, (64, 64))
    assert (found.tokens, found.fixed) == (True, True)
    torch.testing.assert_close(found(images)[0][0].flatten(1).T, tokens[0][0, 1:])
    assert dense_features(vit, (96, 96))(torch.rand(1, 3, 96, 96))[0].shape == (1, 32, 6, 6)
    assert vit.image_size == 64
    with pytest.raises(ModelError, match="square images only, not 64 x 96"):
        dense_features(vit, (64, 96))
    with pytest.raises(ModelError, match="patches of 16 pixels, which do not divide 70"):
        dense_features(vit, (70, 70))


def test_the_network_is_left_as_it_was() -> None:
    vit = built("timm:test_vit").train()
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    maps = dense_features(vit, (96, 64))
    assert vit.training and maps.module.training
    assert maps.module.pos_embed.shape != vit.pos_embed.shape
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    resnet = built("torchvision:resnet18")
    dense_features(resnet, (64, 64))
    assert not any(part._forward_hooks for part in resnet.modules())


class Shared(nn.Module):
    """One ReLU for all, a pooled squeeze, and a stem without a name of its own: what taps must not be fooled by."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.first = nn.Conv2d(3, 4, 3, 2, 1)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = x * self.pool(x).mean((2, 3), keepdim=True)
        return self.relu(self.second(x)).mean((2, 3))


def test_taps_of_ones_own_network_are_the_outermost_last_parts() -> None:
    network = Shared()
    maps = dense_features(network, (16, 16))
    assert (maps.strides, maps.channels) == ((2, 4), (4, 5))
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(maps(images)[0], network.first(images))


def test_what_has_no_maps_is_a_sentence(tmp_path: Path, shared: Path) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 8))
    with pytest.raises(ModelError, match="shows no feature maps for images of 8 x 8"):
        dense_features(flat, (8, 8))
    with pytest.raises(ModelError, match=r"timm:test_vit cannot .*90 x 90"):
        dense_features(built("timm:test_vit"), (90, 90), spec="timm:test_vit")
    onnx = build_encoder(f"onnx:{shared / 'weights' / 'resnet56_cifar10.onnx'}", pretrained=True).module
    with pytest.raises(ModelError, match="is an ONNX file: .* no feature maps and no gradients"):
        dense_features(onnx, (32, 32), spec="onnx:resnet56")


@pytest.mark.parametrize(
    ("spec", "simple"), [("timm:test_resnet", False), ("timm:test_vit", True), ("small:resnet8x0.25", True)]
)
def test_every_backbone_grows_the_same_pyramid(spec: str, simple: bool) -> None:
    module = built(spec)
    pyramid = Pyramid(module, 64).train()
    assert pyramid.simple == simple
    levels = pyramid(torch.rand(1, 3, 64, 64 if pyramid.fixed else 96))
    wide = 64 if pyramid.fixed else 96
    expected = {name: (1, 256, 64 // s, wide // s) for name, s in zip("0123", (4, 8, 16, 32), strict=True)}
    assert {name: tuple(level.shape) for name, level in levels.items() if name != "pool"} == expected
    assert list(levels) == ["0", "1", "2", "3", "pool"] and tuple(levels["pool"].shape[:2]) == (1, 256)
    # Gradients reach the first layer of the copy, and not the network it was made from.
    sum(level.square().mean() for level in levels.values()).backward()
    first = next(one for one in pyramid.body.parameters() if one.requires_grad and one.ndim == 4)
    assert first.grad is not None and bool(first.grad.abs().sum() > 0)
    assert all(one.grad is None for one in module.parameters())


def test_batchnorm_of_the_backbone_stays_as_it_was_trained() -> None:
    pyramid = Pyramid(built("small:resnet8x0.25"), 32).train()
    norms = [part for part in pyramid.body.modules() if isinstance(part, nn.BatchNorm2d)]
    pyramid(torch.rand(2, 3, 32, 32) * 7)
    assert norms and all(int(norm.num_batches_tracked) == 0 and not norm.weight.requires_grad for norm in norms)


def test_patches_that_are_no_power_of_two_are_put_on_the_grid_of_one() -> None:
    from timm.models import VisionTransformer

    vit = VisionTransformer(img_size=28, patch_size=14, embed_dim=32, depth=1, num_heads=2, num_classes=0)
    pyramid = Pyramid(vit, 64)  # 70 pixels, 5 x 5 patches, on the 4 x 4 grid of stride 16
    assert pyramid.side == 70
    assert pyramid(torch.rand(1, 3, 64, 64))["2"].shape == (1, 256, 4, 4)
