"""The teacher: frozen whatever happens to it, real ones taken as they are, random and broken ones refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save
from torch import Tensor, nn

from understudy.errors import ModelError
from understudy.models.contract import Contract
from understudy.models.cost import flops
from understudy.models.encoder import Encoder, build_encoder
from understudy.models.onnx_encoder import OnnxEncoder
from understudy.models.resnet import small_resnet
from understudy.models.teacher import Teacher, build_teacher, check_embeddings, refuse_untrained


def with_norms_moved(module: nn.Module) -> nn.Module:
    """As after some training: normalization layers have left their initial values."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    return module


@pytest.fixture
def teacher(tmp_path: Path) -> Teacher:
    torch.manual_seed(0)
    torch.save(with_norms_moved(small_resnet("resnet8")).state_dict(), tmp_path / "weights.pth")
    return build_teacher(f"small:resnet8@{tmp_path / 'weights.pth'}")


def test_frozen_for_good(teacher: Teacher) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher, self.student = teacher, nn.Linear(64, 64)

    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    pair = Pair().train()
    assert pair.training and not any(part.training for part in teacher.modules())
    images = torch.rand(8, 3, 32, 32, requires_grad=True)
    embeddings = pair.teacher(images)
    assert not embeddings.requires_grad and not any(parameter.requires_grad for parameter in teacher.parameters())
    nn.functional.mse_loss(
        pair.student(embeddings), embeddings
    ).backward()  # its output may be saved for a backward pass
    assert images.grad is None and pair.student.weight.grad is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_it_prepares_its_own_input(teacher: Teacher) -> None:
    images = torch.rand(2, 3, 48, 48)
    assert torch.equal(teacher(images), teacher.features(teacher.contract.prepare(images)))
    assert teacher(images).shape == (2, teacher.width) and teacher(images).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert teacher(images).dtype == torch.float32
    assert teacher.parameters_count == sum(parameter.numel() for parameter in teacher.parameters())


def test_flags_override_its_normalization(teacher: Teacher) -> None:
    other = build_teacher(teacher.spec, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), image_size=24)
    assert other.contract == Contract(24, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic")
    images = torch.rand(1, 3, 24, 24)
    assert torch.equal(other(images), teacher.features((images - 0.5) / 0.25))


# --- refused: never trained ---------------------------------------------------------------------------------------


def norm_free(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 128))


@pytest.mark.parametrize("spec", ["small:resnet8", "small:resnet20", "timm:test_resnet", "timm:test_vit"])
def test_random_networks_are_refused(spec: str, tmp_path: Path) -> None:
    """Also when the random weights come as a file, and when BatchNorm has seen data."""
    torch.manual_seed(0)
    module = build_encoder(spec, pretrained=False, image_size=64).module
    with pytest.raises(ModelError, match="looks randomly initialized: all .* normalization layers"):
        refuse_untrained(module, spec)
    module.train()(torch.rand(8, 3, 64, 64))
    torch.save(module.state_dict(), tmp_path / "random.pth")
    with pytest.raises(ModelError, match="looks randomly initialized"):
        build_teacher(f"{spec}@{tmp_path / 'random.pth'}", image_size=64)


@pytest.mark.parametrize(
    "init", [None, nn.init.kaiming_normal_, nn.init.xavier_uniform_, nn.init.orthogonal_, nn.init.trunc_normal_]
)
def test_random_networks_without_norms_are_refused(init: Any) -> None:
    module = norm_free()
    for parameter in module.parameters():
        if init is not None and parameter.ndim > 1:
            init(parameter)
    with pytest.raises(ModelError, match="none of 3 weight matrices differs from independent random numbers"):
        refuse_untrained(module)


def test_a_few_training_steps_are_enough() -> None:
    for module, steps in ((small_resnet("resnet8"), 2), (norm_free(), 40)):
        images, targets = torch.rand(16, 3, 32, 32), torch.arange(16) % 4
        images += targets.view(-1, 1, 1, 1) / 4
        images[:, 0] -= targets.view(-1, 1, 1) / 2
        classifier = nn.LazyLinear(4)
        classifier(module(images))
        optimizer = torch.optim.Adam([*module.parameters(), *classifier.parameters()], 3e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(classifier(module(images)), targets).backward()
            optimizer.step()
        refuse_untrained(module)


def test_a_network_without_evidence_is_not_accused() -> None:
    refuse_untrained(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))


# --- refused: embeddings that teach nothing -----------------------------------------------------------------------


