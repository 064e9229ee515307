"""The tables that verbs print: columns from the protocols' declarations, each figure with its interval."""

from __future__ import annotations

import re

import pytest

from understudy.cli.tables import Model, headline_columns, print_figures, protocol_table, sentences
from understudy.evaluate.protocols import PROTOCOLS

KNN = {"top1@1": 50.0, "top1@10": 61.5, "top1@20": 60.0, "images": 300}
FIDELITY = {"overlap@5": 30.0, "overlap@11": 51.25, "cka": 0.9, "row_cosine": 0.8, "column_cosine": 0.7}


def test_columns_and_their_titles_are_those_that_protocols_declare():
    models = [Model("a", "student", {"knn": KNN, "fidelity": FIDELITY, "linear": {"top1": 70.0, "l2": 0.1}})]
    assert headline_columns(models) == {
        ("knn", "top1@10"): "10-NN", ("knn", "top1@20"): "20-NN", ("linear", "top1"): "Linear probe",
        ("fidelity", "overlap@11"): "11-NN shared", ("fidelity", "cka"): "CKA",
        ("fidelity", "row_cosine"): "Row cosine", ("fidelity", "column_cosine"): "Column cosine",
    }  # fmt: skip


def test_a_protocol_without_a_headline_has_a_table_of_its_own(capsys: pytest.CaptureFixture[str]):
    assert not PROTOCOLS["robustness"].display.headline
    student = {
        "knn": KNN,
        "knn@sketch": {"top1@10": 12.0},
        "robustness": {"mean_error": 40.0},
        "linear": {"error": "x"},
    }
    print_figures([("first", {"teacher": {"knn": KNN}, "student": student}), ("second", {"student": {"knn": KNN}})])
    out = capsys.readouterr().out
    lines = [line.split("│")[0].strip() for line in out.splitlines()]
    assert {"teacher", "first: student", "second: student"} <= set(lines)
    assert re.search(r"^knn@sketch", out, flags=re.MULTILINE) and re.search(r"mean_error *│ *40", out)
    assert "top1@1 " not in out  # knn stands in the first table
    assert out.splitlines()[-1] == "first student linear: x"


def test_a_table_leaves_out_what_is_no_number():
    assert protocol_table("knn", [Model("", "student", {"knn": {"note": "few"}})]) is None


def test_a_sentence_names_all_that_it_is_about():
    few = {"note": "Few images."}
    found = {"about": {"caveats": ["x"]}, "teacher": {"knn": few}, "student": {"knn": few, "linear": few}}
    assert sentences(found) == ["teacher, student knn, linear: Few images."]
