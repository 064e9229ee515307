"""Images inside parquet files, as the data sets of the Hugging Face hub keep them."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from understudy.artifacts import fingerprint
from understudy.errors import DataError, UnreadableImage
from understudy.sources.decode import to_rgb
from understudy.sources.formats import Format
from understudy.sources.images import Images, below_common_folder
from understudy.sources.tables import TableImages, bytes_of, image_column

ROW_GROUP_CACHE = 256 * 2**20
"""Bytes of parquet row groups that one process keeps, so that sequential and small-set reading decodes each once."""


class RowGroupImages(TableImages):
    """What parquet files have in common wherever they are: row groups of images, from each file's footer.

    Subclasses say where the bytes come from: `_group` and `_values`. The rest is as in `TableImages`.
    """

    def __init__(self, files: Sequence[str], shown: Sequence[str], footers: Iterable[pq.FileMetaData]) -> None:
        sizes: list[int] = []

        def tables() -> Iterator[tuple[pa.Schema, list[int]]]:
            for file, footer in zip(files, footers, strict=True):
                schema = footer.schema.to_arrow_schema()
                leaf = leaf_of(footer, image_column(schema, file))
                groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
                sizes.extend(group.column(leaf).total_uncompressed_size for group in groups)
                yield schema, [group.num_rows for group in groups]

        super().__init__(files, shown, tables())
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.encoded_bytes = sum(sizes)  # bytes of all images as they are encoded

    def content(self, row: int) -> memoryview:
        """The encoded bytes of one image, empty when the row has none; no copy is made.

        Raises:
            UnreadableImage: the row group cannot be read.
        """
        group = int(self.part_of(row))
        try:
            images = self._group(group)
        except (OSError, pa.ArrowException) as error:
            raise UnreadableImage(f"{self.title(row)} cannot be read ({error}).") from None
        value = images[row - int(self.starts[group])].as_buffer()
        return memoryview(b"" if value is None else value)

    def read(self, row: int) -> Image.Image:
        """See `Images`."""
        return to_rgb(self.content(row), lambda: self.title(row))

    def _group(self, group: int) -> pa.Array | pa.ChunkedArray:
        """The encoded images of a row group."""
        raise NotImplementedError


class ParquetImages(RowGroupImages):
    """Images inside parquet files on this machine.

    Pixels are read a row group at a time, and the latest groups are kept (`ROW_GROUP_CACHE`), so reading in order, or
    at random from a set that fits, decodes each group once. A larger set read at random should go through
    `pixels.decoded` first.

    Raises:
        DataError: a file cannot be read, or as for `TableImages`.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        paths = [os.fspath(file) for file in files]
        super().__init__(paths, below_common_folder(paths), map(_footer, paths))
        self.fingerprint = fingerprint(self.states())
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._open: dict[int, pq.ParquetFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict(), "_open": {}}

    def _group(self, group: int) -> pa.ChunkedArray:
        if group not in self._cache:
            number, inner = self.parts[group].tolist()
            if number not in self._open:
                self._open[number] = pq.ParquetFile(self.files[number])
            self._cache[group] = encoded(self._open[number], inner, self.column)
            size = sum(chunk.nbytes for chunk in self._cache.values())
            while size > ROW_GROUP_CACHE and len(self._cache) > 1:
                size -= self._cache.popitem(last=False)[1].nbytes
        self._cache.move_to_end(group)
        return self._cache[group]

    def _values(self, column: str) -> pa.ChunkedArray:
        tables = (pq.read_table(file, columns=[column]) for file in self.files)
        return pa.chunked_array([chunk for table in tables for chunk in table.column(0).chunks])


def _footer(file: str) -> pq.FileMetaData:
    try:
        return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} is not a parquet file that can be read ({error}).") from None


def leaf_of(footer: pq.FileMetaData, column: str) -> int:
    """The number of a leaf column, by its path."""
    return next(i for i in range(footer.num_columns) if footer.schema.column(i).path == column)


def encoded(file: pq.ParquetFile, group: int, column: str) -> pa.ChunkedArray:
    """The encoded images of one row group."""
    # One thread: reading goes on in many processes, and a forked one has no thread pool.
    return bytes_of(file.read_row_group(group, columns=[column], use_threads=False).column(0))


class Parquet(Format):
    """Parquet files on this machine."""

    name = "parquet"
    form = "*.parquet"
    summary = "Hugging Face image parquet: a file, a folder or a glob of them"
    endings = (".parquet",)
    files_title = "parquet files"

    @staticmethod
    def open_files(files: Sequence[Path], listings: Path | None) -> Images:
        """See `Format`."""
        return ParquetImages(files)
