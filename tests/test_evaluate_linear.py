"""The exact linear probe: scikit-learn's optimum, the stationarity condition, and the protocol around it."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy.errors import ConfigError, DataError
from understudy.evaluate.encoded_set import EncodedSet
from understudy.evaluate.measures.accuracy import average_precision_11
from understudy.evaluate.measures.logistic import LogisticPath, logistic_regression
from understudy.evaluate.measures.probe import L2_VALUES, validation_split
from understudy.evaluate.protocols.linear import Linear
from understudy.evaluate.settings import EvaluationSettings

SETTINGS = EvaluationSettings()


def features(count: int, width: int, classes: int, seed: int = 0, gap: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Like pooled activations: positive, far from centered, widths of very different size, correlated."""
    fixed, generator = np.random.default_rng(7), np.random.default_rng(seed)
    sizes = np.geomspace(2, 0.05, width)
    turn = np.linalg.qr(fixed.normal(size=(width, width)))[0]
    centers = gap * fixed.normal(size=(classes, width)) * sizes
    labels = generator.integers(0, classes, count)
    rows = (centers[labels] + generator.normal(size=(count, width)) * sizes) @ turn
    return np.maximum(rows + 1, 0), labels


def objective(weight: np.ndarray, bias: np.ndarray, rows: np.ndarray, labels: np.ndarray, l2: float) -> float:
    scores = rows @ weight.T + bias
    top = scores.max(axis=1)
    log_sum = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
    return float((log_sum - scores[np.arange(len(rows)), labels]).sum() + l2 / 2 * (weight**2).sum())


@pytest.mark.parametrize(("count", "width", "l2"), [(300, 10, 1.0), (300, 10, 1e-2), (60, 100, 0.1)])
def test_optimum_is_scikit_learns(count: int, width: int, l2: float) -> None:
    from sklearn.linear_model import LogisticRegression

    rows, labels = features(count, width, 4)
    ours = logistic_regression(rows, labels, 4, l2)
    theirs = LogisticRegression(C=1 / l2, tol=1e-9, max_iter=20_000).fit(rows, labels)
    assert ours.converged
    size = np.abs(theirs.coef_).max()
    assert np.abs(ours.weight - theirs.coef_).max() < 2e-3 * size
    # scikit-learn's stops at its own tolerance; the convex objective says who is nearer the one optimum.
    best = objective(ours.weight, ours.bias, rows, labels, l2)
    assert best <= objective(theirs.coef_, theirs.intercept_, rows, labels, l2) + 1e-6
    chances = np.exp(ours.scores(rows))
    assert np.abs(chances / chances.sum(1, keepdims=True) - theirs.predict_proba(rows)).max() < 1e-4


def test_gradient_vanishes_at_the_optimum() -> None:
    """Stationarity, derived by hand: X'(P - Y) + l2 W = 0 and sum(P - Y) = 0."""
    rows, labels = features(200, 6, 3)
    fit = logistic_regression(rows, labels, 3, 0.5)
    scores = fit.scores(rows)
    chances = np.exp(scores - scores.max(1, keepdims=True))
    residual = chances / chances.sum(1, keepdims=True) - np.eye(3)[labels]
    assert np.abs(residual.T @ rows + 0.5 * fit.weight).max() < 1e-3
    assert np.abs(residual.sum(0)).max() < 1e-3


def test_two_classes_by_hand() -> None:
    """x = -1 is class 0, x = +1 is class 1, ten images each, l2 = 2.

    By symmetry W = (-w, w), b = 0 and d/dw [20 log(1 + exp(-2w)) + 2 w^2] = 0: w = 10 / (1 + exp(2w)) = 1.06402.
    """
    rows, labels = np.array([[-1.0], [1.0]] * 10), np.array([0, 1] * 10)
    fit = logistic_regression(rows, labels, 2, 2.0)
    w = float(fit.weight[1, 0])
    assert w == pytest.approx(10 / (1 + np.exp(2 * w)), abs=1e-5)
    assert w == pytest.approx(1.06402, abs=1e-4)
    assert fit.weight[0, 0] == pytest.approx(-w, abs=1e-6)
    assert fit.bias == pytest.approx([0, 0], abs=1e-6)


