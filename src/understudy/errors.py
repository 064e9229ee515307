"""The one family of errors a user can cause.

Every message is a sentence with the offending values in it and what to do next. `assert` is kept for our own mistakes.
"""

import re

LONGEST = 400  # letters of another library's sentence that are repeated


class UnderstudyError(Exception):
    """Base class: catch this to catch everything a user of Understudy can do wrong."""


class ConfigError(UnderstudyError, ValueError):
    """A flag, a setting or an argument that cannot be used as written."""


class ShapeError(UnderstudyError, ValueError):
    """Two tensors or arrays whose shapes do not fit; the message carries both."""


class DataError(UnderstudyError):
    """A data source that cannot be listed, read or used (missing, empty, without labels)."""


class UnreadableImage(DataError):
    """One image that cannot be decoded. Callers skip it, count it and list it; it never ends a run."""


class ModelError(UnderstudyError):
    """A model spec, checkpoint or teacher that cannot be used (unknown, no weights, random, constant)."""


class StoreError(UnderstudyError):
    """A store or run folder that is incomplete, stale, or belongs to something else."""


class TrainingError(UnderstudyError):
    """Training cannot go on (non-finite loss, a run folder of another configuration)."""


class MissingDependency(UnderstudyError, ImportError):
    """An optional package is needed and not installed; the message names the package and the command."""


class Stopped(Exception):
    """Training was asked to stop and left a checkpoint; the same call goes on from there."""


def first_line(error: BaseException | str) -> str:
    """The first line of another library's words, without escape codes and full stop; its class if it has no words."""
    plain = (
        re.sub(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|.)", "", str(getattr(error, "strerror", None) or error))
        .strip()
        .split("\n")[0]
    )
    plain = "".join(letter if letter.isprintable() else " " for letter in plain).strip().rstrip(".")
    if len(plain) > LONGEST:
        plain = f"{plain[:LONGEST]} ..."
    return plain or type(error).__name__
