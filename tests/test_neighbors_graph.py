"""The graph of a store: exact against brute force, approximate with a recall that is true, and never half a graph."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import launch
from understudy.artifacts import Store, StoreKey, lock
from understudy.errors import ConfigError, DataError, StoreError
from understudy.neighbors import approximate as approximate_module
from understudy.neighbors import graph as graph_module
from understudy.neighbors.approximate import approximate, recall
from understudy.neighbors.graph import build_graph, check_graph
from understudy.neighbors.settings import NeighborSettings
from understudy.settings import resolve


def store_of(folder: Path, rows: np.ndarray) -> Store:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "embeddings.npy", rows)
    store = Store(folder)
    store.finish(StoreKey({"fingerprint": "t"}, {}, {"fingerprint": "d"}), rows=len(rows))
    return store


def brute_force(rows: np.ndarray, k: int) -> np.ndarray:
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    cosines = (unit @ unit.T).astype(np.float32)
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :k]


def clusters(count: int, width: int, centers: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    middles = draw.standard_normal((centers, width))
    return (middles[draw.integers(0, centers, count)] + draw.standard_normal((count, width))).astype(np.float16)


def test_graph_is_the_exact_one_and_says_how_it_was_made(tmp_path: Path):
    rows = clusters(600, 16, 10)
    store = store_of(tmp_path, rows)
    graph = build_graph(store, NeighborSettings(k=3, n=9))
    np.testing.assert_array_equal(graph, brute_force(rows, 9))
    assert graph.dtype == np.int32
    assert isinstance(graph, np.memmap)
    metadata = store.manifest["graph"]
    assert metadata.pop("seconds") >= 0
    assert metadata == {"K": 9, "index": "exact", "exact": True, "recall": 1.0}


def test_fresh_graph_is_used_and_another_is_rebuilt(tmp_path: Path):
    store = store_of(tmp_path, clusters(300, 8, 5))
    build_graph(store, NeighborSettings(k=3, n=9))
    made = (tmp_path / "graph.npy").stat().st_mtime_ns

    def rebuilt(**settings: object) -> bool:
        graph = build_graph(store, NeighborSettings(**settings))  # type: ignore[arg-type]
        assert graph.shape[1] >= settings["n"]
        return (tmp_path / "graph.npy").stat().st_mtime_ns != made

    assert not rebuilt(k=3, n=9)
    assert not rebuilt(k=2, n=9, memory_mb=500)
    assert not rebuilt(k=3, n=5)
    assert rebuilt(k=3, n=12)
    assert store.manifest["graph"]["K"] == 12


KILLED = """
import os, signal, sys
import numpy as np
from understudy.artifacts import Store
from understudy.neighbors import graph
from understudy.neighbors.settings import NeighborSettings

graph.BLOCK = 64

def kill(*_): os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "while searching":
    progress = kill
elif sys.argv[2] == "after two blocks":
    progress = lambda done, *_: kill() if done > 128 else None
elif sys.argv[2] == "while writing":
    progress = None
    header = np.lib.format.write_array_header_1_0
    def half(file, facts):
        header(file, facts)
        file.write(bytes(10))
        file.flush()
        kill()
    np.lib.format.write_array_header_1_0 = half
else:
    progress = None
    amend = Store.amend
    Store.amend = lambda self, **facts: amend(self, **facts) if facts["graph"] is None else kill()
graph.build_graph(Store(sys.argv[1]), NeighborSettings(k=3, n=12), progress=progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "had_one"),
    [
        ("while searching", True),
        ("after two blocks", True),
        ("while writing", True),
        ("before the entry", True),
        ("while writing", False),
    ],
)
def test_a_killed_build_leaves_no_half_graph_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, had_one: bool
):
    monkeypatch.setattr(graph_module, "BLOCK", 64)
    rows = clusters(300, 8, 5)
    store = store_of(tmp_path, rows)
    if had_one:
        build_graph(store, NeighborSettings(k=3, n=9))
    done = launch.run([sys.executable, "-c", KILLED, tmp_path, moment], check=False)
    assert done.returncode == -signal.SIGKILL
    if moment in ("while searching", "after two blocks"):
        np.testing.assert_array_equal(store.graph(), brute_force(rows, 9))  # the old one, untouched
        assert store.manifest["graph"]["K"] == 9
    else:
        with pytest.raises(StoreError, match="no neighbor graph yet"):
            store.graph()
    searched: list[int] = []
    made = build_graph(store, NeighborSettings(k=3, n=12), progress=lambda done, *_: searched.append(done))
    np.testing.assert_array_equal(made, brute_force(rows, 12))
    assert store.manifest["graph"]["K"] == 12
    blocks = {"while searching": [64, 128, 192, 256, 300], "after two blocks": [192, 256, 300]}
    assert sorted(set(searched)) == blocks.get(moment, [])  # what was found before the kill is not looked for again
    assert not (tmp_path / "graph").exists() and not list(tmp_path.glob(".graph*"))


def test_only_one_process_builds(tmp_path: Path):
    store = store_of(tmp_path, clusters(300, 8, 5))
    with lock(tmp_path), pytest.raises(StoreError, match=f"Process {os.getpid()} is writing"):
        build_graph(store, NeighborSettings(k=3, n=9))


