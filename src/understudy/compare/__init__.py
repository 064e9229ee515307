"""Several methods, or a grid of settings, over one teacher: one table, and how far it can be trusted.

Every cell of a comparison is an ordinary run folder. All of them train on the same images, with the views, the first
weights of the student and the batches of their seed, the same head, the same family of optimizer and the same number
of image passes (or of minutes). So that none loses by a bad learning rate, each variant first tries as many rates as
any other, on one seed and a share of the budget; the best is the one whose backbone keeps most of the teacher's
neighborhoods on training images that no run of the comparison is trained on. No label is read before the evaluation.

    OUT/plan.json  trials/VARIANT/lr-RATE/  cells/VARIANT/seed-N-lr-RATE/  comparison.json  comparison.csv  report.html

What is finished is never done again: a run that failed is tried once more by each further call.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from understudy import __version__
from understudy.artifacts import Run, fingerprint, lock, read_json, write_json, write_text
from understudy.errors import ConfigError, Stopped, UnderstudyError
from understudy.evaluate.protocols.fidelity import FidelitySettings
from understudy.evaluate.settings import EvaluationSettings
from understudy.pipeline import RunSettings
from understudy.settings import as_table, flatten, resolve, setting
from understudy.views.settings import ViewSettings

FORMAT = 1
CRITERION = "overlap@11"
"""What the rates are judged by: per cent of the teacher's 11 nearest held-out images kept by the student's backbone."""

FEWEST_HELD_OUT = 50
TIMED_STEPS = 40
"""Steps of the stretch that turns minutes into image passes; the first one does not count."""

FREE = frozenset({"out", "store", "device", "workers", "checkpoint_minutes", "tensorboard"})
"""Settings that do not change a cell's figures."""


@dataclass(frozen=True)
class ComparedFidelity(FidelitySettings):
    """Fidelity of every cell: the comparison's own intervals are over seeds."""

    draws: int = setting(0, "resamples of the images behind each interval of a single run; 0: none", minimum=0)


@dataclass(frozen=True)
class ComparedEvaluation(EvaluationSettings):
    """Evaluation of every cell; asymmetric kNN is among the defaults."""

    protocols: tuple[str, ...] = setting(("knn", "linear", "asymmetric_knn", "fidelity"), "Protocols of every cell.")
    fidelity: ComparedFidelity = setting(ComparedFidelity)


@dataclass(frozen=True)
class ComparedViews(ViewSettings):
    """Views of every cell; the teacher sees each of them once for the whole comparison."""

    seed: int | None = setting(
        None, "Seed of the views of all runs, whatever their own; --seed unless given.", minimum=0
    )
    teacher: str = setting(
        "recorded",
        "recorded: the teacher runs once on each view, for all runs together; live: in every run on every view.",
        choices=("live", "recorded"),
    )


@dataclass(frozen=True)
class ComparisonSettings(RunSettings):
    """What all runs of a comparison share, and how they are compared."""

    methods: tuple[str, ...] = setting(
        (),
        "Methods of `compare`, each NAME or NAME:KEY=VALUE:... with its own settings; KEY may be any setting of a run.",
    )
    vary: tuple[str, ...] = setting((), "Grid of `ablate`: KEY=V1,V2 of any setting, e.g. method.weight=0,0.5,1.")
    seeds: int = setting(3, "Runs of each variant, with the seeds --seed, --seed + 1, ...", minimum=1)
    budget: str | None = setting(
        None, "passes=N or minutes=N of training for each run; --passes unless given. Minutes become image passes once."
    )
    trials: int = setting(
        3, "Learning rates tried for each variant, spaced by --factor around the default; a given rate tries none.",
        minimum=1,
    )  # fmt: skip
    factor: float = setting(3.0, "Ratio of one learning rate to the next.", minimum=1.01)
    search_share: float = setting(0.5, "Length of a trial as a share of the budget.", minimum=0.001, maximum=1)
    jobs: int = setting(1, "Runs at a time, each a process with its share of the cores.", minimum=1)
    holdout: int = setting(
        2000, "Training images, a tenth at most, that no run is trained on: the rates are judged by them.", minimum=0
    )
    probes: int = setting(0, "How often in a run the student is compared with the teacher.", minimum=0)
    views: ComparedViews = setting(ComparedViews)
    evaluation: ComparedEvaluation = setting(ComparedEvaluation)


