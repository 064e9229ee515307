"""Where figures come from: the files of a run folder, read into one plain object."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from understudy.artifacts import Run, is_whole, open_regular, require_whole
from understudy.errors import ConfigError, StoreError
from understudy.settings import flatten, read_toml

Scores = Mapping[str, Mapping[str, float]]
"""`{protocol: {metric: number}}`."""

NOT_COMPARED = frozenset({"out", "store", "device", "workers", "checkpoint_minutes", "probes", "tensorboard"})
"""Configuration keys that say where a run lies and how it was watched, not what it is."""


@dataclass(frozen=True)
class RunRecord:
    """One run folder; what was not written yet is empty.

    The name is the folder's, made unique among the runs of the page; the configuration is the resolved one, keys
    dotted, beside its file's text. Scores are figures by model ("teacher", "student", "student_embed"). Notes are what
    a PROTOCOL or PROTOCOL@SET said in words (a figure left out, say), failures what was not measured, or is no figure,
    and why; each sentence once. `about` is what the evaluation says of itself. Start (with hardware and versions), end,
    steps and signals are lines of metrics.jsonl, the sample the arrays of sample.npz, the exports what export.json has.
    """

    name: str
    config: Mapping[str, Any]
    config_text: str
    student: Mapping[str, Any]
    scores: Mapping[str, Scores]
    notes: Mapping[str, Sequence[str]]
    failures: Sequence[str]
    about: Mapping[str, Any]
    start: Mapping[str, Any]
    end: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    signals: Sequence[Mapping[str, Any]]
    sample: Mapping[str, np.ndarray]
    exports: Mapping[str, Any]

    @property
    def teacher(self) -> Mapping[str, Any]:
        """The teacher's facts from student.json; empty for a method without a teacher."""
        return _table(self.student.get("teacher"))

    @property
    def data(self) -> Mapping[str, Any]:
        """The training images' facts from student.json."""
        return _table(self.student.get("data"))

    @property
    def method(self) -> str:
        """The method's name, from student.json or, before training has ended, from the configuration."""
        return str(_table(self.student.get("method")).get("name") or self.config.get("method.name") or "")

    @property
    def passes(self) -> float | None:
        """Image passes trained so far."""
        value = self.student.get("passes", self.steps[-1].get("passes") if self.steps else None)
        return None if value is None else float(value)

    def images(self, target: str = "") -> int | None:
        """How many test images a set has, "" for the main one; None when the evaluation does not say."""
        return _whole(self._set(target).get("test") if target else self.about.get("test_images"))

    def classes(self, target: str = "") -> int | None:
        """How many classes a set has, "" for the main one; None when the evaluation does not say."""
        return _whole(self._set(target).get("classes") if target else self.about.get("classes"))

    def has_set(self, target: str) -> bool:
        """Whether the evaluation describes a set, "" for the main one."""
        return not target or bool(self._set(target))

    def _set(self, target: str) -> Mapping[str, Any]:
        return _table(_table(self.about.get("on")).get(target))

    def changes(self, other: RunRecord) -> dict[str, tuple[Any, Any]]:
        """Settings that differ from another run's: `{dotted key: (other's value, ours)}`, but for `NOT_COMPARED`."""
        keys = [key for key in dict.fromkeys([*other.config, *self.config]) if key.split(".")[0] not in NOT_COMPARED]
        pairs = {key: (other.config.get(key), self.config.get(key)) for key in keys}
        return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def read_records(runs: Sequence[Run]) -> list[RunRecord]:
    """Read the run folders; files that were not written yet leave their part empty.

    Raises:
        ConfigError: no run was given.
        StoreError: a folder does not exist, or one of its files is damaged.
    """
    if not runs:
        raise ConfigError("A report needs at least one run folder; got none.")
    for run in runs:
        if not run.path.is_dir():
            raise StoreError(f"The run folder {run.path} does not exist. Name one that `understudy train` has made.")
    return [_read(run, name) for run, name in zip(runs, _names(runs), strict=True)]


