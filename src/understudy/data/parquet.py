"""Images inside parquet files, as the data sets of the Hugging Face hub keep them."""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from understudy.artifacts import fingerprint
from understudy.data.decode import to_rgb
from understudy.data.images import LABEL_COLUMNS, Labels, class_columns, numbered
from understudy.errors import DataError, UnreadableImage

ROW_GROUP_CACHE = 256 * 2**20
"""Bytes of parquet row groups that one process keeps, so that sequential and small-set reading decodes each once."""


class ParquetImages:
    """Images inside parquet files, in the layout of Hugging Face data sets.

    Pixels are read a row group at a time, and the latest groups are kept (`ROW_GROUP_CACHE`), so reading in order, or
    at random from a set that fits, decodes each group once. A larger set read at random should go through
    `pixels.decoded` first.

    Args:
        files: parquet files with one schema; their rows follow each other.

    Raises:
        DataError: no column of images, or several; the sentence lists the columns.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = [os.fspath(file) for file in files]
        common = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in self.files])
        self.shown = [os.path.relpath(os.path.abspath(file), common).replace(os.sep, "/") for file in self.files]
        groups: list[tuple[int, int]] = []
        lengths: list[int] = []
        self.encoded_bytes = 0
        facts: list[Any] = []
        for number, file in enumerate(self.files):
            try:
                footer = pq.read_metadata(file)
                schema = footer.schema.to_arrow_schema()
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{file} is not a parquet file that can be read ({error}).") from None
            column = image_column(schema, file)
            if number == 0:
                self.column, self.schema = column, schema
            elif column != self.column:
                raise DataError(
                    f"{file} keeps its images in '{column}', {self.files[0]} in '{self.column}'. Use one kind."
                )
            for group in range(footer.num_row_groups):
                about = footer.row_group(group)
                groups.append((number, group))
                lengths.append(about.num_rows)
                self.encoded_bytes += sum(
                    about.column(i).total_uncompressed_size
                    for i in range(about.num_columns)
                    if about.column(i).path_in_schema == self.column
                )
            state = os.stat(file)
            facts.append((self.shown[number], state.st_size, state.st_mtime_ns, footer.num_rows))
        self.groups = np.asarray(groups, dtype=np.int64).reshape(-1, 2)
        self.starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        self.file_starts = np.concatenate([[0], np.cumsum([fact[-1] for fact in facts], dtype=np.int64)]).astype(
            np.int64
        )
        if len(self) == 0:
            raise DataError(f"{self.files[0]} has no rows.")
        self.fingerprint = fingerprint(facts)
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._open: dict[int, pq.ParquetFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict(), "_open": {}}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def content(self, row: int) -> memoryview:
        """The encoded bytes of one image, empty when the row has none; no copy is made.

        Raises:
            UnreadableImage: the row group cannot be read.
        """
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        if group not in self._cache:
            try:
                self._cache[group] = self._load(group)
            except (OSError, pa.ArrowException) as error:
                raise UnreadableImage(f"{self._place(row)} cannot be read ({error}).") from None
            held = sum(chunk.nbytes for chunk in self._cache.values())
            while held > ROW_GROUP_CACHE and len(self._cache) > 1:
                held -= self._cache.popitem(last=False)[1].nbytes
        self._cache.move_to_end(group)
        value = self._cache[group][row - int(self.starts[group])].as_buffer()
        return memoryview(b"" if value is None else value)

    def _load(self, group: int) -> pa.ChunkedArray:
        number, inner = self.groups[group].tolist()
        if number not in self._open:
            self._open[number] = pq.ParquetFile(self.files[number])
        # One thread: reading goes on in many processes, and a forked one has no thread pool.
        table = self._open[number].read_row_group(inner, columns=[self.column], use_threads=False)
        found = table.column(0)
        return pc.struct_field(found, "bytes") if pa.types.is_struct(found.type) else found

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
        values = pa.chunked_array(
            [chunk for file in self.files for chunk in pq.read_table(file, columns=[name]).column(0).chunks]
        )
        return class_columns(values, written_class_names(self.schema, name))


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


def written_class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Class names in the metadata of a schema: Hugging Face's features, or a plain comma-separated `names`."""
    metadata = schema.metadata or {}
    if b"huggingface" in metadata:
        try:
            names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
            return [str(name) for name in names]
        except (ValueError, KeyError, TypeError):  # another version of their metadata: numbers serve as names
            return None
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
