"""Lists of paths, as lines and as tables."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from test_sources_source import shades, table, tree, write
from understudy.errors import DataError, UnreadableImage
from understudy.sources.formats.list import ListedImages
from understudy.sources.source import open_source


def test_lines_in_their_order_relative_to_the_list(tmp_path: Path):
    tree(tmp_path / "images")
    absolute = write(tmp_path / "elsewhere" / "x.png", 99)
    (tmp_path / "a.txt").write_text(f"images/dog/2.png\r\n\n  images/ape/0.png\n{absolute}\nimages/gone.png")
    source = open_source(tmp_path / "a.txt")
    assert source.names.to_pylist()[:2] == ["images/dog/2.png", "images/ape/0.png"]
    assert shades(source.subset([0, 1, 2])) == [22, 10, 99]
    with pytest.raises(UnreadableImage, match=r"images/gone\.png cannot be opened"):
        source.read(3)
    (tmp_path / "a.list").write_text("images/dog/1.png\n")
    assert shades(open_source(f"list:{tmp_path}/a.list")) == [21]


def test_labels_are_the_last_folders_below_a_common_one(tmp_path: Path):
    tree(tmp_path / "set" / "train")
    names = [f"set/train/{name}/{i}.png" for name in ("dog", "ape") for i in range(2)]
    (tmp_path / "a.txt").write_text("\n".join(names))
    source = open_source(tmp_path / "a.txt")
    assert source.labels is not None
    assert source.labels.tolist() == [1, 1, 0, 0]
    assert source.class_names == ["ape", "dog"]
    (tmp_path / "b.txt").write_text("\n".join([*names, "set/stray.png"]))
    assert open_source(tmp_path / "b.txt").labels is None


def test_tables_with_labels(tmp_path: Path):
    tree(tmp_path / "images")
    (tmp_path / "a.csv").write_text('path,label\n"images/dog/0.png",wolf\nimages/ape/1.png,ape\n')
    source = open_source(tmp_path / "a.csv")
    assert shades(source) == [20, 11]
    assert source.class_names == ["ape", "wolf"]
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0]
    (tmp_path / "b.tsv").write_text("id\tfile_name\tlabel\n5\timages/cat/2.png\t3\n")
    numbered = open_source(tmp_path / "b.tsv")
    assert shades(numbered) == [2]
    assert numbered.labels is not None
    assert numbered.labels.tolist() == [3]
    (tmp_path / "c.csv").write_text("url,size\nimages/dog/0.png,3\n")
    with pytest.raises(DataError, match=r"no column of paths: its columns are url, size"):
        open_source(tmp_path / "c.csv")


def test_lists_of_files_that_hold_many(tmp_path: Path):
    import pyarrow.parquet as pq

    for i in range(3):
        pq.write_table(table(range(2 * i, 2 * i + 2)), tmp_path / f"{i}.parquet")
    (tmp_path / "a.txt").write_text("2.parquet\n0.parquet\n")
    assert shades(open_source(tmp_path / "a.txt")) == [4, 5, 0, 1]
    (tmp_path / "b.txt").write_text("2.parquet\n7.parquet\n")
    with pytest.raises(DataError, match=r"names 2 files, and 1 of them .*7\.parquet"):
        open_source(tmp_path / "b.txt")


def test_the_fingerprint_follows_the_files(tmp_path: Path):
    tree(tmp_path / "images")
    (tmp_path / "a.txt").write_text("images/dog/0.png\nimages/ape/0.png\n")
    before = open_source(tmp_path / "a.txt").fingerprint
    assert open_source(tmp_path / "a.txt").fingerprint == before
    (tmp_path / "b.txt").write_text("images/ape/0.png\nimages/dog/0.png\n")
    assert open_source(tmp_path / "b.txt").fingerprint != before
    (tmp_path / "images" / "dog" / "0.png").write_bytes(b"changed")
    assert open_source(tmp_path / "a.txt").fingerprint != before


def test_what_names_nothing(tmp_path: Path):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"empty\.txt names no images and is empty"):
        open_source(tmp_path / "empty.txt")
    with pytest.raises(DataError, match=r"nowhere\.txt does not exist"):
        open_source(f"list:{tmp_path}/nowhere.txt")


def test_long_lists_hold_no_python_object_per_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    count = 50_000
    (tmp_path / "a.txt").write_text("\n".join(f"class_{i // 1000}/image_{i:08d}.jpg" for i in range(count)))
    monkeypatch.setattr(ListedImages, "_states", lambda *_: ([0] * count, [0] * count))
    tracemalloc.start()
    images = ListedImages(tmp_path / "a.txt")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(images) == count
    assert held < count
