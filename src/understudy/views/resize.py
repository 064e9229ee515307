"""Pillow's bilinear enlarging of many small images at once, bit for bit.

Pillow's arithmetic is whole-numbered: weights of 22 bits, rows first, then columns, rounded to 8 bits in between. So
there is nothing to approximate: an output line is two input lines times weights from a table of all lengths. Shrinking
is left to Pillow, whose versions differ in which axis then comes first.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int64, UInt8


def enlarge_lines(
    lines: UInt8[np.ndarray, "B L M"], start: Int64[np.ndarray, " B"], length: Int64[np.ndarray, " B"], size: int,
    flip: np.ndarray | None = None,
) -> UInt8[np.ndarray, "BS M"]:  # fmt: skip
    """Stretch the lines start ... start + length of each image, along its second axis, to `size` lines (S).

    At most L lines become S >= L; those of images whose `flip` (B,) is not zero come out in reverse.
    """
    batch, longest, across = lines.shape
    assert longest <= size, f"{longest} lines are not enlarged to {size}"
    places, weights = _weights(longest, size)
    places, weights = places[length] + (np.arange(batch) * longest + start)[:, None, None], weights[length]
    if flip is not None:
        mirrored = np.flatnonzero(flip)
        places[mirrored], weights[mirrored] = places[mirrored, ::-1], weights[mirrored, ::-1]
    flat = lines.reshape(batch * longest, across)
    total = np.full((batch * size, across), 1 << 21, dtype=np.int32)
    for tap in (0, 1):
        gathered = flat.take(places[:, :, tap].ravel(), axis=0).astype(np.int32)
        gathered *= weights[:, :, tap].reshape(-1, 1)
        total += gathered
    total >>= 22
    return total.astype(np.uint8)


@functools.lru_cache(maxsize=8)
def _weights(longest: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """For every length up to `longest`: the two lines that make up each of `size` lines, and their weights times 2^22.

    Source: Pillow, `src/libImaging/Resample.c`: precompute_coeffs, bilinear_filter and normalize_coeffs_8bpc.
    """
    places = np.zeros((longest + 1, size, 2), dtype=np.int64)
    weights = np.zeros((longest + 1, size, 2), dtype=np.int32)
    for length in range(1, longest + 1):
        for line in range(size):
            middle = (line + 0.5) * (length / size)
            lines = range(max(int(middle - 0.5), 0), min(int(middle + 1.5), length))
            shares = [(x, 1.0 - abs(x - middle + 0.5)) for x in lines if abs(x - middle + 0.5) < 1.0]
            total = sum(share for _, share in shares)
            for tap, (x, share) in enumerate(shares):
                places[length, line, tap] = x
                weights[length, line, tap] = int(0.5 + share / total * (1 << 22))
    return places, weights
