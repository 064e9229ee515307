"""The design of a comparison: its rows, and the settings of each, all names and values checked."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from understudy import __version__
from understudy.compare.search import CRITERION, FEWEST_HELD_OUT
from understudy.compare.settings import OWN, ComparisonSettings, budget_of
from understudy.compare.variants import Variant
from understudy.errors import ConfigError
from understudy.pipeline import RunSettings, resolve_method
from understudy.settings import as_table, resolve

FORMAT = 1
"""Of plan.json and comparison.json."""


class Design:
    """What is compared, and what all rows share.

    Args:
        settings: what was asked for.
        variants: the rows.
        kind: "compare" or "ablate".

    Raises:
        ConfigError: settings that cannot be used, or too few images to judge learning rates by.
    """

    def __init__(self, settings: ComparisonSettings, variants: Sequence[Variant], kind: str) -> None:
        if settings.out is None:
            raise ConfigError("A comparison needs a folder. Give --out runs/NAME.")
        self.settings, self.variants, self.kind, self.out = settings, variants, kind, Path(settings.out)
        self.unit, self.amount = budget_of(settings)
        self.base = {key: value for key, value in as_table(settings).items() if key not in OWN}
        if settings.views.seed is None:
            self.base["views"]["seed"] = settings.seed
        self.settings_of = {variant.label: self._run_settings(variant) for variant in variants}
        self.teacherless = [label for label, own in self.settings_of.items() if not has_teacher(own)]
        searched = any(self.searched(variant) for variant in variants)
        if not searched and settings.eval_data is not None:
            # Nothing is judged on training images, so none need be held out.
            self.base["holdout"] = 0
            self.settings_of = {variant.label: self._run_settings(variant) for variant in variants}
        if searched:
            if settings.teacher is None:
                raise ConfigError("Learning rates are judged by the teacher's neighbors. Give --teacher SPEC.")
            for data, limit in {(own.data, own.limit) for own in self.settings_of.values()}:
                self._refuse_few(data, limit)

    def searched(self, variant: Variant) -> bool:
        """Whether learning rates are tried for a variant."""
        return self.settings_of[variant.label].optimizer.lr is None and self.settings.trials > 1

    def identity_settings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a continued comparison must agree on, as plain JSON; and the defaults of its settings."""
        settings = resolve(RunSettings, self.base, {"eval_data": None})
        shared = settings.identity_settings()
        for own in ("method.name", "optimizer.lr", "passes"):
            shared.pop(own)
        if self.kind == "compare":
            shared = {key: value for key, value in shared.items() if not key.startswith("method.")}
        plan = {"format": FORMAT, "settings": shared, "budget": [self.unit, self.amount],
                "search_share": self.settings.search_share, "lr": self.settings.optimizer.lr}  # fmt: skip
        return dict(json.loads(json.dumps(plan))), settings.defaults()

    def about(self) -> dict[str, Any]:
        """What comparison.json says of the comparison as a whole."""
        settings = self.settings
        names = ("data", "limit", "eval_data", "teacher", "student", "seeds", "trials", "factor", "search_share",
                 "batch_size", "head")  # fmt: skip
        return {name: getattr(settings, name) for name in names} | {
            "budget": f"{self.unit}={self.amount:g}",
            "criterion": CRITERION,
            "optimizer": settings.optimizer.name,
            "teacher_views": settings.views.teacher,
            "teacherless": self.teacherless,
            "understudy": __version__,
        }

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
        from understudy.losses import build

        changes = dict(variant.changes)
        settings = resolve(RunSettings, self.base, changes)
        build(**settings.method)
        # What the others share of a teacher does not hold without one, unless it was asked of this very variant.
        if not has_teacher(settings) and "neighbors.k" not in changes:
            settings = dataclasses.replace(settings, neighbors=dataclasses.replace(settings.neighbors, k=0))
        if not has_teacher(settings) and "transform" not in changes:
            settings = dataclasses.replace(settings, transform="none")
        return resolve_method(settings)


def has_teacher(settings: RunSettings) -> bool:
    """Whether the method of a run distills one."""
    from understudy.losses import LOSSES

    return LOSSES[settings.method["name"]].needs.teacher
