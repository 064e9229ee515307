"""Images in a column of table files, as Hugging Face's data sets have them: what parquet and Arrow have in common."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from understudy.errors import DataError, first_line
from understudy.sources.images import EncodedImages, numbered
from understudy.sources.labels import LABEL_COLUMNS, Labels, Unlabeled, column_labels, column_named, joined


class TableImages(EncodedImages):
    """Rows of several files after each other, each file in parts that are read at once.

    What a file says of itself holds for that file alone: how its column of images is stored, the type of its labels,
    the names of its classes and their order. Subclasses say how an image and a whole column are read: `read` and
    `_values`.

    Args:
        files: paths or addresses, for messages.
        shown: the same below their common folder, for names.
        tables: of each file its schema and the lengths of its parts.
        image: the column of images; "" for the only one, or that called image.

    Raises:
        DataError: no column of images, or several, or no rows; the sentence lists the columns.
    """

    def __init__(
        self, files: Sequence[str], shown: Sequence[str], tables: Iterable[tuple[pa.Schema, Sequence[int]]],
        image: str = "",
    ) -> None:  # fmt: skip
        self.files, self.shown = list(files), list(shown)
        parts: list[tuple[int, int]] = []
        lengths, rows = [0], [0]
        self.columns: list[ImageColumn] = []
        self.declared: list[Declared] = []
        known: dict[Declared, Declared] = {}  # all files share one object where they say the same
        for number, (file, (schema, part_lengths)) in enumerate(zip(self.files, tables, strict=True)):
            self.columns.append(image_column(schema, file, image))
            if self.columns[-1].name != self.columns[0].name:
                raise DataError(
                    f"{file} keeps its images in '{self.columns[-1].name}', {self.files[0]} in "
                    f"'{self.columns[0].name}'. Use one kind."
                )
            declared = declared_labels(schema, file)
            self.declared.append(known.setdefault(declared, declared))
            parts += [(number, part) for part in range(len(part_lengths))]
            lengths += part_lengths
            rows.append(sum(part_lengths))
        self.parts = np.asarray(parts, dtype=np.int64).reshape(-1, 2)
        self.starts = np.cumsum(lengths, dtype=np.int64)
        self.file_starts = np.cumsum(rows, dtype=np.int64)
        if len(self) == 0:
            raise DataError(f"{self.files[0]} has no rows.")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def states(self) -> list[tuple[str, int, int, int]]:
        """Name, bytes, time and rows of each file on this machine, for a fingerprint."""
        stats, rows = map(os.stat, self.files), np.diff(self.file_starts).tolist()
        return [(n, s.st_size, s.st_mtime_ns, count) for n, s, count in zip(self.shown, stats, rows, strict=True)]

    def part_of(self, rows: int | np.ndarray) -> np.ndarray:
        """The part that each row lies in: rows of `parts`, which are (file, number within it)."""
        return np.asarray(np.searchsorted(self.starts, rows, side="right") - 1)

    def title(self, row: int) -> str:
        """How messages call an image."""
        return str(self.names(np.array([row]))[0])

    def names(self, rows: np.ndarray) -> pa.Array:
        """See `Images`: FILE:ROW. Paths inside such files are often absent and seldom unique."""
        files = np.searchsorted(self.file_starts, rows, side="right") - 1
        return numbered(self.shown, files, rows - self.file_starts[files])

    def labels(self) -> Labels | None:
        """See `Images`: a column of one of the usual names."""
        columns = [declared.column for declared in self.declared]
        present = [number for number, column in enumerate(columns) if column is not None]
        if not present:
            return None
        called = [None if column is None else column.strip().lower() for column in columns]
        if len(set(called)) > 1:
            first = present[0]
            other = next(number for number, name in enumerate(called) if name != called[first])
            instead = f"in '{columns[other]}'" if columns[other] else "has none"
            raise Unlabeled(
                f"{self.shown[first]} has its labels in the column '{columns[first]}', {self.shown[other]} {instead}"
            )
        try:
            values = self._values([str(column) for column in columns])
            for of_file in values:
                of_file.validate(full=True)  # a place in a dictionary may lie beyond its end
        except (OSError, pa.ArrowException) as error:
            raise Unlabeled(f"the column '{columns[0]}' cannot be read ({first_line(error)})") from None
        for title, of_file, rows in zip(self.shown, values, np.diff(self.file_starts).tolist(), strict=True):
            if len(of_file) != rows:
                raise Unlabeled(f"the column '{columns[0]}' of {title} has {len(of_file):,} of {rows:,} rows")
        return joined(
            column_labels(of_file, title, str(declared.column), f"{title}:{{}}".format, declared.names)
            for of_file, title, declared in zip(values, self.shown, self.declared, strict=True)
        )

    def _values(self, columns: Sequence[str]) -> Sequence[pa.ChunkedArray]:
        """A whole column of each file, one array a file.

        Args:
            columns: the name of the column in each file.
        """
        raise NotImplementedError


class ImageColumn(NamedTuple):
    """Where a file keeps its encoded images: in a column, or in the field `bytes` of a column of structs."""

    name: str
    inside: bool

    @property
    def path(self) -> str:
        """The leaf, as parquet calls it."""
        return f"{self.name}.bytes" if self.inside else self.name

    def of(self, column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """The encoded images of the column's content."""
        return pc.struct_field(column, "bytes") if self.inside else column


