"""The registry of formats: what it lists, and that a new format is one file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from understudy.errors import DataError
from understudy.sources import formats
from understudy.sources.formats import FORMATS, holders, known_forms
from understudy.sources.source import open_source


def test_every_format_says_what_it_is():
    assert list(FORMATS) == [
        "folder", "parquet", "tar", "arrow", "npy", "list", "torchvision", "hub", "address", "digits"
    ]  # fmt: skip
    for name, kind in FORMATS.items():
        assert kind.name == name and kind.form and kind.summary and "\n" not in kind.summary
        assert name == "folder" or kind.prefix or kind.endings or kind.remote
    assert list(holders()) == [".parquet", ".tar", ".arrow"]  # also the order in which a folder's files are judged
    assert known_forms() == (
        "a folder of images, *.parquet, *.tar, *.arrow, *.npy, list:FILE, torchvision:NAME, hf:ORG/NAME, an address of "
        "parquet files (s3://..., https://...), or digits"
    )


TOY = """
import numpy as np
from understudy.sources.formats import Format
from understudy.sources.formats.npy import ArrayImages

class Shades(Format):
    name = "shades"
    form = "shades:COUNT"
    summary = "so many gray squares"
    prefix = "shades"

    @staticmethod
    def open(place, listings):
        return ArrayImages(np.repeat(np.arange(int(place), dtype=np.uint8), 64).reshape(-1, 8, 8))
"""


def test_a_new_format_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "shades.py").write_text(TOY)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    monkeypatch.setattr(FORMATS, "_found", dict(FORMATS._found))
    try:
        source = open_source("shades:5")
        assert [int(np.asarray(source.read(i)).max()) for i in range(5)] == list(range(5))
        with pytest.raises(DataError, match=r"digits, or shades:COUNT"):
            open_source(tmp_path / "nowhere")
    finally:
        sys.modules.pop("understudy.sources.formats.shades", None)
