"""The members of a tar file, from its headers alone, whatever stands in them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from understudy.artifacts import open_regular
from understudy.errors import DataError

BLOCK = 512  # bytes of a tar header; members begin at multiples of it
CHUNK = 2**20  # bytes read at once where a header is looked for
LONGEST_HEADER = 2**20  # bytes of a long name or of pax records; a path on disk has at most 4,096
DIGITS = 19  # of a size that a file can have
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}
"""First bytes of what is often called .tar as well."""

DAMAGED, LINK = -1, -2
"""In the place of a size: a header that cannot be read, and a link or sparse file instead of content."""


class Member(NamedTuple):
    """One entry of a tar file: its name, where its content begins, how long it is (or DAMAGED, LINK)."""

    name: bytes
    at: int
    size: int

    @property
    def extension(self) -> bytes:
        """All from the first dot of the file name on, as WebDataset has it, in small letters: `.seg.png`."""
        start = self.name.rfind(b"/") + 1
        dot = self.name.find(b".", start)
        return b"" if dot < 0 else self.name[dot:].lower()

    @property
    def sample(self) -> bytes:
        """All before the extension."""
        return self.name[: len(self.name) - len(self.extension)]


def members(file: str, notes: set[str]) -> Iterator[Member]:
    """The regular members of a tar file in order, hidden ones left out; damaged headers are passed and reported.

    Understands what tar, Python and WebDataset write: ustar, GNU long names and sizes, pax paths and sizes, and several
    tar files one behind the other. Nothing is unpacked, so a path may be absolute or lead upward: it is only a name.

    Args:
        file: its path.
        notes: what was met that earlier versions passed over is added here.

    Raises:
        DataError: it cannot be opened, is compressed, or does not begin with a tar header.
    """
    try:
        opened = open_regular(file)
    except OSError as error:
        raise DataError(f"{file} cannot be opened ({error.strerror}).") from None
    with opened:
        number = opened.fileno()
        end = os.fstat(number).st_size
        header = os.pread(number, BLOCK, 0)
        if end < BLOCK or (checksum_fails(header) and header.strip(b"\0")):
            raise DataError(_no_tar(file, header))
        yield from _members(number, end, notes)


def _members(number: int, end: int, notes: set[str]) -> Iterator[Member]:
    at, name, size, sparse = 0, None, None, False  # what a long header says of the member behind it
    while at + BLOCK <= end:
        header = os.pread(number, BLOCK, at)
        if not header.strip(b"\0"):  # the end, unless another tar file was appended
            at = _behind_zeros(number, at, end)
            if at + BLOCK <= end:
                notes.add("appended")
            continue
        kind, own_size = header[156:157], size_of(header)
        extends = kind in b"xLKg"
        if checksum_fails(header) or own_size is None or (extends and own_size > LONGEST_HEADER):
            yield Member(b"(damaged header at byte %d)" % at, at, DAMAGED)
            at, name, size, sparse = next_header(number, at + BLOCK, end), None, None, False
            continue
        if extends:
            extra = os.pread(number, own_size, at + BLOCK)
            if kind == b"L":
                name = extra.rstrip(b"\0")
            elif kind == b"x":
                records = pax(extra)  # a damaged one says nothing, and the member keeps its short name
                name = records.get(b"path", name)
                size = _decimal(records[b"size"]) if b"size" in records else size
                sparse = any(key.startswith(b"GNU.sparse") for key in records)
            at += BLOCK + _blocks(own_size)
            continue
        own_size = own_size if size is None else size
        whole = header_name(header) if name is None else name
        folders = whole.split(b"/")
        if b".." in folders:
            notes.add("upward")
        if not any(part.startswith(b".") and part not in (b".", b"..") for part in folders):
            whole = whole.removeprefix(b"./")
            if sparse or kind in (b"1", b"2", b"S"):
                yield Member(whole, at, LINK)
            elif kind in (b"0", b"7", b"\0"):
                yield Member(whole, at + BLOCK, own_size)
        at += BLOCK
        if kind == b"S":
            at = _behind_sparse_map(number, at, header)
        following = at + (0 if kind in (b"1", b"2") else _blocks(own_size))  # a link has no content, whatever it says
        # What ends behind the file is cut off, or its size is damaged and more members follow.
        at = following if following <= end else next_header(number, at, end)
        name, size, sparse = None, None, False


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def checksum_fails(header: bytes) -> bool:
    """Whether this is no header at all."""
    try:
        return int(header[148:156].strip(b"\0 ") or b"0", 8) != sum(header) - sum(header[148:156]) + 8 * 32
    except ValueError:
        return True


def size_of(header: bytes) -> int | None:
    """The size of a member; None where it cannot be one."""
    field = header[124:136]
    if field[0] & 0x80:  # GNU's binary form, for members of 8 GiB and more; in two's complement
        size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    else:
        try:
            size = int(field.strip(b"\0 ") or b"0", 8)
        except ValueError:
            return None
    return size if 0 <= size < 10**DIGITS else None


def header_name(header: bytes) -> bytes:
    """The path in a header."""
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def pax(content: bytes) -> dict[bytes, bytes]:
    """The records of a pax header, each `LENGTH KEY=VALUE` and a line feed, up to the first that is none."""
    records, at = {}, 0
    while at < len(content):
        space = content.find(b" ", at, at + DIGITS)
        length = _decimal(content[at:space]) if space > 0 else None
        if not length or at + length > len(content) or at + length <= space:
            break
        key, _, value = content[space + 1 : at + length - 1].partition(b"=")
        records[key] = value
        at += length
    return records


def _decimal(digits: bytes) -> int | None:
    return int(digits) if digits.isdigit() and len(digits) <= DIGITS else None


def next_header(number: int, at: int, end: int) -> int:
    """The next place that holds a header of the ustar family, or the end of the file."""
    while at + BLOCK <= end:
        at = _behind_hole(number, at, end)
        chunk = os.pread(number, CHUNK, at)
        place = chunk.find(b"ustar", 257)
        while place >= 0:
            start = place - 257
            if start % BLOCK == 0 and len(chunk) >= start + BLOCK and not checksum_fails(chunk[start : start + BLOCK]):
                return at + start
            place = chunk.find(b"ustar", place + 1)
        if len(chunk) < BLOCK:
            break
        at += len(chunk) // BLOCK * BLOCK
    return end


def _behind_zeros(number: int, at: int, end: int) -> int:
    """The next header behind the zeros that end a tar file, or the end of the file."""
    while at + BLOCK <= end:
        at = _behind_hole(number, at, end)
        chunk = os.pread(number, CHUNK, at)
        if rest := chunk.lstrip(b"\0"):
            at += (len(chunk) - len(rest)) // BLOCK * BLOCK
            header = os.pread(number, BLOCK, at)
            return at if len(header) == BLOCK and not checksum_fails(header) else next_header(number, at, end)
        if len(chunk) < BLOCK:
            break
        at += len(chunk) // BLOCK * BLOCK
    return end


def _behind_hole(number: int, at: int, end: int) -> int:
    """The next block that is on the disk: a file of a terabyte may have holes that would be read as zeros."""
    try:
        return max(at, os.lseek(number, at, os.SEEK_DATA) // BLOCK * BLOCK)
    except OSError as error:
        return end if error.errno == errno.ENXIO else at  # nothing but a hole; else the file system knows no holes


def _behind_sparse_map(number: int, at: int, header: bytes) -> int:
    """Where the content of a sparse file of GNU's old form begins: its map may go on in further blocks."""
    more = header[482]
    while more and (block := os.pread(number, BLOCK, at)):
        at += BLOCK
        more = block[504] if len(block) == BLOCK else 0
    return at


def _no_tar(file: str, start: bytes) -> str:
    kind = COMPRESSED.get(start[:2])
    if kind is not None:
        return (
            f"{file} is compressed ({kind}), so its images cannot be read at random. Unpack the compression once and "
            "keep the tar; images inside are compressed already, so it grows little."
        )
    return f"{file} is not a tar file: it does not begin with a tar header."
