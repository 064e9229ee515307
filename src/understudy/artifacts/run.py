"""Runs: the folder of one training, with what it left."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from understudy.artifacts.files import read_json


class Run:
    """One run folder, `runs/<id>`, which need not exist yet: where a student, its curves, figures and report lie."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder)
        self.config_path = self.path / "config.toml"  # the resolved configuration, written when training starts
        self.metrics_path = self.path / "metrics.jsonl"  # one JSON object a line, as training went
        self.checkpoint_path = self.path / "checkpoint" / "latest.pt"  # the newest checkpoint
        self.weights_path = self.path / "student.safetensors"  # the finished student's weights
        self.student_path = self.path / "student.json"
        """What the student is (spec, head, contract, origin); written last, so it means training is done."""
        self.evaluation_path = self.path / "evaluation.json"  # the measured figures
        self.sample_path = self.path / "sample.npz"
        """Embeddings, neighbors and thumbnails of a sample of the evaluation images, for the report."""
        self.report_path = self.path / "report.html"  # the page

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @property
    def trained(self) -> bool:
        """Whether training ran to its end."""
        return self.student_path.is_file() and self.weights_path.is_file()

    @property
    def evaluation(self) -> dict[str, Any]:
        """The measured figures, `{"teacher": {"knn": {...}}, "student": {...}}`."""
        value = read_json(self.evaluation_path)
        assert isinstance(value, dict)
        return value

    @property
    def student(self) -> dict[str, Any]:
        """What the student is, from student.json."""
        value = read_json(self.student_path)
        assert isinstance(value, dict)
        return value

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics file as a list of rows; a last line cut off by a kill is left out."""
        if not self.metrics_path.is_file():
            return []
        rows = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows
