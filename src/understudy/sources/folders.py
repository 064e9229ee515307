"""Image files in a folder of any depth, listed in one pass, or named in a file."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from PIL import Image

from understudy.errors import DataError, UnreadableImage
from understudy.sources.decode import EXTENSIONS, to_rgb
from understudy.sources.images import (
    LABEL_COLUMNS,
    Labels,
    Names,
    as_text,
    below_common,
    class_columns,
    class_folders,
    listing_fingerprint,
)

CONTAINERS = (".parquet", ".tar", ".arrow")
"""Endings of files that hold many images each."""

PATH_COLUMNS = ("path", "file_name", "filename", "filepath", "file", "image")
"""Names under which tables keep the paths of images."""

STAT_THREADS = 16
"""On a network file system asking for a file's size takes a millisecond, and many may be asked for at once."""


@dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Args:
        names: (N,) large_binary, paths of the images below the folder.
        sizes: (N,) int64, bytes of each; -1 for a link to nothing.
        times: (N,) int64, modification times in nanoseconds.
        containers: files that hold many images each, by ending.
        others: how many other files there are.
    """

    names: pa.Array
    sizes: np.ndarray
    times: np.ndarray
    containers: dict[str, list[str]]
    others: int


def scan(root: Path) -> Listing:
    """One pass over a folder.

    Folder by folder, each in the order of names: the same listing on any file system. Links to folders are followed,
    each real folder once. Names are bytes, as the file system has them: not every one is valid text.

    Raises:
        DataError: a folder may not be read.
    """
    names = Names()
    sizes, times = array("q"), array("q")
    containers: dict[str, list[str]] = {ending: [] for ending in CONTAINERS}
    others = 0
    endings = {ending.encode() for ending in EXTENSIONS}
    holders = {ending.encode(): found for ending, found in containers.items()}
    top = os.fsencode(root)
    folders, seen = [b""], set()
    while folders:
        below = folders.pop()
        folder = os.path.join(top, below)
        inner: list[bytes] = []
        found: list[tuple[bytes, int, int]] = []
        try:
            state = os.stat(folder)
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith(b"."):
                        continue
                    ending = name[name.rfind(b".") :].lower()
                    if ending in endings and not entry.is_dir():
                        try:
                            file = entry.stat()
                        except OSError:  # a link to nothing is listed all the same, and reported when it is read
                            found.append((below + name, -1, -1))
                        else:
                            found.append((below + name, file.st_size, file.st_mtime_ns))
                    elif entry.is_dir():
                        inner.append(below + name + b"/")
                    elif ending in holders:
                        holders[ending].append(os.fsdecode(below + name))
                    else:
                        others += 1
        except OSError as error:
            raise DataError(f"The folder {os.fsdecode(folder)} cannot be listed ({error.strerror}).") from None
        found.sort()
        names.extend([path for path, _, _ in found])
        sizes.extend([size for _, size, _ in found])
        times.extend([time for _, _, time in found])
        folders.extend(sorted(inner, reverse=True))
    held = {ending: sorted(found) for ending, found in containers.items()}
    return Listing(names.finish(), np.asarray(sizes, np.int64), np.asarray(times, np.int64), held, others)


class FolderImages:
    """Image files below a folder. Labels: the class folders, where every image lies at `CLASS/FILE`.

    Args:
        root: the folder.
        names: (N,) paths below it.
        sizes: (N,) bytes of each file.
        times: (N,) modification times in nanoseconds.
    """

    def __init__(
        self, root: Path, names: pa.Array | Sequence[bytes], sizes: np.ndarray | Sequence[int],
        times: np.ndarray | Sequence[int],
    ) -> None:  # fmt: skip
        self.root = os.fsencode(root)
        self.paths = names if isinstance(names, pa.Array) else pa.array(names, type=pa.large_binary())
        self.fingerprint = listing_fingerprint(self.paths, np.asarray(sizes, np.int64), np.asarray(times, np.int64))

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, row: int) -> Image.Image:
        """See `Images`."""
        path = os.path.join(self.root, self.paths[row].as_py())
        shown = os.fsdecode(path)
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            raise UnreadableImage(f"{shown} cannot be opened ({error.strerror}).") from None
        return to_rgb(content, shown)

    def names(self, rows: np.ndarray) -> pa.Array:
        """See `Images`: paths below the folder."""
        return as_text(self.paths.take(pa.array(rows)))

    def labels(self) -> Labels | None:
        """See `Images`. Folders at another depth (by date, by camera) are no classes, nor is a single folder."""
        return class_folders(self.paths)


class ListedImages(FolderImages):
    """Image files named in a text file, one path a line, or in a table with a column of paths.

    Paths are relative to the file's folder, or absolute. Labels: the table's column of classes; without one the
    folders, where all paths have one folder in common and lie at `CLASS/FILE` below it.

    Args:
        file: the list. Ending .csv or .tsv: a table with a header, else plain lines; empty lines are passed over.

    Raises:
        DataError: it cannot be read, names nothing, or has no column of paths.
    """

    def __init__(self, file: Path) -> None:
        self._labels: Labels | None = None
        if file.suffix in (".csv", ".tsv"):
            paths, self._labels = _table(file)
        else:
            paths = lines(file)
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
        if self._labels is not None:
            return self._labels
        return class_folders(below_common(self.paths))

    def _states(self, paths: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Size and time of every file, -1 for those that are not there: they are reported when they are read."""
        sizes, times = np.full(len(paths), -1, np.int64), np.full(len(paths), -1, np.int64)

        def look(low: int) -> None:
            for place, path in enumerate(paths[low : low + 1000].to_pylist(), low):
                try:
                    state = os.stat(os.path.join(self.root, path))
                except OSError:
                    continue
                sizes[place], times[place] = state.st_size, state.st_mtime_ns

        with ThreadPoolExecutor(STAT_THREADS) as pool:
            for _ in pool.map(look, range(0, len(paths), 1000)):
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
                *whole, rest = (rest + block).split(b"\n")
                names.extend([line for line in map(bytes.strip, whole) if line])
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
    found = table.column(paths).cast(pa.large_string()).combine_chunks().cast(pa.large_binary())
    return found, None if label is None else class_columns(table.column(label), None)