def test_embeddings_that_are_not_finite_are_counted() -> None:
    rows = torch.randn(10, 4)
    rows[3, 1], rows[7, 0], rows[7, 2] = float("nan"), float("inf"), float("nan")
    with pytest.raises(ModelError, match="for 2 of 10 images"):
        check_embeddings(rows)
    with pytest.raises(ModelError, match="for 1 of 1 images"):
        check_embeddings(np.full((1, 3), np.nan, dtype=np.float16))


@pytest.mark.parametrize("spread", [0.0, 1e-5])
def test_constant_embeddings_are_refused(spread: float) -> None:
    rows = torch.randn(16) + spread * torch.randn(32, 16)
    with pytest.raises(ModelError, match="the same embedding for 32 images"):
        check_embeddings(rows)
    with pytest.raises(ModelError, match="all are zero"):
        check_embeddings(torch.zeros(4, 3))


def test_usable_embeddings_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 32, generator=generator)
    check_embeddings(rows)
    check_embeddings(rows.relu().half().numpy())  # sparse and not negative, as after a ReLU
    check_embeddings(rows + 20)  # a large common part, as many vision transformers have: mean cosine .998
    check_embeddings(rows * torch.tensor([1.0] + [1e-3] * 31))  # one dimension that dwarfs the others
    check_embeddings(rows[:1])


# --- ONNX files -----------------------------------------------------------------------------------------------------


