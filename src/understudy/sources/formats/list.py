"""Images, or files of images, that a text file or a table names."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from understudy.errors import DataError
from understudy.sources.decode import EXTENSIONS
from understudy.sources.formats import Format, holders
from understudy.sources.formats.address import open_addresses
from understudy.sources.formats.folder import FolderImages
from understudy.sources.images import LABEL_COLUMNS, Images, Labels, Names, below_common, class_columns, class_folders

TABLES = (".csv", ".tsv")  # endings of lists that are tables with a header
PATH_COLUMNS = ("path", "file_name", "filename", "filepath", "file", "image")
"""Names under which tables keep the paths of images."""

STAT_THREADS = 16
"""On a network file system asking for a file's size takes a millisecond, and many may be asked for at once."""


class ListedImages(FolderImages):
    """Image files named in a text file, one path a line, or in a table with a column of paths.

    Paths are relative to the file's folder, or absolute. Labels: the table's column of classes; without one the
    folders, where all paths have one folder in common and lie at `CLASS/FILE` below it. A table (.csv, .tsv) has a
    header; of plain lines empty ones are passed over.

    Raises:
        DataError: it cannot be read, names nothing, or has no column of paths.
    """

    def __init__(self, file: Path) -> None:
        paths, self._labels = _table(file) if file.suffix in TABLES else (lines(file), None)
        endings = tuple(sorted(EXTENSIONS))
        if not any(os.fsdecode(path).lower().endswith(endings) for path in paths[:100].to_pylist()):
            first = f", the first line is '{os.fsdecode(paths[0].as_py())[:80]}'" if len(paths) else " and is empty"
            raise DataError(
                f"{file} names no images{first}. A list has one path a line, relative to its own folder, e.g. "
                "cats/1.jpg."
            )
        self.root = os.fsencode(file.parent)
        super().__init__(file.parent, paths, *self._states(paths))

    def labels(self) -> Labels | None:
        """See `Images`."""
        return self._labels or class_folders(below_common(self.paths))

    def _states(self, paths: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Size and time of every file, -1 for those that are not there: they are reported when they are read."""
        sizes, times = np.full(len(paths), -1, np.int64), np.full(len(paths), -1, np.int64)

        def read_states(low: int) -> None:
            for place, path in enumerate(paths[low : low + 1000].to_pylist(), low):
                try:
                    state = os.stat(os.path.join(self.root, path))
                except OSError:
                    continue
                sizes[place], times[place] = state.st_size, state.st_mtime_ns

        with ThreadPoolExecutor(STAT_THREADS) as pool:
            for _ in pool.map(read_states, range(0, len(paths), 1000)):
                pass
        return sizes, times


def lines(file: Path) -> pa.Array:
    """The lines of a text file that are not empty, (N,) large_binary, read in blocks.

    Raises:
        DataError: it cannot be read.
    """
    names, rest = Names(), b""
    try:
        with open(file, "rb") as content:
            while block := content.read(1 << 20):
                *complete, rest = (rest + block).split(b"\n")
                names.extend([line for line in map(bytes.strip, complete) if line])
    except OSError as error:
        raise DataError(f"The list {file} cannot be read ({error.strerror}).") from None
    names.extend([rest.strip()] if rest.strip() else [])
    return names.finish()


def _table(file: Path) -> tuple[pa.Array, Labels | None]:
    """Paths and labels of a table with a header."""
    parse = pa.csv.ParseOptions(delimiter="\t" if file.suffix == ".tsv" else ",")
    try:
        table = pa.csv.read_csv(file, parse_options=parse)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"The list {file} is not a table that can be read ({error}).") from None
    paths = next((name for name in PATH_COLUMNS if name in table.column_names), None)
    if paths is None or not pa.types.is_string(table.schema.field(paths).type):
        raise DataError(
            f"The list {file} has no column of paths: its columns are {', '.join(table.column_names)}. Name one "
            f"{' or '.join(PATH_COLUMNS[:2])}."
        )
    label = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    names = table.column(paths).cast(pa.large_string()).combine_chunks().cast(pa.large_binary())
    return names, None if label is None else class_columns(table.column(label), None)


class List(Format):
    """A list of images, or of files of one format that hold many."""

    name = "list"
    form = "list:FILE"
    summary = "`FILE.txt`: one path a line, relative to the list, of images or of files that hold many; `FILE.csv` or "
    summary += "`FILE.tsv` with columns `path` and `label`"
    prefix = "list"
    endings = (".txt", *TABLES)

    @staticmethod
    def open(place: str, listings: Path | None) -> Images:
        """See `Format`."""
        file = Path(place).expanduser()
        if not file.is_file():
            raise DataError(f"The list {file} does not exist. Give a text file with one path a line.")
        ending = "" if file.suffix in TABLES else _first_ending(file)
        if (kind := holders().get(ending)) is None:
            return ListedImages(file)
        paths = [os.fsdecode(line) for line in lines(file).to_pylist()]
        if "://" in paths[0]:
            return open_addresses(paths)
        files = [file.parent / path for path in paths]
        if missing := [str(name) for name in files if not name.is_file() or name.suffix != ending]:
            raise DataError(
                f"{file} names {len(files)} files, and {len(missing)} of them are no {kind.files_title} that are "
                f"there, e.g. {missing[0]}. Paths are relative to the list's own folder."
            )
        return kind.open_files(files, listings)


def _first_ending(file: Path) -> str:
    """The ending of the first path in a list."""
    with open(file, "rb") as content:
        first = next((line for line in content if line.strip()), b"")
    return os.path.splitext(os.fsdecode(first.strip()))[1]
