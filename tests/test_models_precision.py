"""The teacher's arithmetic: rounded as asked for, kept apart in stores, the process' own switches left as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from test_models_teacher import onnx_file, structured
from toy_runs import TEACHER
from understudy.artifacts import Run, Store, StoreKey
from understudy.cli import main
from understudy.errors import ConfigError, ModelError, StoreError
from understudy.evaluate.runner import _teacher_of
from understudy.models.contract import Contract
from understudy.models.encoder import Encoder
from understudy.models.precision import arithmetic, resolve_precision
from understudy.models.resnet import small_resnet
from understudy.models.teacher import Teacher, build_teacher
from understudy.models.trust import trusting
from understudy.pipeline import evaluate_stage, resolve_run, train_stage

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def teacher_of(module: nn.Module, precision: str, width: int = 16, size: int = 8) -> Teacher:
    contract = Contract(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Teacher(Encoder(module.eval(), width, contract, "python:t", "python:t", "given", "f"), precision)


def switches() -> tuple[Any, ...]:
    backends = torch.backends
    return (
        backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision,
        backends.mkldnn.matmul.fp32_precision, backends.mkldnn.conv.fp32_precision,
        torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"),
    )  # fmt: skip


@pytest.fixture
def defaults() -> Iterator[tuple[Any, ...]]:
    """What is switched on around a test; it must be so again behind it."""
    before = switches()
    yield before
    assert switches() == before


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even, on the bits."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


# --- the numbers ---------------------------------------------------------------------------------------------------


def test_bf16_is_a_product_of_rounded_numbers(defaults) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(192, 16, bias=False)
    images = torch.rand(5, 3, 8, 8)
    module = nn.Sequential(nn.Flatten(), linear)
    found = teacher_of(module, "bf16")(images)
    assert found.dtype == torch.float32 and torch.equal(found, found.bfloat16().float())
    x, w = to_bf16(images.flatten(1).numpy()), to_bf16(linear.weight.detach().numpy())
    expected = x.astype(np.float64) @ w.astype(np.float64).T
    np.testing.assert_allclose(found.numpy(), expected, rtol=2.0**-8, atol=1e-5)
    plain = teacher_of(module, "fp32")(images)
    assert not torch.equal(found, plain)


@pytest.mark.parametrize(("precision", "bits"), [("bf16", 8), ("fp16", 11)])
def test_half_precision_of_a_network_is_near_and_not_the_same(defaults, precision: str, bits: int) -> None:
    torch.manual_seed(0)
    module, images = small_resnet("resnet8"), torch.rand(4, 3, 32, 32)
    found, plain = (teacher_of(module, name, 64, 32)(images) for name in (precision, "fp32"))
    apart = float((found - plain).abs().max() / plain.abs().max())
    assert found.dtype == torch.float32 and 0 < apart < 4 * 2.0**-bits


def test_fp32_on_a_cpu_has_the_bits_of_the_bare_network_whatever_is_switched_on(defaults) -> None:
    torch.manual_seed(0)
    module, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 16)).eval(), torch.rand(4, 3, 8, 8)
    teacher = teacher_of(module, "fp32")
    with torch.no_grad():
        expected = module(images)
        assert not torch.equal(teacher_of(module, "bf16")(images), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher(images), expected)


def test_tokens_and_attention_are_float32_too(defaults) -> None:
    torch.manual_seed(0)
    module = timm.create_model("test_vit", num_classes=0, img_size=64, global_pool="token")
    images = torch.rand(2, 3, 64, 64)
    half, plain = (teacher_of(module, name, 64, 64) for name in ("bf16", "fp32"))
    found, exact = half.forward_outputs(images, attention=True), plain.forward_outputs(images, attention=True)
    assert torch.equal(found.embedding, half(images))
    for name in ("embedding", "tokens", "attention"):
        one, other = getattr(found, name), getattr(exact, name)
        assert one.dtype == torch.float32 and not torch.equal(one, other)
        assert float((one - other).abs().max()) < 0.05 * float(other.abs().max())


# --- the switches --------------------------------------------------------------------------------------------------


class Watch(nn.Module):
    """Says what is switched on while it computes, and may break."""

    def __init__(self, breaks: bool) -> None:
        super().__init__()
        self.breaks, self.seen = breaks, ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = switches()
        if self.breaks:
            raise RuntimeError("broken")
        return x.flatten(1)


@pytest.mark.parametrize("breaks", [False, True])
def test_a_pass_sets_the_switches_and_puts_them_back(defaults, breaks: bool) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # as a user's own code may have it
    try:
        around = switches()
        for precision, half in (("fp32", False), ("bf16", True)):
            module = Watch(breaks)
            teacher = teacher_of(module, precision, 192)
            if breaks:
                with pytest.raises(RuntimeError, match="broken"):
                    teacher(torch.rand(1, 3, 8, 8))
            else:
                teacher(torch.rand(1, 3, 8, 8))
            assert module.seen == (*defaults[:2], "ieee", "ieee", half, False)
            assert switches() == around
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = defaults[2]


@pytest.mark.parametrize(("precision", "switch"), [("fp32", "ieee"), ("tf32", "tf32")])
def test_on_cuda_products_and_convolutions_follow_alike(defaults, precision: str, switch: str) -> None:
    """The switches need no GPU, what they do does; left alone torch has convolutions in TF32 and products not."""
    with arithmetic(precision, CUDA):
        assert switches()[:4] == (switch, switch, *defaults[2:4])
    assert switches() == defaults


def test_auto_is_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_precision("auto", CPU) == resolve_precision("auto", torch.device("mps")) == "fp32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported, expected in ((True, "tf32"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda supported=supported: supported)
        assert resolve_precision("auto", CUDA) == expected
        for wanted in ("fp32", "bf16", "fp16"):
            assert resolve_precision(wanted, CUDA) == resolve_precision(wanted, CPU) == wanted
    with pytest.raises(ConfigError, match="'cuda' does not have it"):
        resolve_precision("tf32", CUDA)


def test_tf32_where_there_is_none_is_a_sentence(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'cpu' does not have it. Use --teacher-precision fp32"):
        build_teacher("small:resnet8", precision="tf32")
    with pytest.raises(ConfigError, match="'cpu' does not have it"):  # it was moved here
        teacher_of(Watch(False), "tf32")(torch.rand(1, 3, 8, 8))
    monkeypatch.chdir(tmp_path)
    flags = ["--data", "digits", "--teacher", "small:resnet8@x.pth", "--device", "cpu", "--teacher-precision", "tf32"]
    for verb in (["embed"], ["train", "--student", "small:resnet8"]):
        assert main([*verb, *flags]) != 0
        assert "'cpu' does not have it" in capsys.readouterr().err


def test_an_onnx_file_has_its_own_numbers(tmp_path: Path) -> None:
    spec = f"onnx:{onnx_file(tmp_path / 't.onnx', structured())}"
    assert build_teacher(spec).precision == "fp32"
    with pytest.raises(ModelError, match="numbers that its file has, and --teacher-precision is bf16"):
        build_teacher(spec, precision="bf16")


# --- stores and runs -----------------------------------------------------------------------------------------------


def test_stores_of_fp32_are_called_what_they_were_and_others_are_others(tmp_path: Path) -> None:
    parts = {"fingerprint": "t", "spec": "s"}, {"size": 32}, {"fingerprint": "d", "spec": "x", "images": 3}, "float16"
    fp32 = StoreKey(*parts)
    assert fp32.fingerprint == "e664d0517a060348"  # of the version before there was a choice
    keys = [StoreKey(*parts, precision) for precision in ("fp32", "tf32", "bf16", "fp16")]
    assert len({key.fingerprint for key in keys}) == 4 and keys[0] == fp32
    store = Store(tmp_path)
    store.finish(fp32, rows=1, D=1)
    manifest = json.loads(store.manifest_path.read_text())
    del manifest["key"]["precision"]
    store.manifest_path.write_text(json.dumps(manifest))
    Store.at(tmp_path, fp32)
    with pytest.raises(StoreError, match=r"the teacher's precision \(store: fp32; now: bf16\)"):
        Store.at(tmp_path, keys[2])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The same tiny run with a teacher in fp32 and in bf16, views recorded, over one root of stores."""
    folder = tmp_path_factory.mktemp("precision")
    (folder / "wavelets.py").write_text(TEACHER)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.chdir(folder)
        for precision in ("auto", "bf16"):
            settings = resolve_run(
                {
                    "data": "digits:train", "limit": 96, "holdout": 32, "probes": 0, "workers": 0, "device": "cpu",
                    "batch_size": 32, "passes": 1, "teacher": "python:wavelets:ToyEncoder", "head_hidden": 16,
                    "student": "small:resnet8x0.25", "teacher_precision": precision, "out": precision,
                    "neighbors": {"k": 3, "n": 3}, "views": {"teacher": "recorded", "pool": 1, "dtype": "float32"},
                    "evaluation": {"protocols": ["fidelity"], "fidelity": {"draws": 0}},
                }
            )  # fmt: skip
            run = train_stage(settings, quiet=True)
            assert run is not None
            evaluate_stage(run, settings, quiet=True)
        yield {precision: folder / precision for precision in ("auto", "bf16")}


