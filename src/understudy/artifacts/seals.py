"""Seals: a file's own checksum at its end, so that one changed byte is found when the file is read.

A sealed file ends in eight hexadecimal digits between two marks: the CRC-32 of all its bytes, those digits as zeros.
File and checksum are one write, so a kill never parts them. What the marks are is decided by the kind of file alone;
all are things that readers of the kind pass over (the last key of a JSON table, a comment, bytes behind an array).
"""

from __future__ import annotations

import logging
import os
import zlib
from typing import Any, Literal

from understudy.artifacts.regular import open_regular
from understudy.errors import StoreError

KEY = "checksum"  # of the tables of JSON files and of the rows of JSON lines
BLANK = "00000000"
CHUNK = 1 << 20

log = logging.getLogger("understudy")

Verdict = Literal["whole", "damaged", "unsealed"]

_OF_BINARY = ((b"\nunderstudy checksum: ", b"\n"),)
_OF_ROW = ((b'"checksum": "', b'"}'),)
_OF_SUFFIX: dict[str, tuple[tuple[bytes, bytes], ...]] = {
    ".json": ((b'"checksum": "', b'"\n}\n'), (b'"checksum": "', b'"\n }\n}\n')),
    ".toml": ((b"# checksum: ", b"\n"),),
    ".html": ((b"<!-- checksum: ", b" -->\n"),),
    ".npz": _OF_BINARY,
    ".npy": _OF_BINARY,
    ".pt": _OF_BINARY,
}
"""What stands before and behind the digits. JSON: in the table itself, or in its last entry, `about`."""


def checksum(content: bytes | memoryview, before: int = 0) -> int:
    """The CRC-32 of bytes, or of those behind others with the checksum `before`.

    It is zlib's: 7 GB/s, part of Python, and certain to change with any one byte (with any burst of 32 bits).
    """
    return zlib.crc32(content, before)


def sealed_text(suffix: str, text: str) -> str:
    """The text of a file of this kind with its seal behind it."""
    before, behind = (mark.decode() for mark in _OF_SUFFIX[suffix][0])
    return f"{text}{before}{checksum(f'{text}{before}{BLANK}{behind}'.encode()):08x}{behind}"


def sealed_table(value: dict[str, Any]) -> dict[str, Any]:
    """A table of JSON with room for its seal: in `about`, where that is its last entry, else as the last entry."""
    about = value.get("about")
    if isinstance(about, dict) and next(reversed(value)) == "about":
        return {**value, "about": {**about, KEY: BLANK}}
    return {**value, KEY: BLANK}


def fill_in(text: str) -> str:
    """JSON text of a `sealed_table`, the last `BLANK` in it replaced by the checksum of the whole text."""
    place = text.rindex(BLANK)
    return f"{text[:place]}{checksum(text.encode()):08x}{text[place + len(BLANK) :]}"


def without_seal(value: Any) -> Any:
    """What was read from a sealed file, as it was before."""
    if isinstance(value, dict):
        value.pop(KEY, None)
        if isinstance(value.get("about"), dict):
            value["about"].pop(KEY, None)
    return value


def append_seal(path: str | os.PathLike[str]) -> None:
    """Put the seal behind a file of bytes that readers of its kind do not look at."""
    before, behind = _OF_BINARY[0]
    with open(path, "r+b") as file:
        value = 0
        while chunk := file.read(CHUNK):
            value = checksum(chunk, value)
        value = checksum(before + BLANK.encode() + behind, value)
        file.write(before + f"{value:08x}".encode() + behind)


def verdict_on_row(line: bytes) -> Verdict:
    """Whether a row of JSON lines, without its line break, is what was written."""
    return _verdict(line, checksum, _OF_ROW)


def verdict_on(path: str | os.PathLike[str]) -> Verdict:
    """Whether a file is what was written; "unsealed" if it has no seal, as all had none before there were any.

    Raises:
        OSError: it cannot be read.
    """
    seals = _OF_SUFFIX.get(os.path.splitext(path)[1], ())
    longest = max((len(before) + len(BLANK) + len(behind) for before, behind in seals), default=0)
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - longest))
        tail = file.read()
        start = size - len(tail)

        def of_all(end: bytes) -> int:
            file.seek(0)
            value, left = 0, start
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                value, left = checksum(chunk, value), left - len(chunk)
            return checksum(end, value)

        return _verdict(tail, of_all, seals)


def _verdict(tail: bytes, checksum_of: Any, seals: tuple[tuple[bytes, bytes], ...]) -> Verdict:
    """The verdict on a file that ends in `tail`; `checksum_of` gives that of the file if it ended otherwise."""
    for before, behind in seals:
        marks, length = before + behind, len(before) + len(BLANK) + len(behind)
        if len(tail) < length:
            continue
        place = len(tail) - len(behind) - len(BLANK)
        found = tail[len(tail) - length : place] + tail[len(tail) - len(behind) :]
        # Marks that are changed in a byte are marks: else a file whose mark was hit would pass for one without a seal.
        if 2 * sum(a != b for a, b in zip(found, marks, strict=True)) >= len(marks):
            continue
        digits = tail[place : len(tail) - len(behind)]
        value = checksum_of(tail[:place] + BLANK.encode() + tail[len(tail) - len(behind) :])
        return "whole" if digits == f"{value:08x}".encode() else "damaged"
    return "unsealed"


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
