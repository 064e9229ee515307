"""Decoded images in one array: a `.npy` file, or an array in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from understudy.artifacts import check_regular, fingerprint
from understudy.errors import DataError, UnreadableImage, first_line
from understudy.sources.formats import Format
from understudy.sources.images import Images, numbered
from understudy.sources.labels import Labels


class ArrayImages:
    """Decoded images in one array, in memory or memory-mapped from a `.npy` file.

    Args:
        pixels: uint8 (N, H, W, 3), (N, H, W) or (N, 3, H, W), or the file that holds it.
        labels: class numbers and names, if known.
        unreadable: rows whose source could not be decoded, with the sentence that says why.

    Raises:
        DataError: another shape or type; both are in the sentence.
    """

    def __init__(
        self, pixels: np.ndarray | Path, labels: Labels | None = None, unreadable: dict[int, str] | None = None
    ) -> None:
        self.path = None if isinstance(pixels, np.ndarray) else os.fspath(pixels)
        self._array = pixels if isinstance(pixels, np.ndarray) else None
        self._given_labels = labels
        self.unreadable = unreadable or {}
        shape, kind = self.array.shape, self.array.dtype
        title = self.path or "The array"
        if kind != np.uint8:
            raise DataError(
                f"{title} holds {kind}, images must be uint8 in 0..255. Scale it and convert it with .astype."
            )
        self.channels_last = len(shape) == 4 and shape[3] == 3
        if not (self.channels_last or len(shape) == 3 or (len(shape) == 4 and shape[1] == 3)) or 0 in shape:
            raise DataError(
                f"{title} has shape {shape}; images are (N, H, W, 3), (N, H, W) or (N, 3, H, W), at least one."
            )
        if self.path is None:
            self.fingerprint = fingerprint(self.array)
        else:
            state = os.stat(self.path)
            self.fingerprint = fingerprint(os.path.basename(self.path), state.st_size, state.st_mtime_ns)

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled with all its content; another process maps the file itself.
        return {**self.__dict__, "_array": self._array if self.path is None else None}

    @property
    def array(self) -> np.ndarray:
        """The array as it was given."""
        if self._array is None:
            assert self.path is not None
            self._array = mapped_array(self.path)
        return self._array

    @property
    def pixels(self) -> np.ndarray | None:
        """uint8 (N, H, W, 3) when that is how it is stored, for reading a whole batch at once; else None."""
        return self.array if self.channels_last else None

    def __len__(self) -> int:
        return len(self.array)

    def read(self, row: int) -> Image.Image:
        """See `Images`."""
        if row in self.unreadable:
            raise UnreadableImage(self.unreadable[row])
        image = self.array[row]
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        elif not self.channels_last:
            image = image.transpose(1, 2, 0)
        return Image.fromarray(np.ascontiguousarray(image))

    def content(self, row: int) -> bytes | memoryview:
        """See `Images`."""
        return self.read(row).tobytes()

    def names(self, rows: np.ndarray) -> pa.Array:
        """See `Images`: FILE:ROW."""
        title = "array" if self.path is None else os.path.basename(self.path)
        return numbered([title], np.zeros(len(rows), np.int64), np.asarray(rows))

    def labels(self) -> Labels | None:
        """See `Images`."""
        return self._given_labels


def mapped_array(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of a `.npy` file, mapped into memory: what its header says is held to what the file has.

    Raises:
        DataError: it is none.
    """
    try:
        check_regular(path)
        return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}).") from None
    except Exception as error:  # of a damaged header numpy raises nearly anything
        raise DataError(f"{path} is not a .npy file that can be read ({first_line(error)}).") from None


class Npy(Format):
    """One array in a file."""

    name = "npy"
    form = "*.npy"
    summary = "uint8, (N, H, W, 3), (N, H, W) or (N, 3, H, W)"
    endings = (".npy",)

    @staticmethod
    def open(place: str, listings: Path | None) -> Images:
        """See `Format`."""
        return ArrayImages(Path(os.path.expanduser(place)))
