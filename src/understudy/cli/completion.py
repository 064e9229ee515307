"""Completion for bash, zsh and fish: verbs, flags and choices, as a script that a shell reads when it starts."""

import argparse
from collections.abc import Sequence

from understudy.cli.flags import Flags, Listed
from understudy.errors import ConfigError
from understudy.evaluate.protocols import PROTOCOLS
from understudy.losses import LOSSES
from understudy.settings import settings_in

SHELLS = ("bash", "zsh", "fish")
FOLDERS = ("out", "store")
FILES = ("config", "data", "eval_data", "runs", "model", "what")


def listed() -> Listed:
    """Values to choose from that the settings do not declare themselves."""
    return {
        "method": list(LOSSES),
        "methods": list(LOSSES),
        "evaluation.protocols": list(PROTOCOLS),
        "protocols": list(PROTOCOLS),
    }


def add_method_settings(flags: Flags) -> None:
    """The settings of all methods, for a verb that trains one."""
    if "method" in flags.known:
        for key in sorted({key for method in LOSSES.values() for key, _, _ in settings_in(method.Settings)}):
            flags.add(f"--method.{key.replace('_', '-')}", help="A method's own setting.")


def script(parser: argparse.ArgumentParser, shell: Sequence[str]) -> str:
    """The script that completes the verbs, flags and choices of the whole program's parser, for one shell.

    Raises:
        ConfigError: another shell, or none.
    """
    import shtab

    if len(shell) != 1 or shell[0] not in SHELLS:
        raise ConfigError(f"--print-completion needs one of {', '.join(SHELLS)}; got {' '.join(shell) or 'nothing'}.")
    for verb in parser._subparsers._group_actions[0].choices.values():  # type: ignore[union-attr]
        for action in verb._actions:
            if action.dest in FOLDERS:
                action.complete = shtab.DIRECTORY
            elif action.dest in FILES:
                action.complete = shtab.FILE
    return str(shtab.complete(parser, shell[0]))
