"""The neighbor graph against faiss' flat index and scikit-learn's brute force, on the same rows, each in its process.

    python benchmarks/graph.py                       # 50,000 x 256, K = 31
    python benchmarks/graph.py --rows 20000
    python benchmarks/graph.py --rows 1280000 --width 2048 --ways exact --device cuda

Rows are clustered (1,000 centers, as a teacher's classes); all take cosine and leave out the row itself. Prints seconds
and processor seconds of each, the ratios to ours in one run, and the share of neighbors that agree with ours exact.
`ivf` is our approximate search, and faiss' own inverted lists with as many lists and probes stand beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

K = 31
WAYS = ("exact", "faiss flat", "scikit-learn", "ivf", "faiss ivf")


def make_rows(path: Path, rows: int, width: int) -> None:
    """Clustered float16 rows of low intrinsic dimension: neighbors mean something, as in a trained space."""
    draw = np.random.default_rng(0)
    centers = draw.standard_normal((1000, 32), dtype=np.float32)
    lift = draw.standard_normal((32, width), dtype=np.float32)
    found = centers[draw.integers(0, 1000, rows)] + 0.5 * draw.standard_normal((rows, 32), dtype=np.float32)
    np.save(path, (found @ lift).astype(np.float16))


def build(way: str, rows: np.ndarray, effort: int, device: str) -> tuple[np.ndarray, dict[str, float]]:
    """(N, K) neighbors one way, and what there is to tell."""
    from understudy.neighbors.approximate import approximate
    from understudy.neighbors.search import search

    if way == "exact":
        return search(rows, rows, K, exclude=np.arange(len(rows)), device=device)[0], {}
    if way == "ivf":
        found, _, metadata = approximate(rows, K, kind="ivf")
        return found, {name: metadata[name] for name in ("effort", "recall")}
    unit = rows.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    if way == "scikit-learn":
        from sklearn.neighbors import NearestNeighbors

        model = NearestNeighbors(n_neighbors=K + 1, algorithm="brute", metric="cosine").fit(unit)
        found = model.kneighbors(unit, return_distance=False)
    else:
        import faiss

        if way == "faiss flat":
            index = faiss.IndexFlatIP(rows.shape[1])
        else:
            lists = int(2 * len(rows) ** 0.5)
            index = faiss.index_factory(rows.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
            index.nprobe = effort
            index.train(unit)
        index.add(unit)
        found = index.search(unit, K + 1)[1]
    # The row itself is nearly always first; where a duplicate is, the last one goes.
    itself = found == np.arange(len(rows))[:, None]
    itself[~itself.any(axis=1), -1] = True
    return found[~itself].reshape(len(rows), K), {}


def main() -> None:
    """Build every way, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="ours exact is always among them")
    parser.add_argument("--device", default="cpu", help="of ours exact; the others compute on the CPU")
    parser.add_argument("--build", nargs=3, metavar=("WAY", "FOLDER", "EFFORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        way, folder, effort = options.build
        import faiss  # noqa: F401  (what is timed is the building, not the imports)
        import sklearn.neighbors
        import torch

        assert sklearn.neighbors
        warm = torch.ones(64, 64, device=options.device)
        (warm @ warm).cpu()
        rows = np.load(Path(folder) / "rows.npy", mmap_mode="r")
        begun, worked = time.perf_counter(), time.process_time()
        found, measured = build(way, rows, int(effort), options.device)
        compute_cost = {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - worked}
        np.save(Path(folder) / f"{way}.npy", found)
        print(json.dumps({**compute_cost, **measured}))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_rows(Path(folder) / "rows.npy", options.rows, options.width)
        print(f"{options.rows:,} x {options.width} float16, K = {K}")
        print("| way | seconds | processor s | times ours (processor) | neighbors in common | |")
        print("|---|---|---|---|---|---|")
        told: dict[str, dict[str, float]] = {}
        for way in (way for way in WAYS if way == "exact" or way in options.ways):
            effort = str(told["ivf"]["effort"]) if "ivf" in told else "0"
            command = [sys.executable, __file__, "--device", options.device, "--build", way, folder, effort]
            told[way] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            ours, found = np.load(Path(folder) / "exact.npy"), np.load(Path(folder) / f"{way}.npy")
            alike = (np.sort(ours, axis=1)[:, :, None] == found[:, None, :]).any(2).mean() if way != "exact" else 1
            yardstick = told["ivf" if "ivf" in way and "ivf" in told else "exact"]
            metadata = ", ".join(f"{name} {told[way][name]}" for name in told[way] if name not in ("seconds", "cpu"))
            print(
                f"| {way} | {told[way]['seconds']:.1f} | {told[way]['cpu']:.1f} | "
                f"{told[way]['cpu'] / yardstick['cpu']:.2f} | {alike:.4%} | {metadata} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