def onnx_file(
    path: Path,
    weight: Tensor,
    *,
    shape: tuple[int | str, ...] = ("batch", 3, 8, 8),
    contract: object = None,
    outputs: tuple[str, ...] = ("embedding",),
    pooled: bool = True,
) -> Path:
    """Conv without bias, then the mean over all pixels, written by hand."""
    initializer = numpy_helper.from_array(weight.numpy(), "weight")
    nodes = [helper.make_node("Conv", ["images", "weight"], ["map"], pads=[1, 1, 1, 1])]
    keep = 0 if pooled else 1
    nodes += [helper.make_node("ReduceMean", ["map", "axes"], [name], keepdims=keep) for name in outputs]
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    tail = () if pooled else (1, 1)
    results = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (shape[0], len(weight), *tail)) for name in outputs
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)], results, [initializer, axes]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if contract is None:
        contract = {"size": [8, 8], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"}
    if contract:
        entry = model.metadata_props.add()
        entry.key, entry.value = "understudy.input", contract if isinstance(contract, str) else json.dumps(contract)
    save(model, path)
    return path


def structured(channels: int = 32) -> Tensor:
    """Filters of few patterns: what no random initialization gives."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(channels, 2, generator=generator) @ torch.randn(2, 27, generator=generator)).view(
        channels, 3, 3, 3
    )


def test_an_onnx_teacher_computes_its_graph(tmp_path: Path) -> None:
    weight = structured()
    teacher = build_teacher(f"onnx:{onnx_file(tmp_path / 't@1.onnx', weight)}")
    assert (teacher.width, teacher.contract) == (32, Contract(8, (0.5,) * 3, (0.5,) * 3, "bilinear"))
    images = torch.rand(5, 3, 8, 8)
    expected = nn.functional.conv2d(images * 2 - 1, weight, padding=1).mean((2, 3))
    torch.testing.assert_close(teacher(images), expected, rtol=1e-4, atol=1e-5)
    # Views come in channels_last, in half precision, as slices: all are the same pixels.
    torch.testing.assert_close(teacher(images.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(teacher(images.flip(3).flip(3)[1:]), expected[1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(teacher(images.half()), expected, rtol=1e-2, atol=1e-2)
    assert teacher.parameters_count == 32 * 27
    assert flops(teacher) == 32 * 27 * 64
    assert not teacher.training and teacher.train() is teacher and not teacher.training


def test_onnx_fingerprint_follows_the_content(tmp_path: Path) -> None:
    first = build_teacher(f"onnx:{onnx_file(tmp_path / 'a.onnx', structured())}")
    moved = build_teacher(f"onnx:{onnx_file(tmp_path / 'b.onnx', structured())}")
    other = build_teacher(f"onnx:{onnx_file(tmp_path / 'a.onnx', structured() * 2)}")
    assert first.fingerprint == moved.fingerprint != other.fingerprint


def test_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    free = build_teacher(f"onnx:{onnx_file(tmp_path / 'free.onnx', structured())}")
    fixed = build_teacher(f"onnx:{onnx_file(tmp_path / 'fixed.onnx', structured(), shape=(2, 3, 8, 8))}")
    images = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(fixed(images), free(images), rtol=1e-5, atol=1e-6)


def test_fixed_sizes_show_both_numbers(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "t.onnx", structured())
    with pytest.raises(ModelError, match="exactly 8 pixels high; 12 was asked for"):
        build_teacher(f"onnx:{file}", image_size=12)
    with pytest.raises(ModelError, match="exactly 8 pixels high; it was given 9"):
        OnnxEncoder(file)(torch.rand(1, 3, 9, 8))
    contract = {"size": 16, "mean": [0, 0, 0], "std": [1, 1, 1]}
    with pytest.raises(ModelError, match="exactly 8 pixels high; its own metadata says 16"):
        build_teacher(f"onnx:{onnx_file(tmp_path / 'u.onnx', structured(), contract=contract)}")
    free = onnx_file(tmp_path / "v.onnx", structured(), shape=("batch", 3, "height", "width"))
    assert build_teacher(f"onnx:{free}", image_size=12).contract.size == 12


def test_flags_stand_in_for_missing_metadata(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "t.onnx", structured(), contract=False)
    contract = build_teacher(f"onnx:{file}", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).contract
    assert (contract.size, contract.mean, contract.std) == (8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contract": False}, "does not say what input it was trained on"),
        ({"contract": "{size: 8}"}, "not valid JSON"),
        ({"contract": "[8]"}, "must be a JSON table"),
        ({"contract": {"size": 8, "mean": [0, 0, 0]}}, "std missing"),
        ({"outputs": ("first", "second")}, "one named 'embedding'; it has first .* second"),
    ],
)
def test_unusable_onnx_files_are_sentences(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    file = onnx_file(tmp_path / "t.onnx", structured(), **settings)
    with pytest.raises(ModelError, match=message):
        build_teacher(f"onnx:{file}")


def test_outputs_are_chosen_by_name_and_flattened(tmp_path: Path) -> None:
    two = onnx_file(tmp_path / "two.onnx", structured(), outputs=("logits", "embedding"))
    assert build_teacher(f"onnx:{two}").width == 32
    unpooled = onnx_file(tmp_path / "map.onnx", structured(), pooled=False)
    assert build_teacher(f"onnx:{unpooled}").width == 32


def test_one_of_several_outputs_is_chosen_in_the_spec_or_by_a_flag_and_is_another_teacher(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "a#b.onnx", structured(), outputs=("logits", "embedding"))
    own, asked = build_teacher(f"onnx:{file}"), build_teacher(f"onnx:{file}#embedding")
    other, flag = build_teacher(f"onnx:{file}#logits"), build_teacher(f"onnx:{file}", output="logits")
    assert own.fingerprint == asked.fingerprint != other.fingerprint == flag.fingerprint
    assert other.weights.endswith("; output logits") and (own.output, flag.output) == ("pooled", "logits")
    without = onnx_file(tmp_path / "w.onnx", structured(), outputs=("first", "second"))
    assert build_teacher(f"onnx:{without}#second").width == 32
    for spec, output, message in (
        (f"onnx:{without}#third", "pooled", "it has first .* second .*'third' was asked for.*onnx:FILE#OUTPUT"),
        (f"onnx:{without}#first", "second", "names one output, and --teacher-output second another"),
        (f"onnx:{without}", "cls", "'cls' was asked for"),
    ):
        with pytest.raises(ModelError, match=message):
            build_teacher(spec, output=output)


@pytest.mark.parametrize("kind", ["float16", "uint8"])
@pytest.mark.parametrize("batch", ["batch", 2])
def test_a_graph_is_fed_the_numbers_and_the_layout_that_it_declares(
    tmp_path: Path, kind: str, batch: int | str
) -> None:
    weight = structured()
    own = {"float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}[kind]
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "weight"], ["map"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["map", "axes"], ["mean"], keepdims=0),
        helper.make_node("Cast", ["mean"], ["embedding"], to=TensorProto.FLOAT16),
    ]
    tensors = [numpy_helper.from_array(weight.numpy(), "weight"), numpy_helper.from_array(np.array([2, 3]), "axes")]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("images", own, (batch, 8, 8, 3))],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT16, (batch, 32))], tensors,
    )  # fmt: skip
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "t.onnx")
    pixels = torch.randint(0, 256, (5, 3, 8, 8)) / 255
    if kind == "uint8":
        teacher, expected = build_teacher(f"onnx:{tmp_path / 't.onnx'}"), pixels * 255
        with pytest.raises(ModelError, match="takes pixels as they are, from 0 to 255: leave out --teacher-mean"):
            build_teacher(f"onnx:{tmp_path / 't.onnx'}", mean=(0.5,) * 3, std=(0.5,) * 3)
    else:
        teacher = build_teacher(f"onnx:{tmp_path / 't.onnx'}", mean=(0.5,) * 3, std=(0.5,) * 3)
        expected = pixels * 2 - 1
    expected = nn.functional.conv2d(expected, weight, padding=1).mean((2, 3))
    answer = teacher(pixels)
    assert answer.dtype == torch.float32 and teacher.contract.size == 8
    torch.testing.assert_close(answer, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_garbage_and_gray_onnx_files_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "garbage.onnx").write_bytes(b"no protobuf " * 50)
    with pytest.raises(ModelError, match="garbage.onnx cannot be loaded as an ONNX model"):
        build_teacher(f"onnx:{tmp_path / 'garbage.onnx'}")
    gray = onnx_file(tmp_path / "gray.onnx", torch.rand(32, 1, 3, 3), shape=("batch", 1, 8, 8))
    with pytest.raises(ModelError, match=r"one input of images, \(batch, 3, H, W\) or .*; it takes images"):
        build_teacher(f"onnx:{gray}")
    with pytest.raises(ModelError, match="frozen and cannot be trained"):
        build_encoder(f"onnx:{onnx_file(tmp_path / 't.onnx', structured())}", pretrained=False)


def test_a_random_onnx_file_is_refused(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "random.onnx", nn.Conv2d(3, 32, 3, bias=False).weight.detach())
    with pytest.raises(ModelError, match="none of 1 weight matrices differs from independent random numbers"):
        build_teacher(f"onnx:{file}")


def test_a_cuda_device_without_the_provider_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    encoder = OnnxEncoder(onnx_file(tmp_path / "t.onnx", structured()))
    with caplog.at_level(logging.WARNING, "understudy"):
        assert encoder._session(torch.device("cuda", 0)) is encoder._session(torch.device("cpu"))
        encoder._session(torch.device("cuda", 0))
    assert caplog.text.count("runs on the CPU") == 1


# --- the real ones --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "width", "size", "mean", "macs"),
    [("resnet56_cifar10", 64, 32, 0.485, 125.5e6), ("mobilenet_v1_imagenet", 1024, 224, 0.5, 515.9e6)],
)
def test_real_teachers_are_taken(shared: Path, file: str, width: int, size: int, mean: float, macs: float) -> None:
    teacher = build_teacher(f"onnx:{shared / 'weights' / file}.onnx")
    assert (teacher.width, teacher.contract.size, teacher.contract.mean[0]) == (width, size, mean)
    assert flops(teacher) == pytest.approx(macs, rel=1e-3)
    check_embeddings(teacher(torch.rand(4, 3, 32, 32)))


def test_the_real_teacher_knows_its_classes(shared: Path) -> None:
    """Weighted 10-NN on CIFAR-10, 100 test images against 500: chance is 10 %, the published figure 93.5 % on all."""
    import io

    import pyarrow.parquet as pq
    from PIL import Image

    teacher = build_teacher(f"onnx:{shared / 'weights' / 'resnet56_cifar10.onnx'}")
    features, labels = {}, {}
    for split, count in (("train", 500), ("test", 100)):
        rows = pq.read_table(shared / "data" / "cifar10" / f"{split}.parquet").slice(0, count)
        images = [Image.open(io.BytesIO(image["bytes"])) for image in rows["image"].to_pylist()]
        pixels = torch.stack([teacher.contract.preprocess(image) for image in images])
        features[split] = nn.functional.normalize(teacher.features(pixels), dim=1)
        labels[split] = torch.tensor(rows["label"].to_pylist())
    similarity, index = (features["test"] @ features["train"].T).topk(10)
    votes = torch.zeros(100, 10).scatter_add_(1, labels["train"][index], (similarity / 0.07).exp())
    assert (votes.argmax(1) == labels["test"]).float().mean() > 0.85


def test_a_convolutional_teacher_is_laid_out_for_the_cpu_and_says_the_same():
    """Channels last on a CPU: the layout of the weights changes, the embeddings do not but for rounding."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 6, 3, stride=2),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    ).double()  # fmt: skip
    images = torch.rand(4, 3, 20, 20, dtype=torch.float64)
    expected = module(images).float()
    teacher = Teacher(Encoder(module, 6, Contract(20), "test", "test", "made", "x"))
    assert teacher.convolves
    torch.testing.assert_close(teacher.features(images), expected, rtol=1e-6, atol=1e-7)
    assert module[2].weight.is_contiguous(memory_format=torch.channels_last)
    lone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, stride=4), torch.nn.Flatten())
    assert not Teacher(Encoder(lone, 200, Contract(20), "test", "test", "made", "x")).convolves
