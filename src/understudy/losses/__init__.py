"""Losses: one method, one file, one paper. Tensors in, `Terms` out.

A loss never sees a model, a loader or settings of a run. It declares what it needs (`base.requirements`), and the loop
obeys. Names are known without torch; a method is imported when it is asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from typing import TYPE_CHECKING, Any

from understudy.errors import ConfigError
from understudy.registry import Registry
from understudy.settings import nearest, resolve

if TYPE_CHECKING:
    from understudy.losses.base.loss import Loss, Terms

__all__ = ["LOSSES", "Loss", "Terms", "build", "typed_settings"]

LOSSES: Registry[Loss] = Registry(
    "understudy.losses", "Loss", "method", one_per_file=True, first=("coss_centered", "coss")
)


def build(name: str, **settings: Any) -> Loss:
    """Build a method by name.

    Args:
        name: a key of `LOSSES`.
        **settings: the method's own settings; numbers may come as text, as they do from a command line.

    Returns:
        The loss as an `nn.Module`.

    Raises:
        ConfigError: unknown method, unknown setting or unusable value; the sentence lists the known ones.
    """
    return LOSSES.named(name)(_resolved(name, settings))


def typed_settings(name: str, **settings: Any) -> dict[str, Any]:
    """`{"name": name, ...}` with the settings that were given, in their types: `1` from a file is `"1"` from a flag.

    Raises:
        ConfigError: as `build`.
    """
    own = _resolved(name, settings)
    return {"name": name, **{key: getattr(own, key) for key in settings}}


def _resolved(name: str, given: dict[str, Any]) -> Any:
    cls = LOSSES.named(name).Settings
    known = [field.name for field in dataclasses.fields(cls)]
    for key in given:
        if key not in known:
            raise ConfigError(f"Method '{name}' has no setting '{key}'. {nearest(key, known)}")
    own = resolve(cls, given, prefix="method.")
    for key, value in dataclasses.asdict(own).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"'method.{key}' must be a finite number; got {value}.")
    return own


def __getattr__(name: str) -> Any:
    """`Loss`, `Terms` and the methods' modules (`losses.coss`), imported when they are asked for."""
    if name in ("Loss", "Terms"):
        return getattr(importlib.import_module("understudy.losses.base.loss"), name)
    if not name.startswith("_") and name in LOSSES:
        return importlib.import_module(f"understudy.losses.{name}")
    raise AttributeError(f"module 'understudy.losses' has no attribute '{name}'")
