"""Images inside Arrow files, as the `datasets` library of Hugging Face saves them to disk; it is not needed to read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from understudy.artifacts import check_regular, fingerprint, read_json
from understudy.errors import DataError, UnreadableImage, first_line
from understudy.sources.decode import read_image_file
from understudy.sources.formats import Format
from understudy.sources.images import Images, below_common_folder
from understudy.sources.tables import TableImages, image_column


class ArrowImages(TableImages):
    """Images inside memory-mapped Arrow files (streams, or with a footer): only what is read is loaded.

    Raises:
        DataError: a file cannot be read or is damaged, or as for `TableImages`.
    """

    def __init__(self, files: Sequence[Path], image: str = "") -> None:
        paths = [os.fspath(file) for file in files]

        def tables() -> Iterator[tuple[pa.Schema, list[int]]]:
            for file in paths:
                table = _mapped(file)
                column = image_column(table.schema, file, image).name
                yield table.schema, [len(chunk) for chunk in _checked(table, column, file).chunks]

        super().__init__(paths, below_common_folder(paths), tables(), image)
        self.fingerprint = fingerprint("arrow", self.states(), *filter(None, [image]))
        self._chunks: dict[int, list[pa.Array]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chunks": {}}

    def content(self, row: int) -> bytes | memoryview:
        """See `Images`. A row without bytes is read from its path, if that file is there."""
        part = int(self.part_of(row))
        number, inner = self.parts[part].tolist()
        column = self.columns[number]
        if number not in self._chunks:
            self._chunks[number] = _mapped(self.files[number]).column(column.name).chunks
        chunk, within = self._chunks[number][inner], row - int(self.starts[part])
        content = column.of(chunk)[within].as_buffer()
        path = (chunk[within].as_py() or {}).get("path") if content is None and column.inside else None
        if isinstance(path, str) and path:
            try:
                content = read_image_file(os.path.expanduser(path))
            except UnreadableImage as error:
                raise UnreadableImage(f"{self.title(row)} has no bytes, and its file {error}") from None
        return memoryview(b"" if content is None else content)

    def _values(self, columns: Sequence[str]) -> list[pa.ChunkedArray]:
        return [_checked(_mapped(file), column, file) for file, column in zip(self.files, columns, strict=True)]


def _mapped(file: str) -> pa.Table:
    try:
        check_regular(file)
        content = pa.memory_map(file)
        opened = pa.ipc.open_file if content.read(6) == b"ARROW1" else pa.ipc.open_stream
        content.seek(0)
        table = opened(content).read_all()
        table.schema.names  # noqa: B018  # names are decoded here
        return table
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not an Arrow file that can be read ({first_line(error)}).") from None


def _checked(table: pa.Table, column: str, file: str) -> pa.ChunkedArray:
    """A column whose offsets all point into the file: of a damaged one, reading a value would end the process.

    What is looked at are offsets and texts, not images: 8 bytes each.

    Raises:
        DataError: it is damaged.
    """
    values = table.column(column)
    try:
        values.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(f"{file} is damaged: its column '{column}' is not valid ({first_line(error)}).") from None
    return values


class Arrow(Format):
    """Arrow files, as a data set saved to disk has them."""

    name = "arrow"
    form = "*.arrow"
    summary = "a Hugging Face data set saved to disk, memory-mapped; `datasets` is not needed"
    endings = (".arrow",)
    files_title = "Arrow files"

    @staticmethod
    def open_files(files: Sequence[Path], listings: Path | None, image: str = "") -> Images:
        """See `Format`."""
        return ArrowImages(files, image)

    @staticmethod
    def files_in(folder: Path, names: Sequence[str]) -> list[Path]:
        """The files of a saved data set in their order: as `state.json` says, else by name.

        Those that `map` and `filter` keep beside them (`cache-...`) are no part of it.

        Raises:
            DataError: `state.json` names a file that is not there, or rows chosen by an index beside the data.
        """
        if not (folder / "state.json").is_file():
            return [folder / name for name in names if not os.path.basename(name).startswith("cache-")]
        state = read_json(folder / "state.json")
        entries = state.get("_data_files") if isinstance(state, dict) else None
        listed = [
            entry.get("filename") for entry in (entries if isinstance(entries, list) else ()) if isinstance(entry, dict)
        ]
        listed = [name for name in listed if isinstance(name, str) and name == os.path.basename(name) != ""]
        # A file elsewhere is no part of this data set.
        if not isinstance(entries, list) or not entries or len(listed) < len(entries):
            raise DataError(f"{folder / 'state.json'} does not list the data set's files as datasets writes them.")
        if state.get("_indices_data_files"):
            raise DataError(
                f"{folder} is a data set with a selection of rows beside it, of an old version of datasets. Load it, "
                "call flatten_indices() and save it again."
            )
        files = [folder / str(name) for name in listed]
        if missing := [
            file.name for file in files if not os.path.isfile(file)
        ]:  # no, where no file could have that name
            raise DataError(
                f"{folder} is not complete: {len(missing)} of {len(files)} files are missing, e.g. {missing[0]}."
            )
        return files