RUN = frozenset(f.name for f in dataclasses.fields(RunSettings))
OWN = frozenset(f.name for f in dataclasses.fields(ComparisonSettings)) - RUN


@dataclass(frozen=True)
class Variant:
    """One row of the table: what differs from the settings that all share.

    Args:
        label: as the user wrote it.
        changes: settings by dotted key.
    """

    label: str
    changes: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """A folder name of its own."""
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", self.label).strip("-.")
        return f"{readable[:60]}-{fingerprint(dict(self.changes))[:6]}"


@dataclass(frozen=True)
class Cell:
    """One run to be made.

    Args:
        variant: whose.
        folder: its run folder.
        settings: all of it; `eval_data` is for the evaluation only.
        role: "cell", "trial" (judged on held-out images), or "timing" (not judged).
    """

    variant: Variant
    folder: Path
    settings: RunSettings
    role: str

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.variant.label}, seed {self.settings.seed}, rate {self.settings.optimizer.peak:.3g}"

    def bound(self) -> dict[str, Any]:
        """What its figures depend on, as plain JSON."""
        flat = {k: v for k, v in flatten(as_table(self.settings)).items() if k.split(".")[0] not in FREE}
        return dict(json.loads(json.dumps({"role": self.role, **flat})))

    @property
    def done_path(self) -> Path:
        """Written last, so it means that the cell is whole."""
        return self.folder / "cell.json"

    @property
    def failure_path(self) -> Path:
        """The sentence of a cell that failed."""
        return self.folder / "failure.json"

    @property
    def done(self) -> bool:
        """Whether it is trained and evaluated as asked for now."""
        return self.done_path.is_file() and read_json(self.done_path) == self.bound()

    @property
    def failure(self) -> str | None:
        """Why it failed, unless it is done."""
        if self.done or not self.failure_path.is_file():
            return None
        return str(read_json(self.failure_path)["sentence"])


def variants_of(methods: Sequence[str]) -> list[Variant]:
    """The rows of `compare`: `NAME`, or `NAME:KEY=VALUE:...` with settings of the method or of the run.

    Raises:
        ConfigError: none given, one given twice, or one that cannot be read.
    """
    from understudy.losses import LOSSES

    found = []
    for written in methods:
        name, *pairs = written.split(":")
        changes: dict[str, Any] = {"method": name}
        own = vars(LOSSES.named(name).Settings())
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not (equals and key and value):
                raise ConfigError(f"'{pair}' in --methods {written} is not KEY=VALUE. Write e.g. coss:weight=0.5.")
            of_the_run = "." in key or (key not in own and key.replace("-", "_") in OWN | RUN)
            changes[_free_to_differ(key) if of_the_run else f"method.{key}"] = value
        found.append(Variant(written, changes))
    return _distinct(found, "--methods")


def variants_of_grid(vary: Sequence[str]) -> list[Variant]:
    """The rows of `ablate`: every combination of the values of `KEY=V1,V2,...`.

    Raises:
        ConfigError: none given, one that cannot be read, or a key that makes no row.
    """
    axes = []
    for written in vary:
        key, equals, values = written.partition("=")
        if not equals or not key or not all(values.split(",")):
            raise ConfigError(f"'{written}' is not KEY=VALUE,VALUE. Write e.g. --vary method.weight=0,0.5,1.")
        key = _free_to_differ(key)
        axes.append([(key, value) for value in values.split(",")])
    if len({axis[0][0] for axis in axes}) < len(axes):
        raise ConfigError("A key is given to --vary twice. Write all its values after one --vary.")
    grid = itertools.product(*axes) if axes else []
    rows = [Variant(", ".join(f"{key}={value}" for key, value in row), dict(row)) for row in grid]
    return _distinct(rows, "--vary")


def _free_to_differ(key: str) -> str:
    key = key.replace("-", "_")
    if key in OWN | FREE | {"seed", "eval_data", "holdout"}:
        raise ConfigError(f"'{key}' cannot be varied: all rows of a comparison share it.")
    return key


def _distinct(variants: list[Variant], flag: str) -> list[Variant]:
    labels = [variant.label for variant in variants]
    if not labels:
        raise ConfigError(f"There is nothing to compare. Give {flag}.")
    if len(set(labels)) < len(labels):
        raise ConfigError(f"{flag} names {next(x for x in labels if labels.count(x) > 1)} more than once.")
    return variants


