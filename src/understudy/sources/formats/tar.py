"""Images inside tar files, as WebDataset keeps them, at random and without unpacking."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from understudy.artifacts import atomic, fingerprint, is_whole, open_regular
from understudy.artifacts.seals import SEAL_BYTES
from understudy.errors import DataError, UnreadableImage
from understudy.sources.decode import EXTENSIONS
from understudy.sources.formats import Format
from understudy.sources.images import FRESH_NAMES, EncodedImages, Images, below_common_folder
from understudy.sources.labels import NO_LABEL as UNKNOWN
from understudy.sources.labels import Labels, Unlabeled, as_text, below_common, class_folders, text_labels
from understudy.sources.tar_index import NO_LABEL, index, label_text
from understudy.sources.tar_members import LINK

OPEN_SHARDS = 64  # files that one process keeps open: far below the usual limit of 1,024
LARGEST_LABEL = 16 * 2**20  # bytes of a member that holds a label
INDEX_FORMAT = 3  # of the cached index; a change makes older ones invisible
LABEL_AT = ["shard", "label_at", "label_size", "label_kind"]


class TarImages(EncodedImages):
    """Images inside uncompressed tar files, read by offset.

    Any order costs one read an image, so batches of neighbors need no reshuffling. Members that cannot be read stay in
    the listing and are reported, one by one, when they are asked for. Labels: the `.cls` member (a number or a name)
    or the `.json` member of each sample; without those the folders, where all members have one folder in common (or
    none) and lie at `CLASS/FILE` below it. The index is made in one scan, kept in a folder (`listings`) and read from
    there afterwards; None keeps it in memory.

    Raises:
        DataError: a file is compressed, or no tar file, or there is no image in any.
    """

    def __init__(self, files: Sequence[Path], listings: Path | None = None, image: str = "") -> None:
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()
        self.files = [os.fspath(file) for file in files]
        self.shown = below_common_folder(self.files)
        states = [os.stat(file) for file in self.files]
        metadata = [(name, s.st_size, s.st_mtime_ns) for name, s in zip(self.shown, states, strict=True)]
        said = tuple(pattern.strip().lower().removeprefix(".") for pattern in image.split(",")) if image else ()
        key = fingerprint("tar", metadata, *said)
        self.cached = None if listings is None else os.fspath(listings / f"{key}-{INDEX_FORMAT}.index")
        self._index: pa.Table | None = None
        if self.cached is None or not os.path.isfile(self.cached) or not is_whole(self.cached):
            table = index(self.files, said)
            if self.cached is None:
                self._index = table
            else:
                with atomic(self.cached, sealed=True) as temporary, pa.ipc.new_file(temporary, table.schema) as writer:
                    writer.write_table(table)
        notes = (self.index.schema.metadata or {}).get(b"notes", b"").decode()
        # What is listed otherwise than by earlier versions is another set.
        self.fingerprint = fingerprint("tar", metadata, *said, notes) if notes else key
        if len(self) == 0:
            endings = image or f"{', '.join(sorted(EXTENSIONS)[:6])}, ..."
            raise DataError(
                f"There are no images in {self.files[0]} and {len(self.files) - 1} more tar files, no member ending in "
                f"{endings}"
            )

    def __getstate__(self) -> dict[str, Any]:
        # A cached index is mapped from its file in each process.
        return {**self.__dict__, "_open": OrderedDict(), "_index": None if self.cached else self._index}

    def __del__(self) -> None:
        for file in self._open.values():
            file.close()

    @property
    def index(self) -> pa.Table:
        """(N,) columns name, shard, at, size, label_at, label_size, label_kind."""
        if self._index is None:
            assert self.cached is not None
            content = pa.memory_map(self.cached).read_buffer()
            self._index = pa.ipc.open_file(content.slice(0, len(content) - SEAL_BYTES)).read_all()
        return self._index

    def __len__(self) -> int:
        return int(self.index.num_rows)

    def content(self, row: int) -> bytes:
        """See `Images`."""
        shard, at, size = (self.index.column(name)[row].as_py() for name in ("shard", "at", "size"))
        if size == LINK:
            raise UnreadableImage(f"{self.title(row)} is a link or a sparse file, which tar shards cannot hold.")
        if size < 0:
            raise UnreadableImage(f"{self.title(row)} has a damaged header.")
        try:
            content = self._content(shard, at, size)
        except OSError as error:
            raise UnreadableImage(f"{self.title(row)} cannot be read ({error.strerror}).") from None
        if len(content) < size:
            raise UnreadableImage(f"{self.title(row)} is cut off: {len(content):,} of {size:,} bytes are there.")
        return content

    def _content(self, shard: int, at: int, size: int) -> bytes:
        if shard not in self._open:
            if len(self._open) >= OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            self._open[shard] = open_regular(self.files[shard])
        self._open.move_to_end(shard)
        number = self._open[shard].fileno()
        return os.pread(number, max(0, min(size, os.fstat(number).st_size - at)), at)

    def title(self, row: int) -> str:
        """See `EncodedImages`: SHARD/MEMBER."""
        return str(self.names(np.array([row]))[0])

    def names(self, rows: np.ndarray) -> pa.Array:
        """See `Images`: SHARD/MEMBER."""
        chosen = pa.array(rows)
        shards = pa.array(self.shown, type=pa.large_string()).take(self._column("shard").take(chosen))
        members = as_text(self._column("name").take(chosen))
        return pc.binary_join_element_wise(shards, members, pa.scalar("/", pa.large_string()))

    def labels(self) -> Labels | None:
        """See `Images`."""
        kinds = self._column("label_kind").to_numpy()
        apart = (self.index.schema.metadata or {}).get(b"apart", b"").decode(errors="replace")
        if not kinds.any():
            try:
                labels = class_folders(below_common(self._column("name")))
            except Unlabeled:
                if not apart:
                    raise
                labels = None
            if labels is not None or not apart:
                return labels
        # A row without an image needs no class; it gets that of the first row that has one.
        bare = (kinds == NO_LABEL) & (self._column("size").to_numpy() >= 0)
        if bare.any():
            first = self.title(int(bare.argmax()))
            reason = f"{bare.sum():,} of {len(self):,} images have no .cls or .json member beside them, such as {first}"
            if apart:
                reason += f"; the label '{apart}' has no image beside it: members of a sample follow each other"
            raise Unlabeled(reason)
        rows = np.where(kinds != NO_LABEL, np.arange(len(self)), kinds.argmax())
        chunks: list[pa.Array] = []
        for low in range(0, len(self), FRESH_NAMES):
            some = rows[low : low + FRESH_NAMES]
            places = zip(
                *(column.to_pylist() for column in self.index.select(LABEL_AT).take(some).columns), strict=True
            )
            texts = [self._label(row, *place) for row, place in zip(some.tolist(), places, strict=True)]
            chunks.append(pa.array(texts, type=pa.large_string()))
        return text_labels(pa.chunked_array(chunks))

    def _label(self, row: int, shard: int, at: int, size: int, kind: int) -> str:
        """The label of a row as text."""
        try:
            if size > LARGEST_LABEL:
                raise ValueError(f"the member with its label has {size:,} bytes")
            text = label_text(self._content(shard, at, size), kind)
        except (OSError, ValueError) as error:
            raise Unlabeled(f"{self.title(row)} has none that can be read: {error}") from None
        if text == UNKNOWN:
            raise Unlabeled(f"{self.title(row)} has -1, which stands for no label")
        return text

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
    def open_files(files: Sequence[Path], listings: Path | None, image: str = "") -> Images:
        """See `Format`."""
        return TarImages(files, listings, image)
