"""Approximate cosine top-k, for sets whose exact search would take hours.

Either way only proposes: its candidates are sorted by the same float64 cosine as the exact search, so it may miss
neighbors, but order and similarities of those found are right. How much of the index is
searched is set by measuring: as little as finds `AIM` of the true neighbors of a sample.
"""

from __future__ import annotations

from typing import Any, Protocol

import faiss
import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64

from understudy.errors import ConfigError, ShapeError
from understudy.neighbors.search import (
    LARGEST_BLOCK,
    LOWEST_KEY,
    SPARE,
    Progress,
    Rows,
    check_k,
    keys_indices,
    keys_of,
    keys_values,
    refine,
    search,
)

FEWEST_ROWS = 10_000  # below, the exact search is quicker than grouping rows, and lists are too short to cluster
AIM = 0.97
TUNED_ON = 256
RECALL_SAMPLE = 1000
LINKS = 32  # HNSW links per row
TRAINED_ON = 40  # rows per list that k-means sees; faiss warns below 39
ROUNDS = 8  # of k-means; more of them change the recall in the third digit
FEWEST_LISTS = 4  # searched for every row
SLAB = 131_072  # rows whose neighbors are searched together: enough of them meet in each list for a large product
TILE = 2048  # ... of which so many are multiplied at once
QUERY_BLOCK = 4096
DEEPEST = 4096  # HNSW's search depth is not raised beyond
LEFT_TO_SEARCH_MB = 192  # of the budget, for the exact searches that check the result