def test_errors_are_sentences_and_leave_the_store_as_it_was(tmp_path: Path):
    rows = clusters(20, 8, 5)
    store = store_of(tmp_path, rows)
    build_graph(store, NeighborSettings(k=3, n=9))
    with pytest.raises(
        ConfigError, match=r"k = 31 .* of 20 rows \(19 without the query itself\)\. Set --neighbors\.n to"
    ):
        build_graph(store, NeighborSettings())
    with pytest.raises(ConfigError, match=r"ivf needs at least 10,000 rows, the store has 20\. .*exact"):
        build_graph(store, NeighborSettings(k=3, n=12, index="ivf"))
    assert store.manifest["graph"]["K"] == 9
    rows[4] = np.nan
    with pytest.raises(DataError, match="1 of 20 embeddings contain NaN"):
        build_graph(store_of(tmp_path / "other", rows), NeighborSettings(k=3, n=9))
    with pytest.raises(StoreError, match="not a complete store"):
        build_graph(Store(tmp_path / "nowhere"), NeighborSettings())


def test_settings_refuse_more_neighbors_than_the_circle_holds():
    with pytest.raises(ConfigError, match=r"k = 15 .* nearest n = 10\. Set neighbors\.n to at least 15"):
        resolve(NeighborSettings, {"k": 15, "n": 10})
    with pytest.raises(ConfigError, match="one of auto, exact, ivf, hnsw"):
        resolve(NeighborSettings, {"index": "flat"})
    assert resolve(NeighborSettings, {"k": 0, "n": 1}).k == 0


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (lambda g: g[:-1], r"shape \(4, 2\)"),
        (lambda g: g.astype(np.int64), "int64"),
        (lambda g: g[:, 0], "shape"),
        (lambda g: g + 3, "names images from 3 to 6 of 5"),
        (lambda g: g - 3, "names images from -3"),
        (lambda g: np.array([[1, 2], [0, 2], [0, 1], [0, 3], [0, 1]], np.int32), "image 3 is its own neighbor"),
        (lambda g: np.array([[1, 1], [0, 2], [0, 1], [0, 2], [0, 1]], np.int32), "twice"),
    ],
)
def test_check_graph_finds_what_is_wrong(fault, sentence: str):
    graph = np.array([[1, 2], [0, 2], [0, 1], [0, 2], [0, 3]], np.int32)
    np.testing.assert_array_equal(check_graph(graph, 5), graph)
    with pytest.raises(StoreError, match=sentence):
        check_graph(fault(graph), 5)


def test_recall_worked_by_hand():
    truth = np.array([[0.9, 0.8, 0.5], [0.4, 0.4, 0.4]], np.float32)
    assert recall(truth, truth) == 1.0
    assert recall(np.array([[0.9, 0.5, 0.4], [0.4, 0.4, -np.inf]], np.float32), truth) == pytest.approx(4 / 6)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_graph_finds_what_its_manifest_says(tmp_path: Path, kind: str):
    rows = clusters(10_500, 24, 150)
    store = store_of(tmp_path, rows)
    graph = build_graph(store, NeighborSettings(k=5, n=10, index=kind))
    metadata = store.manifest["graph"]
    assert metadata["index"] == kind
    assert metadata["exact"] is False
    assert metadata["recall_sample"] == 1000
    sample = np.arange(0, len(rows), 21)  # by another search, on other rows
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    cosines = unit[sample] @ unit.T
    cosines[np.arange(len(sample)), sample] = -np.inf
    truth = np.argsort(-cosines, axis=1)[:, :10]
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth, graph[sample], strict=True)])
    assert found >= 0.9
    assert found == pytest.approx(metadata["recall"], abs=0.02)
    assert not (graph == np.arange(len(rows))[:, None]).any()
    ordered = np.take_along_axis(cosines, graph[sample].astype(np.int64), axis=1)
    assert (np.diff(ordered.astype(np.float32), axis=1) <= 0).all()  # nearest first, by the true cosine


def test_approximate_graph_that_misses_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(approximate_module, "AIM", 0.0)  # content with the first effort: 4 lists of 200
    store = store_of(tmp_path, np.random.default_rng(0).standard_normal((10_000, 48)).astype(np.float16))
    with pytest.raises(StoreError, match=r"ivf index found only [1-8]\d\.\d% of the true neighbors of 1,000 images"):
        build_graph(store, NeighborSettings(k=5, n=10, index="ivf"))
    assert "graph" not in store.manifest


def test_rows_with_too_few_candidates_are_completed_exactly(monkeypatch: pytest.MonkeyPatch):
    """Far more lists than the data has clusters: most lists probed are empty, and few candidates come back."""
    monkeypatch.setattr(approximate_module, "AIM", 0.0)
    rows = np.repeat(clusters(1250, 8, 1250), 8, axis=0)
    indices, similarities, metadata = approximate(rows, 150, kind="ivf")
    assert metadata["completed_exactly"] > 0
    assert indices.min() >= 0
    assert np.isfinite(similarities).all()


def test_an_index_that_does_not_fit_the_budget_says_so(tmp_path: Path):
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", mode="w+", dtype=np.float16, shape=(300_000, 1024))
    with pytest.raises(
        ConfigError, match=r"ivf index over 300,000 rows of width 1024 takes about [\d,]+ MiB, and .* 400"
    ):
        approximate(rows, 31, kind="ivf", memory_mb=400)
