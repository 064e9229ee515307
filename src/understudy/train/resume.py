"""Whether a run folder belongs to the settings of a call: it is resumed, or called finished, by the same ones only."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import TYPE_CHECKING, Any

from understudy.artifacts import Run, fingerprint
from understudy.errors import ConfigError, StoreError, TrainingError
from understudy.settings import as_table, read_toml, resolve
from understudy.train.settings import TrainSettings

if TYPE_CHECKING:
    from understudy.sources.source import Source


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
    run.require_whole()
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


def same_settings(run: Run, settings: TrainSettings) -> bool:
    """Whether a run was begun with these settings, found out without its method and so without torch.

    Differs from `refuse_other_settings`, which knows the method's own types, in saying no where it is not certain.

    Args:
        run: with a configuration, whose settings of the method are in their types.
        settings: from files, flags or Python.
    """
    try:
        saved = saved_settings(run, type(settings)).identity_settings()
    except (StoreError, TrainingError):
        return False
    now = settings.identity_settings()
    return saved.keys() == now.keys() and all(_same(value, now[key]) for key, value in saved.items())


def _same(saved: object, value: object) -> bool:
    """Whether a value, perhaps text from a flag, is one that was saved in its type."""
    if isinstance(value, str) and isinstance(saved, bool):
        return value.lower() == str(saved).lower()
    if isinstance(value, str) and isinstance(saved, int | float):
        with contextlib.suppress(ValueError):
            return float(value) == saved
        return False
    return isinstance(value, bool) == isinstance(saved, bool) and value == saved


def refuse_other_images(folder: Run, source: Source) -> None:
    """Refuse to call a run finished whose images have changed since.

    Raises:
        StoreError: the listing is not the one it was trained on.
    """
    data = folder.student.get("data") or {}
    if data.get("listing") != source.fingerprint:
        images = f"{data.get('images') or 0:,} images of {data.get('spec')}"
        raise StoreError(
            f"The run {folder.path} was trained on {images}, which have changed since: there are {len(source):,} now, "
            "or files are newer. Name another --out to train on them."
        )


def run_id(settings: TrainSettings) -> str:
    """The folder name of a run: method, student, and a hash of all that decides the weights."""
    # Without what is at its default, so that a version with more settings finds the same run again.
    defaults = settings.defaults()
    own = {
        key: value
        for key, value in settings.identity_settings().items()
        if key not in defaults or value != defaults[key]
    }
    digest = fingerprint(settings.data, settings.student, own, settings.eval_data)[:8]
    return f"{settings.method['name']}-{student_id(settings)}-{digest}"


def student_id(settings: TrainSettings) -> str:
    """The student's spec as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", settings.student.split("@")[0]).strip("-")


def _identity(settings: TrainSettings) -> dict[str, object]:
    """The settings that decide the weights, the method's own in their types."""
    from understudy.losses import typed_settings

    return dataclasses.replace(settings, method=typed_settings(**settings.method)).identity_settings()


def _outdated(run: Run, error: ConfigError) -> TrainingError:
    return TrainingError(
        f"The run folder {run.path} was begun with settings that this version does not take: {error} "
        "Use another --out for a new run."
    )
