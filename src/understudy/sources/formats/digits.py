"""The handwritten digits that scikit-learn brings along: images without any file."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from understudy.errors import DataError
from understudy.philox import SUBSET, permutation
from understudy.sources.formats import Format
from understudy.sources.formats.npy import ArrayImages
from understudy.sources.images import Images


class Digits(Format):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grayscale, upscaled to 32 x 32 RGB."""

    name = "digits"
    form = "digits"
    summary = "scikit-learn's handwritten digits, 32 x 32; also `digits:train`, `digits:test`, a fixed random 80 / 20"
    prefix = "digits"

    @staticmethod
    def halves(spec: str) -> tuple[str, str] | None:
        """See `Format`."""
        return ("digits:train", "digits:test") if spec == "digits" else None

    @staticmethod
    def open(place: str, listings: Path | None) -> Images:
        """All digits for "", those of a fixed random 80 / 20 split for "train" and "test"; see `Format`.

        Raises:
            DataError: another split.
        """
        if place not in ("", "train", "test"):
            raise DataError(f"The digits have the splits train and test; got 'digits:{place}'.")
        pixels, labels = _pixels_and_labels()
        order = permutation(0, SUBSET, 0, len(pixels))
        test = len(pixels) // 5
        rows = np.sort({"": order, "train": order[test:], "test": order[:test]}[place])
        return ArrayImages(pixels[rows], (labels[rows], [str(digit) for digit in range(10)]))


@functools.cache
def _pixels_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 32, 32, 3) uint8 and (1797,) int64, from scikit-learn's file: importing it would take seconds."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    small = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    large = (Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC) for image in small)
    return np.stack([np.asarray(image.convert("RGB")) for image in large]), table[:, -1].astype(np.int64)
