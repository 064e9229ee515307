"""kNN: against scikit-learn's vote, cases worked by hand, and what the protocol must not depend on."""

import numpy as np
import pytest

from understudy.errors import DataError, ShapeError
from understudy.evaluate.encoded_set import EncodedSet
from understudy.evaluate.protocols.knn import Knn
from understudy.evaluate.settings import EvaluationSettings

SETTINGS = EvaluationSettings()


def clouds(count: int, classes: int, width: int, seed: int, noise: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    centers = np.random.default_rng(99).normal(size=(classes, width))
    return (centers[labels] + noise * generator.normal(size=(count, width))).astype(np.float32), labels


def encoded_set(classes: int = 7, train: int = 300, test: int = 120) -> EncodedSet:
    rows, labels = clouds(train, classes, 12, seed=1)
    test_rows, test_labels = clouds(test, classes, 12, seed=2)
    return EncodedSet("student", test_rows, rows, test_labels, labels)


def test_equals_scikit_learns_weighted_vote() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    given = encoded_set()
    figures = Knn.evaluate(given, SETTINGS)
    for k, temperature, suffix in [(1, 0.07, ""), (10, 0.07, ""), (20, 0.07, ""), (50, 0.07, ""), (10, 1.0, ",T=1")]:
        oracle = KNeighborsClassifier(
            k, metric="cosine", weights=lambda distance, t=temperature: np.exp((1 - distance) / t)
        ).fit(given.train, given.train_labels)
        chances = oracle.predict_proba(given.test)
        ranked = np.argsort(-chances, axis=1, kind="stable")[:, :5]
        hits = (ranked == given.test_labels[:, None]) & (np.take_along_axis(chances, ranked, axis=1) > 0)
        assert figures[f"top1@{k}{suffix}"] == pytest.approx(100 * hits[:, 0].mean(), abs=1e-9)
        assert figures[f"top5@{k}{suffix}"] == pytest.approx(100 * hits.any(axis=1).mean(), abs=1e-9)
    assert set(figures) == {
        f"top{t}@{k}" for t in (1, 5) for k in ("1", "10", "20", "50", "10,T=1")
    }  # fmt: skip
    assert 30 < figures["top1@10"] < 95  # a task in which a wrong vote would show


def test_a_case_worked_by_hand() -> None:
    """One very near neighbor of class 0 against nine of class 1 at a right angle and beyond.

    T = 0.07: the near one weighs exp(1/0.07) = 1.6e6, the nine together at most 9. T = 1: e = 2.7 against 9.
    """
    train = np.array([[2.0, 0.0]] + [[0.0, 0.5]] * 9)
    labels = np.array([0] + [1] * 9)
    figures = Knn.evaluate(EncodedSet("student", np.array([[7.0, 0.0]]), train, np.array([0]), labels), SETTINGS)
    assert figures["top1@1"] == 100.0
    assert figures["top1@10"] == 100.0
    assert figures["top1@10,T=1"] == 0.0
    assert figures["note"] == "k = 20, 50 left out: there are only 10 training images."
    assert not any(name.startswith("top5") for name in figures)  # of two classes, five hold every answer


def test_a_class_without_votes_is_no_top5_hit() -> None:
    """k = 1 names one class only: top-5 cannot exceed top-1 however many classes there are."""
    given = encoded_set(classes=9)
    figures = Knn.evaluate(given, SETTINGS)
    assert figures["top5@1"] == figures["top1@1"]
    assert figures["top5@50"] > figures["top1@50"]


def test_lengths_and_order_of_rows_do_not_matter() -> None:
    given = encoded_set()
    generator = np.random.default_rng(3)
    order = generator.permutation(len(given.train))
    lengths = generator.uniform(0.1, 10, (len(given.test), 1))
    other = EncodedSet(
        "student", given.test * lengths, given.train[order], given.test_labels, given.train_labels[order]
    )
    assert Knn.evaluate(other, SETTINGS) == Knn.evaluate(given, SETTINGS)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"train_labels": None}, "needs labeled images"),
        ({"train": None}, "needs labeled images"),
        ({"train_labels": np.full(300, 3), "class_names": ("a", "b", "c", "cat")}, r"All 300 training images .*'cat'"),
        ({"test_labels": np.r_[np.zeros(117, int), [-1, -1, -1]]}, "3 of 120 test images have no label"),
        ({"train_labels": np.zeros(299, int)}, "300 training rows but 299 labels"),
        ({"test": np.zeros((120, 5))}, "width 12, test 5"),
        ({"test": np.zeros((0, 12)), "test_labels": np.zeros(0, int)}, "no test images"),
    ],
)
def test_what_cannot_be_scored_is_a_sentence(change: dict, sentence: str) -> None:
    given = encoded_set()
    table = {"name": "student", "test": given.test, "train": given.train}
    table |= {"test_labels": given.test_labels, "train_labels": given.train_labels}
    with pytest.raises((DataError, ShapeError), match=sentence):
        Knn.evaluate(EncodedSet(**(table | change)), SETTINGS)


def test_rows_that_are_not_finite_are_counted() -> None:
    given = encoded_set()
    train = given.train.copy()
    train[5, 3], train[7], train[9, 0] = np.nan, np.inf, -np.inf
    with pytest.raises(DataError, match="3 of 300 rows of the student features of the training images"):
        Knn.evaluate(EncodedSet("student", given.test, train, given.test_labels, given.train_labels), SETTINGS)


def test_as_many_classes_as_imagenet_has_in_all() -> None:
    """21,000 classes of two images, which point the same way: the nearest is always of the query's own class."""
    generator = np.random.default_rng(0)
    labels = np.tile(np.arange(21_000), 2)
    centers = generator.normal(size=(21_000, 16)).astype(np.float32)
    asked = generator.permutation(21_000)[:60]
    settings = EvaluationSettings(memory_mb=128)
    figures = Knn.evaluate(EncodedSet("student", 3 * centers[asked], centers[labels], asked, labels), settings)
    assert figures["top1@1"] == figures["top1@10"] == figures["top5@50"] == 100
