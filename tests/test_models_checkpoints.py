"""Every published weight format into the same backbone, and every file that must not be taken."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from understudy.errors import ModelError
from understudy.models.checkpoints import fingerprint_weights, load_into
from understudy.models.encoder import build_encoder
from understudy.models.resnet import small_resnet
from understudy.models.weight_files import read_weights

State = dict[str, Tensor]


def state_of(seed: int) -> State:
    """All tensors of a ResNet-8 with numbers of their own, running statistics included."""
    generator = torch.Generator().manual_seed(seed)
    state = small_resnet("resnet8").state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = torch.rand(tensor.shape, generator=generator) + 0.5
    return state


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def linear(prefix: str, *layers: int) -> State:
    return {f"{prefix}{layer}.{kind}": torch.rand(4, 4) for layer in layers for kind in ("weight", "bias")}


FORMATS: dict[str, tuple[Callable[[State, State], Any], str, str]] = {
    "MoCo v1": (
        lambda s, k: {
            "epoch": 200,
            "arch": "resnet50",
            "state_dict": under("module.encoder_k.", k)
            | under("module.encoder_q.", s)
            | {"module.encoder_q.fc.weight": torch.rand(128, 64), "module.queue": torch.rand(128, 8)},
        },
        "MoCo v1/v2",
        "fc",
    ),
    "MoCo v2": (
        lambda s, k: {
            "state_dict": under("module.encoder_q.", s)
            | linear("module.encoder_q.fc.", 0, 2)
            | under("module.encoder_k.", k)
            | linear("module.encoder_k.fc.", 0, 2)
            | {"module.queue": torch.rand(128, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.long)},
            "optimizer": {"state": {0: {"momentum_buffer": torch.rand(3)}}, "param_groups": [{"lr": 0.03}]},
        },
        "MoCo v1/v2",
        "encoder_k",
    ),
    "MoCo v3": (
        lambda s, k: {
            "state_dict": under("module.momentum_encoder.", k)
            | under("module.base_encoder.", s)
            | linear("module.base_encoder.fc.", 0, 3)
            | linear("module.predictor.", 0, 3)
        },
        "MoCo v3 / SEED",
        "fc",
    ),
    "SwAV": (
        lambda s, _: (
            under("module.", s)
            | linear("module.projection_head.", 0, 3)
            | {"module.prototypes.weight": torch.rand(30, 128)}
        ),
        "SwAV",
        "projection_head",
    ),
    "BYOL": (
        lambda s, k: {
            "model": under("module.online_network.encoder.", s)
            | linear("module.online_network.projection.", 0)
            | under("module.target_network.encoder.", k)
        },
        "BYOL (online network)",
        "target_network",
    ),
    "BYOL online": (
        lambda s, _: under("online_encoder.net.", s) | linear("online_encoder.projector.", 0, 3),
        "BYOL (online network)",
        "projector",
    ),
    "SimSiam": (
        lambda s, _: {
            "state_dict": under("module.encoder.", s)
            | linear("module.encoder.fc.", 0, 3, 6)
            | linear("module.predictor.", 0)
        },
        "SimSiam",
        "fc",
    ),
    "DINO": (
        lambda s, k: {
            "student": under("module.backbone.", k) | linear("module.head.mlp.", 0, 2),
            "teacher": under("backbone.", s) | linear("head.mlp.", 0, 2),
            "args": argparse.Namespace(arch="vit_small", lr=0.0005),
            "dino_loss": {"center": torch.rand(1, 8)},
            "epoch": 800,
        },
        "DINO (teacher)",
        "head",
    ),
    "Barlow Twins": (
        lambda s, _: {"epoch": 1000, "model": under("module.backbone.", s) | linear("module.projector.", 0, 3, 6)},
        "Barlow Twins",
        "projector",
    ),
    "plain": (lambda s, _: s | {"fc.weight": torch.rand(10, 64), "fc.bias": torch.rand(10)}, "plain", "fc"),
    "DataParallel": (
        lambda s, _: under("module.", s) | {"module.linear.weight": torch.rand(10, 64)},
        "plain",
        "linear",
    ),
    "state_dict and NumPy scalars": (lambda s, _: {"state_dict": s, "best_prec1": np.float64(93.4)}, "plain", ""),
    "model wrapper": (lambda s, _: {"model": under("module.", s)}, "plain", ""),
    "averaged weights": (lambda s, k: {"state_dict": k, "state_dict_ema": s}, "averaged", "layer1"),
    "Lightning": (lambda s, _: {"state_dict": under("tower.image.", s)}, "tower.image", ""),
}


@pytest.mark.parametrize("name", FORMATS)
def test_published_formats(tmp_path: Path, name: str) -> None:
    content, label, head = FORMATS[name]
    state, other = state_of(1), state_of(2)
    file = tmp_path / "checkpoint.pth.tar"
    torch.save(content(state, other), file)
    network = small_resnet("resnet8")
    line = load_into(network, file)
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    assert label in line and "missing: none" in line and "100.0 %" in line
    if head:
        assert f"{head} (" in line.split("; dropped: ")[1]
    else:
        assert "dropped" not in line
    assert "\n" not in line


def test_safetensors_and_npz(tmp_path: Path) -> None:
    state = state_of(3)
    save_file(under("backbone.", state) | linear("head.", 0), tmp_path / "a.safetensors")
    np.savez(tmp_path / "b.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    for file in ("a.safetensors", "b.npz"):
        network = small_resnet("resnet8")
        assert "missing: none" in load_into(network, tmp_path / file)
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_shape_decides_between_student_and_teacher(tmp_path: Path) -> None:
    """A distillation checkpoint holds two networks with the same names; the one that fits the backbone is meant."""
    wide = small_resnet("resnet8x2").state_dict()
    small = state_of(4)
    torch.save({"state_dict": under("module.student.", small) | under("module.teacher.", wide)}, tmp_path / "seed.pth")
    network = small_resnet("resnet8")
    assert "distilled student" in load_into(network, tmp_path / "seed.pth")
    assert torch.equal(network.conv1.weight, small["conv1.weight"])


def test_two_equal_networks_under_unknown_names_are_refused(tmp_path: Path) -> None:
    torch.save(under("left.", state_of(5)) | under("right.", state_of(6)), tmp_path / "twins.pth")
    with pytest.raises(ModelError, match=r"2 times, under 'left\.', 'right\.'"):
        load_into(small_resnet("resnet8"), tmp_path / "twins.pth")


def test_below_ninety_per_cent_is_refused_with_examples(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in state_of(7).items() if not name.startswith("layer3")}
    torch.save(state | {"extra.weight": torch.rand(2, 2)}, tmp_path / "part.pth")
    with pytest.raises(ModelError, match=r"covers 25.5 % .* 90 % .*Missing: layer3\.0\.conv1\.weight.*extra\.weight"):
        load_into(small_resnet("resnet8"), tmp_path / "part.pth")


def test_another_width_shows_both_shapes(tmp_path: Path) -> None:
    torch.save(small_resnet("resnet8x2").state_dict(), tmp_path / "wide.pth")
    with pytest.raises(ModelError, match="conv1.weight is 32 x 3 x 3 x 3 in the file and 16 x 3 x 3 x 3 in the model"):
        load_into(small_resnet("resnet8"), tmp_path / "wide.pth")


def test_a_small_gap_is_loaded_into_a_student_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = state_of(8)
    del state["bn1.bias"], state["bn1.running_mean"]
    for name in [name for name in state if name.endswith("num_batches_tracked")]:
        del state[name]
    torch.save(state, tmp_path / "old.pth")
    with caplog.at_level(logging.WARNING, "understudy"):
        line = load_into(small_resnet("resnet8"), tmp_path / "old.pth")
    assert line.endswith("missing, left as initialized: bn1.bias, bn1.running_mean")
    assert "old.pth leaves 2 tensors as they were initialized: bn1.bias, bn1.running_mean" in caplog.text


@pytest.mark.parametrize("part", ["bn1.bias", "layer2.0.bn1.running_var", "layer3.0.conv2.weight", "conv1.weight"])
def test_a_teacher_is_whole_or_refused(tmp_path: Path, part: str) -> None:
    """Whatever is missing or of another shape, parameter or buffer; but a count of batches decides nothing."""
    state = {name: tensor for name, tensor in state_of(8).items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "whole.pth")
    assert build_encoder(f"small:resnet8@{tmp_path / 'whole.pth'}", pretrained=True).weights.endswith("missing: none")
    shape = [*state[part].shape[:-1], state[part].shape[-1] + 2]
    other = state | {part: torch.rand(shape)}
    del state[part]
    torch.save(state, tmp_path / "part.pth")
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(
        ModelError, match=f"part.pth covers .* a teacher needs all of them and all buffers. Missing: {part}"
    ):
        build_encoder(f"small:resnet8@{tmp_path / 'part.pth'}", pretrained=True)
    sizes = " x ".join(map(str, shape))
    with pytest.raises(ModelError, match=f"{part} is {sizes} in the file and "):
        build_encoder(f"small:resnet8@{tmp_path / 'other.pth'}", pretrained=True)


class Stack(nn.Module):
    """Five blocks in a row, as a vision transformer has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.blocks = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))


