"""Images, or files of images, that a text file or a table names."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from understudy.artifacts import open_regular
from understudy.errors import DataError, first_line
from understudy.sources.decode import EXTENSIONS
from understudy.sources.formats import Format, holders, split_image
from understudy.sources.formats.address import open_addresses
from understudy.sources.formats.folder import FolderImages
from understudy.sources.images import Images, Names
from understudy.sources.labels import (
    LABEL_COLUMNS,
    WHOLE,
    Labels,
    below_common,
    class_folders,
    column_labels,
    column_named,
)

TABLES = (".csv", ".tsv")  # endings of lists that are tables with a header
PATH_COLUMNS = ("path", "file_name", "filename", "filepath", "file", "image")
"""Names under which tables keep the paths of images."""

BLOCK = 2**20  # bytes of a list read at once
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
STAT_THREADS = 16
"""On a network file system asking for a file's size takes a millisecond, and many may be asked for at once."""


class ListedImages(FolderImages):
    """Image files named in a text file, one path a line, or in a table with a column of paths.

    Paths are relative to the file's folder, absolute, or begin with `~`; those that Windows wrote with backslashes are
    understood. Labels: the table's column of classes; without one the folders, where all paths have one folder in
    common and lie at `CLASS/FILE` below it. A table (.csv, .tsv) has a header, in any case of letters; of plain lines
    empty ones are passed over. The text is UTF-8, or UTF-16 with a byte-order mark.

    Raises:
        DataError: it cannot be read, names nothing, or has no column of paths.
    """

    def __init__(self, file: Path) -> None:
        paths, self._column = _table(file) if file.suffix.lower() in TABLES else (lines(file), None)
        paths = _as_here(paths, file.parent)
        self.file = file.name
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
        if self._column is None:
            return class_folders(below_common(self.paths))
        name, values = self._column
        part = column_labels(values, self.file, name, lambda row: f"row {row + 1}")
        return part.numbers, part.names

    def _states(self, paths: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Size and time of every file, -1 for those that are not there: they are reported when they are read."""
        sizes, times = np.full(len(paths), -1, np.int64), np.full(len(paths), -1, np.int64)

        def read_states(low: int) -> None:
            for place, path in enumerate(paths[low : low + 1000].to_pylist(), low):
                try:
                    state = os.stat(os.path.join(self.root, path))
                except (OSError, ValueError):  # a name may hold a null byte
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
        with open_regular(file) as content:
            for block in _text(content):
                *complete, rest = (rest + block).split(b"\n")
                names.extend([line for line in map(bytes.strip, complete) if line])
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The list {file} cannot be read ({first_line(error)}).") from None
    names.extend([rest.strip()] if rest.strip() else [])
    return names.finish()


def _text(content: BinaryIO) -> Iterator[bytes]:
    """The text of a file in blocks, as UTF-8 without a byte-order mark."""
    block = content.read(BLOCK)
    if not block.startswith(UTF_16):
        yield block.removeprefix(codecs.BOM_UTF8)
        while block := content.read(BLOCK):
            yield block
        return
    decoder = codecs.getincrementaldecoder("utf-16")()
    while block:
        yield decoder.decode(block).encode()
        block = content.read(BLOCK)


def _as_here(paths: pa.Array, folder: Path) -> pa.Array:
    """(N,) paths of a list as this machine writes them: `~` is a home, and backslashes are slashes if Windows' were."""
    place = pc.index(pc.match_substring(paths, "\\"), value=True).as_py()
    # Elsewhere a backslash is a letter like any other.
    if place >= 0 and not os.path.lexists(os.path.join(os.fsencode(folder), paths[place].as_py().replace(b"\0", b""))):
        paths = pc.replace_substring(paths, "\\", "/")
    if pc.any(pc.starts_with(paths, "~")).as_py():
        homes = (os.path.expanduser(path) for path in paths.to_pylist())
        paths = pa.array(homes, type=pa.large_binary())
    return paths


def _table(file: Path) -> tuple[pa.Array, tuple[str, pa.ChunkedArray] | None]:
    """Paths of a table with a header, and the name and the values of its column of labels."""
    table = _read_csv(file, {})
    try:
        paths, label = (column_named(table.column_names, wanted) for wanted in (PATH_COLUMNS, LABEL_COLUMNS))
    except DataError as error:
        raise DataError(f"The list {file} cannot be read. {error}") from None
    if paths is None or not pa.types.is_string(table.schema.field(paths).type):
        raise DataError(
            f"The list {file} has no column of paths: its columns are {', '.join(table.column_names)}. Name one "
            f"{' or '.join(PATH_COLUMNS[:2])}."
        )
    names = table.column(paths).cast(pa.large_string()).combine_chunks().cast(pa.large_binary())
    if label is None:
        return names, None
    values = table.column(label)
    if pa.types.is_floating(
        values.type
    ):  # whole numbers beyond 64 bits are among them, and would lose their last digits
        texts = pc.replace_substring_regex(_read_csv(file, {label: pa.large_string()}).column(label), r"\.0*$", "")
        values = texts if pc.all(pc.match_substring_regex(texts, f"^{WHOLE.pattern}$")).as_py() else values
    return names, (label, values)


def _read_csv(file: Path, types: dict[str, pa.DataType]) -> pa.Table:
    try:
        with open_regular(file) as content:
            encoding = "utf-16" if content.read(2) in UTF_16 else "utf8"
            content.seek(0)
            table = pa.csv.read_csv(
                content,
                read_options=pa.csv.ReadOptions(encoding=encoding),
                parse_options=pa.csv.ParseOptions(delimiter="\t" if file.suffix.lower() == ".tsv" else ","),
                convert_options=pa.csv.ConvertOptions(column_types=types),
            )
            table.schema.names  # noqa: B018  # names are decoded here
            return table
    except (OSError, UnicodeError, pa.ArrowException) as error:
        raise DataError(f"The list {file} is not a table that can be read ({first_line(error)}).") from None


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
        place, image = split_image(place)
        file = Path(place)
        if not os.path.isfile(file):
            raise DataError(f"The list {file} does not exist. Give a text file with one path a line.")
        ending = "" if file.suffix.lower() in TABLES else _first_ending(file)
        if (kind := holders().get(ending)) is None:
            if image:
                raise DataError(f"{file} lists images, and '#{image}' says which extension or column of files is one.")
            return ListedImages(file)
        paths = lines(file)
        if b"://" in paths[0].as_py():
            return open_addresses([os.fsdecode(path) for path in paths.to_pylist()], image)
        files = [file.parent / os.fsdecode(path) for path in _as_here(paths, file.parent).to_pylist()]
        if missing := [str(name) for name in files if not os.path.isfile(name) or name.suffix.lower() != ending]:
            raise DataError(
                f"{file} names {len(files)} files, and {len(missing)} of them are no {kind.files_title} that are "
                f"there, e.g. {missing[0]!r}. Paths are relative to the list's own folder."
            )
        return kind.open_files(files, listings, image)


def _first_ending(file: Path) -> str:
    """The ending of the first path in a list."""
    try:
        with open_regular(file) as content:
            first = next((line for block in _text(content) for line in block.split(b"\n") if line.strip()), b"")
    except (OSError, UnicodeDecodeError):  # said by whoever reads all of it
        return ""
    return os.path.splitext(os.fsdecode(first.strip()))[1].lower()
