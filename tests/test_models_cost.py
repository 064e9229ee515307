"""Costs against counts worked by hand and the papers' tables."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from understudy.models.cost import flops, parameters
from understudy.models.encoder import build_encoder
from understudy.models.settings import StudentSettings
from understudy.models.student import build_student


def test_counts_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    assert parameters(network) == 8 * 27 + 8 + 8 * 5 + 5
    assert flops(network, 10) == 100 * 8 * 27 + 8 * 5


@pytest.mark.parametrize(
    ("spec", "size", "published"),
    [
        ("timm:resnet18", 224, 1.82e9),  # He et al. 2016, table 1: 1.8e9 multiply-adds
        ("small:resnet20", 32, 40.8e6),  # usually quoted as 41 M
        ("small:resnet56", 32, 125.5e6),
    ],
)
def test_published_counts(spec: str, size: int, published: float) -> None:
    module = build_encoder(spec, pretrained=False, image_size=size).module
    assert flops(module, size) == pytest.approx(published, rel=0.01)


def test_attention_is_counted() -> None:
    backbone = build_encoder("timm:test_vit", pretrained=False)
    size, width, heads_and_all = backbone.contract.size, backbone.width, 0
    tokens = (size // 16) ** 2 + 1
    for name, part in backbone.module.named_modules():
        if isinstance(part, nn.Linear):
            heads_and_all += tokens * part.in_features * part.out_features
        if name.endswith("attn"):
            heads_and_all += 2 * tokens * tokens * width
    patches = (tokens - 1) * 3 * 16 * 16 * width
    assert flops(backbone.module, size) == heads_and_all + patches


def test_a_student_costs_its_features_and_stays_as_it_was() -> None:
    student = build_student(StudentSettings("small:resnet8", head="mlp", hidden=4096), 64)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    assert flops(student) == flops(student.backbone, 32)
    assert student.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