def rates(default: float, trials: int, factor: float) -> list[float]:
    """The learning rates that are tried, smallest first: more trials hold those of fewer."""
    return [float(f"{default * factor**power:.4g}") for power in range(-(trials // 2), (trials + 1) // 2)]


def compare(settings: ComparisonSettings, *, kind: str = "compare") -> dict[str, Any]:
    """Make every run that is missing, write comparison.json, comparison.csv and report.html.

    Args:
        settings: what all share, and the rows.
        kind: "compare" for rows from `methods`, "ablate" for those from `vary`.

    Returns:
        What comparison.json holds.

    Raises:
        ConfigError: settings that cannot be used, or an OUT that other settings began.
        Stopped: asked to stop; the same call goes on.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("A comparison starts its runs itself. Use --jobs N in place of torchrun.")
    variants = variants_of_grid(settings.vary) if kind == "ablate" else variants_of(settings.methods)
    comparison = Comparison(settings, variants, kind)
    with lock(comparison.out):
        return comparison.make()


@dataclass
class Comparison:
    """One comparison at work."""

    settings: ComparisonSettings
    variants: Sequence[Variant]
    kind: str
    passes: dict[str, float] = field(default_factory=dict)
    prepared: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.settings.out is None:
            raise ConfigError("A comparison needs a folder. Give --out runs/NAME.")
        self.out = Path(self.settings.out)
        self.unit, self.amount = _budget(self.settings)
        self.base = {key: value for key, value in as_table(self.settings).items() if key not in OWN}
        if self.settings.views.seed is None:
            self.base["views"]["seed"] = self.settings.seed
        self.settings_of = {variant.label: self._run_settings(variant) for variant in self.variants}
        self.teacherless = [label for label, found in self.settings_of.items() if not _taught(found)]
        searched = any(self._searched(variant) for variant in self.variants)
        if not searched and self.settings.eval_data is not None:
            # Nothing is judged on training images, so none need be held out.
            self.base["holdout"] = 0
            self.settings_of = {variant.label: self._run_settings(variant) for variant in self.variants}
        if searched:
            if self.settings.teacher is None:
                raise ConfigError("Learning rates are judged by the teacher's neighbors. Give --teacher SPEC.")
            for data, limit in {(found.data, found.limit) for found in self.settings_of.values()}:
                self._refuse_few(data, limit)

    def _refuse_few(self, data: str, limit: int | None) -> None:
        from understudy.sources.source import open_source

        images = len(open_source(data, limit=limit))
        held_out = min(self.settings.holdout, images // 10)
        if held_out < FEWEST_HELD_OUT:
            raise ConfigError(
                f"Learning rates are judged on held-out training images, and --holdout {self.settings.holdout} of "
                f"{images:,} images leaves {held_out} of them (a tenth at most); {FEWEST_HELD_OUT} are needed. Use "
                "more images, or fix the rate with --optimizer.lr."
            )

    def _run_settings(self, variant: Variant) -> RunSettings:
        """A variant's settings, all names and values checked."""
        from understudy.losses import build
        from understudy.pipeline import resolve_method

        changes = dict(variant.changes)
        settings = resolve(RunSettings, self.base, changes)
        build(**settings.method)
        taught = _taught(settings)
        # What the others share of a teacher does not hold without one, unless it was asked of this very variant.
        if not taught and "neighbors.k" not in changes:
            settings = dataclasses.replace(settings, neighbors=dataclasses.replace(settings.neighbors, k=0))
        if not taught and "transform" not in changes:
            settings = dataclasses.replace(settings, transform="none")
        return resolve_method(settings)

    def _searched(self, variant: Variant) -> bool:
        return self.settings_of[variant.label].optimizer.lr is None and self.settings.trials > 1

    def make(self) -> dict[str, Any]:
        """All of it, in order."""
        self._plan()
        if self.unit == "minutes":
            self._time()
        trials = {v.label: self._trials(v) for v in self.variants if self._searched(v)}
        flat = [trial for group in trials.values() for trial in group]
        self._announce(flat)
        done = _Progress(self._weight_of_everything(flat))
        self._perform(flat, done)
        cells = {}
        for variant in self.variants:
            rate, _ = chosen(trials[variant.label]) if variant.label in trials else (None, "")
            cells[variant.label] = [] if rate is None and variant.label in trials else self._cells(variant, rate)
        self._perform([cell for group in cells.values() for cell in group], done)
        return self._write(trials, cells)

    def _plan(self) -> None:
        """Refuse a folder that other settings began; keep what minutes were found to mean."""
        path = self.out / "plan.json"
        settings = resolve(RunSettings, self.base, {"eval_data": None})
        shared = settings.identity_settings()
        for own in ("method.name", "optimizer.lr", "passes"):
            shared.pop(own)
        if self.kind == "compare":
            shared = {key: value for key, value in shared.items() if not key.startswith("method.")}
        plan = {"format": FORMAT, "settings": shared, "budget": [self.unit, self.amount],
                "search_share": self.settings.search_share, "lr": self.settings.optimizer.lr}  # fmt: skip
        plan = json.loads(json.dumps(plan))
        if path.is_file():
            old = read_json(path)
            self.passes = dict(old.pop("passes"))
            # By today's defaults, so that a setting that is newer than the comparison is no difference.
            defaults = settings.defaults()
            old["settings"] = {key: old["settings"].get(key, defaults.get(key)) for key in shared | old["settings"]}
            before, now = flatten(json.loads(json.dumps(old))), flatten(plan)
            changed = [
                f"{key.removeprefix('settings.')} (was {before.get(key)}, now {now.get(key)})"
                for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)
            ]  # fmt: skip
            if changed:
                raise ConfigError(
                    f"The comparison in {self.out} was begun with other settings: {'; '.join(changed)}. Use the same "
                    "ones to go on, or another --out. More methods, values, seeds and trials may be added."
                )
        write_json(path, {**plan, "passes": self.passes})

    def _time(self) -> None:
        """Minutes to image passes, once for each variant: the plan keeps them, so a continued comparison agrees."""
        from understudy.train.log import notify

        missing = [variant for variant in self.variants if variant.folder not in self.passes]
        if missing:
            notify(f"{self.kind}: {TIMED_STEPS} steps of each of {len(missing)} variants, to turn minutes into passes")
        cells: list[Cell] = []
        # Twice: the first time records the teacher's views, which the runs will mostly find recorded.
        for name in ("first", "timed"):
            cells = []
            for variant in missing:
                settings = self.settings_of[variant.label]
                passes = TIMED_STEPS * settings.batch_size / self._images_trained(settings)
                cells.append(self._cell(variant, "timing", name, passes=passes))
            self._perform(cells, _Progress(sum(cell.settings.passes for cell in cells)))
        for variant, cell in zip(missing, cells, strict=True):
            if not cell.done:
                raise ConfigError(f"{variant.label} could not be timed: {cell.failure}")
            rows = [row for row in Run(cell.folder).metrics() if row["kind"] == "step"]
            pace = (rows[-1]["passes"] - rows[0]["passes"]) / max(1e-3, rows[-1]["time"] - rows[0]["time"])
            self.passes[variant.folder] = float(f"{max(pace * 60 * self.amount, rows[0]['passes']):.4g}")
        write_json(self.out / "plan.json", {**read_json(self.out / "plan.json"), "passes": self.passes})

    def _images_trained(self, settings: RunSettings) -> int:
        from understudy.pipeline import training_images

        return len(training_images(dataclasses.replace(settings, eval_data=None))[0])

    def _passes(self, variant: Variant) -> float:
        if "passes" in variant.changes:
            return self.settings_of[variant.label].passes
        return self.passes[variant.folder] if self.unit == "minutes" else self.amount

    def _cell(
        self, variant: Variant, role: str, name: str, *, passes: float, seed: int | None = None, lr: float | None = None
    ) -> Cell:
        folder = self.out / {"cell": "cells", "trial": "trials", "timing": "timing"}[role] / variant.folder / name
        given = self.settings_of[variant.label]
        settings = dataclasses.replace(
            given,
            out=str(folder),
            seed=given.seed if seed is None else seed,
            passes=passes,
            optimizer=given.optimizer if lr is None else dataclasses.replace(given.optimizer, lr=lr),
        )
        if role != "cell":
            fidelity = dataclasses.replace(settings.evaluation, protocols=("fidelity",), on=())
            settings = dataclasses.replace(settings, eval_data=None, evaluation=fidelity)
        return Cell(variant, folder, settings, role)

    def _trials(self, variant: Variant) -> list[Cell]:
        default = self.settings_of[variant.label].optimizer.peak
        passes = float(f"{self._passes(variant) * self.settings.search_share:.6g}")
        return [
            self._cell(variant, "trial", f"lr-{rate:g}", passes=passes, lr=rate)
            for rate in rates(default, self.settings.trials, self.settings.factor)
        ]

    def _cells(self, variant: Variant, rate: float | None) -> list[Cell]:
        shown = self.settings_of[variant.label].optimizer.peak if rate is None else rate
        first = self.settings.seed
        return [
            self._cell(
                variant, "cell", f"seed-{seed}-lr-{shown:g}", passes=self._passes(variant), seed=seed, lr=rate
            )
            for seed in range(first, first + self.settings.seeds)
        ]  # fmt: skip

    def _weight_of_everything(self, trials: Sequence[Cell]) -> float:
        cells = sum(self._passes(variant) for variant in self.variants) * self.settings.seeds
        return cells + sum(trial.settings.passes for trial in trials)

    def _announce(self, trials: Sequence[Cell]) -> None:
        """Say what will be done before anything is."""
        from understudy.train.log import notify

        cells = len(self.variants) * self.settings.seeds
        passes = {self._passes(variant) for variant in self.variants}
        span = f"{min(passes):g}" if len(passes) == 1 else f"{min(passes):g} to {max(passes):g}"
        notify(
            f"{self.kind}: {len(self.variants)} variants x {self.settings.seeds} seeds = {cells} runs of {span} passes"
        )
        if trials:
            lengths = {trial.settings.passes for trial in trials}
            span = f"{min(lengths):g}" if len(lengths) == 1 else f"{min(lengths):g} to {max(lengths):g}"
            notify(f"  after {len(trials)} trials of the learning rate of {span} passes each")
        finished = sum(trial.done for trial in trials)
        weight = self._weight_of_everything(trials)
        notify(f"  {weight:g} image passes in all; {finished} trials are done already; results in {self.out}")

    def _perform(self, cells: Sequence[Cell], progress: _Progress) -> None:
        """Make the cells that are missing, `jobs` at a time.

        Raises:
            Stopped: asked to stop.
        """
        missing = []
        for cell in cells:
            if cell.done:
                progress.skip(cell.settings.passes)
            else:
                missing.append(cell)
        if not missing:
            return
        self._prepare(missing)
        progress.begin()
        if self.settings.jobs == 1:
            for cell in missing:
                attempt(cell)
                progress.add(cell)
        else:
            _Pool(missing, min(self.settings.jobs, len(missing)), progress).run()

    def _prepare(self, cells: Sequence[Cell]) -> None:
        """What several runs share, made once and before them: embeddings, graph, pixels, the teacher's figures."""
        from understudy.embed.transform import transform_of
        from understudy.evaluate.features import Resources
        from understudy.evaluate.runner import evaluate_teacher
        from understudy.pipeline import (
            decoded_images,
            embed_stage,
            graph_stage,
            open_rows_of,
            teacher_of,
            training_images,
        )
        from understudy.train.distributed import join
        from understudy.train.log import StageProgress, notify

        for cell in cells:
            settings = dataclasses.replace(cell.settings, eval_data=None)
            parts = (settings.teacher, settings.teacher_mean, settings.teacher_std, settings.teacher_precision,
                     settings.data, settings.limit,
                     settings.holdout, settings.views.teacher, settings.transform,
                     settings.neighbors.n if settings.neighbors.k else 0, cell.settings.eval_data,
                     as_table(cell.settings.evaluation))  # fmt: skip
            key = fingerprint(*parts)
            if key in self.prepared:
                continue
            processes = join(settings.device)
            source, held_out = training_images(settings)
            rows = source
            if settings.teacher is not None:
                teacher = teacher_of(settings.teacher_settings, processes.device).to(processes.device)
                if not self.prepared:
                    notify(f"teacher: {teacher.spec}, D = {teacher.width}, {teacher.precision}; {teacher.weights}")
                if settings.neighbors.k or settings.views.teacher == "recorded" or settings.transform != "none":
                    store = embed_stage(settings, teacher, source, processes)
                    rows = open_rows_of(store, source)
                    if settings.neighbors.k:
                        graph_stage(settings, store, processes)
                    if settings.transform != "none":
                        transform_of(store, settings.transform)
                evaluation = dataclasses.replace(settings.evaluation, eval_data=cell.settings.eval_data)
                if evaluation.eval_data is not None or held_out is not None:
                    with StageProgress("evaluate the teacher") as progress:
                        resources = Resources(processes.device, settings.store, settings.workers, progress)
                        evaluate_teacher(teacher, evaluation, resources, held_out=held_out)
            decoded_images(settings, rows, processes)
            self.prepared.add(key)

    def _write(self, trials: Mapping[str, list[Cell]], cells: Mapping[str, list[Cell]]) -> dict[str, Any]:
        from understudy.report.comparison import statistics
        from understudy.report.comparison_page import write_page

        variants = [self._row(v, trials.get(v.label, []), cells[v.label]) for v in self.variants]
        displays: dict[str, Any] = {}
        for row in variants:
            displays |= row.pop("protocols")
        teacher: dict[str, Any] = next((row.pop("teacher") for row in variants if row["teacher"]), {})
        for row in variants:
            row.pop("teacher", None)
        result: dict[str, Any] = {
            "format": FORMAT,
            "kind": self.kind,
            "about": {
                "data": self.settings.data,
                "limit": self.settings.limit,
                "eval_data": self.settings.eval_data,
                "teacher": self.settings.teacher,
                "student": self.settings.student,
                "budget": f"{self.unit}={self.amount:g}",
                "seeds": self.settings.seeds,
                "trials": self.settings.trials,
                "factor": self.settings.factor,
                "search_share": self.settings.search_share,
                "criterion": CRITERION,
                "optimizer": self.settings.optimizer.name,
                "batch_size": self.settings.batch_size,
                "head": self.settings.head,
                "teacher_views": self.settings.views.teacher,
                "teacherless": self.teacherless,
                "understudy": __version__,
                "protocols": displays,
            },
            "teacher": teacher,
            "variants": variants,
            **statistics(variants, displays),
        }
        write_json(self.out / "comparison.json", result)
        write_text(self.out / "comparison.csv", as_csv(result))
        write_page(self.out / "comparison.json", self.out / "report.html")
        return result

    def _row(self, variant: Variant, trials: Sequence[Cell], cells: Sequence[Cell]) -> dict[str, Any]:
        settings = self.settings_of[variant.label]
        rate, edge = chosen(trials) if trials else (settings.optimizer.peak, "")
        tried = [
            {
                "lr": trial.settings.optimizer.peak,
                CRITERION: judged(trial),
                "failure": trial.failure,
            }
            for trial in trials
        ]
        failure = "No trial of a learning rate was finished." if rate is None else None
        row: dict[str, Any] = {
            "label": variant.label, "changes": dict(variant.changes), "method": settings.method["name"],
            "passes": self._passes(variant), "lr": rate, "edge": edge, "trials": tried, "failure": failure,
            "in_teacher_space": True, "teacher": {}, "cells": [], "protocols": {},
        }  # fmt: skip
        for cell in cells:
            entry: dict[str, Any] = {
                "seed": cell.settings.seed, "folder": os.path.relpath(cell.folder, self.out), "failure": cell.failure,
                "lr": cell.settings.optimizer.peak, "figures": {}, "notes": [],
            }  # fmt: skip
            if cell.done:
                run = Run(cell.folder)
                end = next(row for row in reversed(run.metrics()) if row["kind"] == "end")
                names = ("seconds", "images", "student_forwards", "teacher_forwards", "key_forwards")
                entry |= {name: end[name] for name in names}
                evaluation = run.evaluation
                row["in_teacher_space"] = bool(run.student["in_teacher_space"])
                row["teacher"] = evaluation.get("teacher", {})
                row["protocols"] |= evaluation["about"]["protocols"]
                for part in ("student", "student_embed"):
                    for key, value in flatten(evaluation[part]).items():
                        if isinstance(value, int | float):
                            entry["figures"][f"{part}.{key}"] = value
                        elif key.endswith(".error") and value not in entry["notes"]:
                            entry["notes"].append(value)
            elif entry["failure"] is None:
                entry["failure"] = "It was not run."
            row["cells"].append(entry)
        return row


def _taught(settings: RunSettings) -> bool:
    from understudy.losses import LOSSES

    return LOSSES[settings.method["name"]].needs.teacher


def _budget(settings: ComparisonSettings) -> tuple[str, float]:
    """The unit and the amount of `--budget`.

    Raises:
        ConfigError: it cannot be read.
    """
    if settings.budget is None:
        return "passes", settings.passes
    unit, _, amount = settings.budget.partition("=")
    try:
        number = float(amount)
    except ValueError:
        number = math.nan
    if unit not in ("passes", "minutes") or not (math.isfinite(number) and number > 0):
        raise ConfigError(f"--budget {settings.budget} cannot be read. Write passes=10 or minutes=5.")
    return unit, number


def judged(trial: Cell) -> float | None:
    """The figure that a trial is judged by, if it was finished."""
    return float(Run(trial.folder).evaluation["student"]["fidelity"][CRITERION]) if trial.done else None


def chosen(trials: Sequence[Cell]) -> tuple[float | None, str]:
    """The best rate, and "low" or "high" where it is the smallest or the largest of those tried.

    A trial that failed (a rate so large that the loss overflowed) is not chosen. Of equals the one nearest to the
    default, which stands in the middle, is taken.
    """
    finished = [(judged(trial), -abs(i - len(trials) // 2), trial.settings.optimizer.peak, i)
                for i, trial in enumerate(trials)]  # fmt: skip
    known = [row for row in finished if row[0] is not None]
    if not known:
        return None, ""
    _, _, rate, place = max(known)
    return rate, "low" if place == 0 else "high" if place == len(trials) - 1 else ""


def as_csv(comparison: Mapping[str, Any]) -> str:
    """One line a cell: what it is, what it cost, and every figure."""
    rows = []
    for variant in comparison["variants"]:
        for cell in variant["cells"]:
            row = {"variant": variant["label"], "method": variant["method"], **variant["changes"]}
            row |= {key: cell.get(key) for key in ("seed", "lr")} | {"passes": variant["passes"]}
            for name in ("seconds", "images", "student_forwards", "teacher_forwards", "key_forwards"):
                row[name] = cell.get(name)
            rows.append({**row, "folder": cell["folder"], "failure": cell["failure"], **cell["figures"]})
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    # What a row is before what was measured, also where rows have different keys.
    columns.sort(key=lambda key: key.startswith(("student.", "student_embed.")))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def attempt(cell: Cell) -> None:
    """Make a cell; what goes wrong is written into its folder as a sentence.

    Raises:
        Stopped: asked to stop; a checkpoint is there.
    """
    cell.failure_path.unlink(missing_ok=True)
    try:
        make(cell)
    except Stopped:
        raise
    except UnderstudyError as error:
        write_json(cell.failure_path, {"sentence": str(error)})
    except Exception as error:
        # One method's fault must not cost the others' hours: the rest goes on, the exit status tells.
        write_text(cell.folder / "traceback.txt", traceback.format_exc())
        sentence = f"{type(error).__name__}: {error} (see {cell.folder / 'traceback.txt'})"
        write_json(cell.failure_path, {"sentence": sentence})


def make(cell: Cell) -> None:
    """Train and evaluate one cell."""
    from understudy.pipeline import evaluate_stage, train_stage

    quiet = not sys.stderr.isatty()
    # Without the evaluation images training holds out the same images in every cell, trials and final runs alike.
    finished = train_stage(dataclasses.replace(cell.settings, eval_data=None), quiet=quiet)
    if finished is None:
        raise Stopped
    if cell.role != "timing":
        evaluate_stage(finished, cell.settings, quiet=True)
    if cell.role != "cell":  # nobody goes on from a trial or looks at its pictures
        finished.sample_path.unlink(missing_ok=True)
        for leftover in (finished.checkpoint_path.parent, finished.path / "features"):
            shutil.rmtree(leftover, ignore_errors=True)
    write_json(cell.done_path, cell.bound())


class _Progress:
    """A line for every run that ends, with the time left as the finished image passes tell."""

    def __init__(self, total: float) -> None:
        self.total, self.skipped, self.made = total, 0.0, 0.0
        self.compute_cost, self.mark = 0.0, time.monotonic()

    def begin(self) -> None:
        """The clock starts here: what is shared by all is made."""
        self.mark = time.monotonic()

    def skip(self, passes: float) -> None:
        """A run that was there already."""
        self.skipped += passes

    def add(self, cell: Cell) -> None:
        """A run that has just ended."""
        from understudy.train.log import clock, notify

        now = time.monotonic()
        self.compute_cost, self.mark = self.compute_cost + now - self.mark, now
        self.made += cell.settings.passes
        rest = max(0.0, self.total - self.skipped - self.made)
        left = rest * self.compute_cost / max(self.made, 1e-9)
        share = (self.skipped + self.made) / max(self.total, 1e-9)
        outcome = f"failed: {cell.failure}" if cell.failure else self._figure(cell)
        notify(f"[{min(share, 1):4.0%}] {cell.role} {cell.title}: {outcome}; about {clock(left)} left")

    def _figure(self, cell: Cell) -> str:
        if cell.role == "timing":
            return "done"
        evaluation = Run(cell.folder).evaluation["student"]
        shown = {"10-NN": ("knn", "top1@10"), "linear": ("linear", "top1"), CRITERION: ("fidelity", CRITERION)}
        found = {title: evaluation.get(a, {}).get(b) for title, (a, b) in shown.items()}
        return ", ".join(f"{title} {value:.2f}" for title, value in found.items() if value is not None) or "done"


class _Pool:
    """Several cells at a time, each a process of its own with its share of the cores."""

    def __init__(self, cells: Iterable[Cell], jobs: int, progress: _Progress) -> None:
        self.waiting, self.jobs, self.progress = list(cells), jobs, progress
        self.running: dict[subprocess.Popen[str], Cell] = {}
        self.places: dict[subprocess.Popen[str], int] = {}
        self.stopping = False
        cores = int(os.environ.get("OMP_NUM_THREADS", 0)) or _cores()
        # The second is what torchrun tells: by it the readers of images share the cores too.
        shares = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), "LOCAL_WORLD_SIZE": str(jobs)}
        self.environment = os.environ | shares

    def run(self) -> None:
        """Start, wait, start the next.

        Raises:
            Stopped: asked to stop; the children have left their checkpoints.
        """
        with self._handlers():
            try:
                while (self.waiting and not self.stopping) or self.running:
                    while self.waiting and len(self.running) < self.jobs and not self.stopping:
                        self._start(self.waiting.pop(0))
                    time.sleep(0.05)
                    for process in [process for process in self.running if process.poll() is not None]:
                        self._end(process)
            finally:
                for process in self.running:
                    process.kill()
        if self.stopping:
            raise Stopped

    def _start(self, cell: Cell) -> None:
        cell.folder.mkdir(parents=True, exist_ok=True)
        cell.failure_path.unlink(missing_ok=True)
        place = min(set(range(self.jobs)) - {self.places[process] for process in self.running})
        with open(cell.folder / "log.txt", "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "understudy.compare"], stdin=subprocess.PIPE, stdout=log, stderr=log,
                env=self.environment | one_gpu(place), text=True, start_new_session=True,
            )  # fmt: skip
        assert process.stdin is not None
        job = {"variant": dataclasses.asdict(cell.variant), "folder": str(cell.folder), "role": cell.role,
               "settings": as_table(cell.settings)}  # fmt: skip
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        self.running[process], self.places[process] = cell, place

    def _end(self, process: subprocess.Popen[str]) -> None:
        cell = self.running.pop(process)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        if self.stopping and not cell.done:
            return
        if not cell.done and not cell.failure_path.is_file():
            sentence = (
                f"Its process ended with status {process.returncode} and left no reason (killed for memory, perhaps); "
                f"see {cell.folder / 'log.txt'}."
            )
            write_json(cell.failure_path, {"sentence": sentence})
        self.progress.add(cell)

    @contextlib.contextmanager
    def _handlers(self) -> Any:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(*_: Any) -> None:
            for process in list(self.running):
                process.kill() if self.stopping else process.terminate()
            self.stopping = True

        previous = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def one_gpu(place: int) -> dict[str, str]:
    """The environment in which the child of this place sees one of several GPUs: with four, the fifth shares the first.

    Args:
        place: 0 ... jobs - 1.
    """
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = seen.split(",") if seen else [str(number) for number in range(count)]
    return {"CUDA_VISIBLE_DEVICES": names[place % len(names)]}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _child() -> int:
    """One cell in a process of its own, told on standard input, which ends when the parent does."""
    job = json.loads(sys.stdin.readline())

    def watch() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    cell = Cell(Variant(**job["variant"]), Path(job["folder"]), resolve(RunSettings, job["settings"]), job["role"])
    try:
        attempt(cell)
    except Stopped:
        return 143
    return 0 if cell.done else 1
