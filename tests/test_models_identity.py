"""What a teacher is known by: all bytes and code that decide its embeddings, and what it answers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from test_models_teacher import onnx_file, structured
from understudy.embed.embedding import Inference, embed
from understudy.errors import ModelError, StoreError
from understudy.models import onnx_files
from understudy.models.contract import Contract
from understudy.models.encoder import build_encoder
from understudy.models.probe import answer_alone
from understudy.models.teacher import build_teacher, check_embeddings
from understudy.sources.source import open_source

# --- the user's own code ------------------------------------------------------------------------------------------

MINE = """
import json
import pathlib
import torch
import helpers.inner

class Net(torch.nn.Module):
    contract = {"size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    def forward(self, x):
        return helpers.inner.change(x.mean((2, 3)) * self.factor)

def net():
    module = Net()
    module.factor = json.loads(pathlib.Path("factor.json").read_text())
    return module
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a network of three sources and a file; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helpers").mkdir()
    for name, text in (
        ("mine.py", MINE), ("helpers/__init__.py", ""), ("helpers/inner.py", "from .deeper import change\n"),
        ("helpers/deeper.py", "def change(x):\n    import later\n    return later.change(x)\n"),
        ("later.py", "def change(x):\n    return x + 1\n"), ("factor.json", "2"), ("unrelated.py", ""),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("mine", "helpers", "later", "unrelated")]:
        del sys.modules[name]


def identity_of() -> str:
    forget()
    return build_encoder("python:mine:net", pretrained=True).fingerprint


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("mine.py", MINE.replace("self.factor)", "self.factor * 3)")),
        ("helpers/__init__.py", "x = 1\n"),
        ("helpers/deeper.py", "def change(x):\n    return x - 1\n"),
        ("later.py", "def change(x):\n    return x + 10\n"),
        ("factor.json", "3"),
    ],
)
def test_the_users_code_and_files_are_part_of_a_teacher(mine: Path, file: str, text: str) -> None:
    first = identity_of()
    (mine / "unrelated.py").write_text("x = 1\n")
    (mine / "other.json").write_text("1")
    assert identity_of() == first
    before = (mine / file).read_text()
    (mine / file).write_text(text)
    assert identity_of() != first
    (mine / file).write_text(before)
    assert identity_of() == first


def test_a_second_call_in_one_process_is_the_same_teacher_or_refused(mine: Path) -> None:
    first = identity_of()
    assert build_encoder("python:mine:net", pretrained=True).fingerprint == first
    (mine / "helpers" / "deeper.py").write_text("def change(x):\n    return x\n")
    with pytest.raises(ModelError, match=r"deeper\.py has changed since it was imported here"):
        build_encoder("python:mine:net", pretrained=True)


def test_packages_are_named_with_their_versions(mine: Path) -> None:
    import timm

    (mine / "later.py").write_text("import timm.layers, os, numpy\ndef change(x):\n    return x\n")
    forget()
    assert build_encoder("python:mine:net", pretrained=True).library == f"timm {timm.__version__}"
    assert build_encoder("timm:test_vit", pretrained=False).library == f"timm {timm.__version__}"
    toy = build_encoder("python:understudy.models.toy_encoder:ToyEncoder", pretrained=True)
    assert (toy.code, toy.library) == ("", "")


def test_a_store_belongs_to_one_version_of_a_library(tmp_path: Path) -> None:
    teacher = build_teacher("python:understudy.models.toy_encoder:ToyEncoder")
    source = open_source(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8))
    here = Inference(workers=0)
    folders = set()
    for library in ("", "timm 1.0", "timm 1.1", ""):
        teacher.library = library
        folders.add(embed(teacher, source, tmp_path, here).folder)
    assert len(folders) == 3


def test_a_store_is_refused_when_the_answer_has_changed_and_nothing_else(tmp_path: Path) -> None:
    teacher = build_teacher("python:understudy.models.toy_encoder:ToyEncoder")
    source = open_source(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8))
    here = Inference(workers=0)
    assert len(embed(teacher, source, tmp_path, here).manifest["probe"]) == teacher.width
    embed(teacher, source, tmp_path, here)
    teacher.probe = [value * 1.001 for value in teacher.probe]  # as another machine rounds
    embed(teacher, source, tmp_path, here)
    teacher.probe = [value * 1.1 for value in teacher.probe]
    with pytest.raises(StoreError, match=r"embedding of a test image has moved by \d"):
        embed(teacher, source, tmp_path, here)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def net(:\n", "SyntaxError"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def net(x):\n    return x\n", "TypeError: net.. missing 1 required"),
        ("def net():\n    raise OSError('\\x1b[31mred\\x1b[0m\\nsecond')\n", r"\(OSError: red\)"),
        ("import no_such_package\n", "there is no Python module 'no_such_package'"),
        ("def net():\n    return lambda x: x\n", "returned a function"),
        ("import torch\nclass net(torch.nn.Flatten):\n    contract = 3\n", "must be a table or a Contract"),
        ("import torch\nclass net(torch.nn.Flatten):\n    contract = {}\n", "its .contract: An input contract needs"),
        (
            "import torch\nclass net(torch.nn.Flatten):\n    "
            "contract = dict(size=8, mean=[124, 116, 104], std=[58, 57, 57])\n",
            "its .contract: .*Divided by 255: mean 0.486275,0.454902,0.407843",
        ),
        ("import torch\ndef net():\n    return torch.nn.LazyLinear(3)\n", "parameters or buffers that cannot be read"),
        ("import torch\nclass net(torch.nn.Module):\n    def forward(self, x):\n        1 / 0\n", "cannot take 224"),
    ],
)  # fmt: skip
def test_code_that_fails_is_a_sentence(mine: Path, text: str, message: str) -> None:
    (mine / "mine.py").write_text(text)
    with pytest.raises(ModelError, match=message):
        identity_of()


