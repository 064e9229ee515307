"""The rows of a comparison: methods with their settings, or the points of a grid."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.artifacts import fingerprint
from understudy.compare.settings import FREE, OWN, RUN
from understudy.errors import ConfigError


@dataclass(frozen=True)
class Variant:
    """One row of the table: what differs from the settings that all share."""

    label: str  # as the user wrote it
    changes: Mapping[str, Any]  # settings by dotted key

    @property
    def folder(self) -> str:
        """A folder name of its own."""
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", self.label).strip("-.")
        return f"{readable[:60]}-{fingerprint(dict(self.changes))[:6]}"


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
