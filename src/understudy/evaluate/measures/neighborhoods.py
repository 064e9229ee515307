"""Trustworthiness and continuity: how few strangers enter a neighborhood, weighted by how far they rank."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int

from understudy.neighbors.search import search

RANKS = 1 << 22
"""Ranks held at once."""


def trustworthiness(
    original: Float[np.ndarray, "N F1"], mapped: Float[np.ndarray, "N F2"], k: int, memory_mb: int = 1024,
    device: str | torch.device = "cpu",
) -> float:  # fmt: skip
    """1 - 2 / (N k (2N - 3k - 1)) * the sum of max(0, rank in `original` - k) over all k-neighbors in `mapped`.

    In [0, 1]; 1 if every neighborhood of k < N / 2 images is kept. scikit-learn's `trustworthiness` takes Euclidean
    neighbors in the mapped space; here both spaces are under cosine. Continuity is the same with the roles exchanged.
    Beside the memory of the search 4 million ranks (48 MiB) are held.

    Source:
        Venna & Kaski, "Neighborhood preservation in nonlinear projection methods", ICANN 2001.
    """
    count = len(original)
    assert len(mapped) == count, (len(mapped), count)
    assert 0 < 2 * k < count, (k, count)
    everyone = np.arange(count)
    neighbors = search(mapped, mapped, k, exclude=everyone, memory_mb=memory_mb, device=device)[0]
    block = max(1, RANKS // count)
    penalty = 0
    for start in range(0, count, block):
        rows = everyone[start : start + block]
        order, _ = search(original[rows], original, count - 1, exclude=rows, memory_mb=memory_mb, device=device)
        ranks = np.zeros((len(rows), count), dtype=np.int32)
        np.put_along_axis(ranks, order, np.arange(1, count, dtype=np.int32)[None], axis=1)
        penalty += int(np.maximum(np.take_along_axis(ranks, neighbors[rows], axis=1) - k, 0).sum(dtype=np.int64))
    return 1.0 - penalty * 2.0 / (count * k * (2 * count - 3 * k - 1))


def neighbor_order(unit: Float[np.ndarray, "N F"]) -> Int[np.ndarray, "N M"]:
    """(N, N - 1) the other images by falling cosine, equal ones by row."""
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    order: np.ndarray = np.argsort(-cosines, axis=1, kind="stable")[:, :-1].astype(np.int32)
    return order


def trust_and_continuity(
    original: Int[np.ndarray, "N M"], mapped: Int[np.ndarray, "N M"], part: Int[np.ndarray, " n"], k: int
) -> tuple[float, float]:
    """Both among the images at `part`, from `neighbor_order` of all: nothing is sorted again."""
    count = len(part)
    place = np.full(len(original), -1, dtype=np.int32)
    place[part] = np.arange(count)
    orders = [
        order_of_part[order_of_part >= 0].reshape(count, count - 1)
        for order_of_part in (place[order[part]] for order in (original, mapped))
    ]
    scores = []
    for here, there in (orders, orders[::-1]):
        ranks = np.empty((count, count), dtype=np.int32)
        np.put_along_axis(ranks, here, np.arange(1, count, dtype=np.int32)[None], axis=1)
        penalty = np.maximum(np.take_along_axis(ranks, there[:, :k], axis=1) - k, 0).sum(dtype=np.int64)
        scores.append(float(1.0 - penalty * 2.0 / (count * k * (2 * count - 3 * k - 1))))
    return scores[0], scores[1]