def stores(runs: dict[str, Path]) -> dict[str, list[Store]]:
    found: dict[str, list[Store]] = {"fp32": [], "bf16": []}
    for path in sorted((runs["auto"].parent / "store").glob("*/manifest.json")):
        store = Store(path.parent)
        found[store.manifest["key"]["precision"]].append(store)
    return found


def test_stores_and_recorded_views_of_a_precision_hold_its_numbers(runs: dict[str, Path]) -> None:
    by_precision = stores(runs)
    for precision, made in by_precision.items():
        assert len(made) == 2  # of the images trained on, and of those held out, which only the evaluation looks at
        arrays = [np.asarray(store.embeddings(), np.float32) for store in made]
        cells = [np.load(path) for store in made for path in store.folder.glob("views/*/0000.npy")]
        assert len(cells) == 1
        for values in (*arrays, *cells):
            rounded = np.array_equal(values, to_bf16(values))
            assert values.any() and rounded == (precision == "bf16")
    trained = [max(made, key=lambda store: store.manifest["rows"]) for made in by_precision.values()]
    exact, half = (np.asarray(store.embeddings(), np.float32) for store in trained)
    np.testing.assert_allclose(half, exact, atol=2.0**-6 * float(np.abs(exact).max()))


def test_a_run_says_what_its_teacher_computed_in(runs: dict[str, Path]) -> None:
    for name, precision in (("auto", "fp32"), ("bf16", "bf16")):
        run = Run(runs[name])
        assert run.student["teacher"]["precision"] == precision
        assert run.metrics()[0]["teacher_precision"] == precision
        assert run.evaluation["about"]["teacher_precision"] == precision


def test_evaluation_rebuilds_the_teacher_as_it_was(runs: dict[str, Path], capsys) -> None:
    run, said = Run(runs["bf16"]), []
    with trusting("wavelets"):
        assert _teacher_of(run, run.student["teacher"], CPU, said.append).precision == "bf16"
        old = {name: value for name, value in run.student["teacher"].items() if name != "precision"}
        assert _teacher_of(run, old, CPU, said.append).precision == "fp32" and not said
        assert _teacher_of(run, {**old, "precision": "tf32"}, CPU, said.append).precision == "fp32"
    assert said == ["In training the teacher computed in tf32, which cpu does not have: here it computes in fp32."]
    assert main(["evaluate", str(run.path), "--device", "cpu", "--teacher-precision", "fp32"]) != 0
    assert "computes as in its training" in capsys.readouterr().err
