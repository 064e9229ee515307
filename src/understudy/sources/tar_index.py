"""Where the images of tar files lie, from one pass over the headers."""

from __future__ import annotations

import itertools
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from understudy.errors import DataError
from understudy.sources.decode import EXTENSIONS
from understudy.sources.images import LABEL_COLUMNS, Names

BLOCK = 512  # bytes of a tar header; members begin at multiples of it
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}
"""First bytes of what is often called .tar as well."""

DAMAGED, LINK = -1, -2
"""In the place of a size: a header that cannot be read, and a link or sparse file instead of an image."""

NO_LABEL, CLS, JSON = 0, 1, 2  # kinds of the member that holds a sample's label
COLUMNS = {"shard": "i", "at": "q", "size": "q", "label_at": "q", "label_size": "i", "label_kind": "b"}
"""Columns of an index beside `name`, with the type of each."""


class Member(NamedTuple):
    """One entry of a tar file: its name, where its content begins, how long it is (or DAMAGED, LINK)."""

    name: bytes
    at: int
    size: int


def index(files: Sequence[str]) -> pa.Table:
    """Where every image of some tar files is, and where its label is: (N,) columns `name` and those of `COLUMNS`.

    Raises:
        DataError: a file is compressed, or no tar file.
    """
    names = Names()
    columns: dict[str, Any] = {name: array(kind) for name, kind in COLUMNS.items()}
    endings = {ending.encode() for ending in EXTENSIONS}
    for shard, file in enumerate(files):
        for _, sample in itertools.groupby(members(file), key=lambda member: _key(member.name)[0]):
            images: list[Member] = []
            label = (0, 0, NO_LABEL)
            for member in sample:
                ending = _key(member.name)[1]
                if member.size == DAMAGED or ending in endings:
                    images.append(member)
                elif ending == b".cls" or (ending == b".json" and label[2] == NO_LABEL):
                    label = (member.at, member.size, CLS if ending == b".cls" else JSON)
            names.extend([image.name for image in images])
            for image in images:
                for column, value in zip(columns.values(), (shard, image.at, image.size, *label), strict=True):
                    column.append(value)
    return pa.table({"name": names.finish()} | {name: pa.array(np.asarray(values)) for name, values in columns.items()})


def members(file: str) -> Iterator[Member]:
    """The regular members of a tar file in order, hidden ones left out; damaged headers are passed and reported.

    Understands what tar, Python and WebDataset write: ustar, GNU long names and sizes, pax paths and sizes.

    Raises:
        DataError: it is compressed, or does not begin with a tar header.
    """
    number = os.open(file, os.O_RDONLY)
    try:
        end = os.fstat(number).st_size
        at, long_name, long_size = 0, None, None
        while at + BLOCK <= end:
            header = os.pread(number, BLOCK, at)
            if (size := _size(header)) is None:
                if not header.strip(b"\0"):
                    return
                if at == 0:
                    raise DataError(_no_tar(file, header))
                following = _next_header(number, at + BLOCK, end)
                yield Member(b"(damaged header at byte %d)" % at, at, DAMAGED)
                at, long_name, long_size = following, None, None
                continue
            kind = header[156:157]
            if kind in b"xLKg":
                extra = os.pread(number, size, at + BLOCK)
                if kind == b"L":
                    long_name = extra.rstrip(b"\0")
                elif kind == b"x":
                    pax = _pax(extra)  # a damaged one says nothing, and the member keeps its short name
                    long_name = pax.get(b"path", long_name)
                    long_size = int(pax[b"size"]) if pax.get(b"size", b"").isdigit() else long_size
                at += BLOCK + -(-size // BLOCK) * BLOCK
                continue
            size = size if long_size is None else long_size
            name = _name(header) if long_name is None else long_name
            name = name[2:] if name.startswith(b"./") else name
            hidden = name.startswith(b".") or b"/." in name
            if kind in b"12S" and not hidden:
                yield Member(name, at, LINK)
            elif kind in b"07\0" and not hidden:
                yield Member(name, at + BLOCK, size)
            # A link has no content, whatever its size says.
            at += BLOCK + (0 if kind in b"12" else -(-size // BLOCK) * BLOCK)
            long_name = long_size = None
        if end < BLOCK:
            raise DataError(_no_tar(file, os.pread(number, BLOCK, 0)))
    finally:
        os.close(number)


def _size(header: bytes) -> int | None:
    """The size of a member, None when this is no header: its checksum is wrong."""
    try:
        checksum = int(header[148:156].strip(b"\0 ") or b"0", 8)
        if checksum != sum(header) - sum(header[148:156]) + 8 * 32:
            return None
        if header[124] & 0x80:  # GNU's binary form, for members of 8 GiB and more
            return int.from_bytes(header[125:136], "big")
        return int(header[124:136].strip(b"\0 ") or b"0", 8)
    except ValueError:
        return None


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax(content: bytes) -> dict[bytes, bytes]:
    """The records of a pax header, each `LENGTH KEY=VALUE` and a line feed, up to the first that is none."""
    records = {}
    while content.strip(b"\0"):
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or int(length) == 0:
            break
        record, content = content[: int(length)], content[int(length) :]
        key, _, value = record[len(length) + 1 : -1].partition(b"=")
        records[key] = value
    return records


def _next_header(number: int, at: int, end: int) -> int:
    """The next place that holds a header of the ustar family, or the end of the file."""
    while at + BLOCK <= end:
        header = os.pread(number, BLOCK, at)
        if header[257:262] == b"ustar" and _size(header) is not None:
            return at
        at += BLOCK
    return end


def _no_tar(file: str, start: bytes) -> str:
    kind = COMPRESSED.get(start[:2])
    if kind is not None:
        return (
            f"{file} is compressed ({kind}), so its images cannot be read at random. Unpack the compression once and "
            "keep the tar; images inside are compressed already, so it grows little."
        )
    return f"{file} is not a tar file: it does not begin with a tar header."


def _key(name: bytes) -> tuple[bytes, bytes]:
    """Sample and ending of a member: as WebDataset has it, a sample is all up to the first dot of the file name."""
    dot = name.find(b".", name.rfind(b"/") + 1)
    return (name, b"") if dot < 0 else (name[:dot], name[name.rfind(b".") :].lower())


def label_text(content: bytes, kind: int) -> str | None:
    """One label as text, None when there is none."""
    if kind == CLS:
        return content.decode(errors="replace").strip() or None
    try:
        table = json.loads(content)
    except ValueError:
        return None
    if not isinstance(table, dict):
        return None
    value = next((table[name] for name in (*LABEL_COLUMNS, "cls") if name in table), None)
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