WRAPPED: dict[str, Callable[[str], str]] = {
    "activation checkpoints": lambda name: name.replace("blocks.", "blocks._checkpoint_wrapped_module.", 1),
    "compiled blocks": lambda name: re.sub(r"blocks\.(\d)", r"blocks.\1._orig_mod", name),
    "compiled and distributed": lambda name: "module._orig_mod." + name,
    "FSDP": lambda name: re.sub(r"blocks\.(\d)", r"_fsdp_wrapped_module.blocks.\1._fsdp_wrapped_module", name),
    "distributed inside": lambda name: name.replace("blocks.", "blocks.module."),
    "chunks, numbered as a whole": lambda name: re.sub(
        r"blocks\.(\d)", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}", name
    ),
    "chunks, numbered each": lambda name: re.sub(
        r"blocks\.(\d)", lambda m: f"blocks.{int(m[1]) // 2}.{int(m[1]) % 2}", name
    ),
    "chunks, wrapped, of a teacher": lambda name: (
        "teacher.backbone."
        + re.sub(r"blocks\.(\d)", lambda m: f"blocks.{int(m[1]) // 3}.{m[1]}._checkpoint_wrapped_module", name)
    ),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_words_inside_names(tmp_path: Path, kind: str) -> None:
    source, target = Stack(), Stack()
    torch.save({WRAPPED[kind](name): tensor for name, tensor in source.state_dict().items()}, tmp_path / "a.pth")
    assert "12 of 12" in load_into(target, tmp_path / "a.pth", whole=True)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in target.state_dict().items())


