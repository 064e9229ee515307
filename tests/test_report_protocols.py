"""Every protocol on the page: shares of the teacher, intervals, tables and charts, against numbers worked by hand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_report_page import Page, charts, drawn, figure_values, make_run, report, write_evaluation
from understudy.artifacts import Run, write_json
from understudy.errors import StoreError
from understudy.evaluate.protocols import PROTOCOLS
from understudy.report.protocols import Display, Displays
from understudy.report.provenance import read_records
from understudy.report.results import Measurement, Results
from understudy.report.shares import cost_shares, quality_shares
from understudy.report.spaces import aligned, pacmap, tsne_or_pca
from understudy.report.tables import ABSENT
from understudy.report.verdict import verdict

TEACHER: dict[str, dict[str, Any]] = {
    "knn": {"top1@1": 78.0, "top1@10": 80.0, "top5@10": 96.0, "top1@10,T=1": 79.0},
    "linear": {"top1": 90.0, "top5": 99.0, "mean_class": 89.0, "validation": 91.0, "l2": 0.01},
    "semi": {"top1 1%": 50.0, "top1 1% std": 4.0, "draws 1%": 3, "images 1%": 14,
             "top1 10%": 75.0, "top1 10% std": 1.0, "draws 10%": 3, "images 10%": 144},
    "transfer@pets": {"mean_class": 60.0, "top1": 62.0, "validation": 61.0, "l2": 0.1},
    "retrieval": {"map": 50.0, "recall@1": 80.0, "recall@2": 85.0, "mp@10": 40.0, "queries": 100},
    "retrieval@roxford5k": {"map_easy": 60.0, "map_medium": 40.0, "map_hard": 20.0, "mp@10_hard": 30.0, "queries": 70},
    "robustness": {"clean": 90.0, "gaussian_noise": 40.0, "fog": 60.0, "mean_error": 50.0, "severity_1": 70.0,
                   "severity_5": 30.0, "images": 200, "note": "Means are over 2 of 15 corruptions."},
    "robustness@imagenet-a": {"top1": 10.0, "knn": 8.0, "classes": 4},
    "cost": {"parameters": 4_000_000, "flops": 560_000_000, "latency_ms cpu": 20.0, "images_per_s@128 cpu": 100.0},
    "detection@coco": {"box_ap": 20.0, "box_ap50": 40.0, "box_ap75": 15.0, "box_ap_small": 5.0, "box_ap_medium": 20.0,
                       "box_ap_large": 30.0, "images": 64, "iterations": 300},
    "segmentation@voc-masks": {"miou": 50.0, "mean_accuracy": 60.0, "accuracy": 90.0, "classes": 21, "images": 80},
    "davis@davis": {"j_and_f": 60.0, "j": 58.0, "f": 62.0, "objects": 61, "sequences": 30},
}  # fmt: skip
FIDELITY = {
    "overlap@1": 30.0, "overlap@1_low": 26.0, "overlap@1_high": 34.0, "overlap@11": 44.0, "overlap@11_low": 42.0,
    "overlap@11_high": 46.0, "cka": 0.9, "cka_low": 0.88, "cka_high": 0.91, "effective_rank": 20.5,
    "effective_rank_low": 19.0, "effective_rank_high": 22.0, "effective_rank_teacher": 40.25,
    "effective_rank_teacher_low": 39.0, "effective_rank_teacher_high": 41.5, "dead_dimensions": 3,
    "dead_dimensions_teacher": 0, "interval_level": 95, "interval_draws": 100, "images": 111,
}  # fmt: skip
ABOUT = {
    "test_images": 360, "train_images": 1437, "classes": 10, "eval_data": "digits",
    "on": {"pets": {"train": 50, "test": 40, "skipped": 0, "classes": 37}, "imagenet-a": {"test": 30}},
    "settings": {"seed": 0, "sgd_lr": 30.0, "semi": {"shares": ["1%", "10%"], "draws": 3, "lists": None},
                 "finetune": {"epochs": 0, "lr": 0.01}, "robustness": {"severities": [1, 5], "images": 200}},
    "seconds": {"robustness": 75.2},
}  # fmt: skip


def scaled(share: float) -> dict[str, dict[str, Any]]:
    """The teacher's figures times a share, what counts or says how sure one is left as it is."""
    kept = re.compile(r".+ std|(draws|images) .+|queries|images|iterations|objects|sequences|classes|note")
    figures: dict[str, dict[str, Any]] = {
        key: {name: value if kept.fullmatch(name) else share * value for name, value in table.items()}
        for key, table in TEACHER.items()
    }
    figures["robustness"]["mean_error"] = 100 - share * 50.0
    return figures


