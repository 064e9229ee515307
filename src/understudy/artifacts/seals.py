"""Seals: a file's own checksum at its end, so that one changed byte is found when the file is read.

File and checksum are one write, so a kill never parts them. The checksum is the CRC-32 of all bytes of the file, its
own digits as zeros; where it stands is decided by the kind of file alone, and readers of each kind pass over it:

    JSON, a row of JSON lines    32 blanks behind the last bracket, a space for 0 and a tab for 1: JSON has no comments
    TOML, HTML                   eight hexadecimal digits in a comment at the end
    arrays and checkpoints       eight hexadecimal digits in a line behind them
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable
from typing import Literal, NamedTuple

from understudy.artifacts.regular import open_regular
from understudy.errors import StoreError

CHUNK = 1 << 20

Verdict = Literal["whole", "damaged", "unsealed"]

log = logging.getLogger("understudy")


def checksum(content: bytes | memoryview, before: int = 0) -> int:
    """The CRC-32 of bytes, or of those behind others with the checksum `before`.

    It is zlib's: 7 GB/s, part of Python, and certain to change with any one byte (with any burst of 32 bits).
    """
    return zlib.crc32(content, before)


def _hexadecimal(value: int) -> bytes:
    return b"%08x" % value


def _blanks(value: int) -> bytes:
    return f"{value:032b}".translate({ord("0"): " ", ord("1"): "\t"}).encode()


class Seal(NamedTuple):
    """How a kind of file ends: `before`, the checksum in `digits` of an alphabet, `behind`."""

    before: bytes
    digits: Callable[[int], bytes]
    alphabet: bytes
    behind: bytes

    @property
    def length(self) -> int:
        """Bytes of all three."""
        return len(self.before + self.digits(0) + self.behind)

    def of(self, value: int) -> bytes:
        """The end of a file whose checksum, with zeros for digits, is this."""
        return self.before + self.digits(value) + self.behind

    def is_in(self, end: bytes) -> bool:
        """Whether these last bytes of a file are a seal, be it a damaged one: three of four are as they must be.

        Were all of them asked for, a file whose seal was hit would pass for one that never had any.
        """
        start, stop = len(self.before), self.length - len(self.behind)
        marks = zip(end[:start] + end[stop:], self.before + self.behind, strict=False)
        right = sum(a == b for a, b in marks) + sum(digit in self.alphabet for digit in end[start:stop])
        return len(end) == self.length and 4 * right >= 3 * self.length


ROW = Seal(b"", _blanks, b" \t", b"")
_BINARY = Seal(b"\nunderstudy checksum: ", _hexadecimal, b"0123456789abcdef", b"\n")
_OF_SUFFIX = {
    ".json": Seal(b"", _blanks, b" \t", b"\n"),
    ".toml": _BINARY._replace(before=b"# checksum: "),
    ".html": _BINARY._replace(before=b"<!-- checksum: ", behind=b" -->\n"),
    ".npz": _BINARY, ".npy": _BINARY, ".pt": _BINARY, ".index": _BINARY,
}  # fmt: skip

SEAL_BYTES = _BINARY.length
"""What stands behind an array, for readers that would stumble over it."""

SEALED = frozenset(_OF_SUFFIX)
"""Endings of the files that have a seal."""


def sealed(content: bytes, seal: Seal) -> bytes:
    """The whole content of a file with its seal behind it."""
    return content + seal.of(checksum(content + seal.of(0)))


def sealed_text(path: str | os.PathLike[str], text: str) -> str:
    """The text of a file with the seal of its kind, if the kind has one."""
    seal = _OF_SUFFIX.get(os.path.splitext(path)[1])
    return text if seal is None else sealed(text.encode(), seal).decode()


def append_seal(path: str | os.PathLike[str]) -> None:
    """Put the seal behind a file of bytes that readers of its kind do not look at."""
    with open(path, "r+b") as file:
        value = 0
        while chunk := file.read(CHUNK):
            value = checksum(chunk, value)
        file.write(_BINARY.of(checksum(_BINARY.of(0), value)))


def verdict_on_row(line: bytes) -> Verdict:
    """Whether a row of JSON lines, without its line break, is what was written."""
    end = line[-ROW.length :]
    if not ROW.is_in(end):
        return "unsealed"
    return "whole" if line == sealed(line[: -ROW.length], ROW) else "damaged"


def verdict_on(path: str | os.PathLike[str]) -> Verdict:
    """Whether a file is what was written; "unsealed" if it has no seal, as all had none before there were any.

    Raises:
        OSError: it cannot be read.
    """
    seal = _OF_SUFFIX.get(os.path.splitext(path)[1])
    with open_regular(path) as file:
        left = file.seek(0, os.SEEK_END) - (seal.length if seal is not None else 0)
        file.seek(max(0, left))
        if seal is None or left < 0 or not seal.is_in(end := file.read()):
            return "unsealed"
        file.seek(0)
        value = 0
        while left > 0 and (chunk := file.read(min(CHUNK, left))):
            value, left = checksum(chunk, value), left - len(chunk)
    return "whole" if end == seal.of(checksum(seal.of(0), value)) else "damaged"


def require_whole(path: str | os.PathLike[str], remedy: str) -> None:
    """Let a file pass that is what was written, or that was written before there were seals.

    Raises:
        StoreError: one byte of it, or more, is another; the sentence ends in the remedy.
    """
    try:
        verdict = verdict_on(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}). {remedy}") from None
    if verdict == "damaged":
        raise damaged(path, remedy)


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether a file that can be made anew may be used; if it is damaged that is said, and it is not."""
    try:
        verdict = verdict_on(path)
    except OSError as error:
        log.warning(f"{os.fspath(path)} cannot be read ({error.strerror}): it is made anew.")
        return False
    if verdict == "damaged":
        log.warning(f"{os.fspath(path)} is damaged, as its checksum shows: it is made anew.")
    return verdict != "damaged"


def damaged(path: str | os.PathLike[str], remedy: str) -> StoreError:
    """The sentence on a file that is not what was written."""
    return StoreError(f"{os.fspath(path)} is damaged: it is not what was written, as its checksum shows. {remedy}")
