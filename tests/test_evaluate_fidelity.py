"""Fidelity: scikit-learn's trustworthiness, CKA from centered Gram matrices, and what each figure must not see."""

import sys

import numpy as np
import pytest

from understudy.errors import DataError, ShapeError
from understudy.evaluate.encoded_set import EncodedSet
from understudy.evaluate.measures import geometry, spaces
from understudy.evaluate.measures.geometry import linear_cka, neighbor_order, trust_and_continuity, trustworthiness
from understudy.evaluate.protocols.fidelity import Fidelity, FidelitySettings
from understudy.evaluate.settings import EvaluationSettings

INTERVALS = ("interval_level", "interval_draws", "images")


def two_spaces(count: int = 150, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    teacher = generator.normal(size=(count, 8))
    return teacher, teacher @ generator.normal(size=(8, 5)) + noise * generator.normal(size=(count, 5))


def compare(student: np.ndarray, teacher: np.ndarray, draws: int = 10, **metadata: object) -> dict:
    settings = EvaluationSettings(fidelity=FidelitySettings(draws=draws))
    return Fidelity.evaluate(
        EncodedSet("student", student, reference=EncodedSet("teacher", teacher), **metadata), settings
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [1, 5, 10, 30])
def test_trustworthiness_is_scikit_learns(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of unit length have Euclidean neighbors (theirs in the mapped space) in cosine order (ours)."""
    from sklearn.manifold import trustworthiness as oracle

    teacher, student = two_spaces()
    unit = student / np.linalg.norm(student, axis=1, keepdims=True)
    expected = oracle(teacher, unit, n_neighbors=k, metric="cosine")
    assert trustworthiness(teacher, student, k) == pytest.approx(expected, abs=1e-12)
    assert 0.5 < expected < 0.99
    monkeypatch.setattr(geometry, "RANKS", 150 * 40)  # four blocks of ranks instead of one
    assert trustworthiness(teacher, student, k) == pytest.approx(expected, abs=1e-12)


def test_trustworthiness_and_continuity_by_hand() -> None:
    """Seven directions at angles 0, 10, ..., 60 degrees; the map swaps the ends, k = 1.

    Mapped neighbors (ties to the lower index) of images 0..6 at places 6 1 2 3 4 5 0: the one beside each image.
    """
    angles = np.deg2rad(np.arange(7) * 10.0)
    places = np.array([6, 1, 2, 3, 4, 5, 0])
    original = np.c_[np.cos(angles), np.sin(angles)]
    mapped = original[places]
    neighbors, ranks = [], []
    for image in range(7):
        others = [j for j in range(7) if j != image]
        near = min(others, key=lambda j: (abs(places[j] - places[image]), j))
        neighbors.append(near)
        by_angle = sorted(others, key=lambda j: (abs(j - image), j))
        ranks.append(by_angle.index(near) + 1)
    # 0 now sits beside 5, which ranks 5th from it in the original; 6 beside 1, likewise.
    assert (neighbors[0], ranks[0], neighbors[6], ranks[6]) == (5, 5, 1, 5)
    penalty = sum(max(0, rank - 1) for rank in ranks)
    assert trustworthiness(original, mapped, 1) == pytest.approx(1 - 2 * penalty / (7 * 1 * (14 - 3 - 1)))


def test_cka_is_hsic_of_centered_grams(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = two_spaces()
    monkeypatch.setattr(geometry, "BLOCK", 37)
    center = np.eye(150) - 1 / 150
    grams = [center @ (rows @ rows.T) @ center for rows in (teacher, student)]

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.trace(a @ b))

    expected = hsic(*grams) / np.sqrt(hsic(grams[0], grams[0]) * hsic(grams[1], grams[1]))
    assert linear_cka(teacher, student) == pytest.approx(expected, abs=1e-12)
    assert 0.3 < expected < 0.95


def test_cka_sees_no_rotation_shift_or_scale() -> None:
    teacher, _ = two_spaces()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    assert linear_cka(teacher, 3 * teacher @ turn + 100) == pytest.approx(1, abs=1e-9)
    assert linear_cka(teacher, teacher * np.geomspace(1, 100, 8)) < 0.9
    assert linear_cka(teacher, np.ones((150, 3))) == 0


def test_a_perfect_student() -> None:
    """The teacher times one positive number: every figure at its best."""
    teacher, _ = two_spaces()
    figures = compare(2.5 * teacher, teacher, aligned=True)
    overlaps = {f"overlap@{k}": 100.0 for k in (1, 5, 11, 21, 31)}
    others = ("row_cosine", "column_cosine", "cka", "trustworthiness", "continuity")
    others += ("cka_debiased", "distance_correlation")
    best = overlaps | {name: pytest.approx(1.0) for name in others}
    best |= {"topology_h0": pytest.approx(0, abs=1e-9), "topology_h1": pytest.approx(0, abs=1e-9)}
    for name, value in best.items():
        assert figures[name] == value, name
        for end in ("low", "high"):
            assert figures[f"{name}_{end}"] == pytest.approx(figures[name], abs=1e-9), name
    for name in ("intrinsic_dimension", "effective_rank", "dead_dimensions"):
        assert figures[name] == pytest.approx(figures[f"{name}_teacher"]), name
    ends = {name for name in figures if name.endswith(("_low", "_high"))}
    shapes = {f"{name}{end}" for name in ("intrinsic_dimension", "effective_rank", "dead_dimensions")
              for end in ("", "_teacher")}  # fmt: skip
    assert figures.keys() - ends == best.keys() | shapes | {"interval_level", "interval_draws", "images"}


def test_overlap_equals_a_loop_over_sets() -> None:
    teacher, student = two_spaces()
    figures = compare(student, teacher)
    sets = []
    for rows in (student, teacher):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines = unit @ unit.T
        np.fill_diagonal(cosines, -2)
        sets.append(np.argsort(-cosines, axis=1))
    for k in (1, 5, 11, 21, 31):
        shared = [len(set(a[:k]) & set(b[:k])) / k for a, b in zip(*sets, strict=True)]
        assert figures[f"overlap@{k}"] == pytest.approx(100 * np.mean(shared))
    assert "row_cosine" not in figures  # backbone features are not in the teacher's space, whatever their width
    assert figures["trustworthiness"] == trustworthiness(teacher, student, 10)
    assert figures["continuity"] == trustworthiness(student, teacher, 10)
    assert figures["trustworthiness"] != figures["continuity"]


def test_cosines_separate_the_two_terms_of_coss() -> None:
    """A positive factor per dimension is invisible to the column cosine, one per image to the row cosine."""
    teacher = np.abs(two_spaces()[0])
    by_column = compare(teacher * np.geomspace(0.1, 10, 8), teacher, aligned=True)
    by_row = compare(teacher * np.geomspace(0.1, 10, 150)[:, None], teacher, aligned=True)
    assert by_column["column_cosine"] == pytest.approx(1)
    assert by_column["row_cosine"] < 0.9
    assert by_row["row_cosine"] == pytest.approx(1)
    assert by_row["column_cosine"] < 0.9
    assert by_row["overlap@31"] == 100.0


def test_unrelated_spaces_share_neighbors_by_chance() -> None:
    generator = np.random.default_rng(4)
    figures = compare(generator.normal(size=(400, 6)), generator.normal(size=(400, 6)))
    assert figures["overlap@31"] == pytest.approx(100 * 31 / 399, abs=1.5)
    assert figures["trustworthiness"] == pytest.approx(0.5, abs=0.03)


def test_few_images_leave_figures_out_and_say_so() -> None:
    teacher, student = two_spaces(15)
    figures = compare(student, teacher)
    measured = {name for name in figures if not name.endswith(("_low", "_high"))}
    assert measured == {"overlap@1", "overlap@5", "overlap@11", "cka", "note", *INTERVALS}
    assert figures["note"] == (
        "overlap@21, overlap@31, trustworthiness, continuity, and the shape of the spaces left out: there are only 15 "
        "test images."
    )


def test_what_cannot_be_compared_is_a_sentence() -> None:
    teacher, student = two_spaces()
    with pytest.raises(DataError, match="student has none"):
        Fidelity.evaluate(EncodedSet("student", student), EvaluationSettings())
    with pytest.raises(ShapeError, match="149 test rows, teacher has 150"):
        compare(student[:149], teacher)
    with pytest.raises(ShapeError, match="width 5, teacher 8"):
        compare(student, teacher, aligned=True)
    with pytest.raises(DataError, match="at least 3"):
        compare(student[:2], teacher[:2])
    broken = student.copy()
    broken[3] = np.nan
    with pytest.raises(DataError, match="1 of 150 rows of the student features"):
        compare(broken, teacher)


def test_intervals_lie_around_their_figures_and_shrink_with_more_images() -> None:
    few, many = (compare(*reversed(two_spaces(count)), draws=40) for count in (60, 300))
    for name in ("overlap@5", "cka", "cka_debiased", "distance_correlation", "trustworthiness", "effective_rank"):
        width = []
        for figures in (few, many):
            assert figures[f"{name}_low"] <= figures[name] <= figures[f"{name}_high"], name
            width.append(figures[f"{name}_high"] - figures[f"{name}_low"])
        assert 0 < width[1] < width[0], name
    assert (few["interval_level"], few["interval_draws"], few["images"]) == (95, 40, 60)
    assert many["intrinsic_dimension"] < many["intrinsic_dimension_teacher"] < 9


def test_without_draws_the_figures_are_the_same_and_have_no_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = two_spaces()
    drawn = compare(student, teacher)
    monkeypatch.setattr(spaces, "neighbor_order", None)  # sorted for intervals alone
    plain = compare(student, teacher, draws=0)
    assert plain == {name: value for name, value in drawn.items() if not name.endswith(("_low", "_high"))
                     and name not in ("interval_level", "interval_draws")}  # fmt: skip
    assert len(plain) < len(drawn) / 2


def test_trustworthiness_of_a_half_is_trustworthiness() -> None:
    teacher, student = two_spaces(60)
    orders = [neighbor_order(geometry.unit(rows)) for rows in (teacher, student)]
    for part in (np.arange(60), np.arange(0, 60, 2), np.arange(7, 50)):
        both = [trustworthiness(*pair, 10) for pair in ((teacher[part], student[part]), (student[part], teacher[part]))]
        assert trust_and_continuity(*orders, part, 10) == pytest.approx(both, abs=1e-12)


def test_without_gudhi_the_other_figures_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gudhi.sklearn.rips_persistence", None)
    figures = compare(*reversed(two_spaces(50)))
    assert "understudy[topology]" in figures["note"]
    assert "topology_h0" not in figures
    assert {"cka_debiased", "trustworthiness"} <= figures.keys()
