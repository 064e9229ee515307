"""Data sets saved to disk by Hugging Face's library, laid out here by hand as that library does."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from test_sources_source import png, shades, table, write
from understudy.errors import DataError, UnreadableImage
from understudy.sources.evaluation import open_evaluation
from understudy.sources.source import open_source


def save(folder: Path, *parts: pa.Table, names: list[str] | None = None, rows: int = 2, **state: Any) -> Path:
    """`Dataset.save_to_disk`: Arrow streams of small batches, `state.json` and `dataset_info.json`."""
    folder.mkdir(parents=True)
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    files = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        written = part.replace_schema_metadata(metadata)
        with pa.ipc.new_stream(folder / file, written.schema) as writer:
            writer.write_table(written, max_chunksize=rows)
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    entries = [{"filename": file} for file in files]
    (folder / "state.json").write_text(json.dumps({"_data_files": entries, "_split": "train", **state}))
    return folder


def test_a_saved_data_set_reads_any_row(tmp_path: Path):
    folder = save(
        tmp_path / "pets", table(range(5), label=[0, 1, 0, 1, 0]), table(range(5, 9), label=[1] * 4),
        names=["cat", "dog"],
    )  # fmt: skip
    (folder / "cache-0123.arrow").write_bytes(b"what map() leaves behind")
    source = open_source(folder)
    order = np.random.default_rng(0).permutation(9)
    assert shades(source.subset(order)) == order.tolist()
    assert source.names.to_pylist()[4:6] == ["data-00000-of-00002.arrow:4", "data-00001-of-00002.arrow:0"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0, 1, 0, 1, 1, 1, 1]
    assert source.class_names == ["cat", "dog"]
    packed = pickle.dumps(source)
    assert len(packed) < 4000
    assert shades(pickle.loads(packed)) == list(range(9))


def test_the_order_is_that_of_the_state(tmp_path: Path):
    folder = save(tmp_path / "pets", table(range(2)), table(range(2, 4)))
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"].reverse()
    (folder / "state.json").write_text(json.dumps(state))
    assert shades(open_source(folder)) == [2, 3, 0, 1]


def test_several_splits(tmp_path: Path):
    save(tmp_path / "pets" / "train", table(range(4), label=[0, 1, 0, 1]))
    save(tmp_path / "pets" / "test", table(range(4, 6), label=[1, 0]))
    (tmp_path / "pets" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=r"Arrow files of several splits \(test: 1, train: 1\)"):
        open_source(tmp_path / "pets")
    train, test = open_evaluation(tmp_path / "pets")
    assert (shades(train), shades(test)) == ([0, 1, 2, 3], [4, 5])


def test_single_files_with_and_without_a_footer(tmp_path: Path):
    part = table(range(3))
    with pa.ipc.new_file(tmp_path / "a.arrow", part.schema) as writer:
        writer.write_table(part)
    with pa.ipc.new_stream(tmp_path / "b.arrow", part.schema) as writer:
        writer.write_table(part)
    assert shades(open_source(tmp_path / "a.arrow")) == shades(open_source(tmp_path / "b.arrow")) == [0, 1, 2]
    assert len(open_source(f"{tmp_path}/*.arrow")) == 6


def test_rows_that_hold_only_a_path(tmp_path: Path):
    write(tmp_path / "7.png", 7)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows: list[dict[str, Any]] = [
        {"bytes": None, "path": str(tmp_path / "7.png")},
        {"bytes": None, "path": "/nowhere/8.png"},
        {"bytes": None, "path": None},
        {"bytes": png(9), "path": None},
    ]
    source = open_source(save(tmp_path / "set", pa.table({"image": pa.array(rows, type=kind)})))
    assert [int(np.asarray(source.read(i))[0, 0, 0]) for i in (0, 3)] == [7, 9]
    with pytest.raises(UnreadableImage, match=r"arrow:1 has no bytes, and its file /nowhere/8\.png cannot be opened"):
        source.read(1)
    with pytest.raises(UnreadableImage, match=r"arrow:2 is empty"):
        source.read(2)


def test_what_cannot_be_read(tmp_path: Path):
    (tmp_path / "a.arrow").write_text("no arrow")
    with pytest.raises(DataError, match=r"a\.arrow is not an Arrow file"):
        open_source(tmp_path / "a.arrow")
    folder = save(tmp_path / "texts", pa.table({"text": pa.array(["a"])}))
    with pytest.raises(DataError, match=r"no column of images"):
        open_source(folder)
    folder = save(tmp_path / "gone", table(range(2)), table(range(2)))
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"1 of 2 files are missing, e\.g\. data-00001"):
        open_source(folder)
    folder = save(tmp_path / "old", table(range(2)), _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match=r"flatten_indices"):
        open_source(folder)


def test_pixels_are_mapped_not_loaded(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 2**20), dtype=np.uint8)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": bytes(row), "path": None} for row in noise[:-1]] + [{"bytes": png(3)}], type=kind)
    folder = save(tmp_path / "set", pa.table({"image": rows}))
    del rows
    before = pa.total_allocated_bytes()
    source = open_source(folder)
    assert int(np.asarray(source.read(63))[0, 0, 0]) == 3
    assert pa.total_allocated_bytes() - before < 2**20  # of 64 MiB
    assert source.read(63).tobytes() == source.read(63).tobytes()
    with pytest.raises(UnreadableImage):
        source.read(0)
    assert io.BytesIO(png(3)).getvalue() == png(3)


def test_damaged_offsets_end_in_a_sentence(tmp_path: Path):
    """Reading a value behind them ended the process, without a word."""
    folder = save(tmp_path / "set", table(range(4), label=[0, 1, 0, 1]), rows=4)
    file = folder / "data-00000-of-00001.arrow"
    content = file.read_bytes()
    lengths = np.cumsum([0, *(len(png(i)) for i in range(4))]).astype("<i4").tobytes()
    at = content.index(lengths)
    file.write_bytes(content[: at + 4] + b"\x7f\xff\xff\x7f" + content[at + 8 :])
    with pytest.raises(DataError, match=r"arrow is damaged: its column 'image' is not valid"):
        open_source(folder)


def test_column_names_with_a_dot(tmp_path: Path):
    for name, rows in (("a", table(range(3))), ("b", pa.table({"image": [png(0), png(1), png(2)]}))):
        rows = rows.rename_columns(["my.image"])
        with pa.ipc.new_stream(tmp_path / f"{name}.arrow", rows.schema) as writer:
            writer.write_table(rows)
        pq.write_table(rows, tmp_path / f"{name}.parquet")
        for ending in ("arrow", "parquet"):
            assert shades(open_source(tmp_path / f"{name}.{ending}")) == [0, 1, 2]


@pytest.mark.parametrize(
    "state",
    ["[]", "null", "{}", '{"_data_files": 3}', '{"_data_files": [3]}', '{"_data_files": [{"filename": 3}]}',
     '{"_data_files": [{"filename": "../set/data-00000-of-00001.arrow"}]}', '{"_data_files": [{"filename": ""}]}'],
)  # fmt: skip
def test_a_state_that_is_none(tmp_path: Path, state: str):
    folder = save(tmp_path / "set", table(range(2)))
    (folder / "state.json").write_text(state)
    with pytest.raises(DataError, match=r"state\.json does not list the data set's files"):
        open_source(folder)


def test_the_column_that_is_wanted(tmp_path: Path):
    rows = pa.table({"left": table(range(3)).column("image"), "right": table(range(3, 6)).column("image")})
    with pa.ipc.new_stream(tmp_path / "a.arrow", rows.schema) as writer:
        writer.write_table(rows)
    pq.write_table(rows, tmp_path / "a.parquet")
    for spec in (f"{tmp_path}/a.arrow", f"{tmp_path}/a.parquet", f"file://{tmp_path}/a.parquet"):
        with pytest.raises(DataError, match=r"several columns that may hold images \(left, right\).*#COLUMN"):
            open_source(spec)
        assert shades(open_source(f"{spec}#right")) == [3, 4, 5]
        assert open_source(f"{spec}#right").fingerprint != open_source(f"{spec}#left").fingerprint
        with pytest.raises(DataError, match=r"no column of images called 'up'"):
            open_source(f"{spec}#up")
