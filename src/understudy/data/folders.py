"""Image files in a folder of any depth, listed in one pass."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from understudy.artifacts import fingerprint
from understudy.data.decode import EXTENSIONS, to_rgb
from understudy.data.images import Labels, sorted_classes
from understudy.errors import DataError, UnreadableImage


def scan(root: Path) -> tuple[list[bytes], list[int], list[int], list[str], int]:
    """One pass over a folder: image names, sizes and times, parquet names, and the number of other files.

    Folder by folder, each in the order of names: the same listing on any file system. Links to folders are followed,
    each real folder once. Names are bytes, as the file system has them: not every one is valid text.

    Raises:
        DataError: a folder may not be read.
    """
    names: list[bytes] = []
    sizes: list[int] = []
    times: list[int] = []
    parquet: list[str] = []
    others = 0
    endings = {ending.encode() for ending in EXTENSIONS}
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
                    elif ending == b".parquet":
                        parquet.append(os.fsdecode(below + name))
                    else:
                        others += 1
        except OSError as error:
            raise DataError(f"The folder {os.fsdecode(folder)} cannot be listed ({error.strerror}).") from None
        found.sort()
        for path, size, time in found:
            names.append(path)
            sizes.append(size)
            times.append(time)
        folders.extend(sorted(inner, reverse=True))
    return names, sizes, times, sorted(parquet), others


class FolderImages:
    """Image files below a folder. Labels: the class folders, where every image lies at `CLASS/FILE`.

    Args:
        root: the folder.
        names: paths below it.
        sizes: bytes of each file.
        times: modification times in nanoseconds.
    """

    def __init__(self, root: Path, names: Sequence[bytes], sizes: Sequence[int], times: Sequence[int]) -> None:
        self.root = os.fsencode(root)
        self.paths = pa.array(names, type=pa.large_binary())
        self.fingerprint = fingerprint(b"\0".join(names), np.asarray(sizes, np.int64), np.asarray(times, np.int64))

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
        found = self.paths.take(pa.array(rows))
        try:
            return found.cast(pa.large_string())
        except pa.ArrowInvalid:  # names that are no UTF-8
            return pa.array([name.decode(errors="replace") for name in found.to_pylist()], type=pa.large_string())

    def labels(self) -> Labels | None:
        """See `Images`. Folders at another depth (by date, by camera) are no classes, nor is a single folder."""
        if not pc.all(pc.equal(pc.count_substring(self.paths, "/"), 1)).as_py():
            return None
        folders = pc.list_element(pc.split_pattern(self.names(np.arange(len(self))), "/", max_splits=1), 0)
        encoded = folders.dictionary_encode()
        return sorted_classes(encoded) if len(encoded.dictionary) > 1 else None
