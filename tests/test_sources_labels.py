"""Labels as files have them: of any type, otherwise in each file, in part or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from test_sources_source import png, table, tree, write
from test_sources_tar import pack, sample
from understudy.errors import DataError
from understudy.sources.evaluation import open_evaluation
from understudy.sources.source import Source, open_source


def classes(source: Source) -> list[str]:
    """The name of each image's class."""
    assert source.labels is not None
    assert source.class_names is not None
    return [source.class_names[number] for number in source.labels]


def parquet_file(path: Path, rows: pa.Table) -> None:
    pq.write_table(rows, path)


def arrow_file(path: Path, rows: pa.Table) -> None:
    with pa.ipc.new_stream(path, rows.schema) as writer:
        writer.write_table(rows)


STORAGES = [(".parquet", parquet_file, ""), (".arrow", arrow_file, ""), (".parquet", parquet_file, "file://")]
"""Ending, how a file is written, and what stands before its path: parquet, Arrow, and parquet at an address."""


def declare(rows: pa.Table, names: list[str]) -> pa.Table:
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return rows.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@pytest.mark.parametrize(("ending", "save", "before"), STORAGES)
def test_each_file_has_class_names_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, save: Callable[[Path, pa.Table], None], before: str
):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "set"
    root.mkdir()
    save(root / f"0{ending}", declare(table(range(3), label=[0, 1, 2]), ["ape", "cat", "dog"]))
    save(root / f"1{ending}", declare(table(range(3, 6), label=pa.array([0, 1, 2], pa.int8())), ["dog", "cat", "ape"]))
    save(root / f"2{ending}", declare(table(range(6, 8), label=[1, 0]), ["emu", "cat"]))
    source = open_source(f"{before}{root}")
    assert classes(source) == ["ape", "cat", "dog", "dog", "cat", "ape", "cat", "emu"]
    assert source.class_names == ["ape", "cat", "dog", "emu"]
    # Numbers without names beside names: nobody can tell which is which.
    save(root / f"3{ending}", table(range(8, 9), label=[1]))
    mixed = open_source(f"{before}{root}")
    assert mixed.labels is None
    assert "3" + ending in mixed.unlabeled
    assert "declared names such as 'ape'" in mixed.unlabeled


@pytest.mark.parametrize(("ending", "save", "before"), STORAGES)
def test_each_file_has_types_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, save: Callable[[Path, pa.Table], None], before: str
):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "set"
    root.mkdir()
    plain = pa.array([png(3), png(4)], type=pa.large_binary())
    save(root / f"0{ending}", table(range(2), label=pa.array([7, 40], pa.int64())))
    save(root / f"1{ending}", pa.table({"image": plain, "Label": pa.array([40, 7], pa.uint8())}))  # no struct
    save(root / f"2{ending}", table(range(5, 6), label=pa.array([7.0])))
    source = open_source(f"{before}{root}")
    assert classes(source) == ["7", "40", "40", "7", "7"]
    assert [int(np.asarray(source.read(i))[0, 0, 0]) for i in range(5)] == [0, 1, 3, 4, 5]
    save(root / f"3{ending}", table(range(9, 10)))
    without = open_source(f"{before}{root}")
    assert without.labels is None
    assert f"0{ending} has its labels in the column 'label', 3{ending} has none" in without.unlabeled
    (root / f"3{ending}").unlink()
    save(root / f"3{ending}", table(range(9, 10)).rename_columns(["photo"]))
    with pytest.raises(DataError, match="keeps its images in 'photo'"):
        open_source(f"{before}{root}")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["b", "a", "b"]),
        (pa.array(["b", "a", "b"], pa.large_string()), ["b", "a", "b"]),
        (pa.array([b"b", b"a", b"b"]), ["b", "a", "b"]),
        (pa.array([2.0, 0.0, 10.0]), ["2", "0", "10"]),
        (pa.array([True, False, True]), ["True", "False", "True"]),
        (pa.array([Decimal("2.00"), Decimal("1.00"), Decimal("2.00")]), ["2", "1", "2"]),
        (pa.array([2**64 - 1, 2**64 - 2, 5], pa.uint64()), [str(2**64 - 1), str(2**64 - 2), "5"]),
        (pa.array([4_000_000_000, 7, -(2**60)]), ["4000000000", "7", str(-(2**60))]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_labels_of_every_type(tmp_path: Path, values: pa.Array, names: list[str]):
    for ending, save, _ in STORAGES[:2]:
        save(tmp_path / f"a{ending}", table(range(3), label=values))
        source = open_source(tmp_path / f"a{ending}")
        assert classes(source) == names
        assert source.labels is not None
        assert source.labels.max() == len(set(names)) - 1  # counted off, however large they are


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pa.array([1.0, 0.5, 2.0]), r"column 'label' of a\.parquet has the type double and holds 0\.5 in a\.parquet:1"),
        (pa.array([1.0, 2.0, float("nan")]), r"type double and holds nan in a\.parquet:2"),
        (pa.array([Decimal("1.5"), Decimal("1.0"), None]), r"decimal128\(2, 1\) and holds Decimal\('1\.5'\) in .*:0"),
        (pa.array([1, None, 2]), r"type int64 and holds nothing in a\.parquet:1"),
        (pa.array([1, 1, -1]), r"type int64 and holds -1 \(no label\) in a\.parquet:2"),
        (pa.array([[1], [2, 3], []]), r"type list<element: int64> and holds \[1\] in a\.parquet:0"),
        (pa.array(["a", "", "b"]), r"type string and holds b'' in a\.parquet:1"),
        (pa.array([b"a", b"\xff", b"b"]), r"type binary and holds b'\\xff' in a\.parquet:1"),
        (pa.array([None, None, None]), r"type null and holds nothing in a\.parquet:0"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_odd_labels_are_named_with_column_type_and_value(tmp_path: Path, values: pa.Array, words: str):
    parquet_file(tmp_path / "a.parquet", table(range(3), label=values))
    source = open_source(tmp_path / "a.parquet")
    assert source.labels is None
    with pytest.raises(DataError, match=f"has labels that cannot be used: .*{words}"):
        open_evaluation(f"{tmp_path}/a.parquet,{tmp_path}/a.parquet")


def test_large_numbers_take_no_memory(tmp_path: Path):
    for half, low in (("train", 0), ("test", 20)):
        (tmp_path / half).mkdir()
        rows = table(range(low, low + 20), label=[4_000_000_000 + 7 * (i % 5) for i in range(20)])
        parquet_file(tmp_path / half / "0.parquet", rows)
    train, test = open_evaluation(tmp_path)
    assert train.class_names == test.class_names == [str(4_000_000_000 + 7 * i) for i in range(5)]
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, 2, 3, 4] * 4


