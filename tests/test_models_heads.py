"""Heads: the papers' layers, what they cost, and what is refused."""

from __future__ import annotations

import pytest
from torch import nn

from understudy.errors import ModelError
from understudy.models.heads import build_head, head_multiply_adds


def test_the_papers_head() -> None:
    head, table = build_head(64, 128)
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [tuple(parameter.shape) for parameter in head.parameters()] == [(2048, 64), (2048,), (128, 2048), (128,)]
    assert table == {"kind": "mlp", "width": 64, "hidden": 2048, "out": 128}
    assert isinstance(build_head(64, 64)[0], nn.Identity)
    assert isinstance(build_head(64, 64, "mlp", 8)[0], nn.Sequential)
    assert isinstance(build_head(64, 10, "linear")[0], nn.Linear)
    norm, _ = build_head(64, 10, "norm")
    assert isinstance(norm[0], nn.LayerNorm) and norm[1].weight.shape == (10, 64) and len(norm) == 2
    gelu, table = build_head(64, 10, "gelu")
    assert [tuple(part.weight.shape) for part in gelu if hasattr(part, "weight")] == [
        (128, 64), (64, 128), (128, 64), (10, 128), (10,)
    ]  # fmt: skip
    assert isinstance(build_head(**{**table, "hidden": 0})[0][-1], nn.LayerNorm)


def test_the_heads_of_simreg_and_seed() -> None:
    head, table = build_head(64, 24, "deep", 7)
    norm, relu = nn.BatchNorm1d, nn.ReLU
    assert [type(layer) for layer in head] == [nn.Linear, norm, relu, nn.Linear, nn.Linear, norm, relu, nn.Linear]
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(64, 128), (128, 64), (64, 128), (128, 24)]
    assert all(layer.bias is not None for layer in linear)
    assert table == {"kind": "deep", "width": 64, "hidden": 128, "out": 24}
    assert head_multiply_adds(table) == sum(layer.weight.numel() for layer in linear)
    # SEED's hidden layer is as wide as its backbone.
    seed, table = build_head(512, 128, "mlp", 0)
    assert [tuple(layer.weight.shape) for layer in (seed[0], seed[2])] == [(512, 512), (128, 512)]
    assert table["hidden"] == 512


def test_heads_cost_their_matrix_products() -> None:
    table = {"width": 64, "hidden": 2048, "out": 16}
    assert head_multiply_adds({"kind": "mlp", **table}) == 64 * 2048 + 2048 * 16
    assert head_multiply_adds({"kind": "linear", **table}) == 64 * 16
    assert head_multiply_adds({"kind": "none", **table}) == 0
    assert head_multiply_adds({"kind": "norm", **table, "hidden": None}) == 64 * 16
    gelu = 64 * 128 + 128 * 64 + 64 * 128 + 128 * 16
    assert head_multiply_adds({"kind": "gelu", **table, "hidden": None}) == gelu
    assert head_multiply_adds({"kind": "something else"}) is None


@pytest.mark.parametrize(
    ("arguments", "message"), [((64, 32, "none"), "64 .* 32"), ((64, 32, "mpl"), "Did you mean 'mlp'")]
)
def test_impossible_heads_are_sentences(arguments: tuple[int, int, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_head(*arguments)