def test_offset_rotation_and_dead_dimensions_change_nothing() -> None:
    """The bias is free and the penalty round, so centering and principal axes inside the solver are exact."""
    rows, labels = features(150, 8, 3)
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(8, 8)))[0]
    other = np.c_[(rows + 50.0) @ turn, np.full(150, 3.0), np.zeros(150)]
    plain, moved = logistic_regression(rows, labels, 3, 0.3), logistic_regression(other, labels, 3, 0.3)
    difference = plain.scores(rows) - moved.scores(other)
    assert np.abs(difference - difference.mean(1, keepdims=True)).max() < 1e-4
    assert np.abs(moved.weight[:, 8:]).max() < 1e-6


def test_constant_features_give_the_class_frequencies() -> None:
    fit = logistic_regression(np.ones((12, 4)), np.array([0] * 6 + [1] * 4 + [2] * 2), 3, 1.0)
    chances = np.exp(fit.scores(np.ones((1, 4))))[0]
    assert chances / chances.sum() == pytest.approx([6 / 12, 4 / 12, 2 / 12], abs=1e-5)


def test_protocol_against_scikit_learn() -> None:
    """scikit-learn on the same split along the grid: our choice is a best one, its refit scores the same."""
    from sklearn.linear_model import LogisticRegression

    rows, labels = features(240, 6, 7)
    test_rows, test_labels = features(150, 6, 7, seed=1)
    figures = Linear.evaluate(EncodedSet("student", test_rows, rows, test_labels, labels), SETTINGS)
    held_out = validation_split(labels, SETTINGS.seed)
    fit_rows, fit_labels = rows[~held_out], labels[~held_out]
    scores = []
    for l2 in L2_VALUES[::4]:  # every fourth; the path is smooth, the choice is checked against their best
        oracle = LogisticRegression(C=1 / l2, tol=1e-3, max_iter=300).fit(fit_rows, fit_labels)
        scores.append(100 * oracle.score(rows[held_out], labels[held_out]))
    one_image = 100 / held_out.sum()
    assert figures["validation"] >= max(scores) - one_image
    final = LogisticRegression(C=1 / figures["l2"], tol=1e-8, max_iter=20_000).fit(rows, labels)
    ranked = np.argsort(-final.decision_function(test_rows), axis=1)[:, :5]
    assert figures["top1"] == pytest.approx(100 * final.score(test_rows, test_labels))
    assert figures["top5"] == pytest.approx(100 * (ranked == test_labels[:, None]).any(1).mean())
    assert figures["top5"] > figures["top1"]


def test_grid_is_the_published_one() -> None:
    assert len(L2_VALUES) == 45
    assert sorted(L2_VALUES) == pytest.approx([10 ** (-6 + 11 * i / 44) for i in range(45)])


def test_mean_class_weighs_classes_alike() -> None:
    """Class 5 has no training images, so its one test image is missed; ids need not be dense."""
    train, labels = np.array([[-1.0], [1.0]] * 20), np.array([2, 9] * 20)
    test, test_labels = np.array([[-1.0]] * 8 + [[1.0], [1.0]]), np.array([2] * 8 + [9, 5])
    figures = Linear.evaluate(EncodedSet("student", test, train, test_labels, labels), SETTINGS)
    assert figures["top1"] == pytest.approx(90.0)
    assert figures["mean_class"] == pytest.approx(100 * 2 / 3)
    assert figures["top5"] == pytest.approx(90.0)


def test_half_precision_features_are_taken_as_they_are() -> None:
    """Stores hold fp16: the classifier fits those numbers, in double precision."""
    rows, labels = features(240, 6, 3)
    coarse = rows.astype(np.float16)
    fits = [logistic_regression(given, labels, 3, 1.0) for given in (coarse, coarse.astype(np.float64))]
    assert (fits[0].weight == fits[1].weight).all()
    assert np.abs(fits[0].weight - logistic_regression(rows, labels, 3, 1.0).weight).max() < 0.01


def test_validation_split_takes_a_fifth_of_every_class() -> None:
    labels = np.array([0] * 50 + [1] * 10 + [2] * 3 + [3])
    held_out = validation_split(labels, seed=4)
    assert np.bincount(labels[held_out], minlength=4).tolist() == [10, 2, 1, 0]
    assert (held_out == validation_split(labels, seed=4)).all()
    assert (held_out != validation_split(labels, seed=5)).any()


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [([1, 1, 1, 1], "All 4 training images"), ([0, 1, 2, 3], "No class has two training images")],
)
def test_what_cannot_be_fitted_is_a_sentence(labels: list[int], sentence: str) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 3))
    with pytest.raises(DataError, match=sentence):
        Linear.evaluate(EncodedSet("student", rows, rows, np.array(labels), np.array(labels)), SETTINGS)


