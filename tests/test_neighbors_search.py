"""The exact search against numpy in float64, and what it promises: one answer, whatever the budget and the device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy.errors import ConfigError, DataError, ShapeError
from understudy.neighbors import search as module
from understudy.neighbors.search import search

DRAW = np.random.default_rng(0)


def brute_force(
    queries: np.ndarray, database: np.ndarray, k: int, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """All cosines in float64, one full sort by (similarity, index)."""

    def unit(rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float64)
        norms = np.sqrt((rows**2).sum(axis=1, keepdims=True))
        return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 1e-12)

    cosines = (unit(queries) @ unit(database).T).astype(np.float32) + np.float32(0)
    if exclude is not None:
        cosines[np.arange(len(queries)), exclude] = -np.inf
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return order.astype(np.int32), np.take_along_axis(cosines, order, axis=1)


def assert_exact(queries: np.ndarray, database: np.ndarray, k: int, exclude: np.ndarray | None = None, **how) -> None:
    indices, similarities = search(queries, database, k, exclude=exclude, **how)
    expected, cosines = brute_force(queries, database, k, exclude)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(similarities, cosines)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loop goes round several times, with a ragged end, and whole blocks fall into groups of 16."""
    monkeypatch.setattr(module, "LARGEST_BLOCK", 304)
    monkeypatch.setattr(module, "QUERY_TILE", 70)
    monkeypatch.setattr(module, "STEP", 1000)


def test_worked_by_hand():
    database = np.array([[1, 0], [0, 2], [3, 3], [-1, 0], [0, 0]], np.float32)
    indices, similarities = search(np.array([[5, 0], [0, 0]], np.float32), database, 5)
    # Cosines of (5, 0): 1, 0, 0.7071, -1, 0; the tie of 1 and 4 goes to the lower index. The zero query: 0 to all.
    assert indices.tolist() == [[0, 2, 1, 4, 3], [0, 1, 2, 3, 4]]
    np.testing.assert_allclose(similarities, [[1, 0.5**0.5, 0, 0, -1], [0] * 5], atol=1e-7)
    assert (indices.dtype, similarities.dtype) == (np.int32, np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("queries", "rows", "width", "k"),
    [(50, 400, 3, 1), (90, 6000, 16, 3), (7, 1000, 64, 31), (900, 650, 17, 20), (1, 1, 1, 1), (3, 5, 2, 5)],
)
def test_equals_brute_force(dtype: type, queries: int, rows: int, width: int, k: int, small_blocks: None):
    asked = DRAW.standard_normal((queries, width)).astype(dtype)
    assert_exact(asked, DRAW.standard_normal((rows, width)).astype(dtype), k)


def test_equals_brute_force_within_one_set(small_blocks: None):
    rows = DRAW.standard_normal((1000, 24)).astype(np.float16)
    assert_exact(rows, rows, 31, np.arange(1000))


def test_self_is_removed_by_identity_and_exact_duplicates_stay(small_blocks: None):
    rows = DRAW.standard_normal((500, 8)).astype(np.float32)
    rows[[7, 100, 450]] = rows[3]
    rows[301] = 4 * rows[300]
    indices, similarities = search(rows, rows, 3, exclude=np.arange(500))
    assert indices[3].tolist() == [7, 100, 450]
    assert indices[100].tolist() == [3, 7, 450]
    assert similarities[3].tolist() == [1, 1, 1]
    assert indices[300, 0] == 301
    assert not (indices == np.arange(500)[:, None]).any()


def test_more_duplicates_and_zero_rows_than_any_candidate_list_holds(small_blocks: None):
    rows = DRAW.standard_normal((900, 8)).astype(np.float16)
    rows[100:250] = rows[5]
    rows[400:520] = 0
    assert_exact(rows, rows, 10, np.arange(900))


def test_a_collapsed_encoder_gets_the_exact_answer_too(small_blocks: None):
    """All similarities within the rounding error of a float32 product: the float64 scan decides every row."""
    rows = (1 + 1e-4 * DRAW.standard_normal((700, 32))).astype(np.float32)
    assert_exact(rows, rows, 10, np.arange(700))


def test_extreme_scales_do_not_matter(small_blocks: None):
    rows = DRAW.standard_normal((400, 16))
    scale = 10.0 ** DRAW.integers(-11, 30, (400, 1))
    assert_exact((rows * scale).astype(np.float32), rows.astype(np.float32), 5)


