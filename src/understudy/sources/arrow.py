"""Images inside Arrow files, as the `datasets` library of Hugging Face saves them to disk; it is not needed to read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from understudy.artifacts import fingerprint, read_json
from understudy.errors import DataError, UnreadableImage
from understudy.sources.decode import to_rgb
from understudy.sources.images import LABEL_COLUMNS, Labels, class_columns, numbered
from understudy.sources.parquet import image_column, written_class_names


class ArrowImages:
    """Images inside memory-mapped Arrow files: rows are reached directly, and only what is read is loaded.

    Args:
        files: Arrow files (streams, or files with a footer) with one schema; their rows follow each other.

    Raises:
        DataError: a file cannot be read, or has no column of images, or several; the sentence lists the columns.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = [os.fspath(file) for file in files]
        common = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in self.files])
        self.shown = [os.path.relpath(os.path.abspath(file), common).replace(os.sep, "/") for file in self.files]
        places: list[tuple[int, int]] = []
        lengths: list[int] = []
        metadata: list[Any] = []
        for number, file in enumerate(self.files):
            table = _mapped(file)
            column = image_column(table.schema, file)
            if number == 0:
                self.column, self.schema = column, table.schema
            elif column != self.column:
                raise DataError(
                    f"{file} keeps its images in '{column}', {self.files[0]} in '{self.column}'. Use one kind."
                )
            for place, chunk in enumerate(table.column(column.split(".")[0]).chunks):
                places.append((number, place))
                lengths.append(len(chunk))
            state = os.stat(file)
            metadata.append((self.shown[number], state.st_size, state.st_mtime_ns, table.num_rows))
        self.places = np.asarray(places, dtype=np.int64).reshape(-1, 2)
        self.starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        rows = np.cumsum([fact[-1] for fact in metadata], dtype=np.int64)
        self.file_starts = np.concatenate([[0], rows]).astype(np.int64)
        if len(self) == 0:
            raise DataError(f"{self.files[0]} has no rows.")
        self.fingerprint = fingerprint("arrow", metadata)
        self._chunks: dict[int, list[pa.Array]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chunks": {}}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, row: int) -> Image.Image:
        """See `Images`. A row without bytes is read from its path, if that file is there."""
        place = int(np.searchsorted(self.starts, row, side="right")) - 1
        number, inner = self.places[place].tolist()
        if number not in self._chunks:
            self._chunks[number] = _mapped(self.files[number]).column(self.column.split(".")[0]).chunks
        chunk, within = self._chunks[number][inner], row - int(self.starts[place])
        path = None
        if pa.types.is_struct(chunk.type):
            if chunk.type.get_field_index("path") >= 0:
                path = chunk.field("path")[within].as_py()
            chunk = chunk.field("bytes")
        content = chunk[within].as_buffer()
        if content is None and path is not None:
            try:
                content = Path(path).read_bytes()
            except OSError as error:
                title = f"{self._title(row)} has no bytes, and its file {path}"
                raise UnreadableImage(f"{title} cannot be opened ({error.strerror}).") from None
        return to_rgb(memoryview(b"" if content is None else content), lambda: self._title(row))

    def _title(self, row: int) -> str:
        return str(self.names(np.array([row]))[0])

    def names(self, rows: np.ndarray) -> pa.Array:
        """See `Images`: FILE:ROW."""
        files = np.searchsorted(self.file_starts, rows, side="right") - 1
        return numbered(self.shown, files, rows - self.file_starts[files])

    def labels(self) -> Labels | None:
        """See `Images`: an integer or text column of one of the usual names; -1 (no label) anywhere means none."""
        name = next((name for name in LABEL_COLUMNS if name in self.schema.names), None)
        if name is None:
            return None
        chunks = [chunk for file in self.files for chunk in _mapped(file).column(name).chunks]
        return class_columns(pa.chunked_array(chunks), written_class_names(self.schema, name))


def saved_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The Arrow files of a saved data set in their order: as `state.json` says, else by name.

    Args:
        folder: the data set.
        names: Arrow files found in it; those that `map` and `filter` keep there (`cache-...`) are no part of it.

    Raises:
        DataError: `state.json` names a file that is not there, or rows chosen by an index beside the data.
    """
    if not (folder / "state.json").is_file():
        return [folder / name for name in names if not os.path.basename(name).startswith("cache-")]
    state = read_json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder} is a data set with a selection of rows beside it, of an old version of datasets. Load it, call "
            "flatten_indices() and save it again."
        )
    files = [folder / entry["filename"] for entry in state["_data_files"]]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{folder} is not complete: {len(missing)} of {len(files)} files are missing, e.g. {missing[0]}."
        )
    return files


def _mapped(file: str) -> pa.Table:
    try:
        content = pa.memory_map(file)
        opened = pa.ipc.open_file if content.read(6) == b"ARROW1" else pa.ipc.open_stream
        content.seek(0)
        return opened(content).read_all()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} is not an Arrow file that can be read ({error}).") from None
