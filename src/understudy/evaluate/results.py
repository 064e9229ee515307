"""Figures on disk: evaluation.json when all that was asked is there, a partial file until then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from understudy.artifacts import Run, fingerprint, is_whole, read_table, write_json
from understudy.errors import StoreError
from understudy.evaluate.plan import (
    FORMAT,
    Encoders,
    EvaluationPlan,
    Task,
    main_identity,
    open_main_images,
    settings_identity,
)
from understudy.evaluate.protocol import Figures
from understudy.evaluate.protocols import PROTOCOLS, display_tables
from understudy.evaluate.settings import EvaluationSettings
from understudy.sources.source import Source

AGAIN = "Delete it and run `understudy evaluate` again: its figures are measured anew."


@dataclass
class Results:
    """The figures of one evaluation, as they are on disk or will be; they are known by the encoders and settings."""

    path: Path
    encoders: Encoders
    settings: EvaluationSettings
    whole: dict[str, Any] = field(default_factory=dict, init=False)
    """What evaluation.json holds; nothing if it is of another format."""
    sample: dict[str, str] = field(default_factory=dict, init=False)
    """What is said of the sample of images, if one was drawn."""
    partial: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    """Figures of the partial file, `{task: {"settings": ..., "images": ..., "figures": {encoder: {...}}}}`."""

    def __post_init__(self) -> None:
        content = read_table(self.path, AGAIN) if self.path.exists() else {}
        about = content.get("about")
        if isinstance(about, dict) and about.get("format") == FORMAT:
            encoders = [one for name, one in content.items() if name != "about"]
            tables = [content, *encoders, about.get("tasks", {})]
            if not all(
                isinstance(table, dict) and all(isinstance(one, dict) for one in table.values()) for table in tables
            ):
                raise StoreError(f"{self.path} holds something else where tables of figures are. {AGAIN}")
            self.whole = content
        if self.partial_path.exists():
            self.partial = read_table(self.partial_path, AGAIN)

    @property
    def partial_path(self) -> Path:
        """The file of figures finished so far."""
        return self.path.with_suffix(".partial.json")

    @property
    def about(self) -> dict[str, Any]:
        """What the whole file says of itself."""
        return dict(self.whole.get("about", {}))

    def sample_identity(self, plan: EvaluationPlan) -> str:
        """What a sample drawn now would be drawn from."""
        images = None if plan.main is None else plan.main.test.fingerprint
        return fingerprint(FORMAT, *self.encoders, images, self.settings.seed)

    def missing(self, plan: EvaluationPlan) -> list[Task]:
        """The tasks whose figures the whole file lacks, or has an error of."""
        return [task for task in plan.tasks if not self._has(task)]

    def _has(self, task: Task) -> bool:
        figures = [one[task.name] for name, one in self.whole.items() if name != "about" and task.name in one]
        same = self.about.get("tasks", {}).get(task.name) == task.identity
        return same and not any("error" in one for one in figures)

    def begun(self, task: Task) -> dict[str, Figures]:
        """Figures of a task that a killed evaluation left, by encoder."""
        entry = self.partial.get(task.name)
        if entry is None or not _is_of(entry, task):
            return {}
        figures: dict[str, Figures] = entry["figures"]
        return {name: one for name, one in figures.items() if "error" not in one}

    def add(self, task: Task, encoder: str, figures: Figures) -> None:
        """Keep figures as they are finished."""
        entry = self.partial.get(task.name)
        if entry is None or not _is_of(entry, task):
            entry = self.partial[task.name] = {**task.identity, "figures": {}}
        entry["figures"][encoder] = figures
        write_json(self.partial_path, self.partial)

    def earlier(self, plan: EvaluationPlan) -> dict[str, dict[str, str]]:
        """Tasks of the whole file whose figures stay, with their identities."""
        return {name: one for name, one in self.about.get("tasks", {}).items() if self._stays(name, one, plan)}

    def finish(self, plan: EvaluationPlan, encoders: Iterable[str], about: Mapping[str, Any]) -> dict[str, Any]:
        """Write the whole file: figures that stay, new figures, and where they come from; returns what it holds.

        `encoders` are their names, in order; `about` is what the file says of itself, beside the tasks.
        """
        tasks, missing = self.earlier(plan), self.missing(plan)
        evaluation: dict[str, Any] = {}
        for encoder in encoders:
            old = self.whole.get(encoder, {})
            evaluation[encoder] = {name: old[name] for name in tasks if name in old}
            for task in missing:
                figures = self.partial.get(task.name, {}).get("figures", {})
                if encoder in figures:
                    evaluation[encoder][task.name] = figures[encoder]
        evaluation["about"] = {
            **about, "protocols": display_tables(evaluation),
            "tasks": tasks | {task.name: task.identity for task in missing},
            **{name: value for name, value in self.about.items() if name.startswith("sample")}, **self.sample,
        }  # fmt: skip
        write_json(self.path, evaluation)
        self.partial_path.unlink(missing_ok=True)
        return evaluation

    def _stays(self, name: str, identity: Mapping[str, str], plan: EvaluationPlan) -> bool:
        """Whether figures of an earlier call belong beside those of this one: same encoders, settings and images."""
        protocol, _, dataset = name.partition("@")
        for task in plan.tasks:
            if task.name == name:
                return self._has(task)
        known = protocol in PROTOCOLS
        if not known or identity["settings"] != settings_identity(self.settings, protocol, self.encoders):
            return False
        # A set that is not named this time cannot be compared.
        main = [None, *main_identity(PROTOCOLS[protocol].requirements, plan.main, None)]
        return bool(dataset) or identity["images"] == fingerprint(main)


@dataclass(frozen=True)
class RunResults:
    """What is asked of a run's evaluation, and what of it is on disk. Torch-free: nothing is computed.

    `sampled` says whether the sample of images for the report is there.
    """

    plan: EvaluationPlan
    results: Results
    sampled: bool

    @classmethod
    def of(
        cls, run: Run, settings: EvaluationSettings, held_out: Source | None, teacher: str | None, listings: Path
    ) -> RunResults:
        """Open the image sets of a finished run's evaluation.

        `teacher` is the fingerprint of the teacher beside the student; `held_out` are images kept out of training.

        Raises:
            DataError: the evaluation images cannot be opened.
            StoreError: student.json lacks what it always holds.
        """
        metadata = run.student
        images = open_main_images(settings, held_out, metadata, listings)
        if "weights" not in metadata:
            raise StoreError(f"{run.student_path} does not say which weights it describes. Train the student again.")
        results = Results(run.evaluation_path, (metadata["weights"], teacher), settings)
        plan = EvaluationPlan.of(settings, images, results.encoders, listings)
        sampled = results.about.get("sample_of") == results.sample_identity(plan)
        there = run.sample_path.exists() and is_whole(run.sample_path)
        return cls(plan, results, sampled and (there or bool(results.about.get("sample"))))

    @property
    def finished(self) -> dict[str, Any] | None:
        """What evaluation.json holds; None where something that was asked is missing."""
        whole = self.results.whole
        return whole if whole and self.sampled and not self.results.missing(self.plan) else None


def _is_of(entry: Mapping[str, Any], task: Task) -> bool:
    """Whether figures of the partial file are those of a task."""
    return (entry.get("settings"), entry.get("images")) == (task.settings, task.images)
