"""Lists of paths, as lines and as tables."""

from __future__ import annotations

import os
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
    assert (numbered.labels.tolist(), numbered.class_names) == ([0], ["3"])
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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-8"])
def test_byte_order_marks(tmp_path: Path, encoding: str):
    tree(tmp_path)
    mark = "\ufeff" if encoding == "utf-16-le" else ""  # the others write their own, or none
    (tmp_path / "a.txt").write_text(f"{mark}dog/2.png\nape/0.png\n", encoding=encoding)
    (tmp_path / "a.csv").write_text(f"{mark}path,label\ndog/2.png,x\nape/0.png,y\n", encoding=encoding)
    for file in ("a.txt", "a.csv"):
        source = open_source(tmp_path / file)
        assert shades(source) == [22, 10]
        assert source.names.to_pylist() == ["dog/2.png", "ape/0.png"]
    assert open_source(tmp_path / "a.csv").class_names == ["x", "y"]
    import pyarrow.parquet as pq

    pq.write_table(table(range(2)), tmp_path / "0.PARQUET")
    (tmp_path / "b.txt").write_text(f"{mark}0.PARQUET\n", encoding=encoding)
    assert shades(open_source(tmp_path / "b.txt")) == [0, 1]


def test_any_case_of_letters(tmp_path: Path):
    import numpy as np
    import pyarrow.parquet as pq

    tree(tmp_path / "images")
    (tmp_path / "A.TXT").write_text("images/dog/2.png\n")
    (tmp_path / "A.CSV").write_text("ID, Path ,Label\n1,images/dog/2.png,wolf\n")
    (tmp_path / "A.Tsv").write_text("FileName\tCLASS\nimages/dog/2.png\twolf\n")
    pq.write_table(table(range(22, 23)), tmp_path / "A.Parquet")
    np.save(tmp_path / "A.npy", np.full((1, 8, 8, 3), 22, np.uint8))
    (tmp_path / "A.npy").rename(tmp_path / "A.NPY")
    for name in ("A.TXT", "A.CSV", "A.Tsv", "A.Parquet", "A.NPY", "*.PARQUET", "*.Parquet"):
        if not name.startswith("*") or list(tmp_path.glob(name)):
            assert shades(open_source(tmp_path / name)) == [22]
    assert open_source(tmp_path / "A.CSV").class_names == open_source(tmp_path / "A.Tsv").class_names == ["wolf"]


def test_paths_as_windows_and_a_home_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tree(tmp_path / "set")
    (tmp_path / "a.txt").write_text("set\\dog\\0.png\r\nset\\ape\\1.png\r\n")
    source = open_source("~/a.txt")
    assert shades(source) == [20, 11]
    assert source.class_names == ["ape", "dog"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("~/set/dog/1.png\n~\\set\\cat\\2.png\n")
    assert shades(open_source("list:~/elsewhere/b.txt")) == [21, 2]
    write(tmp_path / "back\\slash.png", 7)  # here a backslash is a letter like any other
    (tmp_path / "c.txt").write_text("back\\slash.png\n")
    assert shades(open_source(tmp_path / "c.txt")) == [7]


def test_labels_of_tables(tmp_path: Path):
    def read(*labels: str) -> list[str]:
        rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels))
        (tmp_path / "a.csv").write_text(f"path,label\n{rows}")
        source = open_source(tmp_path / "a.csv")
        if source.labels is None:
            return [source.unlabeled]
        assert source.class_names is not None
        return [source.class_names[number] for number in source.labels]

    assert read("20261127120000", "1") == ["20261127120000", "1"]
    assert read("18446744073709551001", "18446744073709551002") == ["18446744073709551001", "18446744073709551002"]
    assert read("1.0", "0.0") == ["1", "0"]
    assert read("2024-01-02", "2024-01-03") == ["2024-01-02", "2024-01-03"]
    assert "column 'label' of a.csv has the type double and holds 0.5 in row 2" in read("1", "0.5")[0]
    assert "column 'label' of a.csv has the type int64 and holds nothing in row 1" in read("", "3")[0]
    assert "holds -1 (no label) in row 2" in read("4", "-1")[0]


def test_what_a_list_must_not_hold(tmp_path: Path):
    write(tmp_path / "a" / "0.png", 5)
    (tmp_path / "nul.txt").write_bytes(b"a/0.png\na/\x001.png\n")
    source = open_source(tmp_path / "nul.txt")
    assert shades(source.subset([0])) == [5]
    with pytest.raises(UnreadableImage, match="its name holds a null byte"):
        source.read(1)
    (tmp_path / "twice.csv").write_text("path,path\n0.png,1.png\n")
    with pytest.raises(DataError, match=r"twice\.csv cannot be read\. Two columns are called 'path'"):
        open_source(tmp_path / "twice.csv")
    (tmp_path / "half.csv").write_bytes(b"path,label\n\xff.png,\xfe\n")
    with pytest.raises(DataError, match=r"half\.csv (is not a table|has no column of paths)"):
        open_source(tmp_path / "half.csv")
    (tmp_path / "header.csv").write_bytes(b"path,l\xffbel\n0.png,1\n")
    with pytest.raises(DataError, match=r"header\.csv is not a table that can be read"):
        open_source(tmp_path / "header.csv")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "pipe.txt").write_text("a/pipe.png\n/dev/zero\n")
    for source in (open_source(tmp_path / "pipe.txt"), open_source(tmp_path / "a").subset([1])):
        with pytest.raises(UnreadableImage, match="it is a named pipe and no regular file"):
            source.read(0)


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


def test_a_header_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b"path,la\xffbel\na.png,1\n")
    with pytest.raises(DataError, match=r"a\.csv is not a table that can be read"):
        open_source(tmp_path / "a.csv")


def test_a_name_longer_than_any_file_has_is_not_there(tmp_path: Path):
    for spec in ("x" * 300, "x" * 300 + ".png", "[" * 300):
        with pytest.raises(DataError):
            open_source(str(tmp_path / spec))
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "' + "x" * 300 + '"}]}')
    (tmp_path / "x.arrow").write_bytes(b"")
    with pytest.raises(DataError, match="is not complete: 1 of 1 files are missing"):
        open_source(tmp_path)
