"""What the report says of its figures, against numbers from scipy, from brute force, and worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_report_page import make_run
from understudy.artifacts import Run, write_json
from understudy.report.figures import POINTS, thinned
from understudy.report.gallery import chosen_queries, shared_neighbors, thumbnail_sheet
from understudy.report.numbers import count, distinguishable, duration, interval, percent
from understudy.report.provenance import read_records
from understudy.report.results import Results
from understudy.report.spaces import aligned, groups, tsne_or_pca
from understudy.report.verdict import caveats, constant_answer, mean_cosine, verdict


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (328, 360), (1, 2000), (5000, 10000)])
def test_interval_is_wilsons(hits: int, n: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert interval(100 * hits / n, n) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-4)


def test_distinguishable_by_hand() -> None:
    # 50 % and 60 %: sqrt((50*50 + 60*40) / n) is 7 at n = 100 and 3.5 at n = 400; times 1.96 is 13.7 and 6.9 points.
    assert not distinguishable(50.0, 60.0, 100)
    assert distinguishable(50.0, 60.0, 400)
    assert distinguishable(60.0, 50.0, 400)
    assert not distinguishable(100.0, 100.0, 10)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (count(0), "0"),
        (count(9_999), "9,999"),
        (count(78_000), "78 k"),
        (count(272_474), "272 k"),
        (count(999_700), "1,000 k"),
        (count(25_557_032), "25.6 M"),
        (count(4.1e9), "4.1 G"),
        (duration(4.25), "4.2 s"),
        (duration(42.4), "42 s"),
        (duration(59.7), "1 min 00 s"),
        (duration(185), "3 min 05 s"),
        (duration(7800), "2 h 10 min"),
        (percent(0.0), "0.0 %"),
        (percent(0.034), "0.034 %"),
        (percent(7.3), "7.3 %"),
    ],
)
def test_numbers_as_written(written: str, expected: str) -> None:
    assert written.replace("\u00a0", " ") == expected


def verdict_of(*runs: Run) -> str:
    return verdict(Results.of(read_records(runs))).replace("\u00a0", " ")


def caveats_of(*runs: Run) -> str:
    return "\n".join(caveats(Results.of(read_records(runs)))).replace("\u00a0", " ")


@pytest.fixture
def make(tmp_path: Path) -> Any:
    return lambda name, **options: make_run(tmp_path / name, n=20, **options)


def test_verdict_alone(make: Any) -> None:
    # top1@10 is 91 against the teacher's 95, 78,000 parameters against 1,080,000.
    assert verdict_of(make("good")) == (
        "The student keeps 95.8 % of the teacher's 10-NN accuracy with 7.2 % of its parameters "
        "(91.0 % against 95.0 %, 360 test images)."
    )
    assert verdict_of(make("better", knn=98.0)).startswith("The student reaches 102.1 % of the teacher's")
    assert verdict_of(make("bad", knn=50.0)).startswith("The student keeps only 51.6 % of the teacher's")


def test_verdict_at_chance(make: Any) -> None:
    assert "no better than guessing among 10 classes" in verdict_of(make("chance", knn=13.0))
    assert "guessing" not in verdict_of(make("above", knn=16.0))


def test_verdict_beside_controls(make: Any) -> None:
    main = make("coss")
    near, far, ahead = (
        make(name, knn=knn, method={"name": name}) for name, knn in (("near", 93.0), ("far", 70.0), ("ahead", 99.0))
    )
    assert verdict_of(main, far).endswith("It is ahead of the best other run, far (69.0 %).")
    assert verdict_of(main, near, far).endswith(
        "360 test images cannot tell it apart from the best other run, near (92.0 %), which is higher."
    )
    assert verdict_of(main, ahead, near).endswith("But ahead (98.0 %) does better, and 1 more run does better too.")
    assert "is not the best of the runs shown" in caveats_of(main, ahead)
    assert "is not the best of the runs shown" not in caveats_of(main, far)


def test_caveats_follow_the_facts(make: Any) -> None:
    main = make("coss")
    alone = caveats_of(main)
    assert "\u00b13.0 points (95 %)" in alone
    assert "One seed" in alone
    assert "No control is shown" in alone
    assert "saw every image 30 times" in alone
    assert "cannot be read from its weights" not in alone  # a run of ours: its own page tells
    second = caveats_of(main, make("seed1", seed=1))
    assert "One seed" not in second
    assert "No control" not in second

    table = main.student
    table |= {"passes": 400.0, "skipped": [["a.jpg", "truncated"], ["b.jpg", "not an image"]]}
    table["teacher"]["spec"] = "onnx:model.onnx"
    write_json(main.student_path, table)
    evaluation = main.evaluation
    evaluation["about"] |= {"skipped": 1, "test_fingerprint": "other"}
    write_json(main.evaluation_path, evaluation)
    changed = caveats_of(main, make("control", method={"name": "moco"}))
    assert "2 unreadable training images were skipped" in changed
    assert "1 unreadable evaluation image was skipped" in changed
    assert "control was evaluated on other images than coss" in changed
    assert "cannot be read from its weights" in changed
    assert "usually still rise" not in changed
    assert "control saw every image 30 times, coss 400 times" in changed


def test_collapse_is_told(make: Any) -> None:
    run = make("collapsed")
    with np.load(run.sample_path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["student"] = np.ones_like(arrays["student"]) + 0.01 * arrays["student"]
    arrays["teacher"] = arrays["teacher"] - arrays["teacher"].mean(axis=0)
    np.savez(run.sample_path, **arrays)
    assert "space has collapsed" in caveats_of(run)
    assert "space has collapsed" not in caveats_of(make("fine"))


def test_mean_cosine_and_constant_answer_by_brute_force() -> None:
    t = np.random.default_rng(0).normal(1.0, 1.0, (30, 5))
    pairs = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for i, a in enumerate(t) for j, b in enumerate(t) if i != j]
    assert mean_cosine(t) == pytest.approx(np.mean(pairs))
    answer = np.tile(t.mean(axis=0), (30, 1))
    columns = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(answer.T, t.T, strict=True)]
    assert constant_answer(t) == pytest.approx(columns)
    assert mean_cosine(t[:1]) is None
    assert mean_cosine(np.full((3, 2), np.nan)) is None


def test_names_of_runs_in_equal_folders(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / parent / "run", n=2) for parent in ("a", "b")]
    assert [record.name for record in read_records(runs)] == ["a/run", "b/run"]
    assert [record.name for record in read_records([runs[0], runs[0]])] == ["run", "run (2)"]


def test_thinned_curves_keep_the_mean_and_skip_gaps() -> None:
    y = np.random.default_rng(0).normal(size=3 * POINTS)
    x, means = thinned(np.arange(3.0 * POINTS), y)
    assert x == pytest.approx(np.arange(POINTS) * 3 + 1)
    assert means == pytest.approx(y.reshape(-1, 3).mean(axis=1))
    y[0] = y[3:6] = np.nan
    _, means = thinned(np.arange(3.0 * POINTS), y)
    assert means[0] == pytest.approx(y[1:3].mean())
    assert np.isnan(means[1])


def test_gallery_choice_runs_from_worst_to_best() -> None:
    random = np.random.default_rng(0)
    lists = {
        f"{who}_neighbors": np.stack([random.permutation(15)[:10] for _ in range(99)]) for who in ("teacher", "student")
    }
    lists["student_neighbors"][0, 5:] = lists["teacher_neighbors"][0, 5:] = -1
    shared = shared_neighbors(lists)
    pairs = zip(lists["teacher_neighbors"].tolist(), lists["student_neighbors"].tolist(), strict=True)
    assert shared.tolist() == [len(set(t) & set(s) - {-1}) for t, s in pairs]
    picked = chosen_queries(shared)
    assert len(set(picked.tolist())) == 12
    assert shared[picked[0]] == shared.min()
    assert shared[picked[-1]] == shared.max()
    assert (np.diff(shared[picked]) >= 0).all()


def test_the_sheet_holds_every_thumbnail_in_its_place() -> None:
    import base64
    import io

    from PIL import Image

    thumbnails = (
        np.random.default_rng(0).integers(0, 255, (7, 1, 1, 3)).repeat(16, axis=1).repeat(16, axis=2).astype(np.uint8)
    )
    sheet = thumbnail_sheet(thumbnails)
    assert sheet.side == 3
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet.uri.partition(",")[2]))), dtype=int)
    for i, thumbnail in enumerate(thumbnails):
        top, left = 16 * (i // sheet.side), 16 * (i % sheet.side)
        difference = pixels[top + 4 : top + 12, left + 4 : left + 12] - thumbnail[4:12, 4:12].astype(int)
        assert abs(difference).mean() < 25


def test_groups_are_the_frequent_classes_or_clusters() -> None:
    names = np.array([f"class {i:02d}" for i in range(12)])
    labels = np.array([0] + [1] + [i for i in range(2, 12) for _ in range(5)] + [-1])
    found = groups({"labels": labels, "class_names": names})
    assert found.names == tuple(names[2:])
    assert found.member.tolist() == [-1, -1] + [i for i in range(10) for _ in range(5)] + [-1]

    random = np.random.default_rng(0)
    blobs = np.concatenate(
        [random.normal(center, 0.01, (size, 3)) for center, size in (([1, 0, 0], 5), ([0, 1, 0], 9))]
    )
    clusters = groups({"teacher": blobs, "labels": np.full(14, -1)})
    assert clusters.clusters
    assert not set(clusters.member[:5]) & set(clusters.member[5:])


def test_the_map_keeps_groups_apart_and_is_the_same_every_time() -> None:
    random = np.random.default_rng(0)
    centers = np.eye(3, 8).repeat(30, axis=0)
    embeddings = centers + 0.05 * random.normal(size=centers.shape)
    flat = tsne_or_pca(embeddings)
    assert flat is not None
    again = tsne_or_pca(embeddings)
    assert again is not None
    assert (flat == again).all()
    distances = np.linalg.norm(flat[:, None] - flat, axis=2)
    same = np.arange(90)[:, None] // 30 == np.arange(90) // 30
    assert distances[same].max() < distances[~same].min()


def test_few_images_are_laid_out_by_pca() -> None:
    from sklearn.decomposition import PCA

    rows = np.random.default_rng(0).normal(size=(20, 6))
    flat, expected = tsne_or_pca(rows), PCA(2).fit_transform(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert flat is not None
    assert abs(flat) == pytest.approx(abs(expected))


@pytest.mark.parametrize("rows", [np.ones((2, 4)), np.ones((60, 4)), np.full((60, 4), np.nan)])
def test_nothing_to_lay_out(rows: np.ndarray) -> None:
    assert tsne_or_pca(rows) is None


def test_alignment_only_turns_and_mirrors() -> None:
    reference = np.random.default_rng(0).normal(size=(40, 2))
    angle = 2.0
    turned = reference @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [1, -1] + 3
    assert aligned(turned, reference) == pytest.approx(reference - reference.mean(axis=0))
    assert np.linalg.norm(aligned(3 * turned, reference)) == pytest.approx(
        3 * np.linalg.norm(reference - reference.mean(0))
    )