def measure(run: Run, share: float) -> Run:
    """Give a run figures of every protocol: the student's are that share of the teacher's."""
    embed = {"asymmetric_knn": {"top1@1": 60.0, "top1@10": 72.0}, "fidelity": {**FIDELITY, "row_cosine": 0.95}}
    embed["drop_in"] = {"recall@10": 60.0, "reverse_recall@10": 55.0, "map": 48.0, "map_teacher": 50.0, "images": 201}
    embed["retrieval"] = {"map": 45.0, "asymmetric_map": 35.0, "asymmetric_recall@1": 70.0, "queries": 100}
    student = scaled(share) | {"fidelity": dict(FIDELITY)}
    write_evaluation(run, {"teacher": TEACHER, "student": student, "student_embed": embed, "about": ABOUT})
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("protocols")
    first = measure(make_run(folder / "coss", n=60), 0.9)
    return [first, measure(make_run(folder / "no-space", n=20, method={"name": "coss", "weight": 0.0}), 0.5)]


@pytest.fixture(scope="module")
def page(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report(tmp_path_factory.mktemp("page"), *runs)


@pytest.fixture(scope="module")
def results(runs: list[Run]) -> Results:
    return Results.of(read_records(runs))


def test_shares_of_the_teacher_by_hand(results: Results) -> None:
    entries = {(entry.key, entry.metric): entry for entry in quality_shares(results)}
    shares = {name: {run: round(value, 6) for run, value in entry.shares.items()} for name, entry in entries.items()}
    defaults = {"coss": 90.0, "no-space": 50.0}
    assert shares == {
        ("knn", "top1@10"): defaults,
        ("linear", "top1"): defaults,
        ("asymmetric_knn", "top1@10"): {"coss": 90.0, "no-space": 90.0},  # 72 of the teacher's own vote, 80
        ("semi", "top1 1%"): defaults,
        ("semi", "top1 10%"): defaults,
        ("transfer@pets", "mean_class"): defaults,
        ("retrieval", "map"): defaults,
        ("retrieval", "asymmetric_map"): {"coss": 70.0, "no-space": 70.0},  # 35 of 50
        ("retrieval@roxford5k", "map_medium"): defaults,
        ("retrieval@roxford5k", "map_hard"): defaults,
        ("robustness", "mean_error"): defaults,  # of what the error leaves to 100
        ("robustness@imagenet-a", "top1"): defaults,
        ("fidelity", "overlap@11"): {"coss": 44.0, "no-space": 44.0},
        ("drop_in", "recall@10"): {"coss": 60.0, "no-space": 60.0},  # of the teacher's own answers, 100
        ("drop_in", "reverse_recall@10"): {"coss": 55.0, "no-space": 55.0},
        ("detection@coco", "box_ap"): defaults,
        ("segmentation@voc-masks", "miou"): defaults,
        ("davis@davis", "j_and_f"): defaults,
    }
    luck = {name: entry.chance for name, entry in entries.items() if entry.chance is not None}
    assert luck == {
        ("knn", "top1@10"): pytest.approx(100 * 10 / 80),
        ("linear", "top1"): pytest.approx(100 * 10 / 90),
        ("asymmetric_knn", "top1@10"): pytest.approx(100 * 10 / 80),
        ("semi", "top1 1%"): pytest.approx(100 * 10 / 50),
        ("semi", "top1 10%"): pytest.approx(100 * 10 / 75),
        ("transfer@pets", "mean_class"): pytest.approx(100 * (100 / 37) / 60),
        ("robustness", "mean_error"): pytest.approx(100 * 10 / 50),
        ("robustness@imagenet-a", "top1"): pytest.approx(100 * 25 / 10),  # 4 classes, and a teacher worse than guessing
        ("fidelity", "overlap@11"): pytest.approx(100 * 11 / 110),
        ("drop_in", "recall@10"): pytest.approx(100 * 10 / 200),
        ("drop_in", "reverse_recall@10"): pytest.approx(100 * 10 / 200),
    }


def test_costs_as_shares_by_hand(results: Results) -> None:
    found = {entry.metric: round(entry.shares["no-space"], 6) for entry in cost_shares(results)}
    # Half the images a second are twice the time of an image.
    assert found == {"parameters": 50.0, "flops": 50.0, "latency_ms cpu": 50.0, "images_per_s@128 cpu": 200.0}


def test_intervals_come_from_what_was_counted(results: Results) -> None:
    from scipy.stats import binomtest

    teacher, student = results.rows[:2]
    for row, key, metric, hits, n in (
        (teacher, "knn", "top1@10", 288, 360),
        (teacher, "robustness", "clean", 180, 200),
        (teacher, "retrieval", "recall@1", 80, 100),
        (teacher, "robustness@imagenet-a", "top1", 3, 30),
    ):
        found = results.measurement(row, key, metric)
        expected = binomtest(hits, n).proportion_ci(method="wilson")
        assert found is not None
        assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-4)
    assert results.measurement(teacher, "semi", "top1 1%") == Measurement(50.0, std=4.0)
    shared = results.measurement(student, "fidelity", "overlap@11")
    assert shared is not None
    assert (shared.value, shared.low, shared.high) == (44.0, 42.0, 46.0)
    for key, metric in (("linear", "mean_class"), ("retrieval", "map"), ("robustness", "fog"), ("cost", "flops"),
                        ("transfer@pets", "mean_class"), ("detection@coco", "box_ap")):  # fmt: skip
        found = results.measurement(teacher, key, metric)
        assert found is not None
        assert (found.low, found.high, found.std) == (None, None, None), metric
    # The teacher's side of a comparison stands with the teacher and is no row of its own.
    theirs = results.measurement(teacher, "fidelity", "effective_rank")
    assert theirs is not None
    assert (theirs.value, theirs.low, theirs.high) == (40.25, 39.0, 41.5)
    assert results.metrics("fidelity") == [
        "overlap@1", "overlap@11", "cka", "effective_rank", "dead_dimensions", "row_cosine"
    ]  # fmt: skip


