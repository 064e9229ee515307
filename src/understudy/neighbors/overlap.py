"""How alike two neighborhoods are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from understudy.errors import ConfigError, ShapeError

ROWS = 4096  # rows compared at once: K x K comparisons each


def neighbor_overlap(first: np.ndarray, second: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Mean share of the k nearest neighbors that two searches over the same images have in common.

    Args:
        first: (M, >= max k) neighbor indices, nearest first, no index twice in a row.
        second: the same queries in another space.
        ks: sizes of the neighborhoods compared.

    Returns:
        `{k: share}`, shares in [0, 1]; two random neighborhoods of N images share about k / N.

    Raises:
        ShapeError: different numbers of queries, or none.
        ConfigError: a k beyond the neighbors given.
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second) or not len(first):
        raise ShapeError(f"Overlap compares neighbors of the same queries; got {first.shape} and {second.shape}.")
    width = min(first.shape[1], second.shape[1])
    if wrong := [k for k in ks if not 1 <= k <= width]:
        raise ConfigError(f"The overlap at k = {wrong[0]} needs that many neighbors; {width} are given.")
    return {k: float(shared_by_image(first, second, k).mean()) for k in ks}


def shared_by_image(first: np.ndarray, second: np.ndarray, k: int) -> Float64[np.ndarray, " M"]:
    """Share of the k nearest neighbors that two searches (M, >= k) have in common, as `neighbor_overlap` by query."""
    common = np.empty(len(first), dtype=np.float64)
    for low in range(0, len(first), ROWS):
        same = first[low : low + ROWS, :k, None] == second[low : low + ROWS, None, :k]
        common[low : low + ROWS] = same.sum(axis=(1, 2)) / k
    return common
