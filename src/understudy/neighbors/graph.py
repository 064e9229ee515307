"""The neighbor graph of a store: built, checked, saved."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from understudy.artifacts import ALONE, Store, Writers, atomic, blocks_of, lock, sweep
from understudy.errors import ConfigError, StoreError
from understudy.neighbors.approximate import approximate
from understudy.neighbors.search import Progress, Rows, search
from understudy.neighbors.settings import NeighborSettings

EXACT_UP_TO = {"cpu": 200_000, "cuda": 2_000_000}  # images; `index = auto` is exact up to here: minutes, not hours
LOWEST_RECALL = 0.9
CHECK_ROWS = 65_536
BLOCK, BLOCKS = 8192, 20
"""Images in the smallest block whose neighbors are searched at once, and how many blocks there are at most: each goes
through all embeddings once for every 8,192 of its images (65,536 on a GPU), so larger ones save nothing."""


def build_graph(
    store: Store,
    settings: NeighborSettings,
    *,
    device: str = "cpu",
    writers: Writers = ALONE,
    progress: Progress | None = None,
) -> Int32[np.ndarray, "N K"]:
    """Find the n nearest other images of every image of a store, and save them in it.

    A graph that is already there is used if the same kind of index made it with at least n neighbors. Else another is
    built; the old one's entry leaves the manifest before its file is replaced, and the new one is entered when its own
    is whole. So at any moment the manifest speaks of the graph that is there, or of none. The exact search is shared by
    the processes, and goes on where it was killed, in blocks of images; an approximate one is made by the first process
    while the others wait, and begins anew: it takes minutes for a million images, most of them spent on an index that
    every process would have to make for itself.

    Args:
        store: a complete store.
        settings: `n` neighbors, the kind of index, the memory budget.
        device: "cpu" or "cuda"; approximate search runs on the CPU.
        writers: the processes that share the search; all call this with the same arguments but for the device.
        progress: called with (images done, images of this process, note).

    Returns:
        (N, K >= n) neighbor indices, nearest first, memory-mapped; an image is never its own neighbor, an exact
        duplicate of it is. The manifest says under `graph` how it was made: K, index, exact, recall (measured on 1,000
        images against the exact search; 1 if exact), seconds.

    Raises:
        ConfigError: n beyond the images there are, a budget too small, or an index asked of too few images.
        DataError: NaN or infinity among the embeddings.
        StoreError: the store is incomplete or being written, or an approximate graph found less than 90 % of the true
            neighbors.
    """
    rows = int(store.manifest["rows"])
    if settings.n >= rows:
        raise ConfigError(
            f"k = {settings.n} neighbors were asked of {rows:,} rows ({rows - 1:,} without the query itself). Set "
            f"--neighbors.n to at most {rows - 1} and --neighbors.k to no more, or --neighbors.k 0 for batches without "
            "neighbors; or use more images (--data, --limit)."
        )
    kind = settings.index
    if kind == "auto":
        place = "cuda" if str(device).startswith("cuda") else "cpu"
        kind = "exact" if rows <= EXACT_UP_TO[place] else "ivf"

    def fits() -> bool:
        made = store.manifest.get("graph")
        wanted = (kind, "exact" if settings.index == "auto" else kind)
        return bool(made and made["index"] in wanted and made["K"] >= settings.n)

    if writers.agree(fits()):  # asked before the lock: several runs may begin at the same moment
        return check_graph(store.graph(), rows)
    with lock(store.folder) if writers.main else contextlib.nullcontext():
        if writers.agree(writers.main and fits()):
            return check_graph(store.graph(), rows)
        start = time.perf_counter()
        metadata: dict[str, object] = {"K": settings.n, "index": kind, "exact": kind == "exact", "recall": 1.0}
        parts: Iterator[np.ndarray] = iter(())
        if kind == "exact":
            blocks = [
                (store.folder / "graph" / f"{settings.n}-nearest-of-{images.start}-{images.stop}.npy", images)
                for images in blocks_of(rows, smallest=BLOCK, most=BLOCKS)
            ]
            _search_blocks(store, blocks[writers.rank :: writers.world], settings, device, progress)
            writers.barrier()
            parts = (np.load(path, allow_pickle=False) for path, _ in blocks)
        elif writers.main:
            indices, _, found = approximate(
                store.embeddings(), settings.n, kind=kind, memory_mb=settings.memory_mb, progress=progress
            )
            parts = iter([indices])
            if found["recall"] < LOWEST_RECALL:
                raise StoreError(
                    f"The {kind} index found only {found['recall']:.1%} of the true neighbors of "
                    f"{found['recall_sample']:,} images; a graph with less than {LOWEST_RECALL:.0%} is not saved. Set "
                    "neighbors.index = exact."
                )
            metadata |= found
        if writers.main:
            store.amend(graph=None)
            with atomic(store.folder / "graph.npy") as path, open(path, "wb") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "<i4", "fortran_order": False, "shape": (rows, settings.n)}
                )
                file.writelines(np.ascontiguousarray(part, dtype="<i4").data for part in parts)
            store.amend(graph=metadata | {"seconds": round(time.perf_counter() - start, 2)})
            shutil.rmtree(store.folder / "graph", ignore_errors=True)
            sweep(store.folder, "graph.npy.*")
        writers.barrier()
    return check_graph(store.graph(), rows)


def _search_blocks(
    store: Store,
    blocks: list[tuple[Path, range]],
    settings: NeighborSettings,
    device: str,
    progress: Progress | None,
) -> None:
    """The neighbors of each block's images into its file, where that is not there yet."""
    import torch

    if all(path.exists() for path, _ in blocks):
        return
    embeddings = store.embeddings()
    place = torch.device("cpu" if device.startswith("mps") else device)
    base = Rows(embeddings, place, "embeddings")
    total, before = sum(len(images) for _, images in blocks), 0

    def report(done: int, _: int, note: str) -> None:
        if progress is not None:
            progress(before + done, total, note)

    for path, images in blocks:
        if not path.exists():
            indices, _ = search(
                embeddings[images.start : images.stop],
                base,
                settings.n,
                exclude=np.arange(images.start, images.stop),
                memory_mb=settings.memory_mb,
                device=device,
                progress=report,
            )
            with atomic(path) as temporary, open(temporary, "wb") as file:
                np.save(file, indices)
        before += len(images)


def check_graph(graph: np.ndarray, rows: int) -> Int32[np.ndarray, "N K"]:
    """The graph itself, if it can be the neighbor graph of that many images.

    Raises:
        StoreError: wrong shape or type, an index out of range, or an image that is its own neighbor or has one twice.
    """
    fault = ""
    if graph.ndim != 2 or len(graph) != rows or graph.dtype != np.int32:
        fault = f"it is {graph.dtype} of shape {graph.shape}, int32 of shape ({rows}, K) is needed"
    for low in range(0, 0 if fault else rows, CHECK_ROWS):
        part = np.sort(graph[low : low + CHECK_ROWS], axis=1)
        own = np.arange(low, low + len(part), dtype=np.int32)[:, None]
        if part[:, 0].min() < 0 or part[:, -1].max() >= rows:
            fault = f"it names images from {part.min()} to {part.max()} of {rows}"
        elif (part == own).any():
            fault = f"image {int(own[(part == own).any(axis=1)][0, 0])} is its own neighbor"
        elif (part[:, 1:] == part[:, :-1]).any():
            fault = "an image has the same neighbor twice"
        if fault:
            break
    if fault:
        raise StoreError(
            f"The neighbor graph cannot be used: {fault}. Delete its store's graph.npy and build it again."
        )
    return graph
