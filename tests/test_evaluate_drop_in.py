"""Drop-in search against loops over rankings in float64 numpy."""

import numpy as np
import pytest

from understudy.errors import DataError, ShapeError
from understudy.evaluate.encoded_set import EncodedSet, Figures
from understudy.evaluate.protocols.drop_in import DropIn
from understudy.evaluate.settings import EvaluationSettings
from understudy.report.protocols import Display

SETTINGS = EvaluationSettings()
COUNT = 160
LABELS = np.arange(COUNT) % 5


def two_spaces() -> tuple[np.ndarray, np.ndarray]:
    """A teacher with five loose classes, and a student that stretches and blurs its space."""
    generator = np.random.default_rng(0)
    teacher = generator.normal(size=(5, 6))[LABELS] + generator.normal(size=(COUNT, 6))
    student = teacher * np.geomspace(0.5, 2, 6) + 0.5 * generator.normal(size=(COUNT, 6))
    return student.astype(np.float32), teacher.astype(np.float32)


def measured(student: np.ndarray, teacher: np.ndarray, aligned: bool = True, **metadata: object) -> Figures:
    reference = EncodedSet("teacher", teacher)
    given = EncodedSet("student_embed", student, reference=reference, aligned=aligned, **metadata)  # type: ignore[arg-type]
    return DropIn.evaluate(given, SETTINGS)


def rankings(queries: np.ndarray, index: np.ndarray) -> list[list[int]]:
    """Of each query, the other rows of the index, the nearest first."""
    units = [
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries.astype(float), index.astype(float))
    ]
    return [
        sorted(set(range(COUNT)) - {row}, key=lambda other: -(units[0][row] @ units[1][other])) for row in range(COUNT)
    ]


def mean_average_precision(found: list[list[int]]) -> float:
    scores = []
    for row, ranking in enumerate(found):
        hits = [place for place, other in enumerate(ranking) if LABELS[other] == LABELS[row]]
        scores.append(np.mean([(number + 1) / (place + 1) for number, place in enumerate(hits)]))
    return 100 * float(np.mean(scores))


def test_both_ways_equal_a_loop_over_rankings() -> None:
    student, teacher = two_spaces()
    figures = measured(student, teacher, test_labels=LABELS)
    truth = rankings(teacher, teacher)
    ways = {"": rankings(student, teacher), "reverse_": rankings(teacher, student)}
    for prefix, answers in ways.items():
        for k in (1, 10, 100):
            shares = [len(set(a[:k]) & set(b[:k])) / k for a, b in zip(answers, truth, strict=True)]
            name = f"{prefix}recall@{k}"
            assert figures[name] == pytest.approx(100 * np.mean(shares)), name
            assert figures[f"{name}_low"] < figures[name] < figures[f"{name}_high"], name
        assert figures[f"{prefix}map"] == pytest.approx(mean_average_precision(answers)), prefix
    assert figures["map_teacher"] == pytest.approx(mean_average_precision(truth))
    assert figures["recall@10"] != figures["reverse_recall@10"]  # a mix-up of index and queries would be seen
    assert figures["map"] != figures["reverse_map"]
    assert (figures["images"], figures["interval_level"], figures["interval_draws"]) == (COUNT, 95, 100)
    assert "note" not in figures


def test_a_perfect_student_gives_the_teacher_s_answers() -> None:
    teacher = two_spaces()[1]
    figures = measured(2.5 * teacher, teacher, test_labels=LABELS)
    assert {figures[f"{way}recall@{k}"] for way in ("", "reverse_") for k in (1, 10, 100)} == {100.0}
    assert figures["map"] == figures["reverse_map"] == figures["map_teacher"]


def test_few_images_and_no_labels_leave_figures_out_and_say_so() -> None:
    student, teacher = two_spaces()
    figures = measured(student[:12], teacher[:12])
    assert "recall@10" in figures
    assert not {"recall@100", "reverse_recall@100", "map", "reverse_map", "map_teacher"} & figures.keys()
    assert figures["note"] == (
        "recall@100 left out: there are only 12 test images; mAP left out: it needs labels, and two test images of one "
        "class."
    )
    for labels in (np.arange(COUNT), np.where(LABELS == 0, -1, LABELS)):  # nobody has a like; some have no label
        assert "map" not in measured(student, teacher, test_labels=labels)


def test_what_cannot_be_asked_is_a_sentence() -> None:
    student, teacher = two_spaces()
    with pytest.raises(DataError, match="student_embed has no teacher"):
        DropIn.evaluate(EncodedSet("student_embed", student), SETTINGS)
    found = measured(student, teacher, aligned=False)
    assert list(found) == ["note"] and "not meant to lie in the teacher's space" in str(found["note"])
    with pytest.raises(ShapeError, match=r"student_embed are \(160, 5\), those of teacher \(160, 6\)"):
        measured(student[:, :5], teacher)
    with pytest.raises(DataError, match="at least 3"):
        measured(student[:2], teacher[:2])
    broken = student.copy()
    broken[3] = np.nan
    with pytest.raises(DataError, match="1 of 160 rows of the student_embed features"):
        measured(broken, teacher)


def test_the_report_holds_recalls_against_the_teacher_s_own_answers() -> None:
    student, teacher = two_spaces()
    figures = measured(student, teacher, test_labels=LABELS)
    display = Display.from_json("drop_in", DropIn.display_table(figures))
    assert display.compared_in(list(figures)) == ["recall@10", "reverse_recall@10"]
    assert [display.is_agreement(name) for name in ("recall@10", "reverse_recall@100", "map")] == [True, True, False]
    assert display.metric_title("reverse_map") == "mAP, reverse"
    assert display.in_percent("map_teacher") and not display.in_percent("images")
