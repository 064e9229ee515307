"""Approximate cosine top-k with faiss, for sets whose exact search would take hours.

The index only proposes: its candidates are sorted by the same float64 cosine as the exact search, so it may miss
neighbours, but order and similarities of those found are right. How hard it looks (lists probed, or HNSW's search
depth) XX
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from understudy.errors import ConfigError, ShapeError
from understudy.neighbours.search import SPARE, Progress, Rows, check_k, refine, search

FEWEST_ROWS = 10_000  # below, the exact search is quicker than building an index, and lists are too short to cluster
AIM = 0.97
TUNED_ON = 256
RECALL_SAMPLE = 1000
LINKS = 32  # HNSW links per row
TRAINED_ON = 40  # rows per list that k-means sees; faiss warns below 39
QUERY_BLOCK = 4096
DEEPEST = 4096  # HNSW's search depth is not raised beyond
LEFT_TO_SEARCH_MB = 192  # of the budget, for the exact searches that check the index


def approximate(
    database: np.ndarray, k: int, *, kind: str, memory_mb: int = 1024, progress: Progress | None = None
) -> tuple[Int32[np.ndarray, "N k"], Float32[np.ndarray, "N k"], dict[str, Any]]:
    """The k nearest other rows of every row, nearly always.

    Args:
        database: (N, D) floating point; may be a memory map.
        k: neighbours per row, itself excluded by identity.
        kind: "ivf" (inverted lists, one byte per number; builds fast) or "hnsw" (a navigable graph over the same bytes;
            slower to build, and with several threads no two builds are quite the same).
        memory_mb: MiB for the index, its training and the results; faiss keeps them in memory, so what does not fit is
            an error.
        progress: called with (rows done, N, note).

    Returns:
        Indices and similarities as from `search`, and facts: the faiss index string, the effort it took, how many rows
        were completed by exact search because the index proposed too few candidates, and the recall on 1,000 rows.

    Raises:
        ConfigError: too few rows for an index, k too large, or a budget that the index does not fit.
        DataError: NaN or infinity among the rows.

    Source: Jegou, Douze, Schmid, "Product Quantization for Nearest Neighbor Search", 2011 (inverted lists); Malkov and
        Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World
        graphs", 2016 (HNSW); both as in the faiss library.
    """
    import faiss
    import torch

    count, width = database.shape
    if count < FEWEST_ROWS:
        raise ConfigError(
            f"neighbours.index = {kind} needs at least {FEWEST_ROWS:,} rows, the store has {count:,}. "
            "Set neighbours.index = exact: it is quicker at this size."
        )
    check_k(k, count, count - 1)
    lists = int(2 * count**0.5)
    trained = min(count, TRAINED_ON * lists)
    structure = 16 * lists * width if kind == "ivf" else 10 * LINKS * count
    need = (count * (width + 16 + 8 * k) + structure + 8 * trained * width >> 20) + 1
    if need + LEFT_TO_SEARCH_MB > memory_mb:
        raise ConfigError(
            f"A {kind} index over {count:,} rows of width {width} takes about {need + LEFT_TO_SEARCH_MB:,} MiB, and "
            f"neighbours.memory_mb allows {memory_mb:,}. Raise it, or set neighbours.index = exact, which takes longer."
        )
    rows = Rows(database, torch.device("cpu"), "embeddings")

    description = f"IVF{lists},SQ8" if kind == "ivf" else f"HNSW{LINKS}_SQ8"
    index = faiss.index_factory(width, description, faiss.METRIC_INNER_PRODUCT)
    draw = np.random.default_rng(0)
    index.train(rows.unit(np.sort(draw.choice(count, trained, replace=False)), torch.float32).numpy())
    for low in range(0, count, QUERY_BLOCK):
        block = np.arange(low, min(low + QUERY_BLOCK, count))
        index.add(rows.unit(block, torch.float32).numpy())
        if progress is not None:
            progress(int(block[-1]) + 1, count, f"building {description}")

    def propose(which: np.ndarray, effort: int) -> tuple[np.ndarray, np.ndarray]:
        if kind == "ivf":
            looks = faiss.SearchParametersIVF(nprobe=effort)
        else:
            looks = faiss.SearchParametersHNSW(efSearch=effort)
        found = index.search(rows.unit(which, torch.float32).numpy(), k + 1 + SPARE, params=looks)[1]
        return refine(rows, which, rows, torch.from_numpy(found), k, exclude=which)

    def settle(which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return search(database[which], database, k, exclude=which, memory_mb=memory_mb - need)

    tuned, measured = np.split(draw.choice(count, TUNED_ON + RECALL_SAMPLE, replace=False), [TUNED_ON])
    truth = settle(tuned)[1]
    effort, most = (4, lists) if kind == "ivf" else (2 * (k + 1 + SPARE), DEEPEST)
    while recall(propose(tuned, effort)[1], truth) < AIM and effort < most:
        effort = min(2 * effort, most)

    indices = np.empty((count, k), dtype=np.int32)
    similarities = np.empty((count, k), dtype=np.float32)
    for low in range(0, count, QUERY_BLOCK):
        block = np.arange(low, min(low + QUERY_BLOCK, count))
        indices[block], similarities[block] = propose(block, effort)
        if progress is not None:
            progress(int(block[-1]) + 1, count, f"searching {description}")
    short = np.flatnonzero(indices[:, -1] < 0)
    for low in range(0, len(short), QUERY_BLOCK):
        block = short[low : low + QUERY_BLOCK]
        indices[block], similarities[block] = settle(block)
    return (
        indices,
        similarities,
        {
            "faiss": description,
            "effort": effort,
            "completed_exactly": len(short),
            "recall": round(recall(similarities[measured], settle(measured)[1]), 5),
            "recall_sample": RECALL_SAMPLE,
        },
    )


def recall(similarities: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true k nearest neighbours that were found, in [0, 1].

    Counted by similarity: whatever is as near as the true k-th neighbour is right, so ties cannot be missed.

    Args:
        similarities: (M, k) of the neighbours found.
        truth: (M, k) of the true ones, nearest first.
    """
    if similarities.shape != truth.shape:
        raise ShapeError(f"Recall compares equal shapes; got {similarities.shape} and {truth.shape}.")
    return float(np.mean(similarities >= truth[:, -1:]))
