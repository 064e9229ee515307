"""What neighbors say: class predictions, by the weighted vote of kNN scoring, and how alike two neighborhoods are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from understudy.errors import ConfigError, DataError, ShapeError

ROWS = 4096  # of two neighborhoods compared at once: K x K comparisons each


def weighted_vote(
    neighbors: tuple[np.ndarray, np.ndarray], labels: np.ndarray, classes: int, ks: Sequence[int], *,
    temperature: float = 0.07, top: int = 5, memory_mb: int = 1024,
) -> dict[int, Int64[np.ndarray, "M top"]]:  # fmt: skip
    """Each neighbor votes for its class with weight exp(similarity / temperature).

    Args:
        neighbors: indices (M, K) of each query's neighbors, nearest first, and their cosines (M, K), as from `search`.
        labels: (N,) class of every database row, in [0, classes).
        classes: C.
        ks: how many of the nearest neighbors vote, each of them at most K.
        temperature: larger means more even votes.
        top: ranked classes returned per query (at most C).
        memory_mb: MiB for the tables of votes; queries are taken in blocks, never all M x C at once.

    Returns:
        For every k of `ks`, (M, top) int64 classes, most votes first, equal votes to the lower class. A place that no
        neighbor voted for is -1, so that a top-5 score never counts a class out of thin air.

    Raises:
        ConfigError: a k beyond the neighbors given, or a temperature that is not positive.
        ShapeError: indices and similarities of different shapes.
        DataError: a label outside [0, classes).

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018; the
        temperature is theirs.
    """
    indices, similarities = neighbors
    labels = np.asarray(labels)
    _check(neighbors, labels, classes, ks, temperature)
    top = min(top, classes)
    ranked = {k: np.empty((len(indices), top), dtype=np.int64) for k in ks}
    step = max(1, (memory_mb << 20) // (32 * classes + 32 * indices.shape[1]))
    for low in range(0, len(indices), step):
        cosines = similarities[low : low + step].astype(np.float64)
        # Weights relative to the nearest neighbor's: the same ranking, and no temperature overflows or ends at 0.
        weights = np.maximum(np.exp((cosines - cosines[:, :1]) / temperature), np.finfo(np.float64).tiny)
        slots = np.arange(len(cosines))[:, None] * classes + labels[indices[low : low + step]]
        for k in ks:
            votes = np.bincount(slots[:, :k].ravel(), weights[:, :k].ravel(), minlength=len(cosines) * classes)
            ranked[k][low : low + step] = _ranking(votes.reshape(len(cosines), classes), top)
    return ranked


def _ranking(votes: np.ndarray, top: int) -> np.ndarray:
    """(n, top) classes with the most of the votes (n, C), which are used up; -1 where there are no more."""
    ranking, rows = np.empty((len(votes), top), dtype=np.int64), np.arange(len(votes))
    for place in range(top):
        best = votes.argmax(axis=1)
        ranking[:, place] = np.where(votes[rows, best] > 0, best, -1)
        votes[rows, best] = 0.0
    return ranking


def _check(
    neighbors: tuple[np.ndarray, np.ndarray], labels: np.ndarray, classes: int, ks: Sequence[int], temperature: float
) -> None:
    """Refuse what `weighted_vote` says it refuses."""
    indices, similarities = neighbors
    if indices.shape != similarities.shape or indices.ndim != 2:
        raise ShapeError(f"indices {indices.shape} and similarities {similarities.shape} must be the same (M, K).")
    if wrong := [k for k in ks if not 1 <= k <= indices.shape[1]]:
        raise ConfigError(
            f"k = {wrong[0]} of {indices.shape[1]} neighbors cannot vote. Use k in 1..{indices.shape[1]}."
        )
    if not temperature > 0:
        raise ConfigError(f"The vote's temperature must be positive; got {temperature}.")
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise DataError(
            f"Labels run from {labels.min()} to {labels.max()}; with {classes} classes they lie in 0..{classes - 1}."
        )


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
