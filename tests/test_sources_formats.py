"""The registry of formats: what it lists, and that a new format is one file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from test_sources_source import table, tree
from understudy.artifacts import Run, Store
from understudy.errors import DataError
from understudy.evaluate.open_set import open_set
from understudy.settings import read_toml, resolve, setting
from understudy.sources import formats
from understudy.sources.cache import Cache
from understudy.sources.evaluation import open_evaluation
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


@dataclass(frozen=True)
class Places:
    """Settings that are paths."""

    out: str | None = setting(None)
    store: str = setting("store")
    on: tuple[str, ...] = setting(())


def test_a_home_may_stand_wherever_a_path_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("UNDERSTUDY_CACHE", "~/cache")
    root = tmp_path / "set"
    for half in ("train", "val"):
        tree(root / half, ("cat", "dog"), 1)
    np.save(root / "a.npy", np.zeros((2, 8, 8, 3), np.uint8))
    pq.write_table(table(range(2)), root / "a.parquet")
    (root / "a.txt").write_text("~/set/train/cat/0.png\n")
    for spec in ("~/set/train", "~/set/a.npy", "~/set/a.par*", "~/set/a.parquet#image", "list:~/set/a.txt"):
        assert len(open_source(spec)) in (1, 2)
    assert [len(half) for half in open_evaluation("~/set")] == [2, 2]
    assert [len(half) for half in open_evaluation("~/set/train,~/set/val")] == [2, 2]
    assert open_set("mine=~/set").train is not None
    assert open_set("mine=~/set/val").kind == "shift"
    assert Cache.of_machine().folder == tmp_path / "cache"
    assert (Run("~/run").path, Store("~/store").folder) == (tmp_path / "run", tmp_path / "store")
    (tmp_path / "a.toml").write_text('out = "~/run"\nstore = "~/store"\non = ["mine=~/set", "~/set"]\n')
    places = resolve(Places, read_toml("~/a.toml"))
    assert (places.out, places.store) == (f"{tmp_path}/run", f"{tmp_path}/store")
    assert places.on == ("mine=~/set", f"{tmp_path}/set")
    for spec in ("~nobody-of-this-name/set", "a" * 5000, "a\0b", "b" * 300 + "/*.tar"):
        for opened in (open_source, open_evaluation, open_set):
            with pytest.raises(DataError):
                opened(spec)
