"""What every kind of image storage offers to a `Source`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from understudy.artifacts import fingerprint

Labels = tuple[np.ndarray, list[str]]
"""(N,) int64 class numbers, and the names of the classes."""

LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")
"""Names under which data sets keep one class per image."""

LONGEST = 65_536  # bytes of a path, more than any system allows
FRESH_NAMES = 65_536  # names that may be Python objects at once while a listing is made


@runtime_checkable
class Images(Protocol):
    """Images by row, whatever stores them: what a format opens, and what lies behind a `Source`.

    Differs from a `Source` in that it always holds all of them, in their own order, and reads nothing ahead. It is
    picklable: files are opened on first use in each process.
    """

    fingerprint: str  # changes when the set of images, their order or their content (by size and time) does

    def __len__(self) -> int:
        """How many."""

    def read(self, row: int) -> Image.Image:
        """The image as RGB. Raises `UnreadableImage`."""

    def names(self, rows: np.ndarray) -> pa.Array:
        """Names of these rows, as an Arrow string array."""

    def labels(self) -> Labels | None:
        """Labels of all rows, or None when there are none."""


def sorted_classes(encoded: pa.DictionaryArray) -> Labels:
    """Class numbers in the order of the sorted names."""
    names = [str(name) for name in encoded.dictionary.to_pylist()]
    order = sorted(range(len(names)), key=names.__getitem__)
    return np.argsort(order)[encoded.indices.to_numpy(zero_copy_only=False)], [names[i] for i in order]


def class_folders(paths: pa.Array) -> Labels | None:
    """The folders as classes, where every one of (N,) binary paths is `CLASS/FILE` and there are at least two."""
    if not pc.all(pc.equal(pc.count_substring(paths, "/"), 1)).as_py():
        return None
    folders = pc.list_element(pc.split_pattern(as_text(paths), "/", max_splits=1), 0)
    encoded = folders.dictionary_encode()
    return sorted_classes(encoded) if len(encoded.dictionary) > 1 else None


def below_common(paths: pa.Array) -> pa.Array:
    """(N,) binary paths without the folder that all of them lie in."""
    ends = pc.min_max(paths).as_py()  # what the first and the last in order share, all share
    pairs = enumerate(zip(ends["min"], ends["max"], strict=False))
    differ = next((place for place, (one, other) in pairs if one != other), 0)
    return pc.binary_slice(paths, ends["min"].rfind(b"/", 0, differ) + 1, stop=LONGEST)


def below_common_folder(files: Sequence[str]) -> list[str]:
    """The names of some files: their paths below the folder that all of them lie in."""
    paths = [os.path.abspath(file) for file in files]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common).replace(os.sep, "/") for path in paths]


def class_columns(values: pa.ChunkedArray, names: list[str] | None) -> Labels | None:
    """(N,) class numbers, with their names where they are known, or class names as labels; None where it is neither.

    -1 anywhere means no label.
    """
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return None if values.null_count else sorted_classes(values.combine_chunks().dictionary_encode())
    if not pa.types.is_integer(values.type) or values.null_count or len(values) == 0:
        return None
    numbers = values.to_numpy().astype(np.int64)
    if numbers.min() < 0:
        return None
    count = int(numbers.max()) + 1
    return numbers, names if names is not None and len(names) >= count else [str(i) for i in range(count)]


def as_text(names: pa.Array) -> pa.Array:
    """Names as text; bytes that are no UTF-8 are replaced."""
    try:
        return names.cast(pa.large_string())
    except pa.ArrowInvalid:
        return pa.array([name.decode(errors="replace") for name in names.to_pylist()], type=pa.large_string())


def numbered(titles: list[str], which: np.ndarray, rows: np.ndarray) -> pa.Array:
    """Names "TITLE:ROW" of n images that have none of their own: (n,) numbers of titles, (n,) rows."""
    chosen = pa.array(titles, type=pa.large_string()).take(pa.array(which))
    numbers = pa.array(rows).cast(pa.large_string())
    return pc.binary_join_element_wise(chosen, numbers, pa.scalar(":", pa.large_string()))


class Names:
    """Collects names into Arrow memory as a listing goes on, so that no Python object per image is left of it."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []
        self._fresh: list[bytes] = []

    def __len__(self) -> int:
        return sum(map(len, self._chunks)) + len(self._fresh)

    def extend(self, names: list[bytes]) -> None:
        """Add names at the end."""
        self._fresh += names
        if len(self._fresh) >= FRESH_NAMES:
            self._pack()

    def finish(self) -> pa.Array:
        """All names, (N,) large_binary in one piece."""
        self._pack()
        return pa.concat_arrays(self._chunks)

    def _pack(self) -> None:
        self._chunks.append(pa.array(self._fresh, type=pa.large_binary()))
        self._fresh = []


def listing_fingerprint(names: pa.Array, sizes: np.ndarray, times: np.ndarray) -> str:
    """Changes with the names (N,), large_binary, their order, and any size (N,) in bytes or time (N,), both int64."""
    offsets = np.frombuffer(names.buffers()[1], dtype=np.int64)[names.offset : names.offset + len(names) + 1]
    content = names.buffers()[2]
    written = memoryview(b"" if content is None else content)[offsets[0] : offsets[-1]]
    return fingerprint(written, np.diff(offsets), sizes, times)


class JoinedImages:
    """One storage or several as one, after each other; where they have labels, their class names are the same."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self.fingerprint = fingerprint([part.fingerprint for part in parts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, row: int) -> Image.Image:
        """See `Images`."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.parts[part].read(row - int(self.starts[part]))

    def names(self, rows: np.ndarray) -> pa.Array:
        """See `Images`."""
        rows = np.asarray(rows)
        part = np.searchsorted(self.starts, rows, side="right") - 1
        names = np.empty(len(rows), dtype=object)
        for number in np.unique(part).tolist():
            places = part == number
            names[places] = self.parts[number].names(rows[places] - self.starts[number]).to_pylist()
        return pa.array(names.tolist(), type=pa.large_string())

    def labels(self) -> Labels | None:
        """See `Images`."""
        labels = [labels for part in self.parts if (labels := part.labels()) is not None]
        if len(labels) < len(self.parts):
            return None
        assert all(names == labels[0][1] for _, names in labels)
        return np.concatenate([numbers for numbers, _ in labels]), labels[0][1]
