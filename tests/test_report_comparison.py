"""The page of a comparison, made from figures written here: what it says, and what it must not say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from test_report_page import HOSTILE, elements_of
from understudy.evaluate.protocols import PROTOCOLS
from understudy.report.comparison import FIGURES, compared_figures, footnotes, statistics, table_of
from understudy.report.comparison_page import page, write_page

NASTY = "coss:weight=<b>&\"'1"


def make_comparison(rows: Mapping[str, list[float]], kind: str = "compare", **changes: Any) -> dict[str, Any]:
    """What comparison.json holds: 10-NN accuracies by label, one for each seed."""
    variants = []
    for number, (label, values) in enumerate(rows.items()):
        cells = [
            {
                "seed": seed, "folder": f"cells/{number}/{seed}", "failure": None, "lr": 0.002, "notes": [],
                "seconds": 100.0, "images": 2000, "student_forwards": 2000, "teacher_forwards": 500, "key_forwards": 0,
                "figures": {
                    "student.knn.top1@10": value,
                    "student_embed.asymmetric_knn.top1@10": value - 5,
                    "student_embed.fidelity.row_cosine": value / 100,
                },
            }
            for seed, value in enumerate(values)
        ]  # fmt: skip
        pairs = dict(pair.split("=") for pair in label.split(", ")) if kind == "ablate" else {"method": label}
        variants.append(
            {
                "label": label, "changes": pairs, "method": "coss", "passes": 10.0, "lr": 0.002, "edge": "",
                "trials": [{"lr": rate, "overlap@11": 40 + rate, "failure": None} for rate in (0.001, 0.002, 0.004)],
                "failure": None, "in_teacher_space": True, "cells": cells, **changes.get(label, {}),
            }
        )  # fmt: skip
    about = {
        "data": "photos", "student": "small:resnet8", "teacher": "onnx:t.onnx", "teacherless": [], "trials": 3,
        "criterion": "overlap@11", "search_share": 0.5, "teacher_views": "live", "seeds": 3, "budget": "passes=10",
        "protocols": {"knn": PROTOCOLS["knn"].display_table(["top1@10"])},
    }  # fmt: skip
    teacher = {"knn": {"top1@10": 80.0}}
    return {
        "kind": kind, "about": about, "teacher": teacher, "variants": variants,
        **statistics(variants, about["protocols"]),
    }  # fmt: skip


METHODS = {NASTY: [60.0, 61.0, 62.0], "seed": [60.2, 60.9, 62.1], "rkd": [50.0, 51.5, 52.0]}


def texts(html: str) -> str:
    """The words of a page, without scripts."""
    return re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", " ", html, flags=re.DOTALL))


def test_the_verdict_claims_no_more_than_the_intervals():
    # Against seed: -0.2, 0.1, -0.1 (interval over 0). Against rkd: -10.2, -9.4, -10.1 (well below).
    words = " ".join(texts(page(make_comparison(METHODS))).split())
    assert "Highest 10-NN accuracy of the backbone: seed, 61.1 ± 1.0 (n = 3)." in words
    assert "Not told apart from it by 3 seeds: coss:weight=&lt;b&gt;" in words
    assert "Below it: rkd." in words
    single = " ".join(texts(page(make_comparison({name: v[:1] for name, v in METHODS.items()}))).split())
    assert "One seed each: no difference is told from chance." in single and "n = 1, no interval" in single


def test_the_differences_are_written_with_their_intervals():
    # rkd - seed = -10.2, -9.4, -10.1: mean -9.9, standard deviation 0.4359, t(0.975, 2) = 4.3027
    half = 4.30265 * 0.43589 / 3**0.5
    words = " ".join(texts(page(make_comparison(METHODS))).split())
    assert f"-9.9 {-9.9 - half:+.1f} to {-9.9 + half:+.1f}, n = 3" in words


def test_somebody_s_label_is_text():
    html = page(make_comparison(METHODS))
    assert NASTY not in html and "<b>&" not in html
    for data in re.findall(r'<script type="application/json">(.*?)</script>', html, flags=re.DOTALL):
        json.loads(data)
        assert "<" not in data


@pytest.mark.parametrize("kind", ["compare", "ablate"])
def test_hostile_strings_are_no_markup(kind):
    def told(text: str) -> str:
        label = text.replace("=", ":").replace(", ", ":")
        rows = {f"{label}=1": [60.0, 61.0], f"{label}=2": [62.0, 60.0]} if kind == "ablate" else {label: [60.0, 61.0]}
        found = make_comparison(rows, kind)
        found["about"] |= {"student": text, "data": text, "teacherless": [text], "extra": {text: [text]}}
        found["variants"][0] |= {"failure": text}
        found["variants"][0]["cells"][0]["notes"] = [text]
        return page(found)

    plain, hostile = told("plain"), told(HOSTILE)
    assert elements_of(hostile) == elements_of(plain)
    for data in re.findall(r'<script type="application/json">(.*?)</script>', hostile, flags=re.DOTALL):
        json.loads(data)
        assert not set("<>&'") & set(data)


def test_a_protocol_of_tomorrow_has_a_column_too():
    variants = [{"label": "a", "in_teacher_space": True, "cells": [
        {"seed": 0, "figures": {"student.depth@nyu.delta1": 81.0, "student.depth@nyu.rmse": 0.4, "student.new.x": 1.0}}
    ]}]  # fmt: skip
    depth = {"title": "Depth", "short": "Depth", "percent": True, "compared": ["delta1", "rmse"], "less": ["rmse"]}
    (column,) = [figure for figure in compared_figures(variants, {"depth": depth}) if figure not in FIGURES]
    assert (column.key, column.title, column.digits) == ("student.depth@nyu.delta1", "Depth, nyu, %", 1)
    assert column.phrase == "Depth (Delta1) on nyu, backbone"
    assert statistics(variants, {"depth": depth})["best"] == {"student.depth@nyu.delta1": "a"}


def test_the_table_marks_what_must_be_known():
    changes = {
        "seed": {"edge": "high"},
        "rkd": {"edge": "low", "in_teacher_space": False},
        "mse": {"failure": "No trial of a learning rate was finished.", "lr": None, "cells": []},
    }
    found = make_comparison({**METHODS, "mse": []}, **changes)
    found["variants"][0]["cells"][1]["failure"] = "The loss is not finite."
    found["about"]["teacherless"] = ["rkd"]
    headings, rows = table_of(found)
    cells = {row[0]: dict(zip(headings, row, strict=True)) for row in rows}
    assert cells["seed"]["lr"] == "0.002 >" and cells["rkd"]["lr"] == "0.002 <" and cells[NASTY]["lr"] == "0.002"
    assert cells["rkd"]["asym. 10-NN, %"] == "" and cells["seed"]["asym. 10-NN, %"] == "56.1 ± 1.0"
    assert cells["teacher"]["10-NN, %"] == cells["teacher"]["asym. 10-NN, %"] == "80.0"
    assert cells["mse"]["n"] == "0" and cells["mse"]["lr"] == cells["mse"]["10-NN, %"] == ""
    assert cells["seed"]["teacher / student forwards"] == "500 / 2,000"
    notes = " ".join(footnotes(found))
    for words in (
        "> The best learning rate of seed is the largest of the 3 tried", "--trials 5 goes on from here",
        "< The best learning rate of rkd is the smallest", "rkd: the embedding is not meant to lie",
        "rkd: trained without the teacher", "mse: No trial of a learning rate was finished.",
        "seed 1: The loss is not finite.",
    ):  # fmt: skip
        assert words in notes, words


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["method.weight=0", "method.weight=0.5", "method.weight=1"], "scatter"),
        (["method.weight=0, neighbors.k=0", "method.weight=0, neighbors.k=5", "method.weight=1, neighbors.k=0"],
         "heatmap"),
        (["a=0, b=0, c=0", "a=1, b=0, c=0"], "scatter"),
    ],
)  # fmt: skip
def test_a_grid_is_drawn_as_curves_or_as_a_heat_map(labels, kind):
    html = page(make_comparison({label: [60.0 + i, 61.0] for i, label in enumerate(labels)}, "ablate"))
    charts = [json.loads(data) for data in
              re.findall(r'<script type="application/json">(.*?)</script>', html, flags=re.DOTALL)]  # fmt: skip
    assert len(charts) == 3
    assert {chart["data"][-1]["type"] for chart in charts} == {kind}
    if kind == "heatmap":
        # rows k = 0, 5 of weight 0; weight 1 was not run with k = 5
        assert charts[0]["data"][0]["z"] == [[60.5, 61.0], [61.5, None]]
    elif labels[0].startswith("method"):
        assert charts[0]["data"][1]["x"] == ["0", "0.5", "1"] and charts[0]["data"][1]["y"] == [60.5, 61.0, 61.5]


def test_nothing_finished_is_said(tmp_path: Path):
    found = make_comparison({"coss": [], "seed": []})
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(found))
    words = texts(write_page(path, tmp_path / "report.html").read_text())
    assert "No run of this comparison was finished." in words and "Nothing has been measured." in words
