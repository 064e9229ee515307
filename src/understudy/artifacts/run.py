"""Runs: the folder of one training, with what it left."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy.artifacts.checksums import Checksums
from understudy.artifacts.files import read_table
from understudy.artifacts.regular import read_regular
from understudy.artifacts.seals import ROW, damaged, require_whole, sealed, verdict_on_row
from understudy.errors import StoreError

AGAIN = "Delete it and run `understudy evaluate` on the run again: figures and pictures are made anew."
REMADE = (
    "Delete student.json and run the same `understudy train` again: from the checkpoint the student is made anew; or "
    "take both files from a copy of the run."
)
CONFIG = "Take it from a copy of the run, or name another --out. (Was it edited by hand? Then delete its last line.)"

KINDS: dict[str, type] = {
    "spec": str, "architecture": str, "weights": str, "contract": dict, "head": dict, "data": dict, "method": dict,
    "parameters": dict, "skipped": list, "teacher": dict, "teacher.spec": str, "teacher.fingerprint": str,
    "teacher.contract": dict, "teacher.precision": str, "teacher.output": str,
}  # fmt: skip
"""What the parts of student.json are that others read without a look."""

WORDS: dict[Any, str] = {str: "text", dict: "a table", list: "a list"}

NUMBERS = (
    "width", "embed_dim", "passes", "steps", "batch_size", "seed", "seconds", "flops", "parameters.backbone",
    "parameters.head", "teacher.width", "teacher.parameters", "teacher.flops", "data.images",
)  # fmt: skip
"""Those that are numbers."""


class Run:
    """One run folder, `runs/<id>`, which need not exist yet: where a student, its curves, figures and report lie."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.expanduser(folder))
        self.config_path = self.path / "config.toml"  # the resolved configuration, written when training starts
        self.metrics_path = self.path / "metrics.jsonl"  # one JSON object a line, as training went
        self.checkpoint_path = self.path / "checkpoint" / "latest.pt"  # the newest checkpoint
        self.previous_path = self.path / "checkpoint" / "previous.pt"  # the one before, should the newest be damaged
        self.weights_path = self.path / "student.safetensors"  # the finished student's weights
        self.student_path = self.path / "student.json"
        """What the student is (spec, head, contract, origin); written last, so it means training is done."""
        self.evaluation_path = self.path / "evaluation.json"  # the measured figures
        self.sample_path = self.path / "sample.npz"
        """Embeddings, neighbors and thumbnails of a sample of the evaluation images, for the report."""
        self.exports_path = self.path / "export" / "export.json"  # the exports and how far each is the student
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
        """The measured figures, `{"teacher": {"knn": {...}}, "student": {...}}`.

        Raises:
            StoreError: the file is missing or damaged.
        """
        return read_table(self.evaluation_path, AGAIN)

    @property
    def exports(self) -> dict[str, Any]:
        """The exports below the run, `{"targets": {"onnx": {...}}, ...}`; empty where there are none.

        Raises:
            StoreError: the file is damaged.
        """
        again = "Delete it and run `understudy export` again."
        return read_table(self.exports_path, again) if self.exports_path.is_file() else {}

    @property
    def student(self) -> dict[str, Any]:
        """What the student is, from student.json.

        Raises:
            StoreError: the file is missing or damaged, or a part of it is of another kind than training writes.
        """
        table = read_table(self.student_path, REMADE)
        parts = dict(table)
        for name in ("teacher", "parameters", "data"):
            inner = table.get(name)
            parts |= {f"{name}.{key}": part for key, part in inner.items()} if isinstance(inner, dict) else {}
        for name, kind in KINDS.items():
            if not isinstance(parts.get(name) or kind(), kind):
                wanted = WORDS[kind]
                raise StoreError(f"{self.student_path} has {parts[name]!r:.80} as its {name}, not {wanted}. {REMADE}")
        for name in NUMBERS:
            value = parts.get(name)
            if value is not None and not (isinstance(value, int | float) and abs(value) <= sys.float_info.max):
                raise StoreError(f"{self.student_path} has {value!s:.80} as its {name}, not a number. {REMADE}")
        return table

    def require_whole(self) -> None:
        """Let configuration and weights pass that are what was written, or were written without checksums.

        Raises:
            StoreError: one of them is damaged; the sentence names it and its first damaged block.
        """
        if self.config_path.exists():
            require_whole(self.config_path, CONFIG)
        if not self.trained or (checksums := Checksums.parse(self.student.get("weights_checksums"))) is None:
            return
        try:
            found = checksums.damaged(self.weights_path)
        except OSError as error:
            raise StoreError(f"{self.weights_path} cannot be read ({error.strerror}). {REMADE}") from None
        if found:
            start, end = checksums.span(found[0])
            raise StoreError(
                f"{self.weights_path} is not the file that {self.student_path} describes: block {found[0]} (bytes "
                f"{start:,} to {end - 1:,}) is damaged, as its checksum shows. Was either file replaced? {REMADE}"
            )

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics file as a list of rows; a last line cut off by a kill is left out.

        Raises:
            StoreError: a line is damaged; the sentence says which.
        """
        if not self.metrics_path.exists():
            return []
        try:
            *lines, rest = read_regular(self.metrics_path).split(b"\n")
        except OSError as error:
            raise StoreError(f"{self.metrics_path} cannot be read ({error.strerror}).") from None
        sealed = any(verdict_on_row(line) != "unsealed" for line in [*lines, rest, rest[:-1]])
        if rest and (_row(rest, sealed) is not None or _row(rest[:-1], sealed) is not None):
            lines.append(rest)  # whole but for its line break: a kill, or that byte is another
        rows = [_row(line, sealed) for line in lines]
        if None in rows:
            raise damaged(
                self.metrics_path, f"Line {rows.index(None) + 1} is the first such: delete it to go on without it."
            )
        return [row for row in rows if row is not None]


def sealed_row(row: Mapping[str, Any]) -> str:
    """A line of the metrics file, with its checksum and line break."""
    return sealed(json.dumps(row).encode(), ROW).decode() + "\n"


def _row(line: bytes, sealed: bool) -> dict[str, Any] | None:
    """A row of the metrics file; None if it is none, or not what was written where others tell (`sealed`)."""
    if verdict_on_row(line) != ("whole" if sealed else "unsealed"):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(line)
        if isinstance(value, dict):
            return value
    return None
