"""Boxes: the layouts of COCO and Pascal VOC as their archives unpack, and every way they can be broken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from understudy.errors import DataError
from understudy.evaluate.datasets.objects import open_objects

COCO_OBJECTS = [
    {"id": 7, "image_id": 5, "category_id": 90, "bbox": [1.5, 2, 10, 4], "area": 33.0, "iscrowd": 0,
     "segmentation": [[1.5, 2, 11.5, 2, 11.5, 6]]},
    {"id": 8, "image_id": 5, "category_id": 3, "bbox": [0, 0, 2, 2], "iscrowd": 1,
     "segmentation": {"size": [16, 24], "counts": [0, 384]}},
]  # fmt: skip


def coco(root: Path, objects: list[dict[str, Any]] = COCO_OBJECTS) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        Image.new("RGB", (24, 16)).save(root / split / "000000000005.jpg")
        table = {
            "info": {}, "licenses": [],
            "images": [{"id": 5, "file_name": "000000000005.jpg", "width": 24, "height": 16, "license": 1}],
            "categories": [{"id": 3, "name": "car", "supercategory": "vehicle"}, {"id": 90, "name": "toothbrush"}],
            "annotations": objects,
        }  # fmt: skip
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(table))
    return root


def voc(root: Path, year: str, splits: dict[str, list[str]], xml: str = "") -> Path:
    folder = root / "VOCdevkit" / f"VOC{year}"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    xml = (
        xml
        or """<annotation><folder>VOC2007</folder><size><width>24</width><height>16</height><depth>3</depth></size>
        <object><name>dog</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>
          <bndbox><xmin>1</xmin><ymin>3</ymin><xmax>24</xmax><ymax>16</ymax></bndbox>
          <part><name>head</name><bndbox><xmin>2</xmin><ymin>4</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></part></object>
        <object><name>tvmonitor</name><bndbox><ymax>8</ymax><xmax>6.5</xmax><xmin>5</xmin><ymin>8</ymin></bndbox>
          <difficult>1</difficult></object></annotation>"""
    )
    for split, names in splits.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            Image.new("RGB", (24, 16)).save(folder / "JPEGImages" / f"{name}.jpg")
            (folder / "Annotations" / f"{name}.xml").write_text(xml)
    return root


def test_coco_is_read_as_it_is(tmp_path: Path) -> None:
    train, test = open_objects(coco(tmp_path))
    assert (len(train), len(test)) == (1, 1)
    assert train.read(0).size == (24, 16)
    assert train.boxes(0).tolist() == [[1.5, 2, 11.5, 6], [0, 0, 2, 2]]
    assert [one["iscrowd"] for one in train.annotations[0]] == [0, 1]
    assert [one["area"] for one in train.annotations[0]] == [33.0, 4]  # written, and missing
    assert [one["id"] for one in train.categories] == [3, 90]
    assert train.outlined
    assert train.fingerprint == test.fingerprint
    assert open_objects(coco(tmp_path / "other", COCO_OBJECTS[:1]))[0].fingerprint != train.fingerprint


def test_voc_corners_are_one_based_and_inclusive(tmp_path: Path) -> None:
    """A box over the whole image is xmin 1, xmax 24 in VOC's numbers, and 0 to 24 in ours."""
    voc(tmp_path, "2007", {"trainval": ["000001", "000002"], "test": ["000003"]})
    voc(tmp_path, "2012", {"trainval": ["000001"]})
    train, test = open_objects(tmp_path)
    assert (len(train), len(test)) == (3, 1)
    assert train.boxes(0).tolist() == [[0, 2, 24, 16], [4, 7, 6.5, 8]]
    names = {one["id"]: one["name"] for one in train.categories}
    assert [names[one["category_id"]] for one in train.annotations[0]] == ["dog", "tvmonitor"]
    assert [one["iscrowd"] for one in train.annotations[0]] == [0, 1]  # difficult
    assert len(names) == 20 and not train.outlined
    assert [one["id"] for one in train.images] == [1, 2, 3]  # both years have an image 000001
    assert train.paths[2] == tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages" / "000001.jpg"
    ids = [one["id"] for of_image in train.annotations for one in of_image]
    assert ids == [1, 2, 3, 4, 5, 6]  # COCO's evaluation takes object 0 for none


def test_voc_2012_alone_is_tested_on_val(tmp_path: Path) -> None:
    voc(tmp_path, "2012", {"train": ["a"], "val": ["b", "c"]})
    assert [len(split) for split in open_objects(tmp_path / "VOCdevkit")] == [1, 2]


def test_what_is_missing_is_named_with_its_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder .*nowhere.*cocodataset\.org"):
        open_objects(tmp_path / "nowhere")
    expected = re.escape(str(tmp_path / "annotations" / "instances_train2017.json"))
    with pytest.raises(DataError, match=rf"expected {expected}; from https://cocodataset.*VOC2007; from http://host"):
        open_objects(tmp_path)
    root = coco(tmp_path / "coco")
    (root / "val2017" / "000000000005.jpg").unlink()
    with pytest.raises(DataError, match=r"val2017.000000000005.jpg was expected and cannot be read"):
        open_objects(root)[1].read(0)
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(DataError, match=r"instances_val2017.json was expected.*comes from https://cocodataset"):
        open_objects(root)
    voc(tmp_path, "2007", {"trainval": ["1"]})
    with pytest.raises(DataError, match=r"Main.test.txt was expected .*comes from http://host\.robots"):
        open_objects(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 6}, "object 7 names image 6, category 90"),
        ({"category_id": 4}, "object 7 names image 5, category 4"),
        ({"bbox": [1, 2, 3]}, r"box \[1, 2, 3\]"),
    ],
)
def test_broken_coco_objects_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_objects(coco(tmp_path, [{**COCO_OBJECTS[0], **change}]))


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no objects: 1 images, 0 annotations"):
        open_objects(coco(tmp_path / "empty", []))
    root = coco(tmp_path / "coco")
    Image.new("RGB", (16, 24)).save(root / "train2017" / "000000000005.jpg")
    with pytest.raises(DataError, match=r"is 16 x 24 pixels, its annotation says 24 x 16"):
        open_objects(root)[0].read(0)
    (root / "annotations" / "instances_train2017.json").write_text("{}")
    with pytest.raises(DataError, match=r"instances_train2017.json is not a COCO annotation file \(KeyError: 'images'"):
        open_objects(root)
    xml = "<annotation><size><width>1</width><height>1</height></size><object><name>{}</name>{}</object></annotation>"
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>1</xmax><ymax>1</ymax></bndbox>"
    for place, (text, message) in enumerate(
        [
            (xml.format("unicorn", box), "'unicorn' is none of the 20 classes"),
            (xml.format("dog", ""), r"not a Pascal VOC annotation \(no <bndbox/xmin> in <object>\)"),
            ("<annotation>", "not a Pascal VOC annotation"),
        ]
    ):
        broken = voc(tmp_path / str(place), "2012", {"train": ["a"], "val": ["a"]}, text)
        with pytest.raises(DataError, match=message):
            open_objects(broken)


def test_real_coco(shared: Path) -> None:
    train, test = open_objects(shared / "data" / "coco128")
    assert (len(train), len(test)) == (64, 64)
    assert [sum(len(one) for one in split.annotations) for split in (train, test)] == [546, 443]
    for i in range(8):
        image, boxes = train.read(i), train.boxes(i)
        assert (boxes >= 0).all() and (boxes[:, 2:] <= np.array(image.size) + 0.5).all()
