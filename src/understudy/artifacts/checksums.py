"""Checksums of the consecutive blocks of a file, kept in the manifest beside it: which rows of an array are damaged."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from understudy.artifacts.regular import open_regular
from understudy.artifacts.seals import CHUNK, checksum

VERIFIED_AT_OPEN = 1 << 30
"""Bytes of a file that are verified when a process first opens it: all of it, or, of larger ones, so much, in blocks
that the clock chooses, so that other openings look at other blocks. `understudy doctor --store` looks at all."""

BLOCK, BLOCKS = 1 << 20, 4096
"""Bytes of the smallest block, and how many blocks there are at most, where nothing else cuts a file into blocks."""

_verified: set[tuple[str, int, int]] = set()


@dataclass(frozen=True)
class Checksums:
    """CRC-32 of consecutive blocks of a file: block i ends before byte `ends[i]`, the last one with the file."""

    ends: tuple[int, ...]
    values: tuple[int, ...]

    @classmethod
    def of(cls, path: str | os.PathLike[str], ends: Iterable[int] | None = None) -> Checksums:
        """Those of a file as it is; blocks of `BLOCK` bytes or a multiple, unless told where they end."""
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            step = BLOCK * max(1, -(-size // (BLOCK * BLOCKS)))
            bounds = tuple(ends) if ends is not None else (*range(step, size, step), size)
            file.seek(0)
            starts = (0, *bounds[:-1])
            return cls(bounds, tuple(_of_next(file, b - a) for a, b in zip(starts, bounds, strict=True)))

    @classmethod
    def parse(cls, text: object) -> Checksums | None:
        """What `str` gave; None for anything else."""
        if not isinstance(text, str) or not re.fullmatch(r"\d{1,18}:[0-9a-f]{8}( \d{1,18}:[0-9a-f]{8})*", text):
            return None
        pairs = [pair.split(":") for pair in text.split(" ")]
        ends = tuple(int(end) for end, _ in pairs)
        rising = all(a < b for a, b in itertools.pairwise(ends))
        return cls(ends, tuple(int(value, 16) for _, value in pairs)) if rising else None

    def __str__(self) -> str:
        return " ".join(f"{end}:{value:08x}" for end, value in zip(self.ends, self.values, strict=True))

    def span(self, block: int) -> tuple[int, int]:
        """First byte of a block, and the one behind its last."""
        return (self.ends[block - 1] if block else 0), self.ends[block]

    def replaced(self, path: str | os.PathLike[str], blocks: Sequence[int]) -> Checksums:
        """The same with some blocks as the file has them now."""
        values = list(self.values)
        with open_regular(path) as file:
            for block in blocks:
                values[block] = self._now(file, block)
        return Checksums(self.ends, tuple(values))

    def damaged(self, path: str | os.PathLike[str], most: int | None = None) -> list[int]:
        """The blocks that are not what was written; a file that is too long is damaged in its last one.

        Args:
            path: the file, which is read, never mapped: one block after the other is in memory, in parts.
            most: bytes to read; all unless given.
        """
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            found = [block for block in self._chosen(most) if self._now(file, block) != self.values[block]]
            last = len(self.ends) - 1
            return sorted({*found, last}) if size > self.ends[-1] else found

    def _chosen(self, most: int | None) -> list[int]:
        count = len(self.ends)
        if most is None or self.ends[-1] <= most:
            return list(range(count))
        chosen, left, first = {0}, most, time.time_ns() % count
        for block in (*range(first, count), *range(first)):
            start, end = self.span(block)
            left -= end - start
            if left < 0:
                break
            chosen.add(block)
        return sorted(chosen)

    def _now(self, file: BinaryIO, block: int) -> int:
        start, end = self.span(block)
        file.seek(start)
        return _of_next(file, end - start)


def damaged_at_opening(path: Path, checksums: Checksums | None) -> bool:
    """Whether a file is not what was written, of which `VERIFIED_AT_OPEN` bytes are read once by each process.

    Raises:
        OSError: it cannot be read.
    """
    if checksums is None or is_verified(path):
        return False
    if checksums.damaged(path, VERIFIED_AT_OPEN):
        return True
    set_verified(path)
    return False


def is_verified(path: Path) -> bool:
    """Whether this process has verified a file as it is now."""
    return _state(path) in _verified


def set_verified(path: Path) -> None:
    """Note that it has."""
    _verified.add(_state(path))


def _state(path: Path) -> tuple[str, int, int]:
    state = os.stat(path)
    return os.path.abspath(path), state.st_mtime_ns, state.st_size


def _of_next(file: BinaryIO, count: int) -> int:
    """The checksum of the next bytes, or of those that there are."""
    value, left = 0, count
    while left > 0 and (chunk := file.read(min(CHUNK, left))):
        value, left = checksum(chunk, value), left - len(chunk)
    return value if not left else -1  # cut off: no checksum at all
