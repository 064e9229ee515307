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
from understudy.sources.decode import to_rgb
from understudy.sources.labels import Labels, Part, joined

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

    def content(self, row: int) -> bytes | memoryview:
        """What the image is made from, byte for byte: its file, or its pixels where those are stored.

        Raises:
            UnreadableImage: it cannot be read.
        """

    def names(self, rows: np.ndarray) -> pa.Array:
        """Names of these rows, as an Arrow string array."""

    def labels(self) -> Labels | None:
        """Labels of all rows, or None when there are none.

        Raises:
            Unlabeled: there are some, at least in part, and they cannot be used.
        """


def below_common_folder(files: Sequence[str]) -> list[str]:
    """The names of some files: their paths below the folder that all of them lie in."""
    paths = [os.path.abspath(file) for file in files]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common).replace(os.sep, "/") for path in paths]


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


class EncodedImages:
    """A storage of image files: an image is what its content decodes to."""

    def content(self, row: int) -> bytes | memoryview:
        """See `Images`."""
        raise NotImplementedError

    def title(self, row: int) -> str:
        """What sentences call the image."""
        raise NotImplementedError

    def read(self, row: int) -> Image.Image:
        """See `Images`."""
        return self.decode(row, self.content(row))

    def decode(self, row: int, content: bytes | memoryview) -> Image.Image:
        """The image of a row whose content is at hand."""
        return to_rgb(content, lambda: self.title(row))


class JoinedImages:
    """One storage or several as one, after each other; a class is what has the same name in each."""

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

    def content(self, row: int) -> bytes | memoryview:
        """See `Images`."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.parts[part].content(row - int(self.starts[part]))

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
        return joined(Part(f"part {i}", *of_part, "", declared=True) for i, of_part in enumerate(labels, 1))
