"""The student: that what was saved is what is loaded, or a sentence says why not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from understudy.artifacts import Run
from understudy.errors import StoreError
from understudy.models.encoder import build_encoder
from understudy.models.settings import StudentSettings
from understudy.models.student import Student, build_student, load_student, save_student
from understudy.models.teacher import build_teacher


def trained(spec: str = "small:resnet8", embed_dim: int = 24, **settings: object) -> Student:
    """A student whose every number, running statistics included, has left its initial value."""
    torch.manual_seed(0)
    student = build_student(StudentSettings(spec, **settings), embed_dim)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    size = student.contract.size
    for _ in range(2):
        student.embed(torch.rand(4, 3, size, size)).square().sum().div(100).backward()
        optimizer.step()
    return student


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the exporter that needs no onnxscript
def test_the_deep_head_learns_and_exports(tmp_path: Path) -> None:
    """Its BatchNorm averages over training batches, in evaluation mode one image is a batch, and ONNX has it all."""
    import onnxruntime

    student = trained("small:resnet8", 24, head="deep")
    statistics = {name: buffer for name, buffer in student.head.named_buffers() if "running" in name}
    assert len(statistics) == 4 and all(not torch.equal(b, torch.zeros_like(b)) for b in statistics.values())
    student.eval()
    images = torch.rand(3, 3, 32, 32)
    expected = student.embed(images).detach()
    torch.testing.assert_close(student.embed(images[:1]), expected[:1], rtol=1e-4, atol=1e-5)
    # The head alone: the shape checks that run in tests cannot be traced.
    features, file = student.features(images).detach(), str(tmp_path / "head.onnx")
    torch.onnx.export(student.head, (features,), file, dynamo=False, input_names=["features"])
    found = onnxruntime.InferenceSession(file).run(None, {"features": features.numpy()})[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_shapes_and_forward() -> None:
    student = build_student(StudentSettings("small:resnet8", hidden=16), 24)
    images = torch.rand(2, 3, 32, 32)
    student.eval()
    assert student.features(images).shape == (2, 64) == (2, student.width)
    assert student.embed(images).shape == (2, 24) == (2, student.embed_dim)
    assert torch.equal(student(images), student.embed(images))
    assert torch.equal(student.embed(images), student.head(student.features(images)))


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        ("small:resnet8x0.5", {"head": "linear"}),
        ("small:resnet8x0.5", {"head": "deep"}),
        ("small:resnet8x0.5", {"head": "mlp", "hidden": 0}),
        ("small:resnet8", {"hidden": 16, "image_size": 24}),
        ("timm:test_vit", {"hidden": 8, "image_size": 96}),
    ],
)
def test_save_and_load(tmp_path: Path, spec: str, settings: dict[str, object]) -> None:
    student = trained(spec, 24, **settings).eval()
    student.contract = dataclasses.replace(student.contract, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    run = Run(tmp_path / "run")
    save_student(student, run, {"seed": 7, "method": {"name": "coss"}})
    images = torch.rand(2, 3, student.contract.size, student.contract.size)
    expected = student.embed(images)
    for path in (run.path, str(run.path), run.weights_path, run.student_path):
        random_numbers = torch.get_rng_state()
        loaded = load_student(path)
        assert torch.equal(torch.get_rng_state(), random_numbers)
        assert not loaded.training
        assert torch.equal(loaded.embed(images), expected)
        assert (loaded.contract, loaded.spec, loaded.width) == (student.contract, spec, student.width)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    assert torch.equal(load_student(run.path).preprocess(image), student.contract.preprocess(image))
    table = json.loads(run.student_path.read_text())
    assert table["seed"] == 7 and table["method"] == {"name": "coss"}
    backbone, head = student.backbone.parameters(), student.head.parameters()
    assert table["parameters"] == {"backbone": sum(p.numel() for p in backbone), "head": sum(p.numel() for p in head)}
    assert (table["width"], table["embed_dim"], table["spec"]) == (student.width, 24, spec)


def test_a_students_origin_file_is_not_needed_again(tmp_path: Path) -> None:
    """A student that started from @FILE or run: is rebuilt from its own run alone."""
    first = trained()
    save_student(first, Run(tmp_path / "first"), {})
    torch.save(first.backbone.state_dict(), tmp_path / "start.pth")
    from_file = trained(f"small:resnet8@{tmp_path / 'start.pth'}").eval()
    from_run = trained(f"run:{tmp_path / 'first'}").eval()
    save_student(from_file, Run(tmp_path / "second"), {})
    save_student(from_run, Run(tmp_path / "third"), {})
    (tmp_path / "start.pth").unlink()
    for file in (tmp_path / "first").iterdir():
        file.unlink()
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(load_student(tmp_path / "second").embed(images), from_file.embed(images))
    assert torch.equal(load_student(tmp_path / "third").embed(images), from_run.embed(images))


def test_a_run_is_a_teacher_and_a_start(tmp_path: Path) -> None:
    student = trained().eval()
    student.contract = dataclasses.replace(student.contract, mean=(0.1, 0.2, 0.3))
    save_student(student, Run(tmp_path / "run"), {})
    teacher = build_teacher(f"run:{tmp_path / 'run'}")
    images = torch.rand(2, 3, 32, 32)
    assert teacher.width == 64 and teacher.contract == student.contract
    # The same weights; a teacher runs channels last, which sums in another order.
    torch.testing.assert_close(teacher(images), student.features(student.contract.prepare(images)))
    assert "small:resnet8" in teacher.weights and "head dropped" in teacher.weights
    start = build_student(StudentSettings(f"run:{tmp_path / 'run'}"), 24)
    assert torch.equal(start.backbone.conv1.weight, student.backbone.conv1.weight)
    assert start.training and start.backbone.training
    own_weights = build_encoder(f"small:resnet8@{tmp_path / 'run' / 'student.safetensors'}", pretrained=True)
    assert torch.equal(own_weights.module.conv1.weight, student.backbone.conv1.weight)
    assert own_weights.fingerprint == teacher.fingerprint


def test_saving_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run")
    save_student(trained(), run, {})
    before = load_file(run.weights_path)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("understudy.models.student.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save_student(build_student(StudentSettings("small:resnet8"), 24), run, {})
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(run.weights_path).items())
    assert not run.trained
    assert sorted(path.name for path in run.path.iterdir()) == ["student.safetensors"]


def test_unfinished_and_foreign_folders_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run folder"):
        load_student(tmp_path / "nothing")
    with pytest.raises(StoreError, match="not a run folder"):
        load_student(tmp_path)
    run = Run(tmp_path / "run")
    run.path.mkdir()
    run.config_path.write_text("")
    with pytest.raises(StoreError, match="training is not finished: run `understudy train` again, it resumes"):
        load_student(run.path)
    save_student(trained(), run, {})
    table = json.loads(run.student_path.read_text())
    other = Run(tmp_path / "other")
    save_student(build_student(StudentSettings("small:resnet8"), 24), other, {})
    run.weights_path.write_bytes(other.weights_path.read_bytes())
    with pytest.raises(StoreError, match="is not the file that"):
        load_student(run.path)
    run.weights_path.write_bytes(b"short")
    with pytest.raises(StoreError, match="does not fit"):
        load_student(run.path)
    run.student_path.write_text(json.dumps(table | {"format": 99}))
    with pytest.raises(StoreError, match="format 99"):
        load_student(run.path)


def test_only_the_student_is_saved_as_safetensors(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    student = trained().to(memory_format=torch.channels_last)
    save_student(student, run, {})
    names = set(load_file(run.weights_path))
    assert names == set(student.state_dict())
    assert {name.split(".")[0] for name in names} == {"backbone", "head"}
