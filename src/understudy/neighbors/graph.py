"""The neighbor graph of a store: built, checked, saved."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int32

from understudy.artifacts import (
    ALONE,
    Checksums,
    Store,
    Writers,
    atomic,
    blocks_of,
    lock,
    sweep,
    verdict_on,
)
from understudy.artifacts.checksums import damaged_at_opening, set_verified
from understudy.errors import ConfigError, StoreError
from understudy.neighbors.search import Progress, Rows, search
from understudy.neighbors.settings import NeighborSettings

log = logging.getLogger("understudy")

EXACT_UP_TO = {"cpu": 200_000, "cuda": 2_000_000}  # images; `index = auto` is exact up to here: minutes, not hours
LOWEST_RECALL = 0.9
CHECK_ROWS = 65_536
BLOCK, BLOCKS = 8192, 20
"""Images in the smallest block whose neighbors are searched at once, and how many blocks there are at most: each goes
through all embeddings once for every 8,192 of its images (65,536 on a GPU), so larger ones save nothing."""


def build_graph(
    store: Store, settings: NeighborSettings, *, device: str = "cpu", writers: Writers = ALONE,
    progress: Progress | None = None,
) -> Int32[np.ndarray, "N K"]:  # fmt: skip
    """Find the n nearest other images of every image of a store, and save them in it.

    A graph that is already there is used if the same kind of index made it with at least n neighbors. Else another is
    built; the old one's entry leaves the manifest before its file is replaced, and the new one is entered when its own
    is complete. So at any moment the manifest describes the graph that is there, or none. Of an exact graph that is no
    longer what was written, as its checksums show, the damaged rows are searched again; an approximate one is built
    anew, because its index costs more than all of its rows. The exact search is shared by the processes, and goes on
    where it was killed, in blocks of images; an approximate one is made by the first process while the others wait, and
    begins anew: it takes minutes for a million images, most of them spent on an index that every process would have to
    make for itself.

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
    build = _Build(store, settings, str(device), writers, progress)
    build.require_enough_images()
    done = writers.agree(build.done())  # asked before the lock: several runs may begin at the same moment
    if done and not writers.agree(writers.main and build.is_damaged()):
        return check_graph(store.graph(), build.rows)
    with lock(store.folder) if writers.main else contextlib.nullcontext():
        if writers.main and build.done():
            build.mend()
        if not writers.agree(writers.main and build.done()):
            start = time.perf_counter()
            metadata, parts = build.exact() if build.kind == "exact" else build.approximate()
            if writers.main:
                build.save(metadata, parts, start)
            writers.barrier()
    return check_graph(store.graph(), build.rows)


