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

from understudy.artifacts import check_regular, fingerprint
from understudy.errors import DataError, UnreadableImage, first_line
from understudy.sources.formats import Format
from understudy.sources.images import Images, below_common_folder
from understudy.sources.tables import ImageColumn, TableImages, image_column

ROW_GROUP_CACHE = 256 * 2**20
"""Bytes of parquet row groups that one process keeps, so that sequential and small-set reading decodes each once."""


MOST_ROWS = 100  # rows a byte of a file, at the most


class RowGroupImages(TableImages):
    """What parquet files have in common wherever they are: row groups of images, from each file's footer.

    Subclasses say where the bytes come from: `_group` and `_values`. The rest is as in `TableImages`.
    """

    def __init__(
        self, files: Sequence[str], shown: Sequence[str], footers: Iterable[tuple[pq.FileMetaData, int]],
        image: str = "",
    ) -> None:  # fmt: skip
        sizes: list[int] = []

        def tables() -> Iterator[tuple[pa.Schema, list[int]]]:
            for file, (footer, size) in zip(files, footers, strict=True):
                schema, lengths = described(footer, size, file)
                leaf = leaf_of(footer, image_column(schema, file, image).path)
                groups = (footer.row_group(number) for number in range(footer.num_row_groups))
                sizes.extend(group.column(leaf).total_uncompressed_size for group in groups)
                yield schema, lengths

        super().__init__(files, shown, tables(), image)
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
            value = images[row - int(self.starts[group])].as_buffer()
        except (OSError, pa.ArrowException, IndexError) as error:
            raise UnreadableImage(f"{self.title(row)} cannot be read ({first_line(error)}).") from None
        return memoryview(b"" if value is None else value)

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

    def __init__(self, files: Sequence[Path], image: str = "") -> None:
        paths = [os.fspath(file) for file in files]
        super().__init__(paths, below_common_folder(paths), map(_footer, paths), image)
        self.fingerprint = fingerprint(self.states(), *filter(None, [image]))
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._open: dict[int, pq.ParquetFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict(), "_open": {}}

    def _group(self, group: int) -> pa.ChunkedArray:
        if group not in self._cache:
            number, inner = self.parts[group].tolist()
            if number not in self._open:
                self._open[number] = pq.ParquetFile(self.files[number])
            self._cache[group] = encoded(self._open[number], inner, self.columns[number])
            size = sum(chunk.nbytes for chunk in self._cache.values())
            while size > ROW_GROUP_CACHE and len(self._cache) > 1:
                size -= self._cache.popitem(last=False)[1].nbytes
        self._cache.move_to_end(group)
        return self._cache[group]

    def _values(self, columns: Sequence[str]) -> list[pa.ChunkedArray]:
        pairs = zip(self.files, columns, strict=True)
        return [pq.ParquetFile(file).read(columns=[column]).column(0) for file, column in pairs]


def _footer(file: str) -> tuple[pq.FileMetaData, int]:
    """The footer of a file, and the bytes of the file."""
    try:
        check_regular(file)
        return pq.read_metadata(file), os.path.getsize(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} is not a parquet file that can be read ({first_line(error)}).") from None


def described(footer: pq.FileMetaData, size: int, file: str) -> tuple[pa.Schema, list[int]]:
    """The schema and the rows of each row group, as a footer says of a file of so many bytes.

    Raises:
        DataError: it cannot be true.
    """
    try:
        schema = footer.schema.to_arrow_schema()
        lengths = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
        schema.names  # noqa: B018  # names are decoded here
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not a parquet file that can be read ({first_line(error)}).") from None
    # What counts rows believes the footer. Of one image over and over, a byte may hold many.
    if min(lengths, default=0) < 0 or sum(lengths) > MOST_ROWS * size:
        raise DataError(f"{file} claims {sum(lengths):,} rows in {size:,} bytes: its footer is damaged.")
    return schema, lengths


def leaf_of(footer: pq.FileMetaData, column: str) -> int:
    """The number of a leaf column, by its path."""
    return next(i for i in range(footer.num_columns) if footer.schema.column(i).path == column)


def encoded(file: pq.ParquetFile, group: int, column: ImageColumn) -> pa.ChunkedArray:
    """The encoded images of one row group."""
    # One thread: reading goes on in many processes, and a forked one has no thread pool.
    return column.of(file.read_row_group(group, columns=[column.path], use_threads=False).column(0))


class Parquet(Format):
    """Parquet files on this machine."""

    name = "parquet"
    form = "*.parquet"
    summary = "Hugging Face image parquet: a file, a folder or a glob of them"
    endings = (".parquet",)
    files_title = "parquet files"

    @staticmethod
    def open_files(files: Sequence[Path], listings: Path | None, image: str = "") -> Images:
        """See `Format`."""
        return ParquetImages(files, image)