def _names(runs: Sequence[Run]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart; a run given twice gets a number."""
    paths = [run.path.resolve() for run in runs]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return [name if names.index(name) == i else f"{name} ({names[:i].count(name) + 1})" for i, name in enumerate(names)]


def _read(run: Run, name: str) -> RunRecord:
    run.require_whole()
    rows = run.metrics()
    evaluation = _evaluation(run)
    return RunRecord(
        name=name, config=flatten(read_toml(run.config_path)) if run.config_path.is_file() else {},
        config_text=run.config_path.read_text(encoding="utf-8") if run.config_path.is_file() else "",
        student=run.student if run.student_path.is_file() else {}, **_measured(evaluation),
        about=_table(evaluation.get("about")), start=next((row for row in rows if row.get("kind") == "start"), {}),
        end=next((row for row in reversed(rows) if row.get("kind") == "end"), {}),
        steps=[row for row in rows if row.get("kind") == "step"],
        signals=[row for row in rows if row.get("kind") == "signal"], sample=_read_sample(run),
        exports=run.exports,
    )  # fmt: skip


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _whole(value: Any) -> int | None:
    """A number above zero, None for anything else."""
    return int(value) if _is_number(value) and value >= 1 else None


def _evaluation(run: Run) -> Mapping[str, Any]:
    if not run.evaluation_path.is_file():
        return {}
    return run.evaluation


def _measured(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation, and in sentences what else stands in their place."""
    scores: dict[str, dict[str, dict[str, float]]] = {}
    notes: dict[str, dict[str, None]] = {}
    failures: dict[str, list[str]] = {}  # sentence that follows -> who
    for model, protocols in evaluation.items():
        if model == "about":
            continue
        scores[model] = {}
        if not isinstance(protocols, Mapping):
            failures.setdefault(" has no table of figures in evaluation.json.", []).append(model)
            continue
        for key, figures in protocols.items():
            if not isinstance(figures, Mapping):
                failures.setdefault(" is no table of figures in evaluation.json.", []).append(f"{key} of {model}")
                continue
            if "note" in figures:
                notes.setdefault(key, {})[str(figures["note"])] = None
            if "error" in figures:
                failures.setdefault(f" was not measured: {figures['error']}", []).append(f"{key} of {model}")
            known = {metric: value for metric, value in figures.items() if metric not in ("note", "error")}
            scores[model][key] = {metric: float(value) for metric, value in known.items() if _is_number(value)}
            for metric in known.keys() - scores[model][key].keys():
                what = f" is no number ({str(known[metric])[:40]}) in evaluation.json and is left out."
                failures.setdefault(what, []).append(f"{key} {metric} of {model}")
    return {
        "scores": scores,
        "notes": {key: list(sentences) for key, sentences in notes.items()},
        "failures": [", ".join(who) + what for what, who in failures.items()],
    }


def _is_number(value: Any) -> bool:
    largest = sys.float_info.max  # of JSON, whole numbers may be beyond it
    return isinstance(value, int | float) and not isinstance(value, bool) and -largest <= value <= largest


def _read_sample(run: Run) -> dict[str, np.ndarray]:
    if not run.sample_path.is_file():
        return {}
    require_whole(run.sample_path, "Run `understudy evaluate` again: it is drawn anew.")
    try:
        with open_regular(run.sample_path) as file, np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(f"{run.sample_path} cannot be read ({error}). Run `understudy evaluate` again.") from None


def is_fresh(run: Run) -> bool:
    """Whether a run's report is newer than every file of the run that it shows, and than the code that writes it."""
    if not run.report_path.is_file() or not is_whole(run.report_path):
        return False
    code = [path for path in Path(__file__).parent.rglob("*") if path.suffix != ".pyc"]
    shown = [run.config_path, run.metrics_path, run.student_path, run.evaluation_path, run.sample_path,
             run.exports_path]  # fmt: skip
    newest = max(path.stat().st_mtime_ns for path in [*code, *shown] if path.is_file())
    return run.report_path.stat().st_mtime_ns > newest