# --- ONNX files of several parts ----------------------------------------------------------------------------------


def external(path: Path, location: str, data: bytes | None = None) -> Path:
    """The file of `onnx_file`, its weight in another file."""
    onnx_file(path, structured())
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    if data is None:
        data = weight.raw_data
    if data:
        (path.parent / location).write_bytes(data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", location
    path.write_bytes(model.SerializeToString())
    return path


def test_external_tensors_are_part_of_a_teacher(tmp_path: Path) -> None:
    whole = build_teacher(f"onnx:{onnx_file(tmp_path / 'whole.onnx', structured())}")
    file = external(tmp_path / "t.onnx", "t.bin")
    first = build_teacher(f"onnx:{file}")
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(first(images), whole(images))
    weights = np.fromfile(tmp_path / "t.bin", np.float32)
    (weights * 2).tofile(tmp_path / "t.bin")
    second = build_teacher(f"onnx:{file}")
    torch.testing.assert_close(second(images), 2 * whole(images))
    assert second.fingerprint != first.fingerprint
    weights.tofile(tmp_path / "t.bin")
    assert build_teacher(f"onnx:{file}").fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("location", "data", "message"),
    [
        ("../t.bin", b"", "outside its folder"),
        ("/etc/passwd", b"", "outside its folder"),
        ("none.bin", b"", "none.bin, which cannot be opened"),
        ("pipe.bin", b"", "it is a named pipe"),
        ("short.bin", b"123", "cannot be loaded as an ONNX model"),
    ],
)
def test_external_tensors_lie_beside_the_model(tmp_path: Path, location: str, data: bytes, message: str) -> None:
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(ModelError, match=message):
        build_teacher(f"onnx:{external(tmp_path / 't.onnx', location, data)}")


def test_tensors_in_branches_are_found(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="inner.bin")
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], [])
    outer = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)], "g", [], [])
    (tmp_path / "m.onnx").write_bytes(helper.make_model(outer).SerializeToString())
    (tmp_path / "inner.bin").write_bytes(bytes(4))
    assert onnx_files.external_files(tmp_path / "m.onnx") == [tmp_path / "inner.bin"]


def looping(path: Path, times: int) -> Path:
    """A graph that does nothing so many times before it answers."""
    inputs = [("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("carried", TensorProto.FLOAT, None)]
    outputs = [("go_on", TensorProto.BOOL, []), ("carried_on", TensorProto.FLOAT, None)]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Sin", ["carried"], ["carried_on"])],
        "body",
        *([helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)),
    )
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["pooled"], keepdims=0),
        helper.make_node("Loop", ["times", "yes", "pooled"], ["embedding"], body=body),
    ]
    shape = helper.make_tensor_value_info("images", TensorProto.FLOAT, ("n", 3, 8, 8))
    constants = [numpy_helper.from_array(np.array([2, 3]), "axes"), numpy_helper.from_array(np.array(times), "times"),
                 numpy_helper.from_array(np.array(True), "yes")]  # fmt: skip
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ("n", 3))
    graph = helper.make_graph(nodes, "g", [shape], [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    entry = model.metadata_props.add()
    entry.key, entry.value = "understudy.input", '{"size": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}'
    path.write_bytes(model.SerializeToString())
    return path


def test_a_graph_that_does_not_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_encoder(f"onnx:{looping(tmp_path / 'short.onnx', 3)}", pretrained=True).width == 3
    monkeypatch.setattr(onnx_files, "SECONDS", 2.0)
    begun = time.monotonic()
    with pytest.raises(ModelError, match=r"endless.onnx did not answer for one image within 2 seconds"):
        build_encoder(f"onnx:{looping(tmp_path / 'endless.onnx', 2**62)}", pretrained=True)
    assert time.monotonic() - begun < 10


def test_a_graph_that_takes_all_memory_is_stopped(tmp_path: Path) -> None:
    """200 GB, as constants that are folded when the file is loaded and as what one image becomes."""
    file = onnx_file(tmp_path / "t.onnx", structured())
    model = onnx.load(file)
    shape = numpy_helper.from_array(np.array([50, 1_000_000_000]), "much")
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["much"], ["zeros"]))
    model.graph.node.append(helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, []))
    file.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"t.onnx (cannot be|brought the process down)"):
        build_encoder(f"onnx:{file}", pretrained=True)


