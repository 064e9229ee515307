"""What a vision transformer shows: the library's own tokens and attention, and what hidden patches cannot tell."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from understudy.errors import ModelError, ShapeError
from understudy.models.encoder import build_encoder
from understudy.models.outputs import forward_outputs, patch_count, require_outputs
from understudy.models.settings import StudentSettings
from understudy.models.student import build_student
from understudy.models.teacher import Teacher


def vit(**settings: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}
    module = VisionTransformer(**{**sizes, **settings}).eval()
    for parameter in module.parameters():  # nothing at the value it starts with: a scale left out would not show
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def images(count: int = 3, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def attention_of_the_library(module: VisionTransformer, x: Tensor) -> Tensor:
    """The whole matrix, taken where timm's unfused code drops it out."""
    layer, found = module.blocks[-1].attn, []
    layer.fused_attn = False
    handle = layer.attn_drop.register_forward_hook(lambda _, inputs, __: found.append(inputs[0]))
    module(x)
    handle.remove()
    layer.fused_attn = True
    return found[0][:, :, 0]


@pytest.mark.parametrize(
    "settings",
    [{}, {"qk_norm": True}, {"global_pool": "avg"}, {"dynamic_img_size": True}, {"attn_drop_rate": 0.3}],
    ids=str,
)
def test_tokens_and_attention_are_the_library_s(settings: dict[str, Any]) -> None:
    module, x = vit(**settings), images()
    require_outputs(module, "it", attention=True)
    output = forward_outputs(module, x, attention=True)
    assert torch.equal(output.embedding, module(x))
    expected = module.forward_intermediates(x, 1, norm=True, output_fmt="NLC", intermediates_only=True)[0]
    assert output.tokens.shape == (3, 16, 24) and torch.equal(output.tokens, expected)
    assert patch_count(module, 32) == 16
    torch.testing.assert_close(output.attention, attention_of_the_library(module, x), rtol=0, atol=1e-6)
    assert output.attention.shape == (3, 3, 17) and output.attention.std() > 0.01
    assert not module.blocks[-1].attn.qkv._forward_hooks and forward_outputs(module, x).attention is None


def test_attention_is_exact_under_autocast_and_has_a_gradient() -> None:
    module = vit()
    with torch.autocast("cpu", torch.bfloat16):
        attention = forward_outputs(module, images(), attention=True).attention
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention.sum(2), torch.ones(3, 3), rtol=0, atol=1e-6)
    (attention[:, :, 0].sum()).backward()
    gradient = module.blocks[-1].attn.qkv.weight.grad
    assert gradient[:48].abs().sum(1).min() > 0 and gradient[48:].abs().max() == 0  # queries and keys, not values


@pytest.mark.parametrize("settings", [{}, {"dynamic_img_size": True}, {"reg_tokens": 2}], ids=str)
def test_hidden_patches_are_not_seen(settings: dict[str, Any]) -> None:
    module, x = vit(**settings), images(5)
    masks = torch.zeros(2, 16, dtype=torch.bool)
    masks[0, 5] = masks[1, [0, 15]] = True
    token = torch.randn(24, requires_grad=True)
    output = forward_outputs(module, x, masks=masks, mask_token=token)
    other = x.clone()
    other[3, :, 8:16, 8:16] += 1  # patch 5 of a grid of four
    other[4, :, :8, :8] += 1
    assert torch.equal(output.tokens, forward_outputs(module, other, masks=masks, mask_token=token).tokens)
    other[4, :, :8, 8:16] += 1
    assert not torch.equal(output.tokens[4], forward_outputs(module, other, masks=masks, mask_token=token).tokens[4])
    whole = forward_outputs(module, x)
    assert torch.equal(output.tokens[:3], whole.tokens[:3]) and (output.tokens[3:] != whole.tokens[3:]).any(2).all()
    output.tokens[3:].square().sum().backward()
    assert token.grad.abs().min() > 0
    assert not module.patch_embed._forward_hooks
    with pytest.raises(ShapeError, match="16 patches an image, and masks for 15"):
        forward_outputs(module, x, masks=masks[:, :15], mask_token=token)


def test_the_mask_token_stands_where_the_patch_embedding_stood() -> None:
    module, x = vit(), images(2)
    masks = torch.zeros(1, 16, dtype=torch.bool)
    masks[0, 3] = True
    own = module.patch_embed(x)[1, 3].detach()
    assert torch.equal(
        forward_outputs(module, x, masks=masks, mask_token=own).tokens, forward_outputs(module, x).tokens
    )


def test_registers_are_no_patches() -> None:
    module, x = vit(reg_tokens=3), images()
    require_outputs(module, "it", attention=False)
    assert torch.equal(forward_outputs(module, x).tokens, module.forward_features(x)[:, 4:])
    with pytest.raises(ModelError, match="timm:x has 3 register or distillation tokens"):
        require_outputs(module, "timm:x", attention=True)


def test_no_class_token_no_attention() -> None:
    module = vit(class_token=False, global_pool="avg")
    require_outputs(module, "it", attention=False)
    assert forward_outputs(module, images()).tokens.shape == (3, 16, 24)
    with pytest.raises(ModelError, match="timm:x has no class token"):
        require_outputs(module, "timm:x", attention=True)


def test_rotary_attention_shows_tokens_only() -> None:
    module = timm.models.eva.Eva(
        img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=0, use_rot_pos_emb=True
    ).eval()
    require_outputs(module, "it", attention=False)
    assert torch.equal(forward_outputs(module, images()).embedding, module(images()))
    with pytest.raises(ModelError, match="an attention layer of the kind EvaAttention"):
        require_outputs(module, "it", attention=True)


@pytest.mark.parametrize("spec", ["small:resnet8", "timm:test_resnet"])
def test_other_networks_are_a_sentence(spec: str) -> None:
    module = build_encoder(spec, pretrained=False).module
    with pytest.raises(ModelError, match=rf"{spec} shows its embedding only .*It needs vision transformers of timm"):
        require_outputs(module, spec, attention=False)
    with pytest.raises(ModelError, match="it is a Identity"):
        require_outputs(nn.Identity(), "onnx:x", attention=True)


def test_teacher_and_student_show_the_same_as_they_give() -> None:
    torch.manual_seed(0)
    student = build_student(StudentSettings("timm:test_vit", head="gelu", image_size=32), 24).eval()
    x = torch.rand(2, 3, 32, 32)
    output = student(x, attention=True)
    assert torch.equal(output.embedding, student.embed(x)) and output.embedding.shape == (2, 24)
    assert output.tokens.shape == (2, 4, 64) and output.attention.shape == (2, 2, 5)
    backbone = build_encoder("timm:test_vit", pretrained=False, image_size=32)
    teacher = Teacher(backbone)
    large = torch.rand(2, 3, 48, 48)
    output = teacher.forward_outputs(large, attention=True)
    assert torch.equal(output.embedding, teacher(large)) and not output.tokens.requires_grad
    assert output.tokens.shape == (2, 4, 64)
