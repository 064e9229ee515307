"""Retrieval: rankings worked by hand, scikit-learn's average precision, and pickles that would do harm."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from understudy.errors import DataError, ShapeError, UnreadableImage
from understudy.evaluate.dataset import EvaluationSet
from understudy.evaluate.datasets.landmarks import read_ground_truth
from understudy.evaluate.encoded_set import EncodedSet
from understudy.evaluate.measures.ranking import positions, precision_at, ranked, trapezia
from understudy.evaluate.open_set import open_set
from understudy.evaluate.protocols.retrieval import Retrieval
from understudy.evaluate.settings import EvaluationSettings
from understudy.sources.source import Source

SETTINGS = EvaluationSettings()


def test_average_precision_by_hand() -> None:
    """Wanted images at places 0 and 2: trapezia (1 + 1)/2 and (1/2 + 2/3)/2, mean 0.7917."""
    assert trapezia(np.array([0, 2])) == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    assert trapezia(np.array([0, 1, 2])) == 1
    assert precision_at(np.array([0, 2]), 1) == 1
    assert precision_at(np.array([0, 2]), 10) == pytest.approx(2 / 3)  # the last one is found at the third place
    ranking = np.array([7, 3, 5, 1, 4])
    assert positions(ranking, np.array([5, 4]), np.array([3])).tolist() == [1, 3]  # as if 3 were not there


def line(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.c_[np.cos(angles), np.sin(angles)].astype(np.float32)


def landmarks(folder: Path, gnd: list[dict], names: int = 6, queries: int = 1, protocol: int = 2) -> EvaluationSet:
    """A set in the official layout; the images are of no matter."""
    root = folder / "roxford5k"
    (root / "jpg").mkdir(parents=True)
    lists = {"imlist": [f"all_souls_{i:06d}" for i in range(names)], "qimlist": [f"query_{i}" for i in range(queries)]}
    for name in lists["imlist"] + lists["qimlist"]:
        Image.new("RGB", (20, 10), (len(name), 80, 0)).save(root / "jpg" / f"{name}.jpg")
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps({**lists, "gnd": gnd}, protocol=protocol))
    return open_set(f"roxford5k={folder}")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_easy_hard_and_junk_by_hand(tmp_path: Path, protocol: int) -> None:
    """Database by falling similarity: 0 junk, 1 easy, 2 hard, 3 nothing, 4 easy, 5 hard.

    medium (junk out): e h - e h: places 0, 1, 3, 4. easy (0, 2, 5 out): e - e: 0, 2. hard (0, 1, 4 out): h - h: 0, 2.
    """
    gnd = [{"easy": np.array([1, 4]), "hard": [2, 5], "junk": [np.int64(0)], "bbx": np.array([2.0, 1.0, 12.0, 9.0])}]
    target = landmarks(tmp_path, gnd, protocol=protocol)
    assert target.kind == "landmarks"
    assert target.queries is not None
    assert target.queries.read(0).size == (10, 8)
    assert target.queries.name(0) == "jpg/query_0.jpg"
    encoded_set = EncodedSet(
        "teacher", line(1, 2, 3, 4, 5, 6), queries=line(0), dataset=target, test_source=target.test
    )
    figures = Retrieval.evaluate(encoded_set, SETTINGS)
    two = ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2
    four = (1 + 1 + (2 / 3 + 3 / 4) / 2 + (3 / 4 + 4 / 5) / 2) / 4
    assert figures["map_easy"] == figures["map_hard"] == pytest.approx(100 * two)
    assert figures["map_medium"] == pytest.approx(100 * four)
    assert figures["mp@5_medium"] == pytest.approx(80)
    assert figures["mp@10_easy"] == pytest.approx(100 * 2 / 3)
    assert figures["queries"] == 1


def test_asymmetric_asks_the_teachers_database(tmp_path: Path) -> None:
    target = landmarks(tmp_path, [{"easy": [0], "hard": [], "junk": []}], names=3)
    teacher = EncodedSet("teacher", line(0, 50, 90), queries=line(0), dataset=target, test_source=target.test)
    student = EncodedSet(
        "student_embed", line(80, 0, 10), queries=line(5), dataset=target, test_source=target.test,
        reference=teacher, aligned=True,
    )  # fmt: skip
    figures = Retrieval.evaluate(student, SETTINGS)
    assert figures["map_easy"] < 50  # its own database has the answer last
    assert figures["asymmetric_map_easy"] == 100
    narrow = EncodedSet("student_embed", student.test, queries=student.queries, dataset=target, test_source=target.test,
                     reference=EncodedSet("teacher", np.ones((3, 5))), aligned=True)  # fmt: skip
    with pytest.raises(ShapeError, match="width 2, teacher 5"):
        Retrieval.evaluate(narrow, SETTINGS)


def test_class_level_against_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score

    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 90)
    rows = generator.normal(size=(6, 5))[labels] + generator.normal(size=(90, 5))
    figures = Retrieval.evaluate(EncodedSet("student", rows, test_labels=labels), SETTINGS)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    precision, recall = [], {k: [] for k in (1, 2, 4, 8)}
    for i in range(90):
        others = np.arange(90) != i
        precision.append(average_precision_score(labels[others] == labels[i], cosines[i, others]))
        order = np.argsort(-cosines[i, others])
        for k, hits in recall.items():
            hits.append((labels[others][order[:k]] == labels[i]).any())
    assert figures["map"] == pytest.approx(100 * np.mean(precision))
    for k, hits in recall.items():
        assert figures[f"recall@{k}"] == pytest.approx(100 * np.mean(hits))
    assert figures["recall@1"] == figures["mp@1"]


def test_rankings_do_not_depend_on_the_budget() -> None:
    generator = np.random.default_rng(1)
    queries, database = generator.normal(size=(30, 40)), np.repeat(generator.normal(size=(500, 40)), 3, axis=0)
    small = dict(ranked(queries, database, 1))
    large = dict(ranked(queries, database, 1024))
    assert small.keys() == large.keys() == set(range(30))
    assert all((small[i] == large[i]).all() for i in small)
    assert (small[0][:3] == np.sort(small[0][:3])).all()  # duplicates in the order of rows


def test_what_cannot_be_asked_is_a_sentence(tmp_path: Path) -> None:
    rows = np.eye(4)
    for labels, sentence in ((None, "needs labeled test images"), (np.arange(4), "No class has two of the 4")):
        with pytest.raises(DataError, match=sentence):
            Retrieval.evaluate(EncodedSet("student", rows, test_labels=labels), SETTINGS)
    broken = rows.copy()
    broken[1] = np.nan
    with pytest.raises(DataError, match="1 of 4 rows"):
        Retrieval.evaluate(EncodedSet("student", broken, test_labels=np.zeros(4, int)), SETTINGS)
    figures = Retrieval.evaluate(EncodedSet("student", rows, test_labels=np.array([0, 0, 1, 2])), SETTINGS)
    assert figures["note"].startswith("2 test images are the only ones of their class")
    with pytest.raises(DataError, match=r"gnd_roxford5k.pkl does not exist.*revisitop"):
        open_set(f"roxford5k={tmp_path}")
    empty = landmarks(tmp_path, [{"easy": [], "hard": [], "junk": []}])
    with pytest.raises(DataError, match="No query"):
        Retrieval.evaluate(
            EncodedSet("t", line(*range(6)), queries=line(0), dataset=empty, test_source=empty.test), SETTINGS
        )
    (tmp_path / "roxford5k" / "jpg" / "all_souls_000003.jpg").unlink()
    with pytest.raises(DataError, match=r"all_souls_000003.jpg is listed, with 5 others, and does not exist"):
        open_set(f"roxford5k={tmp_path}")


class Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_is_read_and_not_executed(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "harm"
    table = {"gnd": [], "imlist": [], "qimlist": []}
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({**table, "x": Harm(mark)}, protocol=protocol))
    with pytest.raises(DataError, match=r"it asks for (posix|os).system"):
        read_ground_truth(tmp_path / "bad.pkl", "nowhere")
    assert not mark.exists()
    for harmful in (np.array([Harm(mark)], dtype=object), print, Source, np.zeros(2, dtype=[("a", "f8")])):
        (tmp_path / "bad.pkl").write_bytes(pickle.dumps({**table, "x": harmful}, protocol=protocol))
        with pytest.raises(DataError, match="plain lists and numbers"):
            read_ground_truth(tmp_path / "bad.pkl", "nowhere")
    good = {
        **table,
        "x": np.array([[1, 2], [3, 4]], order="F"),
        "y": np.float32(2.5),
        "z": {"a": (True, None, "é", b"q")},
    }
    (tmp_path / "good.pkl").write_bytes(pickle.dumps(good, protocol=protocol))
    found = read_ground_truth(tmp_path / "good.pkl", "nowhere")
    assert np.asarray(found["x"]).tolist() == [[1, 2], [3, 4]]
    assert found["y"] == 2.5
    assert found["z"] == good["z"]
    for content in (b"", b"not a pickle", pickle.dumps([1])):
        (tmp_path / "bad.pkl").write_bytes(content)
        with pytest.raises(DataError):
            read_ground_truth(tmp_path / "bad.pkl", "nowhere")


NESTED: list = [1]
for _ in range(31):
    NESTED = [NESTED] * 10  # 10 ** 31 numbers, in a few bytes


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"bbx": [0, 0, float("inf"), 5]}, r"a query with the box \(0\.0, 0\.0, inf, 5\.0\), which is none"),
        ({"bbx": [0, 0, float("nan"), 5]}, r"a query with the box"),
        ({"bbx": [9, 0, 3, 5]}, r"a query with the box"),
        ({"bbx": ["a", 0, 3, 5]}, r"must hold lists of numbers"),
        ({"bbx": NESTED}, r"must hold lists of numbers"),
        ({"easy": NESTED}, r"must hold lists of numbers"),
        ({"easy": [2**70]}, r"must hold numbers"),
        ({"easy": [float("nan")]}, r"must hold numbers"),
        ({"easy": "all"}, r"must hold lists of numbers"),
        ({"easy": {}}, r"must hold lists of numbers"),
        (3, r"must hold a table for each query"),
    ],
    ids=range(11),
)
def test_ground_truth_that_lies(tmp_path: Path, entry: object, message: str) -> None:
    gnd: list = [{"easy": [1], "hard": [2], "junk": [], **entry} if isinstance(entry, dict) else entry]
    with pytest.raises(DataError, match=message):
        landmarks(tmp_path, gnd)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"gnd": {}, "imlist": [], "qimlist": []}),
        pickle.dumps({"gnd": [], "imlist": [3], "qimlist": []}),
        pickle.dumps({"gnd": [], "imlist": ["a\0b"], "qimlist": []}),
        pickle.dumps({"gnd": [], "imlist": [NESTED], "qimlist": []}),
        b"\x80\x02]r\xff\xff\xff\x7f.",  # puts an object into place 2,147,483,647 of the reader's memory
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",  # bytes, 2 ** 63 - 1 of them
        b"(" * 100_000,
    ],
    ids=range(7),
)
def test_pickles_that_are_no_ground_truth(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.pkl (must hold|is not a ground-truth pickle)"):
        read_ground_truth(tmp_path / "bad.pkl", "nowhere")


def test_boxes_outside_of_their_image_are_skipped(tmp_path: Path) -> None:
    for number, box in enumerate(([500, 500, 600, 600], [-(10**9), 0, 5, 5], [0, 0, 10**9, 10**9])):
        target = landmarks(tmp_path / str(number), [{"easy": [1], "hard": [], "junk": [], "bbx": box}])
        assert target.queries is not None
        with pytest.raises(UnreadableImage, match=r"its box .* (lies outside of it|is far larger than the image)"):
            target.queries.read(0)
