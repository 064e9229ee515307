"""Whether a run folder belongs to the settings of a call: it is resumed, or called finished, by the same ones only."""

from __future__ import annotations

import dataclasses
from typing import Any

from understudy.artifacts import Run
from understudy.errors import ConfigError, TrainingError
from understudy.settings import as_table, read_toml, resolve
from understudy.train.settings import TrainSettings


def resolved(settings: TrainSettings) -> dict[str, Any]:
    """The configuration as it is saved: every value, the derived learning rate included."""
    table = as_table(settings)
    table["optimizer"]["lr"] = settings.optimizer.peak
    return table


def saved_settings(run: Run, kind: type[TrainSettings]) -> TrainSettings:
    """The settings that a run was begun with, those that are newer than the run at their defaults.

    Args:
        run: with a configuration.
        kind: of settings.

    Raises:
        TrainingError: one of them is no longer known.
    """
    table = {
        key: value for key, value in read_toml(run.config_path).items() if key not in kind.FREE or key == "eval_data"
    }
    try:
        return resolve(kind, table)
    except ConfigError as error:
        raise _outdated(run, error) from None


def refuse_other_settings(run: Run, settings: TrainSettings) -> None:
    """Refuse to go on in a run folder that other settings began.

    Raises:
        TrainingError: names every setting that differs, with both values; or one that is no longer known.
    """
    if not run.config_path.is_file():
        return
    before = saved_settings(run, type(settings))
    try:
        saved = _identity(before)
    except ConfigError as error:
        raise _outdated(run, error) from None
    now = _identity(settings)
    differences = [
        f"{key} (was {saved.get(key)}, now {now.get(key)})"
        for key in sorted(set(saved) | set(now)) if saved.get(key) != now.get(key)
    ]  # fmt: skip
    if differences:
        raise TrainingError(
            f"The run folder {run.path} was begun with other settings: {'; '.join(differences)}. "
            "Use the same settings to resume it, or another --out for a new run."
        )


def _identity(settings: TrainSettings) -> dict[str, object]:
    """The settings that decide the weights, the method's own in their types."""
    from understudy.losses import typed_settings

    return dataclasses.replace(settings, method=typed_settings(**settings.method)).identity_settings()


def _outdated(run: Run, error: ConfigError) -> TrainingError:
    return TrainingError(
        f"The run folder {run.path} was begun with settings that this version does not take: {error} "
        "Use another --out for a new run."
    )
