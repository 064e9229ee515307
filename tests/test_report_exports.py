"""The exports on the page: figures by hand, what failed in sentences, and records that are damaged or odd."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from test_report_page import make_run, report
from test_report_protocols import tables
from understudy.artifacts import Run, write_json
from understudy.errors import StoreError
from understudy.report.page import write_report
from understudy.report.provenance import is_fresh
from understudy.report.tables import ABSENT

PARITY = {
    "largest_difference": 0.05, "cosine_mean": 0.99996753, "cosine_min": 0.99994262, "centered_cosine_mean": 0.986,
    "overlap@10": 87.69, "teacher_overlap@10": 27.73, "student_teacher_overlap@10": 28.52,
}  # fmt: skip
SAME = {name: 100.0 if "overlap" in name else 0.0 if name.startswith("largest") else 1.0 for name in PARITY}
LATENCY = {"median_ms": 0.123, "low_ms": 0.1157, "high_ms": 0.1448}
RECORD: dict[str, Any] = {
    "format": 1, "understudy": "0.1.0", "held_out": {"data": "digits (test half)", "images": 256},
    "machine": {"processor": "x86_64", "threads": 2},
    "student": {"bytes": 2 * 2**20, "latency": {"median_ms": 0.68, "low_ms": 0.59, "high_ms": 8.85}},
    "targets": {
        "onnx-int8": {"runtime": "onnxruntime", "bytes": 2**19, "run": True, "parity": {"embedding": PARITY},
                      "latency": LATENCY},
        "torch": {"runtime": "torch", "bytes": 2**21, "run": True, "latency": LATENCY,
                  "parity": {"embedding": SAME, "features": SAME}},
        "coreml": {"runtime": "coremltools", "bytes": 2**20, "run": False,
                   "why": "converted, not run: Core ML runs on macOS only"},
        "hf": {"failed": "transformers' wrapper opens students that are timm networks; this one is small:resnet8."},
    },
}  # fmt: skip


def write_exports(run: Run, record: Any = RECORD) -> Run:
    """Give a run the record of exports."""
    run.exports_path.parent.mkdir(exist_ok=True)
    write_json(run.exports_path, record)
    return run


def exports_of(page: Path) -> list[list[str]]:
    return next(table for table in tables(page) if table[0][:2] == ["Target", "Runtime"])


def test_every_target_is_a_row_and_every_failure_a_sentence(tmp_path: Path) -> None:
    page = report(tmp_path, write_exports(make_run(tmp_path / "run", n=20)))
    rows = exports_of(tmp_path / "report.html")
    assert rows[1:] == [
        ["the student", "PyTorch", "2", "0.68|0.59 to 8.85", *[ABSENT] * 4],
        ["onnx-int8|embedding", "onnxruntime", "0.5|25.0 %", "0.123|0.116 to 0.145", "0.999968", "0.999943", "87.7",
         "27.7|28.5"],
        ["torch|embedding", "torch", "2|100.0 %", "0.123|0.116 to 0.145", "1.000000", "1.000000", "100.0",
         "100.0|100.0"],
        ["torch|features", "torch", "2|100.0 %", "0.123|0.116 to 0.145", "1.000000", "1.000000", "100.0",
         "100.0|100.0"],
        ["coreml", "coremltools", "1|50.0 %", ABSENT, *[ABSENT] * 4],
    ]  # fmt: skip
    assert "run by its own runtime on 256 images of digits (test half)." in page.text
    assert "coreml: converted, not run: Core ML runs on macOS only." in page.text
    assert "hf was not exported: transformers' wrapper opens students that are timm networks" in page.text
    sections = [found["id"] for found in page.all("section")]
    assert sections[sections.index("exports") + 1] == "done"
    assert "#exports" in [found["href"] for found in page.all("a")]


def test_a_run_that_never_left_has_no_such_section(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=20)
    for record in (None, {"targets": {}}):
        if record is not None:
            write_exports(run, record)
        page = report(tmp_path, run)
        assert "exports" not in [found["id"] for found in page.all("section")]
        assert "#exports" not in [found["href"] for found in page.all("a")]


def test_a_new_export_makes_the_report_old(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=2)
    write_report([run], run.report_path)
    assert is_fresh(run)
    write_exports(run)
    assert not is_fresh(run)


def test_a_record_of_another_kind_is_no_crash(tmp_path: Path) -> None:
    odd = {
        "student": [1], "held_out": "x", "machine": None,
        "targets": {"onnx": 3, "torch": {"parity": {"embedding": {"cosine_mean": "much", "overlap@10": float("nan")}},
                                         "latency": 5, "bytes": True}},
    }  # fmt: skip
    run = write_exports(make_run(tmp_path / "run", n=2))
    run.exports_path.write_text(json.dumps(odd))
    page = report(tmp_path, run)
    assert "onnx: export.json has no figures of it." in page.text
    assert exports_of(tmp_path / "report.html")[3] == ["torch|embedding", *[ABSENT] * 7]
    run.exports_path.write_text("[]")
    with pytest.raises(StoreError, match=re.escape("export.json holds a list where a table is expected. Delete it")):
        write_report([run], tmp_path / "report.html")