def test_guessing_needs_to_know_among_how_many(results: Results) -> None:
    teacher = results.rows[0]
    assert results.chance(teacher, "knn@pets", "top1@10") == pytest.approx(100 / 37)
    assert results.chance(teacher, "knn@elsewhere", "top1@10") is None
    for metric in ("top5", "map", "box_ap", "miou", "validation", "top1 1% std"):
        assert results.chance(teacher, "linear", metric) is None


def tables(page: Path) -> list[list[list[str]]]:
    """Every table of a page as rows of cells, the parts of a cell separated by |."""
    text = page.read_text(encoding="utf-8")
    return [
        [
            [
                re.sub(r"\|+", "|", re.sub(r"<[^>]+>", "|", cell)).strip("|").replace("\u00a0", " ")
                for cell in re.findall(r"<t[hd][ >].*?</t[hd]>", row, flags=re.DOTALL)
            ]
            for row in re.findall(r"<tr.*?</tr>", table, flags=re.DOTALL)
        ]
        for table in re.findall(r"<table>.*?</table>", text, flags=re.DOTALL)
    ]


def test_the_results_table_is_grouped_by_protocol_and_set(runs: list[Run], tmp_path: Path) -> None:
    report(tmp_path, *runs)
    table = tables(tmp_path / "report.html")[1]
    assert table[0] == ["Figure", "Teacher", "coss (backbone)", "coss (embed)", "no-space (backbone)",
                        "no-space (embed)"]  # fmt: skip
    groups = [row[0] for row in table[1:] if len(row) == 1]
    assert groups == [
        "k nearest neighbors, main images", "Linear probe, main images",
        "Asymmetric k nearest neighbors, main images", "Semi-supervised, main images", "Transfer, pets",
        "Retrieval, main images", "Retrieval, roxford5k",
        "Robustness and shift, main images", "Robustness and shift, imagenet-a", "Fidelity, main images",
        "Drop-in search, main images", "Cost",
        "Detection and instance segmentation, coco", "Semantic segmentation, voc-masks",
        "Video object segmentation, davis",
    ]  # fmt: skip
    by_name: dict[str, list[str]] = {}
    group = ""
    for row in table[1:]:
        group = row[0] if len(row) == 1 else group
        by_name[f"{group}: {row[0]}"] = row[1:]
    assert by_name["k nearest neighbors, main images: 10-NN top-1, %"][:4] == [
        "80.0|75.6 to 83.8", "72.0|67.1 to 76.4", ABSENT, "40.0|35.1 to 45.1"
    ]  # fmt: skip
    assert by_name["Semi-supervised, main images: Top-1, 1 % of the labels, %"][:2] == ["50.0|± 4.0", "45.0|± 4.0"]
    assert by_name["Fidelity, main images: CKA"][:2] == [ABSENT, "0.900|0.880 to 0.910"]
    assert by_name["Fidelity, main images: Effective rank"][:2] == ["40.2|39.0 to 41.5", "20.5|19.0 to 22.0"]
    assert by_name["Robustness and shift, main images: Mean error, corrupted, %| ↓"][0] == "50.0"
    assert by_name["Cost: Parameters| ↓"][:2] == ["4 M", "3.6 M"]
    assert by_name["Cost: Images a second, CPU, batch of 128"][:2] == ["100.0", "90.0"]
    assert not [name for name in by_name if "l2" in name or "Validation" in name]  # in the protocol's own part


