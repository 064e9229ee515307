"""Files that are whole or not there: written beside their place and renamed, a full disk said in a sentence."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from understudy.artifacts.regular import read_regular
from understudy.artifacts.seals import append_seal, damaged, sealed_text, verdict_on
from understudy.errors import StoreError, UnderstudyError, first_line

FULL = 2**16  # a disk with fewer bytes left is full: not every library says why it could not write
UMASK = os.umask(0o022)
os.umask(UMASK)  # it can only be read by setting it


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str], *, sealed: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it over `path`.

    A process killed inside the block leaves `path` as it was.

    Args:
        path: the file.
        sealed: put its checksum behind what the block has written (see `seals`).

    Raises:
        StoreError: the disk is full; `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with room_on_disk(path):
            yield temporary
            if sealed:
                append_seal(temporary)
            # safetensors writes files that nobody else may read; what a run leaves is for the whole team.
            temporary.chmod(0o666 & ~UMASK)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def room_on_disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make a sentence of it when the disk that holds `path` fills up inside the block.

    Raises:
        StoreError: it did.
    """
    try:
        yield
    except UnderstudyError:
        raise
    except Exception as error:
        folder = Path(path).parent
        space = shutil.disk_usage(folder)
        # Libraries not written in Python have the words of the system in theirs, or give no reason at all.
        named = any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))
        if not named and space.free >= FULL:
            raise
        raise StoreError(
            f"The disk that holds {folder} is full ({space.free / 2**20:,.1f} MiB left of {space.total / 2**20:,.0f}). "
            "Make room on it, then run the same command: what was saved before is whole, and it goes on from there."
        ) from error


def sweep(folder: str | os.PathLike[str], name: str = "*") -> None:
    """Remove what killed processes left where `atomic` wrote, of a file, or of all, that nobody else writes now."""
    for leftover in Path(folder).glob(f".{name}.partial"):
        leftover.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically; JSON, TOML and HTML get their checksum where readers pass over it (see `seals`)."""
    with atomic(path) as temporary:
        temporary.write_text(sealed_text(path, text), encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON atomically, NaN refused (a measurement that failed must say so in words)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str], remedy: str = "Delete it and run the step again.") -> Any:
    """Read JSON.

    Args:
        path: the file.
        remedy: what to do about a damaged file.

    Raises:
        StoreError: the file is missing, is no regular file, is not JSON, or is not what was written.
    """
    try:
        content = read_regular(path)
        verdict = verdict_on(path)
        value = json.loads(content)
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist. Was the step that writes it run to its end?") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested deeper than Python can follow
        raise StoreError(f"{path} is not valid JSON ({first_line(error)}). {remedy}") from None
    if verdict == "damaged":
        raise damaged(path, f"{remedy} (Was it edited by hand? Then take out its last line, which is blank.)")
    return value


def read_table(path: str | os.PathLike[str], remedy: str = "Delete it and run the step again.") -> dict[str, Any]:
    """Read JSON that is a table.

    Raises:
        StoreError: as `read_json`, or it is something else.
    """
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise StoreError(f"{path} holds a {type(value).__name__} where a table is expected. {remedy}")
    return value
