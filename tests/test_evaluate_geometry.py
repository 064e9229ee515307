"""Shape of spaces: formulas as their papers write them, spaces whose answer is known, and gudhi for topology."""

import sys

import numpy as np
import pytest

from understudy.errors import MissingDependency
from understudy.evaluate.measures import geometry, topology
from understudy.evaluate.measures.geometry import linear_cka


def two_spaces(count: int = 60, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    teacher = generator.normal(size=(count, 8))
    return teacher, teacher @ generator.normal(size=(8, 5)) + noise * generator.normal(size=(count, 5))


def test_distances_are_scipys() -> None:
    from scipy.spatial.distance import cdist

    rows = two_spaces()[0] + 1000
    assert np.abs(geometry.distances(rows) - cdist(rows, rows)).max() < 1e-9


def test_trustworthiness_of_a_part_is_scikit_learns_of_that_part_alone() -> None:
    from sklearn.manifold import trustworthiness

    rows, mapped = (geometry.unit(space) for space in two_spaces())
    part = np.random.default_rng(1).permutation(len(rows))[:30]
    trust, continuity = geometry.trust_and_continuity(
        geometry.neighbor_order(rows), geometry.neighbor_order(mapped), part, 5
    )
    for (first, second), value in (((rows, mapped), trust), ((mapped, rows), continuity)):
        wanted = trustworthiness(first[part], second[part], n_neighbors=5, metric="cosine")
        assert value == pytest.approx(wanted, rel=1e-12)


def test_distance_correlation_as_its_definition_reads() -> None:
    """Definition 4 by loops: A_kl = a_kl - row mean - column mean + mean; dCor^2 = sum AB / sqrt(sum AA sum BB)."""
    matrices = [geometry.distances(rows) for rows in two_spaces(20)]
    centered = []
    for a in matrices:
        n = len(a)
        mean = sum(a[k, m] for k in range(n) for m in range(n)) / n**2
        centered.append([[a[k, m] - sum(a[k]) / n - sum(a[:, m]) / n + mean for m in range(n)] for k in range(n)])

    def product(one: list, two: list) -> float:
        return sum(x * y for line, other in zip(one, two, strict=True) for x, y in zip(line, other, strict=True))

    expected = np.sqrt(
        product(*centered) / np.sqrt(product(centered[0], centered[0]) * product(centered[1], centered[1]))
    )
    assert geometry.distance_correlation(*matrices) == pytest.approx(expected, abs=1e-12)
    assert geometry.distance_correlation(matrices[0], 3 * matrices[0]) == pytest.approx(1)
    assert geometry.distance_correlation(matrices[0], np.zeros((20, 20))) == 0


def test_debiased_cka_is_the_u_statistic() -> None:
    """HSIC's unbiased estimator is a sum over quadruples of different images, which equation 4 gathers up."""
    import itertools

    one, two = (geometry.gram(rows) for rows in two_spaces(9))

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        total = 0.0
        for i, j, q, r in itertools.permutations(range(9), 4):
            total += k[i, j] * m[i, j] + k[i, j] * m[q, r] - 2 * k[i, j] * m[i, q]
        return total / (9 * 8 * 7 * 6)

    expected = hsic(one, two) / np.sqrt(hsic(one, one) * hsic(two, two))
    assert geometry.debiased_cka(one, two) == pytest.approx(expected, abs=1e-10)
    generator = np.random.default_rng(1)
    unrelated = [generator.normal(size=(40, 200)) for _ in range(2)]
    assert abs(geometry.debiased_cka(*map(geometry.gram, unrelated))) < 0.1 < 0.5 < linear_cka(*unrelated)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_two_nn_finds_the_dimension_of_a_cube(dimension: int) -> None:
    generator = np.random.default_rng(2)
    cube = generator.uniform(size=(1500, dimension)) @ np.linalg.qr(generator.normal(size=(20, dimension)))[0].T
    assert geometry.two_nn(geometry.distances(cube)) == pytest.approx(dimension, rel=0.12)
    twice = np.r_[cube[:400], cube[:3]]
    assert np.isfinite(geometry.two_nn(geometry.distances(twice)))
    assert geometry.two_nn(np.zeros((5, 5))) == 0


def test_effective_rank_and_dead_dimensions_by_hand() -> None:
    """Four orthogonal directions of equal strength count as four; strengths 3:1 as exp(entropy of 3/4, 1/4)."""
    corners = np.array([[a, b, c, d] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1) for d in (-1, 1)], dtype=float)
    assert geometry.effective_rank(corners + 7) == pytest.approx(4)
    uneven = geometry.effective_rank(corners[:, :2] * [3, 1])
    assert uneven == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
    assert geometry.effective_rank(corners[:3]) == pytest.approx(geometry.effective_rank(corners[:3] @ np.eye(4, 9)))
    assert geometry.effective_rank(np.zeros((5, 5))) == 0
    assert geometry.dead_dimensions(corners * [1, 1, 1e-6, 0]) == 2


