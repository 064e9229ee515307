"""Teacher-side transforms against numpy and scikit-learn, their inverses, and a student that finds its way back."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from understudy.artifacts import Store, StoreKey
from understudy.embed.settings import TRANSFORMS
from understudy.embed.transform import fit, hadamard, transform_of
from understudy.errors import ConfigError, DataError

NAMES = TRANSFORMS[1:]


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Non-negative, correlated, of very different spreads, one dimension dead: like pooled features after a ReLU."""
    generator = np.random.default_rng(0)
    mixed = generator.normal(size=(500, 12)) @ generator.normal(size=(12, 12)) + 2
    found = np.maximum(mixed, 0) * np.geomspace(0.1, 10, 12)
    found[:, 5] = 0
    return found.astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(rows, name):
    transform = fit(rows, name)
    there = transform.apply(rows)
    np.testing.assert_allclose(there @ transform.inverse + transform.mean, rows, rtol=0, atol=1e-3)
    np.testing.assert_allclose(transform.matrix @ transform.inverse, np.eye(12), rtol=0, atol=1e-9)
    np.testing.assert_allclose(there.mean(0), 0, atol=1e-4)


def test_standardize_is_scikit_learns(rows):
    alive = np.delete(np.arange(12), 5)
    expected = StandardScaler().fit_transform(rows.astype(np.float64))
    np.testing.assert_allclose(fit(rows, "standardize").apply(rows)[:, alive], expected[:, alive], rtol=1e-4, atol=1e-6)


def test_whitened_rows_are_a_rotation_of_scikit_learns(rows):
    rows = np.delete(rows, 5, axis=1).astype(np.float64)
    found = fit(rows, "whiten").apply(rows)
    np.testing.assert_allclose(np.cov(found.T, bias=True), np.eye(11), rtol=0, atol=1e-6)
    expected = PCA(whiten=True).fit_transform(rows) * np.sqrt(len(rows) / (len(rows) - 1))
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, rtol=0, atol=1e-5)
    # ZCA: of all whitened versions the one nearest the axes has a symmetric matrix.
    matrix = fit(rows, "whiten").matrix
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9)


def test_phi_s_gives_each_dimension_variance_one_and_keeps_distances(rows):
    found = fit(rows, "phi-s").apply(rows)
    np.testing.assert_allclose(found.var(0), 1, rtol=1e-4)
    before = np.linalg.norm(rows[:50, None] - rows[None, :50], axis=2)
    after = np.linalg.norm(found[:50, None] - found[None, :50], axis=2)
    np.testing.assert_allclose(after, before / np.sqrt(rows.astype(np.float64).var(0).mean()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("order", [1, 2, 4, 12, 64, 192, 384, 768, 1280, 1408, 1536, 2048])
def test_hadamard(order):
    matrix = hadamard(order)
    np.testing.assert_allclose(np.abs(matrix), 1 / np.sqrt(order), rtol=1e-9)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(order), rtol=0, atol=1e-9)


def test_what_cannot_be_done_is_said(rows):
    with pytest.raises(ConfigError, match="of order D = 26 .* standardize"):
        hadamard(26)
    with pytest.raises(ConfigError, match="Unknown transform 'white'. Known: none, center"):
        fit(rows, "white")
    with pytest.raises(DataError, match="at least two embeddings; there are 1"):
        fit(rows[:1], "center")


def test_a_store_keeps_it(tmp_path, rows):
    store = Store(tmp_path / "abc")
    store.folder.mkdir()
    np.save(store.folder / "embeddings.npy", rows.astype(np.float16))
    key = StoreKey({"fingerprint": "t", "spec": "t"}, {}, {"fingerprint": "d", "spec": "d", "images": 500})
    store.finish(key, rows=500, D=12)
    first = transform_of(store, "whiten")
    expected = fit(rows.astype(np.float16), "whiten")
    np.testing.assert_array_equal(first.matrix, expected.matrix)
    written = (store.folder / "transform-whiten.npz").stat().st_mtime_ns
    again = transform_of(store, "whiten")
    assert (store.folder / "transform-whiten.npz").stat().st_mtime_ns == written
    np.testing.assert_array_equal(again.inverse, first.inverse)