def test_two_levels_of_numbers_that_a_network_has_stay(tmp_path: Path) -> None:
    network = nn.ModuleDict(
        {"blocks": nn.ModuleList(nn.ModuleList(nn.Linear(2, 2) for _ in range(2)) for _ in range(2))}
    )
    state = {name: torch.rand_like(tensor) for name, tensor in network.state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    load_into(network, tmp_path / "a.pth", whole=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_one_tensor_under_two_names_needs_one(tmp_path: Path) -> None:
    first = nn.Linear(2, 2)
    save_file({"0.weight": torch.rand(2, 2), "0.bias": torch.rand(2)}, tmp_path / "a.safetensors")
    assert "missing: none" in load_into(nn.Sequential(first, first), tmp_path / "a.safetensors", whole=True)


class Payload:
    """What a hostile or careless checkpoint may hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a weight file was unpickled",))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    torch.save({"state_dict": state_of(9), "config": Payload()}, tmp_path / "hostile.pth")
    torch.save(small_resnet("resnet8"), tmp_path / "module.pth")
    np.savez(tmp_path / "objects.npz", weight=np.array([Payload()], dtype=object))
    for file in ("hostile.pth", "module.pth"):
        with pytest.raises(ModelError, match="Nothing is unpickled here"):
            read_weights(tmp_path / file)
    with pytest.raises(ModelError, match="cannot be read as a weight file"):
        read_weights(tmp_path / "objects.npz")


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    for name in ("garbage.pth", "garbage.npz", "garbage.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint at all" * 10)
        with pytest.raises(ModelError, match=name):
            read_weights(tmp_path / name)
    whole = tmp_path / "whole.pth"
    torch.save(state_of(1), whole)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(ModelError, match="cut.pth"):
        read_weights(tmp_path / "cut.pth")
    with pytest.raises(ModelError, match="does not exist"):
        read_weights(tmp_path / "none.pth")
    torch.save({"epoch": 3, "names": ["a"]}, tmp_path / "empty.pth")
    with pytest.raises(ModelError, match="no tensors"):
        read_weights(tmp_path / "empty.pth")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="onnx:"):
        read_weights(tmp_path / "model.onnx")


def test_fingerprint_follows_every_value() -> None:
    network = small_resnet("resnet8")
    first = fingerprint_weights(network)
    assert fingerprint_weights(network.to(memory_format=torch.channels_last)) == first
    network.bn1.running_mean[3] += 1e-6
    assert fingerprint_weights(network) != first
    assert fingerprint_weights(nn.Linear(2, 2).to(torch.bfloat16))


def moco_checkpoint(source: nn.Module) -> dict[str, Any]:
    """The layout that MoCo's main_moco.py saves for `--mlp`: DistributedDataParallel around query, key and queue."""
    state = {}
    for name, factor in (("encoder_q", 1), ("encoder_k", 0)):
        backbone = {key: tensor * factor for key, tensor in source.state_dict().items() if not key.startswith("fc.")}
        state |= under(f"module.{name}.", backbone)
        state |= {f"module.{name}.fc.0.weight": torch.rand(64, 2048), f"module.{name}.fc.0.bias": torch.rand(64)}
        state |= {f"module.{name}.fc.2.weight": torch.rand(128, 64), f"module.{name}.fc.2.bias": torch.rand(128)}
    state |= {"module.queue": torch.rand(128, 256), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def test_moco_v2_loads_into_timm_resnet50_key_by_key(tmp_path: Path) -> None:
    """Issue 2, requirement 4. The source is torchvision's ResNet-50: another implementation of the same network."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    source = resnet50()
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    file = tmp_path / "moco_v2_200ep.pth.tar"
    torch.save(moco_checkpoint(source), file)

    backbone = build_encoder(f"timm:resnet50@{file}", pretrained=True, image_size=64)

    assert backbone.weights and backbone.width == 2048 and backbone.architecture == "timm:resnet50"
    assert (
        "MoCo v1/v2" in backbone.weights and "dropped: encoder_k (" in backbone.weights and "fc (4)" in backbone.weights
    )
    assert "265 of 265" in backbone.weights and "missing: none" in backbone.weights
    published = source.state_dict()
    for name, tensor in backbone.module.state_dict().items():
        assert torch.equal(tensor, published[name]), name
    source.fc = nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = source.eval()(images)
        found = backbone.module.eval()(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
