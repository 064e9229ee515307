"""The flags of a verb, made from settings dataclasses: one per setting, in a group per nested dataclass.

Why not a library: tyro, cyclopts, pydantic-settings and jsonargparse were measured (dev/LOG.md, 2026-11-27).
"""

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from understudy.errors import ConfigError
from understudy.losses import LOSSES
from understudy.settings import closest, either, settings_in

AUTOMATIC = "Resuming is automatic: give the same command again, and what is finished is not done again."
WEIGHTS = "A model spec says its weights: --student timm:resnet18@pretrained, or @FILE for local ones."
TORCHRUN = "Start the same command under torchrun: torchrun --nproc-per-node 4 -m understudy train ..."
SENTENCES = {
    **dict.fromkeys(("resume", "resume_from", "checkpoint", "ckpt", "auto_resume"), AUTOMATIC),
    **dict.fromkeys(("pretrained", "weights"), WEIGHTS),
    **dict.fromkeys(("nproc_per_node", "world_size", "num_gpus", "distributed", "ddp"), TORCHRUN),
}
"""Flags of other programs that none of ours stands for."""

Listed = Mapping[str, Sequence[str]]
"""Values to choose from, by the dotted name of a flag."""


class Flags:
    """The flags of one verb on their way into its parser.

    Settings of `main` are always shown, others if `everything` is, as by `--help-all`. `listed` are values to choose
    from, by dotted name, for those that do not declare them.
    """

    def __init__(
        self, parser: argparse.ArgumentParser, main: Sequence[str], *, everything: bool = False,
        listed: Listed | None = None,
    ) -> None:  # fmt: skip
        self.parser, self.main, self.everything, self.listed = parser, frozenset(main), everything, listed
        self.known: dict[str, Mapping[str, Any]] = {}
        self.hidden = 0

    def add(self, *names: str, **options: Any) -> None:
        """A flag or an argument of the verb's own, always shown; as `ArgumentParser.add_argument`."""
        self._add(self.parser, *names, **options)

    def config(self) -> None:
        """`--config` and `--print-config`."""
        self.add("--config", metavar="FILE.toml", help="Settings file. Flags win over it.")
        self.add("--print-config", action="store_true", help="Print the resolved settings as TOML and run nothing.")

    def recipe(self) -> None:
        """`--recipe` and `--preset`."""
        from understudy.recipes import PRESETS

        self.add(
            "--recipe", metavar="RECIPE",
            help="Settings laid under your own: authors (what the method's authors ran), a TOML file, the name of one "
            "in recipes/, or none.",
        )  # fmt: skip
        self.add(
            "--preset", metavar="PRESET",
            help=f"{', '.join(PRESETS)}: two steps on embedded images with a teacher without weights, to try out all "
            "other settings.",
        )  # fmt: skip

    def settings(self, cls: type, skip: Sequence[str] = (), prefix: str = "") -> None:
        """A flag for every setting of a dataclass."""
        groups: dict[str, argparse._ArgumentGroup] = {}
        for name, field, hint in settings_in(cls, prefix):
            if name in skip:
                continue
            group, _, leaf = name.rpartition(".")
            if group and group not in groups:
                groups[group] = self.parser.add_argument_group(f"{group} (--{group}.KEY)")
            shown = self.everything or name in self.main
            self.hidden += not shown
            metavar = {bool: "true|false", int: "N", float: "X"}.get(hint, leaf.upper().replace("_", "-"))
            optional: dict[str, Any] = {"nargs": "?", "const": "true"} if hint is bool else {}
            self._add(
                groups.get(group, self.parser), "--" + name.replace("_", "-"), dest=name, metadata=field.metadata,
                default=argparse.SUPPRESS, help=described(field) if shown else argparse.SUPPRESS,
                metavar=metavar, **optional,
            )  # fmt: skip

    def _add(
        self, place: Any, *names: str, metadata: Mapping[str, Any] | None = None, help: str = "", **options: Any
    ) -> None:
        if "action" not in options:
            options.setdefault("type", os.path.expanduser)  # the shell leaves the ~ of --out=~/runs as it is
        action = place.add_argument(*names, help=help.replace("%", "%%"), **options)
        if self.listed is not None:  # for shells only: a wrong choice is answered by the settings' own sentence
            action.choices = (metadata or {}).get("choices") or self.listed.get(action.dest)
        if names[0].startswith("--"):
            self.known[names[0].removeprefix("--").replace("-", "_")] = {"help": help, **(metadata or {})}

    def unknown(self, word: str) -> ConfigError:
        """The error for a flag, as written, that the verb does not have: our name for it, or the nearest three."""
        flag = word.partition("=")[0]
        if not flag.startswith("-"):
            return ConfigError(f"Unexpected argument '{word}'. `{self.parser.prog} --help` shows how it is called.")
        name = flag.lstrip("-").replace("-", "_")
        names, synonym = closest(name, self.known)
        flags = ["--" + path.replace("_", "-") for path in names]
        if synonym:
            return ConfigError(f"Unknown argument '{flag}'. Here it is {flags[0]}: {self.known[names[0]]['help']}")
        if name in SENTENCES:
            return ConfigError(f"Unknown argument '{flag}'. {SENTENCES[name]}")
        guess = f"Did you mean {either(flags)}? " if flags else ""
        return ConfigError(f"Unknown argument '{flag}'. {guess}`{self.parser.prog} --help-all` lists all flags.")


def described(field: dataclasses.Field[Any]) -> str:
    """The help of a setting, its choices and its default."""
    text, default = str(field.metadata.get("help", "")), field.default
    choices = field.metadata.get("choices")
    if field.metadata.get("open"):
        choices, default = tuple(LOSSES), field.default_factory()["name"]  # type: ignore[operator]
    if choices:
        text += f" One of: {', '.join(map(str, choices))}."
    if default in (None, (), dataclasses.MISSING):
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    if isinstance(default, float):
        shown = f"{default:g}"
    return f"{text} [{str(shown).lower() if isinstance(default, bool) else shown}]"


def method_table() -> str:
    """The settings of every method; imports torch."""
    lines = ["settings of the methods:"]
    for name, method in LOSSES.items():
        lines.append(f"  {name}: {method.summary}")
        for key, field, _ in settings_in(method.Settings):
            lines.append(f"    --method.{key.replace('_', '-')}  {described(field)}")
    return "\n".join(lines)