def approximate(
    database: np.ndarray, k: int, *, kind: str, memory_mb: int = 1024, progress: Progress | None = None
) -> tuple[Int32[np.ndarray, "N k"], Float32[np.ndarray, "N k"], dict[str, Any]]:
    """The k nearest other rows of every row, nearly always.

    Args:
        database: (N, D) floating point; may be a memory map.
        k: neighbors per row, itself excluded by identity.
        kind: "ivf" (inverted lists: rows are grouped around 2 sqrt(N) centroids, and for each the lists with the
            nearest centroids are searched) or "hnsw" (faiss' navigable graph over one byte per number; slower, and with
            several threads no two builds are quite the same).
        memory_mb: MiB for grouping or index, and for the results; what does not fit is an error.
        progress: called with (rows done, N, note).

    Returns:
        Indices and similarities as from `search`, and facts: what was built, the effort (lists searched, or search
        depth), how many rows were completed by exact search for want of candidates, and the recall on 1,000 rows.

    Raises:
        ConfigError: too few rows, k too large, or a budget too small.
        DataError: NaN or infinity among the rows.

    Source: Jegou, Douze, Schmid, "Product Quantization for Nearest Neighbor Search", 2011 (inverted lists); Malkov and
        Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World
        graphs", 2016 (HNSW).
    """
    count, width = database.shape
    if count < FEWEST_ROWS:
        raise ConfigError(
            f"neighbors.index = {kind} needs at least {FEWEST_ROWS:,} rows, the store has {count:,}. "
            "Set neighbors.index = exact: it is quicker at this size."
        )
    check_k(k, count, count - 1)
    need = (_Lists if kind == "ivf" else _Links).bytes(count, width, k)
    _check_budget(kind, count, width, need, memory_mb)
    rows = Rows(database, torch.device("cpu"), "embeddings")
    draw = np.random.default_rng(0)
    index: _Index = _Lists(rows, draw) if kind == "ivf" else _Links(rows, draw, progress)

    def exactly(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        budget = max(LEFT_TO_SEARCH_MB, memory_mb - (need >> 20))
        return search(database[block], database, k, exclude=block, memory_mb=budget)

    sample = draw.choice(count, TUNED_ON + RECALL_SAMPLE, replace=False)
    truth = exactly(sample)
    index.tune(sample[:TUNED_ON], truth[0][:TUNED_ON], truth[1][:TUNED_ON], aim=AIM)
    _check_budget(kind, count, width, need + index.bytes_of_effort, memory_mb)
    indices, similarities = _refined_candidates(index, rows, k, progress)
    short = np.flatnonzero(indices[:, -1] < 0)
    for low in range(0, len(short), QUERY_BLOCK):
        block = short[low : low + QUERY_BLOCK]
        indices[block], similarities[block] = exactly(block)
    measured = {
        "built": index.title,
        "effort": index.effort,
        "completed_exactly": len(short),
        "recall": round(recall(similarities[sample[TUNED_ON:]], truth[1][TUNED_ON:]), 5),
        "recall_sample": RECALL_SAMPLE,
    }
    return indices, similarities, measured


def _refined_candidates(index: _Index, rows: Rows, k: int, progress: Progress | None) -> tuple[np.ndarray, np.ndarray]:
    """The k best of what an index proposes for every row; index -1 in places for which it proposes nothing."""
    indices = np.empty((rows.count, k), dtype=np.int32)
    similarities = np.empty((rows.count, k), dtype=np.float32)
    index.prepare(progress)
    for low in range(0, rows.count, index.slab):
        block = np.arange(low, min(low + index.slab, rows.count))
        candidates = index.propose(block, k + SPARE)
        indices[block], similarities[block] = refine(rows, block, rows, candidates, k, exclude=block)
        if progress is not None:
            progress(int(block[-1]) + 1, rows.count, f"searching {index.title}")
    return indices, similarities


def _check_budget(kind: str, count: int, width: int, need: int, memory_mb: int) -> None:
    mib = (need >> 20) + 1 + LEFT_TO_SEARCH_MB
    if mib > memory_mb:
        raise ConfigError(
            f"A {kind} index over {count:,} rows of width {width} takes about {mib:,} MiB, and neighbors.memory_mb "
            f"allows {memory_mb:,}. Raise it, or set neighbors.index = exact, which takes longer."
        )


class _Index(Protocol):
    """Something that proposes neighbors."""

    title: str
    effort: int
    slab: int

    @property
    def bytes_of_effort(self) -> int:
        """Memory that depends on the effort."""

    def tune(self, rows: np.ndarray, indices: np.ndarray, similarities: np.ndarray, *, aim: float) -> None:
        """Set the effort so that `aim` of these rows' true neighbors are found."""

    def prepare(self, progress: Progress | None) -> None:
        """What remains to be done once the effort is known."""

    def propose(self, rows: np.ndarray, count: int) -> Any:
        """(n, m) int64 tensor: about `count` candidates for each row, itself perhaps among them; -1 is none."""


class _Lists:
    """Rows grouped around centroids, each group searched by one matrix product for all rows that need it.

    faiss' inverted lists are searched row by row, ten times slower: here every row is a query, so that hundreds meet in
    each list. The sample that k-means sees is drawn.
    """

    slab = SLAB

    @staticmethod
    def bytes(count: int, width: int, k: int) -> int:
        """Memory without what depends on the effort."""
        lists = int(2 * count**0.5)
        wide = k + SPARE
        tiles = TILE * (width * 8 + 12 * wide) + LARGEST_BLOCK * (TILE + width) * 4
        return count * (24 + 8 * k) + 8 * min(count, TRAINED_ON * lists) * width + 24 * SLAB * wide + tiles

    def __init__(self, rows: Rows, draw: np.random.Generator) -> None:
        self.rows, self.lists, self.effort = rows, int(2 * rows.count**0.5), FEWEST_LISTS
        self.title = f"IVF{self.lists}"
        trained = min(rows.count, TRAINED_ON * self.lists)
        sample = np.sort(draw.choice(rows.count, trained, replace=False))
        means = faiss.Kmeans(
            rows.width, self.lists, niter=ROUNDS, spherical=True, seed=0, max_points_per_centroid=TRAINED_ON,
            min_points_per_centroid=1,
        )  # fmt: skip
        means.train(rows.unit(sample, torch.float32).numpy())
        self.centroids = torch.from_numpy(means.centroids)

    @property
    def bytes_of_effort(self) -> int:
        """See `_Index`."""
        return int(self.effort * (2 * self.rows.count + 20 * SLAB))

    def nearest(self, rows: np.ndarray, lists: int) -> Int64[np.ndarray, "n lists"]:
        """The lists with the nearest centroids, nearest first."""
        numbers = np.empty((len(rows), lists), dtype=np.int64)
        for low in range(0, len(rows), QUERY_BLOCK):
            part = slice(low, low + QUERY_BLOCK)
            similarity = torch.mm(self.rows.unit(rows[part], torch.float32), self.centroids.T)
            numbers[part] = torch.topk(similarity, lists, dim=1).indices.numpy()
        return numbers

    def tune(self, rows: np.ndarray, indices: np.ndarray, similarities: np.ndarray, *, aim: float) -> None:  # noqa: ARG002
        """See `_Index`. A neighbor is found when its list is searched: no search is needed to count that."""
        ranks = np.argsort(self.nearest(rows, self.lists), axis=1)
        homes = self.nearest(indices.ravel(), 1).reshape(indices.shape)
        neighbor_ranks = np.sort(np.take_along_axis(ranks, homes, axis=1), axis=None)
        place = min(int(np.ceil(aim * len(neighbor_ranks))), len(neighbor_ranks)) - 1
        self.effort = min(max(FEWEST_LISTS, int(neighbor_ranks[max(place, 0)]) + 1), self.lists)

    def prepare(self, progress: Progress | None) -> None:
        """See `_Index`: the lists that are searched for every row; the first of them is the one it is in."""
        count = self.rows.count
        kind = np.uint16 if self.lists <= 2**16 else np.int32
        self.searched = np.empty((count, self.effort), dtype=kind)
        for low in range(0, count, SLAB):
            block = np.arange(low, min(low + SLAB, count))
            for start in range(0, len(block), QUERY_BLOCK):
                part = block[start : start + QUERY_BLOCK]
                self.searched[part] = self.nearest(part, self.effort)
            if progress is not None:
                progress(int(block[-1]) + 1, count, f"grouping into {self.title}")
        homes = self.searched[:, 0]
        self.members = np.argsort(homes, kind="stable")
        self.ends = np.concatenate([[0], np.cumsum(np.bincount(homes, minlength=self.lists))])

    def propose(self, rows: np.ndarray, count: int) -> Any:
        """See `_Index`; the rows themselves are left out."""
        searched = self.searched[rows].ravel()
        pairs = np.argsort(searched, kind="stable")
        bounds = np.searchsorted(searched[pairs], np.arange(self.lists + 1))
        best = torch.full((len(rows), count), LOWEST_KEY, dtype=torch.int64)
        for number in range(self.lists):
            queries = pairs[bounds[number] : bounds[number + 1]] // self.effort
            members = self.members[self.ends[number] : self.ends[number + 1]]
            for low in range(0, len(members) if len(queries) else 0, LARGEST_BLOCK):
                part = members[low : low + LARGEST_BLOCK]
                units = self.rows.unit(part, torch.float32)
                for start in range(0, len(queries), TILE):
                    self._search_list(best, rows, queries[start : start + TILE], part, units)
        return torch.where(best == LOWEST_KEY, -1, keys_indices(best))

    def _search_list(self, best: Any, rows: np.ndarray, queries: np.ndarray, members: np.ndarray, units: Any) -> None:
        """Merge part of one list into the best of those rows that it is searched for."""
        similarity = torch.mm(self.rows.unit(rows[queries], torch.float32), units.T)
        own = np.minimum(np.searchsorted(members, rows[queries]), len(members) - 1)
        present = np.flatnonzero(members[own] == rows[queries])
        similarity[present, own[present]] = -torch.inf
        places = torch.from_numpy(queries)
        gain = (similarity.amax(dim=1) > keys_values(best[places, -1])).nonzero()[:, 0]
        if len(gain) == 0:
            return
        count = best.shape[1]
        values, columns = torch.topk(similarity[gain], min(count, len(members)), dim=1, sorted=False)
        keys = keys_of(values, torch.from_numpy(members)[columns])
        keys.masked_fill_(values == -torch.inf, LOWEST_KEY)
        best[places[gain]] = torch.topk(torch.cat([best[places[gain]], keys], dim=1), count, dim=1).values


class _Links:
    """faiss' HNSW over one byte per number; the sample that the range of bytes is set by is drawn."""

    slab = QUERY_BLOCK
    title = f"HNSW{LINKS}_SQ8"
    bytes_of_effort = 0

    @staticmethod
    def bytes(count: int, width: int, k: int) -> int:
        """Memory of index, training and results."""
        trained = min(count, TRAINED_ON * int(2 * count**0.5))
        return count * (width + 16 + 8 * k + 10 * LINKS) + 8 * trained * width

    def __init__(self, rows: Rows, draw: np.random.Generator, progress: Progress | None) -> None:
        self.rows, self.effort = rows, 0
        self.index = faiss.index_factory(rows.width, self.title, faiss.METRIC_INNER_PRODUCT)
        trained = min(rows.count, TRAINED_ON * int(2 * rows.count**0.5))
        sample = np.sort(draw.choice(rows.count, trained, replace=False))
        self.index.train(rows.unit(sample, torch.float32).numpy())
        for low in range(0, rows.count, QUERY_BLOCK):
            block = np.arange(low, min(low + QUERY_BLOCK, rows.count))
            self.index.add(rows.unit(block, torch.float32).numpy())
            if progress is not None:
                progress(int(block[-1]) + 1, rows.count, f"building {self.title}")

    def tune(self, rows: np.ndarray, indices: np.ndarray, similarities: np.ndarray, *, aim: float) -> None:
        """See `_Index`: the search depth is doubled until enough is found."""
        k = indices.shape[1]
        self.effort = 2 * (k + 1 + SPARE)
        while self.effort < DEEPEST:
            candidates = self.propose(rows, k + SPARE)
            if recall(refine(self.rows, rows, self.rows, candidates, k, exclude=rows)[1], similarities) >= aim:
                break
            self.effort = min(2 * self.effort, DEEPEST)

    def prepare(self, progress: Progress | None) -> None:
        """See `_Index`: nothing."""

    def propose(self, rows: np.ndarray, count: int) -> Any:
        """See `_Index`."""
        depth = faiss.SearchParametersHNSW(efSearch=self.effort)
        queries = self.rows.unit(rows, torch.float32).numpy()
        return torch.from_numpy(self.index.search(queries, count + 1, params=depth)[1])


def recall(similarities: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true k nearest neighbors that were found, in [0, 1]; (M, k) similarities of both, nearest first.

    Counted by similarity: whatever is as near as the true k-th neighbor is right, so ties cannot be missed.
    """
    if similarities.shape != truth.shape:
        raise ShapeError(f"Recall compares equal shapes; got {similarities.shape} and {truth.shape}.")
    return float(np.mean(similarities >= truth[:, -1:]))
