"""Cost: numbers worked by hand for a network small enough to count."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from understudy.errors import DataError
from understudy.evaluate.encoded_set import Embedding, EncodedSet
from understudy.evaluate.measures.network_cost import file_bytes, peak_bytes
from understudy.evaluate.protocols.cost import Cost
from understudy.evaluate.settings import EvaluationSettings
from understudy.models.settings import StudentSettings
from understudy.models.student import build_student
from understudy.models.teacher import build_teacher


def test_a_student_and_its_embedding() -> None:
    student = build_student(StudentSettings("small:resnet8", head="linear"), 32).eval()
    figures = {
        name: Cost.evaluate(EncodedSet(name, np.empty((0, 0)), encoder=encoder), EvaluationSettings(batch_size=4))
        for name, encoder in (("student", student), ("student_embed", Embedding(student)))
    }
    head = 64 * 32
    assert figures["student"]["parameters"] == sum(one.numel() for one in student.backbone.parameters())
    assert figures["student_embed"]["parameters"] - figures["student"]["parameters"] == head + 32
    assert figures["student_embed"]["flops"] - figures["student"]["flops"] == head
    state = sum(one.numel() * one.element_size() for one in student.backbone.state_dict().values())
    assert figures["student"]["file_mb"] == pytest.approx(state / 1e6)
    assert set(figures["student"]) == {
        "parameters", "flops", "file_mb", "latency_ms cpu", "images_per_s@4 cpu", "peak_memory_mb@4 cpu"
    }  # fmt: skip
    assert figures["student"]["latency_ms cpu"] > 0
    assert figures["student"]["images_per_s@4 cpu"] > 1


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3 * 8 * 8, 1000, bias=False), nn.Linear(1000, 10, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(images.flatten(1))))


def test_peak_memory_by_hand() -> None:
    """Largest when relu has made its output beside its input: images, two (5, 1000) float32, and the weights."""
    chain = Chain()
    weights = 4 * (192 * 1000 + 1000 * 10)
    assert peak_bytes(chain, chain, 8, 5, torch.device("cpu")) == weights + 4 * (5 * 192 + 2 * 5 * 1000)
    assert file_bytes(chain) == weights


def test_an_onnx_file_and_no_network(shared: Path) -> None:
    file = shared / "weights" / "resnet56_cifar10.onnx"
    figures = Cost.evaluate(
        EncodedSet("teacher", np.empty((0, 0)), encoder=build_teacher(f"onnx:{file}")), EvaluationSettings(batch_size=2)
    )
    assert figures["file_mb"] == pytest.approx(file.stat().st_size / 1e6)
    assert figures["parameters"] == pytest.approx(850_000, rel=0.03)  # He et al.'s table: 0.85 M
    assert figures["flops"] == pytest.approx(125e6, rel=0.03)
    assert "ONNX" in figures["note"]
    with pytest.raises(DataError, match="only features"):
        Cost.evaluate(EncodedSet("student", np.eye(3)), EvaluationSettings())