def test_a_weight_that_is_shorter_than_it_says(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "t.onnx", structured())
    model = onnx.load(file)
    model.graph.initializer[0].raw_data = b"1234"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="t.onnx"):
        build_teacher(f"onnx:{file}")


def test_the_scale_of_pixels_in_metadata(tmp_path: Path) -> None:
    contract = {"size": 8, "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    file = onnx_file(tmp_path / "t.onnx", structured(), contract=contract)
    with pytest.raises(ModelError, match=r"t.onnx: .*mean 0.485,0.456,0.406 and std 0.229,0.224,0.225"):
        build_teacher(f"onnx:{file}")
    good = onnx_file(tmp_path / "u.onnx", structured())
    with pytest.raises(ModelError, match=r"u.onnx: .*mean 0.485,0.456,0.406 and std 0.5,0.5,0.5"):
        build_teacher(f"onnx:{good}", mean=(123.675, 116.28, 103.53))


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    onnx_file(tmp_path / "t.onnx", structured())
    assert build_teacher("onnx:~/t.onnx").width == 32
    for place in (tmp_path, Path("/dev/zero")):
        with pytest.raises(ModelError, match="no regular file"):
            build_teacher(f"onnx:{place}")


# --- a function of one image --------------------------------------------------------------------------------------


class Pooled(nn.Module):
    """Means of colors and of their squares, then what `change` makes of the batch."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.cat([x.mean((2, 3)), x.square().mean((2, 3)), x.sin().mean((2, 3))], 1)
        return self.change(rows)


MIXING: dict[str, Any] = {
    "the batch's mean taken off": lambda rows: rows - rows.mean(0),
    "a hundredth of the batch's mean": lambda rows: rows + 0.01 * rows.mean(0),
    "softmax over the batch": lambda rows: rows.softmax(0),
    "divided by the batch's largest": lambda rows: rows / rows.abs().max(),
    "normalized by the batch": lambda rows: (rows - rows.mean(0)) / (rows.std(0, correction=0) + 1),
    "rolled": lambda rows: rows.roll(1, 0),
    "quantized by the batch's range": lambda rows: (rows / (s := rows.abs().max() / 31)).round() * s,
}  # fmt: skip


@pytest.mark.parametrize("kind", MIXING)
def test_batch_mates_are_found(kind: str) -> None:
    with pytest.raises(ModelError, match="another embedding when another image is in the batch"):
        answer_alone(Pooled(MIXING[kind]), Contract(8), "This")


def test_chance_and_lost_rows_are_found() -> None:
    with pytest.raises(ModelError, match="another embedding each time it sees the same image"):
        answer_alone(Pooled(lambda rows: nn.functional.dropout(rows, 0.5, training=True)), Contract(8), "This")
    with pytest.raises(ModelError, match=r"two images to two rows; it gives \(1, 9\)"):
        answer_alone(Pooled(lambda rows: rows[:1]), Contract(8), "This")


def test_functions_of_one_image_pass() -> None:
    for change in (
        lambda rows: rows,
        lambda rows: rows.softmax(1),
        lambda rows: rows * 0,
        lambda rows: rows.half().float(),
    ):
        assert len(answer_alone(Pooled(change).train(), Contract(8), "This")) == 9
    assert answer_alone(Pooled(lambda rows: rows / 0), Contract(8), "This") == []
    norms = build_encoder("timm:test_resnet", pretrained=False, image_size=64)
    assert len(answer_alone(norms.module, norms.contract, "This")) == norms.width and norms.module.training


def test_nearly_one_direction_gets_a_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    assert check_embeddings(rows + 20, "This") == ""  # mean cosine .998
    said = check_embeddings(rows + 60, "This")
    assert "This gives 64 different images nearly the same direction (their mean cosine is 0.9997" in said
    source = open_source(np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8))
    teacher = build_teacher("python:understudy.models.toy_encoder:ToyEncoder")
    embed(teacher, source, tmp_path / "a", Inference(workers=0))
    assert "nearly the same direction" not in caplog.text
    features = teacher.features
    teacher.features = lambda x: features(x) + 100  # type: ignore[method-assign]
    embed(teacher, source, tmp_path / "b", Inference(workers=0))
    assert "nearly the same direction" in caplog.text
