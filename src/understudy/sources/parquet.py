"""Images inside parquet files, as the data sets of the Hugging Face hub keep them."""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from understudy.artifacts import fingerprint
from understudy.errors import DataError, UnreadableImage
from understudy.sources.decode import to_rgb
from understudy.sources.images import LABEL_COLUMNS, Labels, class_columns, numbered

ROW_GROUP_CACHE = 256 * 2**20
"""Bytes of parquet row groups that one process keeps, so that sequential and small-set reading decodes each once."""


class RowGroupImages:
    """What parquet files have in common wherever they are: row groups of images, in the layout of Hugging Face's sets.

    Subclasses say where the bytes come from: `_group` and `_values`.

    Args:
        files: paths or addresses, for messages.
        shown: the same below their common folder, for names.
        footers: of each file.

    Raises:
        DataError: no column of images, or several, or no rows; the sentence lists the columns.
    """

    def __init__(self, files: Sequence[str], shown: Sequence[str], footers: Iterable[pq.FileMetaData]) -> None:
        self.files, self.shown = list(files), list(shown)
        groups: list[tuple[int, int]] = []
        lengths: list[int] = []
        sizes: list[int] = []
        rows: list[int] = []
        for number, (file, footer) in enumerate(zip(self.files, footers, strict=True)):
            schema = footer.schema.to_arrow_schema()
            column = image_column(schema, file)
            if number == 0:
                self.column, self.schema = column, schema
            elif column != self.column:
                raise DataError(
                    f"{file} keeps its images in '{column}', {self.files[0]} in '{self.column}'. Use one kind."
                )
            leaf = leaf_of(footer, column)
            for group in range(footer.num_row_groups):
                about = footer.row_group(group)
                groups.append((number, group))
                lengths.append(about.num_rows)
                sizes.append(about.column(leaf).total_uncompressed_size)
            rows.append(footer.num_rows)
        self.groups = np.asarray(groups, dtype=np.int64).reshape(-1, 2)
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        self.file_starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]).astype(np.int64)
        if len(self) == 0:
            raise DataError(f"{self.files[0]} has no rows.")

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def encoded_bytes(self) -> int:
        """Bytes of all images as they are encoded."""
        return int(self.sizes.sum())

    def content(self, row: int) -> memoryview:
        """The encoded bytes of one image, empty when the row has none; no copy is made.

        Raises:
            UnreadableImage: the row group cannot be read.
        """
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        try:
            images = self._group(group)
        except (OSError, pa.ArrowException) as error:
            raise UnreadableImage(f"{self._place(row)} cannot be read ({error}).") from None
        value = images[row - int(self.starts[group])].as_buffer()
        return memoryview(b"" if value is None else value)

    def read(self, row: int) -> Image.Image:
        """See `Images`."""
        return to_rgb(self.content(row), lambda: self._place(row))

    def _place(self, row: int) -> str:
        return str(self.names(np.array([row]))[0])

    def names(self, rows: np.ndarray) -> pa.Array:
        """See `Images`: FILE:ROW. Paths inside parquet files are often absent and seldom unique."""
        files = np.searchsorted(self.file_starts, rows, side="right") - 1
        return numbered(self.shown, files, rows - self.file_starts[files])

    def labels(self) -> Labels | None:
        """See `Images`: an integer or text column of one of the usual names; -1 (no label) anywhere means none."""
        name = next((name for name in LABEL_COLUMNS if name in self.schema.names), None)
        if name is None:
            return None
        return class_columns(self._values(name), written_class_names(self.schema, name))

    def _group(self, group: int) -> pa.Array | pa.ChunkedArray:
        """The encoded images of a row group."""
        raise NotImplementedError

    def _values(self, column: str) -> pa.ChunkedArray:
        """A whole column."""
        raise NotImplementedError


