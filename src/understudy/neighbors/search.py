"""Exact cosine top-k in blocks: the one search of the project.

The answer is defined by mathematics alone: the similarity is the cosine in float64 rounded to float32, larger first,
and equal similarities go to the lower index first. Memory budget, device and number of threads change the time, never
the answer. This is how it is reached at the speed of a float32 matrix product:

1. scan: float32 products, tile by tile, keep the best k + 16 candidates of every query;
2. refine: the candidates alone again in float64, sorted by (similarity, index);
3. certify: a row is proven right when nothing outside its candidates can reach its k-th similarity, given the rounding
   error of a float32 product. The other rows (many near-ties at the rim: duplicates, zero rows, a collapsed encoder)
   are scanned again in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int32

from understudy.errors import ConfigError, DataError, ShapeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Progress = Callable[[int, int, str], None]

ZERO_NORM = 1e-12  # a row no longer than this has no direction: its cosine with everything is 0
SPARE = 16  # candidates kept beyond k, so that the k-th is almost always clear of those left out
QUERY_TILE = 1024  # queries multiplied at once
LARGEST_BLOCK = 8192  # rows held converted at once; larger blocks are no faster on a CPU, ...
GPU_BLOCKS = 8  # ... while a GPU waits for the rows of each pass, so its blocks may be so many times larger
SMALLEST_BLOCK = 256
GROUP = 16  # columns of similarities that share a peak
STEP = 1 << 19  # numbers converted at once: small, because the C allocator keeps what such buffers took
REFINED = 1 << 21  # numbers of candidates held at once in float64
LIBRARIES = 48 << 20  # bytes left to torch's and the matrix library's own buffers
INDEX_MASK = (1 << 32) - 1
LOWEST_KEY = -0x7F800001 << 32  # of minus infinity and no index: an empty place


class Rows:
    """A matrix (N, D), array or memory map, whose rows, called so in messages, are unit vectors read in blocks.

    Raises:
        ShapeError: not a matrix of at least one row and column.
        DataError: rows with NaN or infinity; the message counts them.
    """

    def __init__(self, array: np.ndarray, device: torch.device, name: str) -> None:
        import torch

        array = np.asarray(array)
        if array.ndim != 2 or 0 in array.shape or not np.issubdtype(array.dtype, np.floating):
            raise ShapeError(
                f"The {name} must be a non-empty matrix of floating-point rows; got shape {array.shape}, {array.dtype}."
            )
        self.array, self.device = array, device
        self.count, self.width = array.shape
        self.step = max(1, STEP // self.width)
        norms = torch.empty(self.count, dtype=torch.float64, device=device)
        for low in range(0, self.count, self.step):
            part = np.arange(low, min(low + self.step, self.count))
            norms[low : low + self.step] = torch.linalg.vector_norm(self.raw(part), dim=1)
        if bad := int((~torch.isfinite(norms)).sum()):
            raise DataError(
                f"{bad:,} of {self.count:,} {name} contain NaN or infinity, so they have no neighbors. Look for a "
                "diverged model or an overflow in half precision, and embed the images again."
            )
        self.inverse = torch.where(norms > ZERO_NORM, 1.0 / norms, 0.0)  # (N,) float64

    def raw(self, rows: np.ndarray) -> Tensor:
        """The rows at an integer index (n,) as they are, in float64."""
        import torch

        return torch.from_numpy(self.array[rows]).to(self.device).double()

    def unit(self, rows: np.ndarray, dtype: torch.dtype) -> Tensor:
        """The rows at an integer index (n,) as unit vectors, (n, D); zero rows stay zero."""
        import torch

        out = torch.empty(len(rows), self.width, dtype=dtype, device=self.device)
        for low in range(0, len(rows), self.step):
            part = rows[low : low + self.step]
            out[low : low + self.step] = self.raw(part).mul_(self.inverse[torch.from_numpy(part).to(self.device), None])
        return out


def search(
    queries: np.ndarray, database: np.ndarray | Rows, k: int, *, exclude: np.ndarray | None = None,
    memory_mb: int = 1024, device: str | torch.device = "cpu", progress: Progress | None = None,
) -> tuple[Int32[np.ndarray, "M k"], Float32[np.ndarray, "M k"]]:  # fmt: skip
    """The k nearest rows of a database to each query, by cosine, exactly.

    Args:
        queries: (M, D) float16, float32 or float64; may be a memory map.
        database: (N, D), likewise; pass the same object for neighbors within one set, and `Rows` of the same device to
            be searched several times.
        k: neighbors per query.
        exclude: (M,) database index that each query must not return: itself, by identity. An exact duplicate of it
            stays a neighbor. -1 excludes nothing.
        memory_mb: MiB for all that is allocated here, results included (on "cuda", there). Pages of a memory map are
            the system's cache and are not counted.
        device: "cpu" or "cuda", where the products are taken. Apple's GPU has no float64: "mps" means the CPU.
        progress: called with (queries done, M, note).

    Returns:
        Indices (M, k) int32, nearest first, and similarities (M, k) float32. Equal similarities come in order of index.
        A row of norm up to 1e-12 counts as the zero vector: its similarity to everything is 0.

    Raises:
        ConfigError: k is larger than the database (less the excluded row), or the budget is too small.
        ShapeError: widths or lengths that do not fit.
        DataError: NaN or infinity among the rows.
    """
    import torch

    from understudy.hardware import float32_products

    processor = torch.device("cpu" if str(device).startswith("mps") else device)
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    exact = float32_products("ieee", *backends)  # training may have allowed others, whose error the tolerance ignores
    with torch.no_grad(), torch.autocast(processor.type, enabled=False), exact:
        rows = database
        if not isinstance(rows, Rows):
            rows = Rows(rows, processor, "database rows" if queries is not database else "embeddings")
        query_rows = rows if queries is database else Rows(queries, processor, "query rows")
        if query_rows.width != rows.width:
            raise ShapeError(
                f"Queries have width {query_rows.width}, the database has {rows.width}. They must be equal."
            )
        if exclude is not None:
            exclude = np.asarray(exclude, dtype=np.int64)
            if exclude.shape != (query_rows.count,):
                raise ShapeError(
                    f"exclude has shape {exclude.shape}; ({query_rows.count},) is needed, one index per query."
                )
        check_k(k, rows.count, rows.count - (exclude is not None))
        return _exact(query_rows, rows, k, exclude, memory_mb, progress)


def _exact(
    queries: Rows, database: Rows, k: int, exclude: np.ndarray | None, memory_mb: int, progress: Progress | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scan, refine and certify all queries, then scan again in float64 those that are not proven right."""
    import torch

    available = database.count - (exclude is not None)
    wide = min(k + SPARE, available)
    indices = np.empty((queries.count, k), dtype=np.int32)
    similarities = np.empty((queries.count, k), dtype=np.float32)
    allocated = indices.nbytes + similarities.nbytes + database.inverse.nbytes + queries.inverse.nbytes
    block = _block_rows(memory_mb, allocated, database, wide, torch.float32)
    exact_block = _block_rows(memory_mb, allocated, database, wide, torch.float64)

    def search_block(rows: np.ndarray, count: int, dtype: torch.dtype, block: int) -> Tensor:
        """Write the neighbors of these queries; returns the keys of all their candidates."""
        excluded = None if exclude is None else exclude[rows]
        keys = _scan(queries.unit(rows, dtype), database, count, excluded, block)
        indices[rows], similarities[rows] = refine(queries, rows, database, keys_indices(keys), k)
        return keys

    # A float32 product of unit vectors of width D is off by at most (D + 4) roundings of 2^-24.
    tolerance = 1.01 * (database.width + 4) * 2.0**-24
    unproven = [np.empty(0, np.int64)]
    for low in range(0, queries.count, block):
        rows = np.arange(low, min(low + block, queries.count))
        keys = search_block(rows, wide, torch.float32, block)
        if wide < available:
            rim = keys_values(keys[:, -1]).cpu().numpy().astype(np.float64)
            unproven.append(rows[rim + tolerance >= similarities[rows, -1]])
        if progress is not None:
            progress(int(rows[-1]) + 1, queries.count, "exact search")
    again = np.concatenate(unproven)
    for low in range(0, len(again), exact_block):
        rows = again[low : low + exact_block]
        search_block(rows, k, torch.float64, exact_block)
        if progress is not None:
            note = f"near-ties settled for {low + len(rows):,} of {len(again):,} rows"
            progress(queries.count, queries.count, note)
    return indices, similarities