def test_blocks_from_disk_reach_the_same_optimum_within_the_budget(tmp_path: Path) -> None:
    """60,000 x 96 in half precision, memory-mapped, 16 MiB for the fit: the rows alone would take 46 in float64."""
    rows, labels = features(60_000, 96, 5)
    np.save(tmp_path / "rows.npy", rows.astype(np.float16))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    path = LogisticPath(mapped, labels, 5, device="cpu", dtype=torch.float32, memory_mb=16)
    assert path.rows is None
    tracemalloc.start()  # numpy's; torch's blocks are of the same size
    solution = path.solve(1.0, start=None, tolerance=1e-3, iterations=12)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert path.block * 8 * (4 * 5 + 3 * 96) <= 4 << 20
    whole = LogisticPath(mapped, labels, 5, device="cpu", dtype=torch.float32)
    assert whole.rows is not None
    other = whole.solve(1.0, start=None, tolerance=1e-3, iterations=12)
    assert torch.allclose(path._sums(solution)[0], whole._sums(other)[0], rtol=1e-4)
    one, two = path._sums(other)[1], whole._sums(other)[1]
    assert torch.allclose(one, two, atol=1e-3 * float(two.abs().max()) + 1)
    some = np.arange(0, 60_000, 7)
    assert path.score(solution, some, "top1") == pytest.approx(whole.score(other, some, "top1"), abs=0.5)


def test_too_many_classes_for_the_budget_is_a_sentence() -> None:
    rows = np.random.default_rng(0).normal(size=(2100, 64))
    labels = np.arange(2100)
    with pytest.raises(ConfigError, match=r"2,100 classes on 64 dimensions needs at least \d+ MiB; the budget is 16"):
        logistic_regression(rows, labels, 2100, 1.0, memory_mb=16)
    many = LogisticPath(rows, labels, 2100, device="cpu", dtype=torch.float32, memory_mb=64)
    solution = many.solve(1e-3, start=None, tolerance=1e-3, iterations=20)  # one image a class: all can be learned
    assert many.score(solution, np.arange(2100), "top1") > 90


def test_as_many_classes_as_imagenet_has_in_all() -> None:
    """21,000 classes, few of them with images: the scores of all images are never there at once."""
    rows = np.random.default_rng(0).normal(size=(100, 12))
    labels = np.random.default_rng(1).permutation(21_000)[:100]
    path = LogisticPath(rows, labels, 21_000, device="cpu", dtype=torch.float32, memory_mb=48)
    assert path.block == 64
    solution = path.solve(1e-3, start=None, tolerance=1e-3, iterations=8)
    assert path.score(solution, np.arange(100), "top1") > 90


def test_several_labels_an_image_are_independent_regressions() -> None:
    """Against scikit-learn's two-class regression, class by class, images marked 0 left out."""
    from sklearn.linear_model import LogisticRegression

    rows, labels = features(300, 8, 3)
    marks = np.where(labels[:, None] == np.arange(3), 1, -1)
    marks[::17, 1] = 0
    ours = logistic_regression(rows, marks, 3, 0.5)
    for number in range(3):
        counted = marks[:, number] != 0
        theirs = LogisticRegression(C=2.0, tol=1e-9, max_iter=20_000).fit(rows[counted], marks[counted, number])
        assert np.abs(ours.weight[number] - theirs.coef_[0]).max() < 2e-3 * np.abs(theirs.coef_).max()
        assert ours.bias[number] == pytest.approx(theirs.intercept_[0], abs=5e-3)


def test_average_precision_of_eleven_points_by_hand() -> None:
    """Ranking + - + -: precision 1 up to recall 0.5, then 2/3. Six of eleven recalls are at or below 0.5."""
    scores = np.array([[4.0], [3.0], [2.0], [1.0], [9.0]])
    marks = np.array([[1], [-1], [1], [-1], [0]])  # the difficult one, ranked first, is not there
    assert average_precision_11(scores, marks) == pytest.approx([(6 * 1 + 5 * 2 / 3) / 11])
    assert len(average_precision_11(scores, -np.ones((5, 1), int))) == 0  # a class without a positive image
