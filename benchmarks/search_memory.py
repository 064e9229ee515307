"""Exact search over 100,000 x 512: does its memory stay within the stated budget, and what does it cost in time?

    python benchmarks/search_memory.py [--rows 100000] [--width 512] [--memory-mb 1024]

Each measurement runs in a fresh process. The peak is the kernel's own record of that process's resident memory (VmHWM),
less what it held when all libraries were loaded and the embeddings mapped. It includes every page of the mapped file
that was read, so it is an upper bound on what the search allocated. faiss's flat index on the same rows, which it keeps
in float32, is the yardstick.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NEIGHBORS, VOTES, QUERIES = 31, 50, 10_000


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def reset_peak() -> float:
    """Forget the peak so far; what is resident now is the baseline."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def make_store(folder: Path, rows: int, width: int) -> None:
    """A store of clustered float16 rows: 1,000 centers with as much spread around them as a teacher's classes have."""
    from understudy.artifacts import Store, StoreKey

    draw = np.random.default_rng(0)
    centers = draw.standard_normal((1000, width), dtype=np.float32)
    array = np.lib.format.open_memmap(folder / "embeddings.npy", mode="w+", dtype=np.float16, shape=(rows, width))
    for low in range(0, rows, 10_000):
        part = array[low : low + 10_000]
        part[:] = centers[draw.integers(0, 1000, len(part))] + draw.standard_normal(part.shape, dtype=np.float32)
    array.flush()
    key = StoreKey({"fingerprint": "benchmark"}, {}, {"fingerprint": "benchmark"})
    Store(folder).finish(key, rows=rows)


def measure(what: str, folder: Path, memory_mb: int) -> None:
    """One measurement, in this process; prints its line."""
    import torch

    from understudy.artifacts import Store
    from understudy.neighbors.graph import build_graph
    from understudy.neighbors.search import search
    from understudy.neighbors.settings import NeighborSettings
    from understudy.neighbors.vote import weighted_vote

    rows = Store(folder).embeddings()
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # threads and the matrix library are up
    if what == "faiss":
        import faiss

        unit = rows.astype(np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    baseline, start, worked = reset_peak(), time.perf_counter(), time.process_time()
    if what == "graph":
        build_graph(Store(folder), NeighborSettings(index="exact", memory_mb=memory_mb))
    elif what == "knn":
        found, near = search(rows[:QUERIES], rows, VOTES, memory_mb=memory_mb)
        weighted_vote((found, near), np.arange(len(rows)) % 1000, 1000, (1, 10, 20, 50), memory_mb=memory_mb)
    else:
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(unit)
        np.save(folder / "faiss.npy", index.search(unit, NEIGHBORS + 1)[1])
    seconds, cpu, peak = time.perf_counter() - start, time.process_time() - worked, peak_mib() - baseline
    budget = f"{memory_mb} MiB allowed" if what != "faiss" else "no budget"
    print(
        f"{what:>6}: {seconds:7.1f} s ({cpu:.1f} s of processor time), peak {peak:6.0f} MiB above a baseline of "
        f"{baseline:.0f} MiB ({budget})"
    )


def main() -> None:
    """Run the three measurements and compare graph and yardstick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--memory-mb", type=int, default=1024)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure[0], Path(given.measure[1]), given.memory_mb)
        return
    seconds: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_store(folder, given.rows, given.width)
        print(f"{given.rows:,} x {given.width} float16, budget {given.memory_mb} MiB")
        for what in ("graph", "knn", "faiss"):
            command = [sys.executable, __file__, "--memory-mb", str(given.memory_mb), "--measure", what, name]
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            print(line, end="", flush=True)
            words = line.replace("(", "").split()
            seconds[what] = float(words[1]), float(words[3])
        ours, theirs = np.load(folder / "graph.npy"), np.load(folder / "faiss.npy")
    alike = 0
    for row, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        alike += len(np.intersect1d(mine, other[other != row][:NEIGHBORS]))
    wall, cpu = (mine / other for mine, other in zip(seconds["graph"], seconds["faiss"], strict=True))
    print(f"graph: {wall:.2f} times the seconds of faiss IndexFlatIP ({cpu:.2f} times the processor time)")
    print(f"neighbors in common with it: {alike / ours.size:.5%}")


if __name__ == "__main__":
    main()