class ParquetImages(RowGroupImages):
    """Images inside parquet files on this machine, in the layout of Hugging Face data sets.

    Pixels are read a row group at a time, and the latest groups are kept (`ROW_GROUP_CACHE`), so reading in order, or
    at random from a set that fits, decodes each group once. A larger set read at random should go through
    `pixels.decoded` first.

    Args:
        files: parquet files with one schema; their rows follow each other.

    Raises:
        DataError: no column of images, or several; the sentence lists the columns.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        paths = [os.fspath(file) for file in files]
        common = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in paths])
        shown = [os.path.relpath(os.path.abspath(file), common).replace(os.sep, "/") for file in paths]
        super().__init__(paths, shown, map(_footer, paths))
        states = [os.stat(file) for file in paths]
        rows = np.diff(self.file_starts).tolist()
        metadata = [
            (name, state.st_size, state.st_mtime_ns, count)
            for name, state, count in zip(shown, states, rows, strict=True)
        ]
        self.fingerprint = fingerprint(metadata)
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._open: dict[int, pq.ParquetFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict(), "_open": {}}

    def _group(self, group: int) -> pa.ChunkedArray:
        if group not in self._cache:
            self._cache[group] = self._load(group)
            held = sum(chunk.nbytes for chunk in self._cache.values())
            while held > ROW_GROUP_CACHE and len(self._cache) > 1:
                held -= self._cache.popitem(last=False)[1].nbytes
        self._cache.move_to_end(group)
        return self._cache[group]

    def _load(self, group: int) -> pa.ChunkedArray:
        number, inner = self.groups[group].tolist()
        if number not in self._open:
            self._open[number] = pq.ParquetFile(self.files[number])
        return encoded(self._open[number], inner, self.column)

    def _values(self, column: str) -> pa.ChunkedArray:
        return pa.chunked_array(
            [chunk for file in self.files for chunk in pq.read_table(file, columns=[column]).column(0).chunks]
        )


def _footer(file: str) -> pq.FileMetaData:
    try:
        return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} is not a parquet file that can be read ({error}).") from None


def leaf_of(footer: pq.FileMetaData, column: str) -> int:
    """The number of a leaf column, by its path."""
    return next(i for i in range(footer.num_columns) if footer.schema.column(i).path == column)


def encoded(file: pq.ParquetFile, group: int, column: str) -> pa.ChunkedArray:
    """The encoded images of one row group: its column of bytes, alone or inside of a struct."""
    # One thread: reading goes on in many processes, and a forked one has no thread pool.
    found = file.read_row_group(group, columns=[column], use_threads=False).column(0)
    return pc.struct_field(found, "bytes") if pa.types.is_struct(found.type) else found


def image_column(schema: pa.Schema, file: str) -> str:
    """The leaf column of encoded images in a schema, e.g. "image.bytes".

    Raises:
        DataError: there is none, or several of which none is called "image".
    """
    structs = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and field.type.get_field_index("bytes") >= 0
        and _is_binary(field.type.field("bytes").type)
    ]
    found = structs or [field.name for field in schema if _is_binary(field.type)]
    said = [name for name, feature in features(schema).items() if feature.get("_type") == "Image" and name in found]
    found = said or found
    chosen = "image" if "image" in found else found[0] if len(found) == 1 else None
    if chosen is None:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        problem = f"several columns that may hold images ({', '.join(found)})" if found else "no column of images"
        raise DataError(
            f"{file} has {problem}. Its columns are: {columns}. Images are expected as struct<bytes, path> or binary, "
            "in a column called image where there are several."
        )
    return f"{chosen}.bytes" if chosen in structs else chosen


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What Hugging Face's library wrote into a schema about each column; nothing where it wrote it another way."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def written_class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Class names in the metadata of a schema: Hugging Face's features, or a plain comma-separated `names`."""
    metadata = schema.metadata or {}
    if b"huggingface" in metadata:
        names = features(schema).get(column, {}).get("names")
        return [str(name) for name in names] if isinstance(names, list) else None
    return metadata[b"names"].decode().split(",") if b"names" in metadata else None


def split_of(name: str) -> str:
    """The split that a file's path names, "" if none.

    `train-00000-of-00005.parquet`, `train/0000.parquet`, `imagenet-train-0042.tar`, `cifar10-test.arrow`.
    """
    for part in name.split("/"):
        match = re.search(r"(?:^|[-_])(train|validation|valid|val|test)(?=[-_.]|$)", part)
        if match:
            return match[1]
    return ""


def example_of(names: Sequence[str]) -> str:
    """How one split of several is named, for messages: its folder, or a pattern of its files.

    Args:
        names: paths of files of several splits.
    """
    splits = {split_of(name) for name in names} - {""}
    split = "train" if "train" in splits else min(splits)
    name = min(name for name in names if split_of(name) == split)
    parts = name.split("/")
    place = next(place for place, part in enumerate(parts) if split_of(part))
    if place < len(parts) - 1:
        return "/".join(parts[: place + 1])
    end = parts[-1].index(split) + len(split)
    return "/".join([*parts[:-1], f"{parts[-1][:end]}*{os.path.splitext(name)[1]}"])