@dataclass
class _Build:
    """The building of one graph by this process and the others; see `build_graph` for the fields."""

    store: Store
    settings: NeighborSettings
    device: str
    writers: Writers
    progress: Progress | None

    def __post_init__(self) -> None:
        self.rows = int(self.store.manifest["rows"])
        self.kind = self.settings.index
        if self.kind == "auto":
            processor = "cuda" if self.device.startswith("cuda") else "cpu"
            self.kind = "exact" if self.rows <= EXACT_UP_TO[processor] else "ivf"

    def require_enough_images(self) -> None:
        """Refuse more neighbors than there are other images."""
        rows, n = self.rows, self.settings.n
        if n >= rows:
            raise ConfigError(
                f"k = {n} neighbors were asked of {rows:,} rows ({rows - 1:,} without the query itself). Set "
                f"--neighbors.n to at most {rows - 1} and --neighbors.k to no more, or --neighbors.k 0 for batches "
                "without neighbors; or use more images (--data, --limit)."
            )

    def done(self) -> bool:
        """Whether the store has such a graph."""
        graph = self.store.manifest.get("graph")
        kinds = (self.kind, "exact" if self.settings.index == "auto" else self.kind)
        return bool(graph and graph.get("index") in kinds and graph["K"] >= self.settings.n)

    def is_damaged(self) -> bool:
        """Whether the store's graph is not what was written (see `VERIFIED_AT_OPEN`)."""
        path = self.store.folder / "graph.npy"
        return path.is_file() and damaged_at_opening(path, self.store.checksums().get("graph.npy"))

    def mend(self) -> None:
        """Search the damaged rows of an exact graph again; strike an approximate one out, so that it is built anew."""
        if not (found := self.store.damaged("graph.npy")):
            return
        path, before = self.store.folder / "graph.npy", self.store.checksums()["graph.npy"]
        shown = ", ".join(self.store.describe("graph.npy", block) for block in found)
        graph = self.store.manifest["graph"]
        if not graph.get("exact"):
            log.warning(f"{path} is damaged in {shown}: an approximate graph is built anew.")
            self.store.amend(graph=None)
            return
        embeddings, database = self._database()
        with open(path, "r+b") as file:
            if found[0] == 0:
                write_header(file, self.rows, graph["K"])
            file.truncate(before.ends[-1])
            for rows in filter(len, (self.store.rows_of("graph.npy", block) for block in found)):
                indices = self._search(embeddings, database, rows, graph["K"])
                file.seek(before.ends[0] + rows.start * indices[0].nbytes)
                file.write(np.ascontiguousarray(indices, dtype="<i4").data)
            file.flush()
            os.fsync(file.fileno())
        now = before.replaced(path, found)
        if now != before:
            self.store.amend(checksums={**self.store.manifest["checksums"], "graph.npy": str(now)})
        log.warning(f"{path} was damaged in {shown}: it was made anew.")
        set_verified(path)

    def exact(self) -> tuple[dict[str, object], Iterator[np.ndarray]]:
        """The graph in parts, and how it was made: each process searches its share of blocks, then waits for all."""
        blocks = [
            (self.store.folder / "graph" / f"{self.settings.n}-nearest-of-{images.start}-{images.stop}.npy", images)
            for images in blocks_of(self.rows, smallest=BLOCK, most=BLOCKS)
        ]
        self._search_blocks(blocks[self.writers.rank :: self.writers.world])
        self.writers.barrier()
        return self._metadata(), (_of_block(path) for path, _ in blocks)

    def approximate(self) -> tuple[dict[str, object], Iterator[np.ndarray]]:
        """As `exact`, by the first process alone.

        Raises:
            StoreError: too few of the true neighbors were found.
        """
        from understudy.neighbors.approximate import approximate

        if not self.writers.main:
            return {}, iter(())
        indices, _, measured = approximate(
            self.store.embeddings(), self.settings.n, kind=self.kind, memory_mb=self.settings.memory_mb,
            progress=self.progress,
        )  # fmt: skip
        if measured["recall"] < LOWEST_RECALL:
            raise StoreError(
                f"The {self.kind} index found only {measured['recall']:.1%} of the true neighbors of "
                f"{measured['recall_sample']:,} images; a graph with less than {LOWEST_RECALL:.0%} is not saved. Set "
                "neighbors.index = exact."
            )
        return self._metadata() | measured, iter([indices])

    def _metadata(self) -> dict[str, object]:
        return {"K": self.settings.n, "index": self.kind, "exact": self.kind == "exact", "recall": 1.0}

    def save(self, metadata: dict[str, object], parts: Iterator[np.ndarray], start: float) -> None:
        """Put the parts into one file and enter it in the manifest, which names no graph while the file is written."""
        folder = self.store.folder
        self.store.amend(graph=None)
        with atomic(folder / "graph.npy") as path, open(path, "wb") as file:
            write_header(file, self.rows, self.settings.n)
            ends = [file.tell()]
            for part in parts:
                ends += [ends[-1] + end for end in _ends(part)]
                file.write(np.ascontiguousarray(part, dtype="<i4").data)
        checksums = {
            **self.store.manifest.get("checksums", {}),
            "graph.npy": str(Checksums.of(folder / "graph.npy", ends)),
        }
        self.store.amend(graph=metadata | {"seconds": round(time.perf_counter() - start, 2)}, checksums=checksums)
        shutil.rmtree(folder / "graph", ignore_errors=True)
        sweep(folder, "graph.npy.*")

    def _search_blocks(self, blocks: list[tuple[Path, range]]) -> None:
        """The neighbors of each block's images into its file, where that is not there yet."""
        if all(path.exists() for path, _ in blocks):
            return
        embeddings, database = self._database()
        total, before = sum(len(images) for _, images in blocks), 0

        def report(done: int, _: int, note: str) -> None:
            if self.progress is not None:
                self.progress(before + done, total, note)

        for path, images in blocks:
            if not path.exists():
                indices = self._search(embeddings, database, images, self.settings.n, report)
                with atomic(path, sealed=True) as temporary, open(temporary, "wb") as file:
                    np.save(file, indices)
            before += len(images)

    def _database(self) -> tuple[np.ndarray, Rows]:
        """The embeddings, and the same ready to be searched."""
        import torch

        embeddings = self.store.embeddings()
        device = torch.device("cpu" if self.device.startswith("mps") else self.device)
        return embeddings, Rows(embeddings, device, "embeddings")

    def _search(
        self, embeddings: np.ndarray, database: Rows, images: range, count: int, progress: Progress | None = None
    ) -> np.ndarray:
        """The nearest others of some images, (n, count) int32."""
        return search(
            embeddings[images.start : images.stop], database, count, exclude=np.arange(images.start, images.stop),
            memory_mb=self.settings.memory_mb, device=self.device, progress=progress,
        )[0]  # fmt: skip


def write_header(file: IO[bytes], rows: int, count: int) -> None:
    """The first bytes of a graph's file: what numpy needs to know of it."""
    header = {"descr": "<i4", "fortran_order": False, "shape": (rows, count)}
    np.lib.format.write_array_header_1_0(file, header)


def _ends(part: np.ndarray) -> list[int]:
    """Where, in bytes, the blocks of a part end that have a checksum each."""
    return [int(block.stop * part[0].nbytes) for block in blocks_of(len(part), smallest=BLOCK, most=BLOCKS)]


def _of_block(path: Path) -> np.ndarray:
    """The rows that were searched for a block.

    Raises:
        StoreError: they are not what was written.
    """
    if verdict_on(path) == "damaged":
        path.unlink()
        raise StoreError(
            f"{path} was damaged, as its checksum showed. Run the same command again: only this block is searched anew."
        )
    array: np.ndarray = np.load(path, allow_pickle=False)
    return array


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