def test_a_protocol_tells_what_it_is_how_it_was_set_and_all_its_figures(page: Page, runs: list[Run]) -> None:
    parts = [found["id"] for found in page.all("details", **{"class": "protocol"})]
    assert parts == [f"protocol-{name}" for name in PROTOCOLS if name not in ("linear_sgd", "zeroshot")]
    text = page.text.replace("\u00a0", " ")
    assert "Source: Chen et al., SimCLR, ICML 2020 (arXiv 2002.05709), section 6." in text
    assert "Settings: semi.shares 1%, 10%; semi.draws 3; finetune.epochs 0; seed 0." in text
    assert "Settings: robustness.severities 1, 5; robustness.images 200; seed 0." in text
    assert "robustness: Means are over 2 of 15 corruptions." in text
    assert "On main images: 360 test images, 10 classes, 200 images of the protocol, 1 min 15 s on top" in text
    assert "On pets: 40 test images, 37 classes." in text
    assert "L2 weight chosen" in text or "l2 weight chosen" in text


def test_charts_of_protocols_carry_their_figures(page: Page) -> None:
    bars = drawn(page, "Share of the teacher\u2019s figure. 10-NN: coss 90.0")
    assert [trace["name"] for trace in bars["data"]] == ["coss", "no-space", "guessing"]
    assert figure_values(bars["data"][0], "x")[:3] == pytest.approx([90.0, 90.0, 90.0])
    assert bars["layout"]["shapes"][0]["x0"] == 100
    assert bars["data"][0]["y"][3] == "Few labels, 1\u00a0%"

    noise = drawn(page, "Top-1 by corruption")
    assert noise["data"][0]["y"] == ["clean", "gaussian noise", "fog"]
    assert [[float(value) for value in line] for line in noise["data"][0]["z"]] == [
        [90.0, 81.0, 45.0], [40.0, 36.0, 20.0], [60.0, 54.0, 30.0]
    ]  # fmt: skip
    severity = drawn(page, "mean top-1, % by severity")
    assert severity["data"][0]["x"] == ["1", "5"]
    labels = drawn(page, "top-1, % by labels")
    assert labels["data"][0]["x"] == ["1%", "10%", "all"]
    assert figure_values(labels["data"][0], "y") == pytest.approx([50.0, 75.0, 90.0])  # the last is the linear probe's
    assert figure_values(labels["data"][0]["error_y"], "array")[:2] == pytest.approx([4.0, 1.0])
    bank = drawn(page, "top-1, % by k: Teacher 78 at 1, 80 at 10; coss (embed) 60 at 1, 72 at 10")
    assert [trace["name"] for trace in bank["data"]] == ["Teacher", "coss (embed)", "no-space (embed)", "guessing"]
    modes = drawn(page, "mAP, % by task")
    assert modes["data"][0]["x"] == ["easy", "medium", "hard"]
    assert figure_values(modes["data"][1], "y") == pytest.approx([54.0, 36.0, 18.0])
    assert drawn(page, "AP, % by size")["data"][0]["x"] == ["small", "medium", "large"]
    shared = drawn(page, "shared, % by k")
    assert [trace["name"] for trace in shared["data"]][-1] == "guessing"
    assert figure_values(shared["data"][-1], "y") == pytest.approx([100 / 110, 1100 / 110])