class Declared(NamedTuple):
    """What a file says of its labels: the column, and the names of the classes where it declares them."""

    column: str | None
    names: tuple[str, ...] | None


def declared_labels(schema: pa.Schema, file: str) -> Declared:
    """The column of labels of a file, and the names that it declares."""
    try:
        column = column_named(schema.names, LABEL_COLUMNS)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    return Declared(column, None if column is None else written_class_names(schema, column))


def image_column(schema: pa.Schema, file: str, wanted: str = "") -> ImageColumn:
    """The column of encoded images in a schema: the wanted one, the only one, or that called "image".

    Raises:
        DataError: there is none, or several of which none is called "image", or the wanted one is not among them.
    """
    structs = [field.name for field in schema if pa.types.is_struct(field.type) and _has_bytes(field.type)]
    candidates = structs or _plain(schema)
    declared = [name for name, feature in _features(schema).items() if feature.get("_type") == "Image"]
    candidates = [name for name in declared if name in candidates] or candidates
    if wanted:
        candidates = [name for name in schema.names if name == wanted and (name in structs or name in _plain(schema))]
    column = "image" if "image" in candidates else candidates[0] if len(candidates) == 1 else None
    if column is None or schema.names.count(column) > 1:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        several = f"several columns that may hold images ({', '.join(candidates)})"
        called = f" called '{wanted}'" if wanted else ""
        raise DataError(
            f"{file} has {several if candidates else f'no column of images{called}'}. Its columns are: {columns}. "
            "Images are expected as struct<bytes, path> or binary; where there are several such columns, in that "
            f"called image, or in the one that the data spec names: {file}#COLUMN."
        )
    return ImageColumn(column, column in structs)


def _plain(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if _is_binary(field.type)]


def _has_bytes(kind: pa.StructType) -> bool:
    return any(leaf.name == "bytes" and _is_binary(leaf.type) for leaf in kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What Hugging Face's library wrote into a schema about each column; nothing where it wrote it another way."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def written_class_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Class names in the metadata of a schema: Hugging Face's features, or a plain comma-separated `names`."""
    metadata = schema.metadata or {}
    if b"huggingface" in metadata:
        names = _features(schema).get(column, {}).get("names")
        return tuple(map(str, names)) if isinstance(names, list) else None
    try:
        return tuple(metadata[b"names"].decode().split(",")) if b"names" in metadata else None
    except UnicodeDecodeError:  # written by something else
        return None
