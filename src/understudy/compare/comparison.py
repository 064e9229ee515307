"""The course of a comparison: plan, time, search, run, write."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from understudy.artifacts import Run, lock, read_json, write_json
from understudy.compare.cell import Cell
from understudy.compare.design import Design
from understudy.compare.engine import make_cells
from understudy.compare.preparation import Preparation
from understudy.compare.progress import Progress
from understudy.compare.search import chosen, rates
from understudy.compare.settings import ComparisonSettings
from understudy.compare.table import VariantRuns, result, table, write
from understudy.compare.variants import Variant, variants_of, variants_of_grid
from understudy.errors import ConfigError
from understudy.pipeline import RunSettings, training_images
from understudy.settings import flatten

TIMED_STEPS = 40
"""Steps of the stretch that turns minutes into image passes; the first one does not count."""

FOLDERS = {"cell": "cells", "trial": "trials", "timing": "timing"}


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
    comparison = Comparison(Design(settings, variants, kind))
    with lock(comparison.design.out):
        return comparison.make()


class Comparison:
    """One comparison at work."""

    def __init__(self, design: Design) -> None:
        self.design, self.settings, self.variants, self.out = design, design.settings, design.variants, design.out
        self.passes: dict[str, float] = {}
        """What the minutes of each variant's folder were found to mean."""
        self.preparation = Preparation()

    def make(self) -> dict[str, Any]:
        """All of it, in order."""
        self._plan()
        if self.design.unit == "minutes":
            self._time()
        trials = {v.label: self._trials(v) for v in self.variants if self.design.searched(v)}
        all_trials = [trial for group in trials.values() for trial in group]
        self._announce(all_trials)
        count = len(all_trials) + len(self.variants) * self.settings.seeds
        progress = Progress(self.design.kind, count, self._weight_of_everything(all_trials))
        self._perform(all_trials, progress)
        cells = {}
        for variant in self.variants:
            rate, _ = chosen(trials[variant.label]) if variant.label in trials else (None, "")
            cells[variant.label] = [] if rate is None and variant.label in trials else self._cells(variant, rate)
        progress.table = lambda: table(result(self.design, self._runs(trials, cells)))
        self._perform([cell for group in cells.values() for cell in group], progress)
        found = result(self.design, self._runs(trials, cells))
        write(found, self.out)
        return found

    def _runs(self, trials: Mapping[str, list[Cell]], cells: Mapping[str, list[Cell]]) -> list[VariantRuns]:
        return [
            VariantRuns(v, self.design.settings_of[v.label], self._passes(v), trials.get(v.label, []), cells[v.label])
            for v in self.variants
        ]

    def _plan(self) -> None:
        """Refuse a folder that other settings began; keep what minutes were found to mean."""
        path = self.out / "plan.json"
        plan, defaults = self.design.identity_settings()
        if path.is_file():
            old = read_json(path)
            self.passes = dict(old.pop("passes"))
            # By today's defaults, so that a setting that is newer than the comparison is no difference.
            names = plan["settings"] | old["settings"]
            old["settings"] = {name: old["settings"].get(name, defaults.get(name)) for name in names}
            before, now = flatten(old), flatten(plan)
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
            notify(
                f"{self.design.kind}: {TIMED_STEPS} steps of each of {len(missing)} variants, to turn minutes into "
                "passes"
            )
        cells: list[Cell] = []
        # Twice: the first time records the teacher's views, which the runs will mostly find recorded.
        for name in ("first", "timed"):
            cells = []
            for variant in missing:
                settings = self.design.settings_of[variant.label]
                passes = TIMED_STEPS * settings.batch_size / self._images_trained(settings)
                cells.append(self._cell(variant, "timing", name, passes=passes))
            self._perform(cells, Progress("timing", len(cells), sum(cell.settings.passes for cell in cells)))
        for variant, cell in zip(missing, cells, strict=True):
            if not cell.done:
                raise ConfigError(f"{variant.label} could not be timed: {cell.failure}")
            rows = [row for row in Run(cell.folder).metrics() if row["kind"] == "step"]
            pace = (rows[-1]["passes"] - rows[0]["passes"]) / max(1e-3, rows[-1]["time"] - rows[0]["time"])
            self.passes[variant.folder] = float(f"{max(pace * 60 * self.design.amount, rows[0]['passes']):.4g}")
        write_json(self.out / "plan.json", {**read_json(self.out / "plan.json"), "passes": self.passes})

    def _images_trained(self, settings: RunSettings) -> int:
        return len(training_images(dataclasses.replace(settings, eval_data=None))[0])

    def _passes(self, variant: Variant) -> float:
        if "passes" in variant.changes:
            return self.design.settings_of[variant.label].passes
        return self.passes[variant.folder] if self.design.unit == "minutes" else self.design.amount

    def _cell(
        self, variant: Variant, role: str, name: str, *, passes: float, seed: int | None = None, lr: float | None = None
    ) -> Cell:
        folder = self.out / FOLDERS[role] / variant.folder / name
        given = self.design.settings_of[variant.label]
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
        default = self.design.settings_of[variant.label].optimizer.peak
        passes = float(f"{self._passes(variant) * self.settings.search_share:.6g}")
        return [
            self._cell(variant, "trial", f"lr-{rate:g}", passes=passes, lr=rate)
            for rate in rates(default, self.settings.trials, self.settings.factor)
        ]

    def _cells(self, variant: Variant, rate: float | None) -> list[Cell]:
        shown = self.design.settings_of[variant.label].optimizer.peak if rate is None else rate
        first, passes = self.settings.seed, self._passes(variant)
        return [
            self._cell(variant, "cell", f"seed-{seed}-lr-{shown:g}", passes=passes, seed=seed, lr=rate)
            for seed in range(first, first + self.settings.seeds)
        ]

    def _weight_of_everything(self, trials: Sequence[Cell]) -> float:
        cells = sum(self._passes(variant) for variant in self.variants) * self.settings.seeds
        return cells + sum(trial.settings.passes for trial in trials)

    def _announce(self, trials: Sequence[Cell]) -> None:
        """Say what will be done before anything is."""
        from understudy.train.log import notify

        variants, seeds = len(self.variants), self.settings.seeds
        passes = _span(self._passes(variant) for variant in self.variants)
        notify(f"{self.design.kind}: {variants} variants x {seeds} seeds = {variants * seeds} runs of {passes} passes")
        if trials:
            passes = _span(trial.settings.passes for trial in trials)
            notify(f"  after {len(trials)} trials of the learning rate of {passes} passes each")
        finished = sum(trial.done for trial in trials)
        weight = self._weight_of_everything(trials)
        notify(f"  {weight:g} image passes in all; {finished} trials are done already; results in {self.out}")

    def _perform(self, cells: Sequence[Cell], progress: Progress) -> None:
        """Make the cells that are missing, `jobs` at a time.

        Raises:
            Stopped: asked to stop.
        """
        missing = []
        for cell in cells:
            if cell.done:
                progress.skip(cell)
            else:
                missing.append(cell)
        if not missing:
            return
        self.preparation.make(missing)
        with progress:
            make_cells(missing, progress, self.settings.jobs)


def _span(numbers: Iterable[float]) -> str:
    """`3`, or `3 to 5`."""
    different = sorted(set(numbers))
    return " to ".join(f"{number:g}" for number in dict.fromkeys((different[0], different[-1])))
