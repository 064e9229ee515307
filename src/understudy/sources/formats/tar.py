"""Images inside tar files, as WebDataset keeps them, at random and without unpacking."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from understudy.artifacts import atomic, fingerprint
from understudy.errors import DataError, UnreadableImage
from understudy.sources.decode import EXTENSIONS, to_rgb
from understudy.sources.formats import Format
from understudy.sources.images import (
    FRESH_NAMES,
    Images,
    Labels,
    as_text,
    below_common,
    below_common_folder,
    class_columns,
    class_folders,
)
from understudy.sources.tar_index import LINK, NO_LABEL, index, label_text

OPEN_SHARDS = 64  # files that one process keeps open: far below the usual limit of 1,024
INDEX_FORMAT = 1  # of the cached index; a change makes older ones invisible
LABEL_AT = ["shard", "label_at", "label_size", "label_kind"]


class TarImages:
    """Images inside uncompressed tar files, read by offset.

    Any order costs one read an image, so batches of neighbors need no reshuffling. Members that cannot be read stay in
    the listing and are reported, one by one, when they are asked for. Labels: the `.cls` member (a number or a name)
    or the `.json` member of each sample; without those the folders, where all members have one folder in common (or
    none) and lie at `CLASS/FILE` below it. The index is made in one scan, kept in a folder (`listings`) and read from
    there afterwards; None keeps it in memory.

    Raises:
        DataError: a file is compressed, or no tar file, or there is no image in any.
    """

    def __init__(self, files: Sequence[Path], listings: Path | None = None) -> None:
        self._open: OrderedDict[int, int] = OrderedDict()
        self.files = [os.fspath(file) for file in files]
        self.shown = below_common_folder(self.files)
        states = [os.stat(file) for file in self.files]
        metadata = [(name, s.st_size, s.st_mtime_ns) for name, s in zip(self.shown, states, strict=True)]
        self.fingerprint = fingerprint("tar", metadata)
        self.cached = None if listings is None else os.fspath(listings / f"{self.fingerprint}-{INDEX_FORMAT}.index")
        self._index: pa.Table | None = None
        if self.cached is None or not os.path.isfile(self.cached):
            table = index(self.files)
            if self.cached is None:
                self._index = table
            else:
                with atomic(self.cached) as temporary, pa.ipc.new_file(temporary, table.schema) as writer:
                    writer.write_table(table)
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
        if size == LINK:
            raise UnreadableImage(f"{self._title(row)} is a link or a sparse file, which tar shards cannot hold.")
        if size < 0:
            raise UnreadableImage(f"{self._title(row)} has a damaged header.")
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
        members = as_text(self._column("name").take(chosen))
        return pc.binary_join_element_wise(shards, members, pa.scalar("/", pa.large_string()))

    def labels(self) -> Labels | None:
        """See `Images`: None where a sample has no label or one that is neither a number nor a name."""
        kinds = self._column("label_kind").to_numpy()
        if not kinds.any():
            return class_folders(below_common(self._column("name")))
        # A row without an image needs no class; it gets that of the first row that has one.
        if not ((kinds != NO_LABEL) | (self._column("size").to_numpy() < 0)).all():
            return None
        rows = np.where(kinds != NO_LABEL, np.arange(len(self)), kinds.argmax())
        chunks: list[pa.Array] = []
        for low in range(0, len(self), FRESH_NAMES):
            part = self.index.select(LABEL_AT).take(pa.array(rows[low : low + FRESH_NAMES]))
            places = zip(*(column.to_pylist() for column in part.columns), strict=True)
            values = [label_text(self._content(shard, at, size), kind) for shard, at, size, kind in places]
            if any(value is None for value in values):
                return None
            chunks.append(pa.array(values, type=pa.large_string()))
        texts = pa.chunked_array(chunks)
        numbers = pc.all(pc.match_substring_regex(texts, "^[0-9]+$")).as_py()
        return class_columns(texts.cast(pa.int64()) if numbers else texts, None)

    def _column(self, name: str) -> pa.Array:
        return self.index.column(name).chunk(0)


class Tar(Format):
    """Tar files on this machine."""

    name = "tar"
    form = "*.tar"
    summary = "WebDataset shards, uncompressed, read at random by an index made once; labels from `.cls` or `.json` "
    summary += "members, or class folders"
    endings = (".tar",)
    rejected_endings = (".tgz", ".gz", ".bz2", ".xz", ".zst")
    files_title = "tar shards"

    @staticmethod
    def open_files(files: Sequence[Path], listings: Path | None) -> Images:
        """See `Format`."""
        return TarImages(files, listings)
