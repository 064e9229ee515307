"""Labeled images in two halves whose class numbers mean the same."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from test_sources_source import shades, table, tree, write
from understudy.errors import DataError
from understudy.sources.evaluation import open_evaluation
from understudy.sources.source import open_source


def test_evaluation_from_folders(tmp_path: Path):
    tree(tmp_path / "train")
    tree(tmp_path / "val", ("dog", "cat"))  # fewer classes: numbers must still mean the same
    train, test = open_evaluation(tmp_path)
    assert train.class_names == test.class_names == ["ape", "cat", "dog"]
    assert test.labels is not None
    assert test.labels.tolist() == [1, 1, 1, 2, 2, 2]
    part = test.subset([5, 0])
    assert part.labels is not None
    assert part.labels.tolist() == [2, 1]
    assert part.class_names == train.class_names
    assert test.name(0) == "cat/0.png"


def test_evaluation_from_parquet_and_from_two_specs(tmp_path: Path):
    pq.write_table(table(range(4), label=[0, 1, 0, 1]), tmp_path / "train.parquet")
    pq.write_table(table(range(4, 6), label=[1, 0]), tmp_path / "test.parquet")
    pq.write_table(table(range(6, 7), label=[1]), tmp_path / "validation-00000.parquet")
    train, test = open_evaluation(tmp_path)
    assert shades(train) == [0, 1, 2, 3]
    assert shades(test) == [6]  # a validation half comes before a test half
    train, test = open_evaluation(f"{tmp_path}/train.parquet, {tmp_path}/test.parquet")
    assert shades(test) == [4, 5]
    assert test.labels is not None
    assert test.labels.tolist() == [1, 0]


def test_evaluation_of_digits():
    train, test = open_evaluation("digits")
    assert (len(train), len(test)) == (1438, 359)


def test_evaluation_that_cannot_be(tmp_path: Path):
    tree(tmp_path / "train")
    with pytest.raises(DataError, match=r"needs train and one of val, .* holds train"):
        open_evaluation(tmp_path)
    tree(tmp_path / "val", ("cat", "emu"))
    with pytest.raises(DataError, match=r"1 of 2 test classes .*'emu'"):
        open_evaluation(tmp_path)
    write(tmp_path / "loose" / "a.png", 1)
    with pytest.raises(DataError, match=r"test half .*loose .*no labels"):
        open_evaluation(f"{tmp_path}/train,{tmp_path}/loose")
    with pytest.raises(DataError, match="is not a folder"):
        open_evaluation(tmp_path / "nowhere")
    with pytest.raises(DataError, match="got 3"):
        open_evaluation("a,b,c")


def test_imagenette(shared: Path):
    train, test = open_evaluation(shared / "data" / "imagenette")
    assert (len(train), len(test)) == (1200, 400)
    assert train.class_names == test.class_names
    assert train.class_names is not None
    assert len(train.class_names) == 10
    for i in range(0, 1200, 100):
        image = train.read(i)
        assert image.mode == "RGB"
        with Image.open(shared / "data" / "imagenette" / "train" / train.name(i)) as file:
            assert (np.asarray(image) == np.asarray(file.convert("RGB"))).all()


def test_cifar(shared: Path):
    root = shared / "data" / "cifar10"
    with pytest.raises(DataError, match="several splits"):
        open_source(root)
    train, test = open_evaluation(root)
    assert (len(train), len(test)) == (50_000, 10_000)
    assert train.class_names is not None
    assert train.class_names[:2] == ["airplane", "automobile"]
    assert test.labels is not None
    assert np.bincount(test.labels).tolist() == [1000] * 10
    rows = pq.read_table(root / "test.parquet").slice(4321, 1).to_pylist()[0]
    wanted = np.asarray(Image.open(io.BytesIO(rows["image"]["bytes"])).convert("RGB"))
    assert (np.asarray(test.read(4321)) == wanted).all()