def check_k(k: int, rows: int, available: int) -> None:
    """Refuse a k that the database cannot serve: k < 1 or k > available."""
    if k < 1:
        raise ConfigError(f"k must be at least 1; got {k}.")
    if k > available:
        less = f" ({available:,} without the query itself)" if available != rows else ""
        raise ConfigError(f"k = {k} neighbors were asked of {rows:,} rows{less}. Use k of at most {available:,}.")


def refine(
    queries: Rows, rows: np.ndarray, database: Rows, candidates: Tensor, k: int, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sort candidates by their float64 cosine, rounded to float32, then by index; keep the best k.

    Of (n,) rows of the queries, candidates (n, m) int64 are database indices, -1 an empty place, and `exclude` (n,) one
    that must not be returned. Returns indices (n, k) int32 and similarities (n, k) float32; where fewer than k
    candidates are left, index -1 and -inf.
    """
    import torch

    wide = candidates.shape[1]
    indices = np.empty((len(rows), k), dtype=np.int32)
    similarities = np.empty((len(rows), k), dtype=np.float32)
    step = max(1, REFINED // (wide * database.width))
    buffer = torch.empty(step, wide, database.width, dtype=torch.float64, device=database.device)
    for low in range(0, len(rows), step):
        part, places = rows[low : low + step], candidates[low : low + step]
        device = places.device
        empty = places < 0
        if exclude is not None:
            empty |= places == torch.from_numpy(exclude[low : low + step]).to(device)[:, None]
        places = places.clamp(min=0)
        vectors = buffer[: len(part)]
        vectors.copy_(torch.from_numpy(database.array[places.cpu().numpy()]))
        products = torch.bmm(vectors, queries.raw(part)[:, :, None])[:, :, 0]
        cosines = products * database.inverse[places] * queries.inverse[torch.from_numpy(part).to(device), None]
        keys = keys_of(cosines.clamp(-1.0, 1.0).float(), places).masked_fill_(empty, LOWEST_KEY)
        best = torch.topk(keys, k, dim=1).values
        missing = best == LOWEST_KEY
        indices[low : low + step] = keys_indices(best).masked_fill_(missing, -1).cpu().numpy()
        similarities[low : low + step] = keys_values(best).masked_fill_(missing, -torch.inf).cpu().numpy()
    return indices, similarities


def _scan(queries: Tensor, database: Rows, count: int, exclude: np.ndarray | None, block: int) -> Tensor:
    """Keys (n, count) of the best candidates of unit queries (n, D), best first; products in the queries' dtype."""
    import torch

    exact = queries.dtype == torch.float64
    device = queries.device
    best = torch.full((len(queries), count), LOWEST_KEY, dtype=torch.int64, device=device)
    excluded = None if exclude is None else torch.from_numpy(exclude).to(device)
    # One buffer for every tile: fresh memory of this size costs as much as the topk that reads it.
    widest = min(QUERY_TILE, len(queries)) * min(block, database.count)
    scratch = torch.empty(widest, dtype=queries.dtype, device=device)
    for low in range(0, database.count, block):
        rows = np.arange(low, min(low + block, database.count))
        columns = torch.arange(low, low + len(rows), device=device)
        units = database.unit(rows, queries.dtype)
        for start in range(0, len(queries), QUERY_TILE):
            tile = slice(start, start + QUERY_TILE)
            part = queries[tile]
            area = scratch[: len(part) * len(rows)].view(len(part), len(rows))
            similarity = torch.mm(part, units.T, out=area)
            if excluded is not None:
                own = excluded[tile] - low
                inside = ((own >= 0) & (own < len(rows))).nonzero()[:, 0]
                similarity[inside, own[inside]] = -torch.inf
            if exact:
                top = torch.topk(keys_of(similarity.float(), columns), min(count, len(rows)), dim=1).values
            else:
                values, places = _largest(similarity, count, keys_values(best[tile, -1:]))
                top = keys_of(values, places + low)
            best[tile] = torch.topk(torch.cat([best[tile], top], dim=1), count, dim=1).values
    return best


def _largest(similarity: Tensor, count: int, rim: Tensor) -> tuple[Tensor, Tensor]:
    """Per row the `count` largest entries, or at least those of them that exceed `rim` (n, 1); with their columns.

    Columns are grouped, and only groups whose peak exceeds the rim are searched: after a database's first blocks
    they are few, and finding the peaks is one vectorized pass, several times quicker than topk over all columns.
    """
    import torch

    rows, columns = similarity.shape
    if columns % GROUP == 0:
        groups = similarity.view(rows, GROUP, columns // GROUP)  # every (columns / GROUP)-th column is of one group
        peaks = groups.amax(dim=1)
        promising = max(1, int((peaks > rim).sum(dim=1).max()))
        if 2 * promising <= peaks.shape[1]:
            chosen = torch.topk(peaks, promising, dim=1, sorted=False).indices
            candidates = groups.gather(2, chosen[:, None, :].expand(-1, GROUP, -1)).flatten(1)
            values, places = torch.topk(candidates, min(count, candidates.shape[1]), dim=1, sorted=False)
            return values, (places // promising) * peaks.shape[1] + chosen.gather(1, places % promising)
    values, places = torch.topk(similarity, min(count, columns), dim=1, sorted=False)
    return values, places


def keys_of(similarities: Tensor, indices: Tensor) -> Tensor:
    """One int64 for (similarity, index) that sorts by similarity, equal ones by lower index: every key is unique."""
    import torch

    bits = (similarities + 0.0).view(torch.int32)  # + 0.0: minus zero and zero are equal
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)  # floats compare as integers, negative ones backwards
    return ordered.long().bitwise_left_shift_(32).add_(INDEX_MASK - indices)


def keys_indices(keys: Tensor) -> Tensor:
    """The indices packed in keys, int64."""
    return INDEX_MASK - (keys & INDEX_MASK)


def keys_values(keys: Tensor) -> Tensor:
    """The similarities packed in keys, float32."""
    import torch

    ordered = keys >> 32
    return torch.where(ordered >= 0, ordered, ordered ^ 0x7FFFFFFF).int().view(torch.float32)


def _block_rows(memory_mb: int, allocated: int, database: Rows, count: int, dtype: torch.dtype) -> int:
    """How many rows of either side are worked on at once, so that all of it fits the budget; at least the smallest."""
    number = int(dtype.itemsize)
    tile = QUERY_TILE * (number if number == 4 else 40)  # in float64 the keys of a whole tile are made
    per_row = 2 * number * database.width + 40 * count + tile
    fixed = allocated + LIBRARIES + 32 * max(STEP, database.width) + 12 * max(REFINED, count * database.width)
    block = ((memory_mb << 20) - fixed) // per_row
    if block < SMALLEST_BLOCK:
        # The float64 scan is the dearer one: name what lets both through.
        need = (fixed + SMALLEST_BLOCK * (16 * database.width + 40 * count + 40 * QUERY_TILE) >> 20) + 1
        raise ConfigError(
            f"A memory budget of {memory_mb} MiB is too small to search {database.count:,} rows of width "
            f"{database.width}: at least {need} MiB are needed. Raise memory_mb, that of the neighbors or "
            "of the evaluation."
        )
    return int(min(block, LARGEST_BLOCK * (GPU_BLOCKS if database.device.type == "cuda" else 1)))
