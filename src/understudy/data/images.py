"""What every kind of image storage offers to a `Source`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from PIL import Image

Labels = tuple[np.ndarray, list[str]]
"""(N,) int64 class numbers, and the names of the classes."""


@runtime_checkable
class Images(Protocol):
    """One kind of storage behind a `Source`. Picklable; files are opened on first use in each process."""

    fingerprint: str

    def __len__(self) -> int: ...

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
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    return rank[encoded.indices.to_numpy(zero_copy_only=False)], [names[i] for i in order]