def test_a_protocol_of_tomorrow_is_shown_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=2)
    evaluation = run.evaluation
    evaluation["student"]["depth_probe@nyu"] = {"rmse": 0.4321, "rmse_low": 0.4, "rmse_high": 0.5}
    write_json(run.evaluation_path, evaluation)
    report(tmp_path, run)
    assert ["depth probe, nyu"] in tables(tmp_path / "report.html")[1]
    assert ["Rmse", ABSENT, "0.432|0.400 to 0.500", ABSENT] in tables(tmp_path / "report.html")[1]


def test_protocols_of_several_runs_are_described_together() -> None:
    first, second = (
        {"protocols": {name: PROTOCOLS[name].display_table(metrics) for name, metrics in figures.items()}}
        for figures in ({"linear": ["top1"]}, {"knn": ["top1@10"], "linear": ["top1", "l2"]})
    )
    displays = Displays.of([{}, {"protocols": ["knn"]}, first, second])
    assert list(displays.entries) == ["linear", "knn"]
    assert displays.display("linear@pets").title == PROTOCOLS["linear"].display.title
    assert displays.display("linear").metric_title("l2") == "l2 weight chosen"
    assert not displays.display("linear").in_percent("l2")
    assert displays.display("knn").in_percent("top1@10")
    strange = Displays.of([{"protocols": {"knn": {"title": 7, "compared": "top1", "figures": [], "percent": "yes"}}}])
    assert strange.display("knn") == Display.from_json("knn", None)


