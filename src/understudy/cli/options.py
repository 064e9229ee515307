"""What was written on a command line, and the settings it stands for."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from understudy.errors import ConfigError
from understudy.settings import read_toml, resolve

if TYPE_CHECKING:
    from understudy.pipeline import RunSettings


class Options(argparse.Namespace):
    """The flags of one verb; those that nobody wrote are not there, so the file below shows through."""

    method_settings: dict[str, str]
    """`{"method.KEY": value}`: the method owns these names, so the parser cannot know them."""
    settings: Any
    """What the verb makes of them."""

    def layers(self, cls: type, *more: str, **fixed: Any) -> list[dict[str, Any]]:
        """The file of `--config`; the flags of a settings dataclass and `more`; `fixed` values of the verb's own."""
        written = [read_toml(self.config)] if getattr(self, "config", None) else []
        roots = {field.name for field in dataclasses.fields(cls)} | set(more)
        flags = {key: value for key, value in vars(self).items() if key.split(".")[0] in roots and value is not None}
        return [*written, {**flags, **self.method_settings, **fixed}]

    def resolve(self, cls: type, **fixed: Any) -> Any:
        """The settings of a verb: its defaults, the file of `--config`, the flags."""
        return resolve(cls, *self.layers(cls, **fixed))

    def resolve_run(self, **fixed: Any) -> RunSettings:
        """The settings of a run: its defaults, the recipe, the file of `--config`, the preset, the flags."""
        from understudy.pipeline import RunSettings, resolve_run

        return resolve_run(*self.layers(RunSettings, "recipe", "preset", **fixed))


def plain(words: Sequence[str]) -> list[str]:
    """The words with every flag in one spelling: `--batch_size=8` is `--batch-size=8`."""
    return [
        "=".join([word.partition("=")[0].replace("_", "-"), *word.split("=", 1)[1:]]) if word[:2] == "--" else word
        for word in words
    ]


def split_method_settings(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """`--method.KEY VALUE` and `--method.KEY=VALUE` taken out of the words.

    Raises:
        ConfigError: one without a value.
    """
    rest: list[str] = []
    settings: dict[str, str] = {}
    remaining = iter(words)
    for word in remaining:
        if not word.startswith("--method."):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            value = next(remaining, "")
            if not value or value.startswith("--"):
                raise ConfigError(f"'{word}' needs a value, e.g. --method.weight 1.0.")
        settings[key.replace("-", "_")] = value
    return rest, settings