def test_a_class_number_that_a_small_training_half_lacks(tmp_path: Path):
    parquet_file(tmp_path / "train.parquet", table(range(3), label=[0, 4, 9]))
    parquet_file(tmp_path / "test.parquet", table(range(3), label=[9, 3, 0]))
    train, test = open_evaluation(tmp_path)
    assert train.class_names == test.class_names == ["0", "3", "4", "9"]
    assert (classes(train), classes(test)) == (["0", "4", "9"], ["9", "3", "0"])
    parquet_file(tmp_path / "test.parquet", table(range(3), label=[9, 3, 10]))
    with pytest.raises(DataError, match=r"2 of 3 test classes .* '10'"):
        open_evaluation(tmp_path)


@pytest.mark.parametrize(
    ("stray", "words"),
    [
        ("stray.png", r"6 of 7 images lie at CLASS/FILE and 1 do not: 'stray\.png' lies in no class folder"),
        ("@eaDir/a.png/thumb.png", r"6 of 7 images .*'@eaDir/a\.png/thumb\.png' lies 2 folders deep"),
    ],
)
def test_one_stray_file_is_named(tmp_path: Path, stray: str, words: str):
    for half in ("train", "val"):
        tree(tmp_path / half, ("cat", "dog"))
    write(tmp_path / "train" / stray, 5)
    with pytest.raises(DataError, match=rf"training half .* has labels that cannot be used: {words}"):
        open_evaluation(tmp_path)


def test_nested_classes_are_named(tmp_path: Path):
    for half in ("train", "val"):
        tree(tmp_path / half / "images", ("cat", "dog"))
    words = r"no image lies at CLASS/FILE: 'images/cat/0\.png' lies 2 folders deep"
    with pytest.raises(DataError, match=f"training half .* has labels that cannot be used: {words}"):
        open_evaluation(tmp_path)
    (tmp_path / "list.txt").write_text("train/images/cat/0.png\nval/images/dog/1.png\n")
    assert open_source(tmp_path / "list.txt").unlabeled.count("'train/images/cat/0.png' lies 3 folders deep") == 1
    tree(tmp_path / "one", ("cat",))
    assert "all 3 images lie in one folder, 'cat'" in open_source(tmp_path / "one").unlabeled
    write(tmp_path / "flat" / "a.png", 1)
    assert open_source(tmp_path / "flat").unlabeled.startswith("has no labels. Classes come from folders")


def test_labels_of_shards_that_cannot_be_used_are_named(tmp_path: Path):
    def reason(*samples: list[tuple[str, bytes]]) -> str:
        pack(tmp_path / "a.tar", [member for members in samples for member in members])
        source = open_source(tmp_path / "a.tar")
        assert source.labels is None
        return source.unlabeled

    apart = [("0.png", png(0)), ("1.png", png(1)), ("0.cls", b"3"), ("1.cls", b"4")]
    words = (
        "2 of 2 images have no .cls or .json member beside them, such as a.tar/0.png; the label '0.cls' has no image"
    )
    assert words in reason(apart)
    assert "1 of 2 images have no .cls" in reason(sample(0, cls=b"1"), sample(1))
    folders = [("cat/0.png", png(0)), ("dog/1.png", png(1)), ("about.json", b"{}")]  # no label of any image
    assert classes(open_source(pack(tmp_path / "b.tar", folders))) == ["cat", "dog"]
    assert "a.tar/000000.png has none that can be read: its .json member is no JSON" in reason(
        sample(0, json=b"[" * 200_000)
    )
    assert "its .json member has [1, 2] under 'label'" in reason(sample(0, json=b'{"label": [1, 2]}'))
    assert "its .json member has 0.5 under 'label'" in reason(sample(0, json=b'{"label": 0.5}'))
    assert "its .json member has no key label, labels," in reason(sample(0, json=b'{"caption": "x"}'))
    assert "its .cls member is empty" in reason(sample(0, cls=b" \n"))
    assert "a.tar/000001.png has -1, which stands for no label" in reason(sample(0, cls=b"1"), sample(1, cls=b"-1"))


def test_labels_of_shards_of_every_type(tmp_path: Path):
    def read(*contents: bytes, ending: str = "cls") -> list[str]:
        members = [member for i, content in enumerate(contents) for member in sample(i, **{ending: content})]
        return classes(open_source(pack(tmp_path / "a.tar", members)))

    assert read(b"18446744073709551615", b"18446744073709551614") == ["18446744073709551615", "18446744073709551614"]
    assert read(b"007", b"7", b"12") == ["7", "7", "12"]
    assert read(b"9" * 5000, b"cat") == ["9" * 5000, "cat"]
    assert read(b'{"label": 3.0}', b'{"label": true}', b'{"label": "a"}', ending="json") == ["3", "True", "a"]