def test_garbage_is_a_sentence_and_not_a_crash(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=2)
    evaluation = run.evaluation
    evaluation["student"] |= {"knn": {"top1@10": "many", "top1@1": None, "top1@20": [1]}, "linear": 7, "semi": {}}
    evaluation["student"]["transfer@pets"] = {"error": "No such folder."}
    evaluation["teacher"]["transfer@pets"] = {"error": "No such folder."}
    evaluation["student_embed"] = "nothing"
    evaluation["about"] |= {
        "on": [1],
        "seconds": 3,
        "settings": "x",
        "classes": "ten",
        "test_images": {},
        "skipped": "?",
    }
    evaluation["about"] |= {"caveats": "none", "protocols": {"knn": 3, "semi": {"settings": 1, "less": {}}}}
    run.evaluation_path.write_text(json.dumps(evaluation))
    text = report(tmp_path, run).text
    assert "knn top1@10 of student is no number (many) in evaluation.json and is left out." in text
    assert "knn top1@1 of student is no number (None)" in text
    assert "linear of student is no table of figures in evaluation.json." in text
    assert "student_embed has no table of figures in evaluation.json." in text
    assert "transfer@pets of teacher, transfer@pets of student was not measured: No such folder." in text
    run.evaluation_path.write_text('{"student": {"knn": {"top1@10": NaN, "top1@1": 50.0}}}')
    assert "knn top1@10 of student is no number (nan)" in report(tmp_path, run).text
    run.evaluation_path.write_text("[]")
    with pytest.raises(StoreError, match="holds a list where a table is expected"):
        report(tmp_path, run)


def test_sets_alone_give_a_verdict(tmp_path: Path) -> None:
    """Evaluated with --on and without --eval-data: no figure of main images at all."""
    run = make_run(tmp_path / "run", n=2)
    about = {"test_images": 0, "classes": None, "on": {"pets": {"train": 50, "test": 400, "classes": 37}}}
    write_evaluation(run, {
        "teacher": {"transfer@pets": {"top1": 80.0}, "davis@davis": {"j_and_f": 60.0}},
        "student": {"transfer@pets": {"top1": 60.0}, "davis@davis": {"j_and_f": 45.0}},
        "about": about,
    })  # fmt: skip
    page = report(tmp_path, run)
    text = page.text.replace("\u00a0", " ")
    assert (
        "The student keeps only 75.0 % of the teacher's Transfer (Top-1) on pets with 7.2 % of its parameters "
        "(60.0 % against 80.0 %, 400 test images)." in text
    )
    write_evaluation(run, {
        "teacher": {"davis@davis": {"j_and_f": 60.0}}, "student": {"davis@davis": {"j_and_f": 45.0}}, "about": about,
    })  # fmt: skip
    assert (
        verdict(Results.of(read_records([run])))
        .replace("\u00a0", " ")
        .startswith("The student keeps only 75.0 % of the teacher's Video object segmentation (J and F) on davis")
    )


def test_without_a_teacher_there_are_no_shares(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=2, teacher=False)
    write_evaluation(run, {"student": TEACHER, "about": ABOUT})
    page = report(tmp_path, run)
    assert "No figure was measured of both teacher and student" in page.text
    assert not [label for figure in charts(page) for label in [figure["layout"]] if "barmode" in label]
    assert "Semi-supervised" in page.text


def test_figures_of_protocols_have_names(results: Results) -> None:
    displays = results.displays
    names = {displays.display(key).metric_title(metric) for key in results.keys for metric in results.metrics(key)}
    assert {"10-NN top-1", "10-NN top-1, T = 1", "mAP, hard", "mP@10, hard", "Recall@1, asymmetric",
            "Box AP75", "Box AP, small", "Latency of one image, CPU, ms", "Mean of the classes",
            "11-NN shared"} <= names  # fmt: skip
    semi = Displays.of([{"protocols": {"semi": PROTOCOLS["semi"].display_table(["finetuned_top1 5"])}}])
    assert semi.display("semi").metric_title("finetuned_top1 5") == "Top-1, 5 labels a class, fine-tuned"
    assert displays.ordered(["cost", "semi@a", "knn@b", "new", "semi", "knn"]) == [
        "knn",
        "knn@b",
        "semi",
        "semi@a",
        "cost",
        "new",
    ]
    transfer, linear, fidelity = (displays.display(key) for key in ("transfer@flowers", "linear", "fidelity"))
    assert transfer.quoted_in(["mean_class", "top1", "l2", "validation"]) == ["mean_class"]
    assert not linear.in_percent("l2")
    assert fidelity.in_percent("overlap@5")
    generic = Display.from_json("tomorrow", None)
    assert [generic.format("x", value) for value in (0.12345, 12.345, 3.0, 1234.5, 1e-5)] == [
        "0.123", "12.3", "3.000", "1,234.5", "1e-05"
    ]  # fmt: skip
    assert fidelity.format("dead_dimensions", 3.0) == "3"


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    return load_digits().data[:150].astype(np.float32)


