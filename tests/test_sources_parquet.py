"""Images inside parquet files: any row of any file, columns and labels of many kinds, and what cannot be read."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from test_sources_source import png, shades, table
from understudy.errors import DataError, UnreadableImage
from understudy.sources.formats import parquet
from understudy.sources.source import open_source
from understudy.sources.splits import example_of


def test_parquet_reads_any_row_of_any_file(tmp_path: Path):
    pq.write_table(table(range(7), label=[0, 1, 2, 0, 1, 2, 0]), tmp_path / "a.parquet", row_group_size=3)
    pq.write_table(table(range(7, 12), label=[1] * 5), tmp_path / "b.parquet", row_group_size=2)
    source = open_source(tmp_path)
    order = np.random.default_rng(0).permutation(12)
    assert shades(source.subset(order)) == order.tolist()
    assert source.names.to_pylist()[6:8] == ["a.parquet:6", "b.parquet:0"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 1, 1, 1, 1]
    assert source.class_names == ["0", "1", "2"]
    assert shades(open_source(f"{tmp_path}/b*.parquet")) == list(range(7, 12))


def test_parquet_keeps_few_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pq.write_table(table(range(40)), tmp_path / "a.parquet", row_group_size=4)
    size = len(png(1)) * 4
    monkeypatch.setattr(parquet, "ROW_GROUP_CACHE", 3 * size)
    loads: list[int] = []
    load = parquet.encoded
    monkeypatch.setattr(parquet, "encoded", lambda file, group, name: loads.append(group) or load(file, group, name))
    source = open_source(tmp_path / "a.parquet")
    assert shades(source) == list(range(40))
    assert loads == list(range(10))  # in order: each group once
    kept = list(source.images._cache)
    assert kept in ([8, 9], [7, 8, 9])
    loads.clear()
    shades(source.subset([38, 39, 33, 37]))
    assert loads == []  # the latest groups are still there


def test_the_column_that_is_said_to_hold_images(tmp_path: Path):
    pictures = table(range(3)).column("image")
    rows = pa.table({"depth": table(range(5, 8)).column("image"), "photo": pictures, "label": [2, 0, 2]})
    pq.write_table(rows, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"several columns that may hold images \(depth, photo\)"):
        open_source(tmp_path / "a.parquet")
    features = {"depth": {"dtype": "binary", "_type": "Value"}, "photo": {"_type": "Image"}, "odd": ["text"]}
    said = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(rows.replace_schema_metadata(said), tmp_path / "a.parquet")
    assert shades(open_source(tmp_path / "a.parquet")) == [0, 1, 2]
    said = {"huggingface": json.dumps({"info": {"features": {**features, "depth": {"_type": "Image"}}}})}
    pq.write_table(rows.replace_schema_metadata(said), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"several columns that may hold images \(depth, photo\)"):
        open_source(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("names", "example"),
    [
        (("data/test-00000-of-00001.parquet", "data/train-00000-of-00002.parquet"), "data/train*.parquet"),
        (("cifar10-test.arrow", "other.arrow"), "cifar10-test*.arrow"),
        (("test/data-00000-of-00001.arrow", "train/data-00000-of-00001.arrow"), "train"),
        (("set/validation/0000.parquet", "set/test/0000.parquet"), "set/test"),
    ],
)
def test_how_one_split_of_several_is_named(names: tuple[str, ...], example: str):
    assert example_of(names) == example


@pytest.mark.parametrize("name", ["img", "jpg", "picture"])
def test_parquet_with_another_column_name(tmp_path: Path, name: str):
    images = table(range(3)).column("image")
    pq.write_table(pa.table({"id": pa.array(["a", "b", "c"]), name: images}), tmp_path / "a.parquet")
    assert shades(open_source(tmp_path / "a.parquet")) == [0, 1, 2]


def test_parquet_with_plain_bytes(tmp_path: Path):
    plain = pa.array([png(n) for n in range(3)], type=pa.large_binary())
    pq.write_table(pa.table({"jpg": plain, "fine_label": pa.array([2, 0, 2])}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert shades(source) == [0, 1, 2]
    assert source.labels is not None
    assert (source.labels.tolist(), source.class_names) == ([1, 0, 1], ["0", "2"])


def test_parquet_without_images_lists_its_columns(tmp_path: Path):
    pq.write_table(pa.table({"text": pa.array(["a"]), "label": pa.array([1])}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column of images. Its columns are: text \(string\), label \(int64\)"):
        open_source(tmp_path / "a.parquet")
    two = {"left": pa.array([png(0)]), "right": pa.array([png(1)])}
    pq.write_table(pa.table(two), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"several columns .*left, right"):
        open_source(tmp_path / "b.parquet")
    pq.write_table(pa.table({**two, "image": pa.array([png(2)])}), tmp_path / "c.parquet")
    assert shades(open_source(tmp_path / "c.parquet")) == [2]
    (tmp_path / "d.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"d\.parquet is not a parquet file"):
        open_source(tmp_path / "d.parquet")


def test_parquet_labels_of_several_kinds(tmp_path: Path):
    def labels(**columns: object) -> tuple[list[int] | None, list[str] | None]:
        pq.write_table(table(range(3), **columns), tmp_path / "a.parquet")
        source = open_source(tmp_path / "a.parquet")
        return None if source.labels is None else source.labels.tolist(), source.class_names

    assert labels() == (None, None)
    assert labels(label=["dog", "cat", "dog"]) == ([1, 0, 1], ["cat", "dog"])
    assert labels(label=[-1, -1, -1]) == (None, None)  # the hub's mark for a test set without labels
    assert labels(label=[0.5, 1.0, 2.0]) == (None, None)


def test_parquet_class_names_from_the_footer(tmp_path: Path):
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    for metadata in ({"huggingface": json.dumps(features)}, {"names": "cat,dog"}):
        rows = table(range(3), label=[1, 0, 1]).replace_schema_metadata(metadata)
        pq.write_table(rows, tmp_path / "a.parquet")
        assert open_source(tmp_path / "a.parquet").class_names == ["cat", "dog"]


def test_a_damaged_image_in_parquet(tmp_path: Path):
    rows = table(range(3)).to_pylist()
    rows[0]["image"] = {"bytes": None, "path": "elsewhere.png"}
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(noise, "PNG")
    rows[2]["image"] = {"bytes": noise.getvalue()[:1000], "path": None}
    pq.write_table(pa.Table.from_pylist(rows, schema=table(range(1)).schema), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    with pytest.raises(UnreadableImage, match=r"^a\.parquet:0 is empty"):
        source.read(0)
    with pytest.raises(UnreadableImage, match=r"^a\.parquet:2 cannot be decoded"):
        source.read(2)
    assert shades(source.subset([1])) == [1]


def test_splits_are_not_mixed(tmp_path: Path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        pq.write_table(table(range(2)), tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"several splits \(test: 1, train: 2\)"):
        open_source(tmp_path)
    assert len(open_source(tmp_path / "train-*.parquet")) == 4
    with pytest.raises(DataError, match="matches nothing"):
        open_source(tmp_path / "valid-*.parquet")


def test_a_footer_that_lies(tmp_path: Path):
    rows = table(range(3), label=[0, 1, 0]).replace_schema_metadata({"names": b"\xff\xfe"})
    pq.write_table(rows, tmp_path / "a.parquet")
    assert open_source(tmp_path / "a.parquet").class_names == ["0", "1"]  # names that are no text are none
    footer = pq.read_metadata(tmp_path / "a.parquet")
    schema, lengths = parquet.described(footer, 10_000, "a.parquet")
    assert (schema.names, lengths) == (["image", "label"], [3])
    with pytest.raises(DataError, match=r"a\.parquet claims 3 rows in 0 bytes: its footer is damaged"):
        parquet.described(footer, 0, "a.parquet")
    os.mkfifo(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet is not a parquet file that can be read \(it is a named pipe"):
        open_source(tmp_path / "b.parquet")
