"""Regular files alone: a named pipe would wait for ever, a device never end, and a name may hold what no name can."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import BinaryIO

KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str | bytes | os.PathLike[str]) -> BinaryIO:
    """Open a regular file, or a link to one, for reading; it is never waited for.

    Raises:
        OSError: it cannot be opened, or is a folder, a named pipe, a socket or a device; `strerror` says which.
    """
    try:
        # Without O_NONBLOCK a named pipe that nobody writes to would be waited for here.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:  # a null byte, which no name on disk can hold
        raise OSError(errno.EINVAL, "its name holds a null byte", os.fsdecode(path)) from None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket cannot even be opened
            raise OSError(errno.EINVAL, "it is a socket and no regular file", os.fsdecode(path)) from None
        raise
    try:
        mode = os.fstat(number).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for is_kind, name in KINDS if is_kind(mode)), "something else")
            raise OSError(errno.EINVAL, f"it is {kind} and no regular file", os.fsdecode(path))
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def read_regular(path: str | bytes | os.PathLike[str]) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: as for `open_regular`.
    """
    with open_regular(path) as file:
        return file.read()


def check_regular(path: str | bytes | os.PathLike[str]) -> None:
    """Let only a regular file pass, before a library opens it by its name.

    Raises:
        OSError: as for `open_regular`.
    """
    open_regular(path).close()