def test_intervals_hold_what_they_say() -> None:
    """Over 150 fresh sets the true mean lies in about 95 % of the intervals, bootstrap and halves alike."""
    hits = np.zeros(2)
    for seed in range(150):
        values = np.random.default_rng([5, seed]).uniform(0, 2, size=80)
        ends = (
            geometry.interval_of_mean(values, seed, 100),
            geometry.interval_by_halves(
                lambda part, v=values: float(v[part].mean()), 80, float(values.mean()), seed, 100
            ),
        )
        hits += [low < 1.0 < high for low, high in ends]
    assert (hits >= 0.87 * 150).all()
    assert (hits < 150).all()


def test_topology_sees_one_loop_and_no_rotation() -> None:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.c_[np.cos(angles), np.sin(angles)]
    components, loops = topology.diagrams(geometry.distances(circle))
    # By hand: neighbors on the circle are 2 sin(pi / 24) apart; 23 merges. The loop opens there, too.
    assert np.allclose(components, [[0, 2 * np.sin(np.pi / 24)]] * 23)
    [[birth, death]] = loops[loops[:, 1] - loops[:, 0] > 1e-9]
    assert birth == pytest.approx(2 * np.sin(np.pi / 24))
    assert death == pytest.approx(np.sqrt(3), abs=0.02)  # when triangles across close it: an equilateral one
    turned = 5 * circle @ np.linalg.qr(np.random.default_rng(0).normal(size=(2, 2)))[0] + 3
    assert topology.topology_distance(geometry.distances(circle), geometry.distances(turned)) == pytest.approx(
        (0, 0), abs=1e-9
    )
    line = np.c_[angles, 0 * angles]
    assert topology.topology_distance(geometry.distances(circle), geometry.distances(line))[1] > 0.02


def test_components_are_the_minimum_spanning_tree() -> None:
    from scipy.sparse.csgraph import minimum_spanning_tree

    space = geometry.distances(two_spaces(50)[1])
    components, _ = topology.diagrams(space)
    tree = np.sort(minimum_spanning_tree(space).data)
    assert np.allclose(np.sort(components[:, 1]), tree)


def test_a_rounding_between_both_triangles_is_not_seen() -> None:
    """Products of slices need not be symmetric to the last bit, and on such a matrix the reduction never ended."""
    space = geometry.distances(two_spaces(74)[1])
    skew = space + np.triu(3e-16 * np.random.default_rng(0).integers(-1, 2, space.shape), 1)
    for one, two in zip(topology.diagrams(np.tril(space) + np.tril(space).T), topology.diagrams(skew), strict=True):
        assert np.array_equal(np.sort(one, axis=0), np.sort(two, axis=0))


def test_wasserstein_by_hand_and_by_gudhi() -> None:
    """(0, 4) goes to (0, 3) at cost 1; (5, 6) to the diagonal at cost 1/2."""
    assert topology.wasserstein(np.array([[0.0, 4.0], [5.0, 6.0]]), np.array([[0.0, 3.0]])) == pytest.approx(1.5)
    assert topology.wasserstein(np.empty((0, 2)), np.array([[0.0, 3.0]])) == pytest.approx(1.5)
    from gudhi.hera import wasserstein_distance

    generator = np.random.default_rng(3)
    one, two = (np.sort(generator.uniform(size=(size, 2)), axis=1) for size in (12, 9))
    assert topology.wasserstein(one, two) == pytest.approx(wasserstein_distance(one, two, order=1.0), rel=0.02)


def test_without_gudhi_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gudhi.sklearn.rips_persistence", None)
    with pytest.raises(MissingDependency, match=r"understudy\[topology\]"):
        topology.diagrams(np.zeros((3, 3)))
