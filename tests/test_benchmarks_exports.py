"""`benchmarks/exports.py` prints a line for the teacher, the student and every target, and says what failed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from test_export import make_student
from test_models_teacher import onnx_file, structured
from understudy.models.contract import Contract
from understudy.models.student import load_student, save_student

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "exports.py"


@pytest.fixture(scope="module")
def exports() -> ModuleType:
    spec = importlib.util.spec_from_file_location("exports", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_line_by_hand(exports: ModuleType) -> None:
    def figures(size: int, median: float) -> dict[str, Any]:
        latency = {"median_ms": median, "low_ms": median / 2, "high_ms": 2 * median}
        return {"runtime": "onnxruntime", "bytes": size * 2**19, "latency": latency}

    student, teacher = figures(4, 3.0), figures(40, 60.0)
    parity = {"features": {"cosine_mean": 0.9999996, "cosine_min": 0.9987654, "overlap@10": 91.25}}
    given = figures(1, 1.5) | {"parity": parity}
    assert exports.row("timm", given, student, teacher) == [
        "timm, features", "onnxruntime", "0.50", "0.25", "1.5 (0.75 to 3)", "2", "40", "1.000000", "0.998765", "91.2"
    ]  # fmt: skip
    assert exports.row("timm", given, student, {})[6] == ""  # a run without a teacher
    unrun = {"runtime": "coremltools", "bytes": 2**20, "why": "converted, not run: why"}
    assert exports.row("coreml", unrun, student, teacher)[3:6] == ["0.50", "converted, not run: why", ""]


@pytest.mark.slow
def test_the_table_has_every_target_beside_student_and_teacher(
    exports: ModuleType, tmp_path: Path, capsys: Any
) -> None:
    run = make_student(tmp_path / "run")
    onnx_file(tmp_path / "teacher.onnx", structured())

    origin = {"spec": f"onnx:{tmp_path / 'teacher.onnx'}", "contract": Contract.untrained(8).table(),
              "parameters": 3 * 2**18, "fingerprint": "f00d"}  # fmt: skip
    student = load_student(run)
    save_student(student, run, student.metadata | {"teacher": origin})

    exports.main([str(run.path), "--to", "folder,torch,timm", "--images", "24"])
    printed = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    assert [line[0] for line in lines[2:]] == ["teacher", "student", "folder", "torch"]
    by_name = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert by_name["teacher"]["MiB"] == "3.00"
    assert by_name["teacher"]["teacher's / this"] == by_name["student"]["student's / this"] == "1"
    assert by_name["folder"]["cosine, mean"] == by_name["folder"]["cosine, least"] == "1.000000"
    assert by_name["torch"]["neighbors shared, %"] == "100.0"
    assert "timm: timm opens students that are timm networks; this one is small:resnet8." in printed
    assert "24 images of digits (test half)" in printed
    assert not (run.path / "export").exists()
