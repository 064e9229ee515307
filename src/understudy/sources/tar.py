"""Images inside tar files, as WebDataset keeps them, at random and without unpacking."""

from __future__ import annotations

import json
import os
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from understudy.artifacts import atomic, fingerprint
from understudy.errors import DataError, UnreadableImage
from understudy.sources.decode import EXTENSIONS, to_rgb
from understudy.sources.images import (
    FRESH_NAMES,
    LABEL_COLUMNS,
    Labels,
    Names,
    as_text,
    below_common,
    class_columns,
    class_folders,
)

BLOCK = 512
"""Bytes of a tar header; members begin at multiples of it."""

OPEN_SHARDS = 64
"""Files that one process keeps open: far below the usual limit of 1,024."""

FORMAT = 1
"""Of the cached index; a change makes older ones invisible."""

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}
"""First bytes of what is often called .tar as well."""

DAMAGED, LINK = -1, -2
"""In the place of a size: a header that cannot be read, and a link or sparse file instead of an image."""

NO_LABEL, CLS, JSON = 0, 1, 2

LABEL_AT = ["shard", "label_at", "label_size", "label_kind"]


class Member(NamedTuple):
    """One entry of a tar file: its name, where its content begins, how long it is (or DAMAGED, LINK)."""

    name: bytes
    at: int
    size: int


class ShardImages:
    """Images inside uncompressed tar files, read by offset.

    Any order costs one read an image, so batches of neighbors need no reshuffling. Members that cannot be read stay in
    the listing and are reported, one by one, when they are asked for. Labels: the `.cls` member (a number or a name)
    or the `.json` member of each sample; without those the folders, where all members have one folder in common (or
    none) and lie at `CLASS/FILE` below it.

    Args:
        files: tar files; their members follow each other.
        listings: folder for the index, which is made in one scan and found there afterwards; None keeps it in memory.

    Raises:
        DataError: a file is compressed, or no tar file, or there is no image in any.
    """

    def __init__(self, files: Sequence[Path], listings: Path | None = None) -> None:
        self._open: OrderedDict[int, int] = OrderedDict()
        self.files = [os.fspath(file) for file in files]
        common = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in self.files])
        self.shown = [os.path.relpath(os.path.abspath(file), common).replace(os.sep, "/") for file in self.files]
        states = [os.stat(file) for file in self.files]
        metadata = [(name, s.st_size, s.st_mtime_ns) for name, s in zip(self.shown, states, strict=True)]
        self.fingerprint = fingerprint("tar", metadata)
        self.cached = None if listings is None else os.fspath(listings / f"{self.fingerprint}-{FORMAT}.index")
        self._index: pa.Table | None = None
        if self.cached is None or not os.path.isfile(self.cached):
            found = index(self.files)
            if self.cached is None:
                self._index = found
            else:
                with atomic(self.cached) as temporary, pa.ipc.new_file(temporary, found.schema) as writer:
                    writer.write_table(found)
        if len(self) == 0:
            raise DataError(
                f"There are no images in {self.files[0]} and {len(self.files) - 1} more tar files, no member ending in "
                f"{', '.join(sorted(EXTENSIONS)[:6])}, ..."
            )

    def __getstate__(self) -> dict[str, Any]:
        # A cached index is mapped from its file in each process.
        return {**self.__dict__, "_open": OrderedDict(), "_index": None if self.cached else self._index}

    def __del__(self) -> None:
        for file in self._open.values():
            os.close(file)

    @property
    def index(self) -> pa.Table:
        """(N,) columns name, shard, at, size, label_at, label_size, label_kind."""
        if self._index is None:
            assert self.cached is not None
            self._index = pa.ipc.open_file(pa.memory_map(self.cached)).read_all()
        return self._index

    def __len__(self) -> int:
        return int(self.index.num_rows)

    def read(self, row: int) -> Image.Image:
        """See `Images`."""
        shard, at, size = (self.index.column(name)[row].as_py() for name in ("shard", "at", "size"))
        if size < 0:
            why = "is a link or a sparse file, which tar shards cannot hold" if size == LINK else "has a damaged header"
            raise UnreadableImage(f"{self._title(row)} {why}.")
        try:
            content = self._content(shard, at, size)
        except OSError as error:
            raise UnreadableImage(f"{self._title(row)} cannot be read ({error.strerror}).") from None
        if len(content) < size:
            raise UnreadableImage(f"{self._title(row)} is cut off: {len(content):,} of {size:,} bytes are there.")
        return to_rgb(content, lambda: self._title(row))

    def _content(self, shard: int, at: int, size: int) -> bytes:
        if shard not in self._open:
            if len(self._open) >= OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self.files[shard], os.O_RDONLY)
        self._open.move_to_end(shard)
        return os.pread(self._open[shard], size, at)

    def _title(self, row: int) -> str:
        return str(self.names(np.array([row]))[0])

    def names(self, rows: np.ndarray) -> pa.Array:
        """See `Images`: SHARD/MEMBER."""
        chosen = pa.array(rows)
        shards = pa.array(self.shown, type=pa.large_string()).take(self._column("shard").take(chosen))
        found = as_text(self._column("name").take(chosen))
        return pc.binary_join_element_wise(shards, found, pa.scalar("/", pa.large_string()))

    def labels(self) -> Labels | None:
        """See `Images`: None where a sample has no label or one that is neither a number nor a name."""
        kinds = self._column("label_kind").to_numpy()
        if not kinds.any():
            return class_folders(below_common(self._column("name")))
        # What has no image needs no class; it is given that of the first row that has one.
        known = (kinds != NO_LABEL) | (self._column("size").to_numpy() < 0)
        if not known.all():
            return None
        rows = np.where(kinds != NO_LABEL, np.arange(len(self)), kinds.argmax())
        found: list[pa.Array] = []
        for low in range(0, len(self), FRESH_NAMES):
            part = self.index.select(LABEL_AT).take(pa.array(rows[low : low + FRESH_NAMES]))
            places = zip(*(column.to_pylist() for column in part.columns), strict=True)
            values = [_label(self._content(shard, at, size), kind) for shard, at, size, kind in places]
            if any(value is None for value in values):
                return None
            found.append(pa.array(values, type=pa.large_string()))
        texts = pa.chunked_array(found)
        numbers = pc.all(pc.match_substring_regex(texts, "^[0-9]+$")).as_py()
        return class_columns(texts.cast(pa.int64()) if numbers else texts, None)

    def _column(self, name: str) -> pa.Array:
        return self.index.column(name).chunk(0)