def test_pacmap_is_the_same_on_every_call_and_keeps_neighbors(digits: np.ndarray) -> None:
    import faiss
    from sklearn.manifold import trustworthiness

    faiss.omp_set_num_threads(2)
    first, second = pacmap(digits), pacmap(digits)
    assert faiss.omp_get_max_threads() == 2  # it is set to one thread inside
    assert first is not None
    assert second is not None
    assert np.array_equal(first, second)
    unit = digits / np.linalg.norm(digits, axis=1, keepdims=True)
    assert trustworthiness(unit, first, n_neighbors=10) > 0.9
    assert trustworthiness(unit, np.random.default_rng(0).normal(size=(150, 2)), n_neighbors=10) < 0.6


def test_a_report_leaves_the_number_of_threads() -> None:
    """PaCMAP sets that of the whole process when it is imported, and a second run would sum in another order."""
    script = (
        "import numpy, torch; torch.set_num_threads(1); from understudy.report.spaces import layouts;"
        "rows = numpy.random.default_rng(0).normal(size=(80, 8)); layouts(rows, rows[:, ::-1]);"
        "print(torch.get_num_threads())"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.split()[-1] == "1"


def test_pacmap_ends_on_few_or_equal_images(digits: np.ndarray) -> None:
    assert pacmap(digits[:49]) is None  # with fewer images than far pairs it would never end
    assert pacmap(np.ones((60, 4))) is None
    assert pacmap(np.full((60, 4), np.nan)) is None
    repeated = pacmap(np.repeat(digits[:6], 10, axis=0))
    assert repeated is not None
    assert np.isfinite(repeated).all()


def test_both_maps_of_both_spaces_are_on_the_page(page: Page, runs: list[Run]) -> None:
    buttons = page.all("button")
    assert [(one["data-layout"], one["aria-pressed"]) for one in buttons if "data-layout" in one] == [
        ("t-SNE", "true"), ("PaCMAP", "false")
    ]  # fmt: skip
    sample = np.load(runs[0].sample_path)
    wanted = {"teacher": pacmap(sample["teacher"]), "student": pacmap(sample["student"])}
    first = tsne_or_pca(sample["teacher"])
    assert wanted["teacher"] is not None
    assert wanted["student"] is not None
    assert first is not None
    wanted["student"] = aligned(wanted["student"], wanted["teacher"])
    for who, points in wanted.items():
        map_ = drawn(page, f"t-SNE and PaCMAP map of the {who}")
        seen = np.full((60, 2), np.nan)
        for trace, steps in zip(map_["data"], map_["layout"]["meta"]["layouts"]["PaCMAP"], strict=True):
            images = np.array(trace["customdata"], dtype=int)
            seen[images] = np.array(steps).T.reshape(-1, 2)
            if who == "teacher":
                assert figure_values(trace, "x") == pytest.approx(first[images, 0], abs=1e-3)
        assert seen == pytest.approx(points, abs=0.006)


def test_without_pacmap_a_sentence(runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pacmap", None)
    page = report(tmp_path, runs[0])
    assert "PaCMAP maps need pacmap:  pip install 'understudy[maps]' ." in page.text
    assert not [one for one in page.all("button") if "data-layout" in one]
    assert drawn(page, "t-SNE map of the teacher")["layout"].get("meta") is None
