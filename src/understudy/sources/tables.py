"""Images in a column of table files, as Hugging Face's data sets have them: what parquet and Arrow have in common."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from understudy.errors import DataError
from understudy.sources.images import LABEL_COLUMNS, Labels, class_columns, numbered


class TableImages:
    """Rows of several files with one schema, after each other, each file in parts that are read at once.

    Subclasses say how an image and a whole column are read: `read` and `_values`.

    Args:
        files: paths or addresses, for messages.
        shown: the same below their common folder, for names.
        tables: of each file its schema and the lengths of its parts.

    Raises:
        DataError: no column of images, or several, or no rows; the sentence lists the columns.
    """

    def __init__(
        self, files: Sequence[str], shown: Sequence[str], tables: Iterable[tuple[pa.Schema, Sequence[int]]]
    ) -> None:
        self.files, self.shown = list(files), list(shown)
        parts: list[tuple[int, int]] = []
        lengths, rows = [0], [0]
        for number, (file, (schema, part_lengths)) in enumerate(zip(self.files, tables, strict=True)):
            column = image_column(schema, file)
            if number == 0:
                self.column, self.schema = column, schema
            elif column != self.column:
                raise DataError(
                    f"{file} keeps its images in '{column}', {self.files[0]} in '{self.column}'. Use one kind."
                )
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
        """See `Images`: an integer or text column of one of the usual names; -1 (no label) anywhere means none."""
        name = next((name for name in LABEL_COLUMNS if name in self.schema.names), None)
        return None if name is None else class_columns(self._values(name), written_class_names(self.schema, name))

    def _values(self, column: str) -> pa.ChunkedArray:
        """A whole column."""
        raise NotImplementedError


def image_column(schema: pa.Schema, file: str) -> str:
    """The leaf column of encoded images in a schema, e.g. "image.bytes".

    Raises:
        DataError: there is none, or several of which none is called "image".
    """
    leaves = ((field.name, leaf) for field in schema if pa.types.is_struct(field.type) for leaf in field.type)
    structs = [name for name, leaf in leaves if leaf.name == "bytes" and _is_binary(leaf.type)]
    candidates = structs or [field.name for field in schema if _is_binary(field.type)]
    declared = [name for name, feature in _features(schema).items() if feature.get("_type") == "Image"]
    candidates = [name for name in declared if name in candidates] or candidates
    column = "image" if "image" in candidates else candidates[0] if len(candidates) == 1 else None
    if column is None:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        several = f"several columns that may hold images ({', '.join(candidates)})"
        raise DataError(
            f"{file} has {several if candidates else 'no column of images'}. Its columns are: {columns}. Images are "
            "expected as struct<bytes, path> or binary, in a column called image where there are several."
        )
    return f"{column}.bytes" if column in structs else column


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What Hugging Face's library wrote into a schema about each column; nothing where it wrote it another way."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def written_class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Class names in the metadata of a schema: Hugging Face's features, or a plain comma-separated `names`."""
    metadata = schema.metadata or {}
    if b"huggingface" in metadata:
        names = _features(schema).get(column, {}).get("names")
        return [str(name) for name in names] if isinstance(names, list) else None
    return metadata[b"names"].decode().split(",") if b"names" in metadata else None


def bytes_of(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The encoded images of a column, alone or inside of a struct."""
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