def index(files: Sequence[str]) -> pa.Table:
    """Where every image of some tar files is, and where its label is, from one pass over their headers.

    Args:
        files: their paths.

    Raises:
        DataError: a file is compressed, or no tar file.
    """
    names = Names()
    columns: dict[str, Any] = {
        name: array(kind)
        for name, kind in (
            ("shard", "i"), ("at", "q"), ("size", "q"), ("label_at", "q"), ("label_size", "i"), ("label_kind", "b")
        )
    }  # fmt: skip
    endings = {ending.encode() for ending in EXTENSIONS}
    for shard, file in enumerate(files):
        sample, label, images = b"", (0, 0, NO_LABEL), 0

        def close_sample() -> None:
            columns["label_at"].extend([label[0]] * images)  # noqa: B023
            columns["label_size"].extend([label[1]] * images)  # noqa: B023
            columns["label_kind"].extend([label[2]] * images)  # noqa: B023

        for member in members(file):
            key, ending = _key(member.name)
            if key != sample:
                close_sample()
                sample, label, images = key, (0, 0, NO_LABEL), 0
            if member.size == DAMAGED or ending in endings:
                names.extend([member.name])
                columns["shard"].append(shard)
                columns["at"].append(member.at)
                columns["size"].append(member.size)
                images += 1
            elif ending == b".cls" or (ending == b".json" and label[2] == NO_LABEL):
                label = (member.at, member.size, CLS if ending == b".cls" else JSON)
        close_sample()
    arrays = {"name": names.finish(), **{name: pa.array(np.asarray(values)) for name, values in columns.items()}}
    return pa.table(arrays)


def members(file: str) -> Iterator[Member]:
    """The regular members of a tar file in order, hidden ones left out; damaged headers are passed and reported.

    Understands what tar, Python and WebDataset write: ustar, GNU long names and sizes, pax paths and sizes.

    Args:
        file: its path.

    Raises:
        DataError: it is compressed, or does not begin with a tar header.
    """
    number = os.open(file, os.O_RDONLY)
    try:
        end = os.fstat(number).st_size
        at, long_name, long_size = 0, None, None
        while at + BLOCK <= end:
            header = os.pread(number, BLOCK, at)
            size = _size(header)
            if size is None:
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
    found = {}
    while content.strip(b"\0"):
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or int(length) == 0:
            break
        record, content = content[: int(length)], content[int(length) :]
        key, _, value = record[len(length) + 1 : -1].partition(b"=")
        found[key] = value
    return found


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


def _label(content: bytes, kind: int) -> str | None:
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