def test_same_answer_for_every_budget_and_number_of_threads():
    rows = DRAW.standard_normal((3000, 48)).astype(np.float16)
    rows[50:90] = rows[2]
    first = search(rows, rows, 31, exclude=np.arange(3000), memory_mb=4096)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        second = search(rows, rows, 31, exclude=np.arange(3000), memory_mb=120)
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_exact_whatever_precision_training_has_allowed(monkeypatch: pytest.MonkeyPatch):
    """TF32 or bf16 products and autocast would be wrong in the third digit, where the hardware has them."""
    rows = DRAW.standard_normal((600, 256)).astype(np.float32)
    during: list[str] = []
    scan = module._scan

    def spied(*arguments):
        during.extend((torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision))
        return scan(*arguments)

    monkeypatch.setattr(module, "_scan", spied)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_exact(rows, rows, 15, np.arange(600))
        assert set(during) == {"ieee"}
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_negative_exclusion_excludes_nothing():
    rows = DRAW.standard_normal((50, 4)).astype(np.float32)
    own = np.arange(50)
    own[10:] = -1
    indices, _ = search(rows, rows, 3, exclude=own)
    assert not (indices[:10] == np.arange(10)[:, None]).any()
    assert indices[10:, 0].tolist() == list(range(10, 50))


def test_memory_map_is_read_in_place(tmp_path: Path):
    np.save(tmp_path / "rows.npy", DRAW.standard_normal((300, 12)).astype(np.float16))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert_exact(rows, rows, 7, np.arange(300))


def test_progress_ends_at_the_number_of_queries(small_blocks: None):
    seen: list[tuple[int, int]] = []
    rows = DRAW.standard_normal((700, 4)).astype(np.float32)
    search(rows, rows, 2, progress=lambda done, total, note: seen.append((done, total)))
    assert seen[0] == (304, 700)
    assert seen[-1] == (700, 700)


@pytest.mark.parametrize(
    ("k", "exclude", "sentence"),
    [
        (6, None, r"k = 6 neighbors were asked of 5 rows\. Use k of at most 5"),
        (5, np.arange(5), r"k = 5 .* of 5 rows \(4 without the query itself\)\. Use k of at most 4"),
        (0, None, "k must be at least 1; got 0"),
    ],
)
def test_k_that_the_database_cannot_serve(k: int, exclude: np.ndarray | None, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        search(np.ones((5, 2)), np.ones((5, 2)), k, exclude=exclude)


def test_nan_and_infinity_are_counted():
    rows = DRAW.standard_normal((4000, 600)).astype(np.float32)
    rows[[3, 3999], 5] = np.nan
    rows[17, :2] = np.inf
    with pytest.raises(DataError, match="3 of 4,000 embeddings contain NaN or infinity"):
        search(rows, rows, 2)
    with pytest.raises(DataError, match="1 of 1 query rows"):
        search(rows[3:4], np.ones((9, 600)), 2)


def test_shapes_that_do_not_fit():
    with pytest.raises(ShapeError, match="width 3, the database has 4"):
        search(np.ones((2, 3)), np.ones((5, 4)), 1)
    with pytest.raises(ShapeError, match=r"exclude has shape \(3,\)"):
        search(np.ones((2, 4)), np.ones((5, 4)), 1, exclude=np.arange(3))
    with pytest.raises(ShapeError, match="non-empty matrix"):
        search(np.ones((0, 4)), np.ones((5, 4)), 1)
    with pytest.raises(ShapeError, match="int64"):
        search(np.ones((2, 4), np.int64), np.ones((5, 4)), 1)


def test_budget_too_small_names_one_that_is_enough():
    rows = np.ones((1000, 512), np.float32) + np.eye(1000, 512, dtype=np.float32)
    with pytest.raises(ConfigError, match="A memory budget of 20 MiB is too small") as refusal:
        search(rows, rows, 5, memory_mb=20)
    enough = int(str(refusal.value).split("at least ")[1].split()[0])
    search(rows, rows, 5, memory_mb=enough)
    with pytest.raises(ConfigError):
        search(rows, rows, 5, memory_mb=enough - 2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's record of peak memory")
@pytest.mark.parametrize(("rows", "width", "budget", "scan"), [(20_000, 1024, 110, "32"), (30_000, 32, 130, "64")])
def test_peak_memory_stays_within_the_budget(rows: int, width: int, budget: int, scan: str):
    """2,000 x 30,000 similarities alone are 229 MiB in float32; a collapsed encoder leaves all to the float64 scan."""
    script = f"""
import numpy as np, torch
from pathlib import Path
from understudy.neighbors.search import search
rows = np.random.default_rng(0).standard_normal(({rows}, {width}), dtype=np.float32)
if {scan} == 64:
    rows = 1 + 1e-4 * rows
torch.mm(torch.ones(99, 99), torch.ones(99, 99))
Path('/proc/self/clear_refs').write_text('5')
peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024
before = peak()
search(rows[:2000], rows, 31, exclude=np.arange(2000), memory_mb={budget})
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 1 < float(done.stdout) <= budget


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_same_answer():
    rows = DRAW.standard_normal((5000, 96)).astype(np.float16)
    rows[70:200] = rows[1]
    rows[300:400] = 0
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert_exact(rows, rows, 31, np.arange(5000), device="cuda")
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
