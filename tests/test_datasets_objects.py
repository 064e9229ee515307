"""Boxes: the layouts of COCO and Pascal VOC as their archives unpack, and every way they can be broken."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from understudy.errors import DataError
from understudy.evaluate.datasets.annotations import check_outline, run_lengths
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iscrowd": "yes"}, r"iscrowd is 'yes', and it is 0 or 1"),
        ({"iscrowd": 2}, r"iscrowd is 2"),
        ({"iscrowd": None}, r"iscrowd is None"),
        ({"bbox": [0, 0, float("nan"), 3]}, r"the box \[0, 0, nan, 3\]"),
        ({"bbox": [0, 0, "3", 3]}, r"the box \[0, 0, '3', 3\]"),
        ({"bbox": [0, 0, -2, 3]}, r"the box \[0, 0, -2, 3\]"),
        ({"bbox": {"x": 1}}, r"the box \{'x': 1\}"),
        ({"area": "large"}, r"the area is 'large'"),
        ({"area": float("inf")}, r"the area is inf"),
        ({"id": [7]}, r"the id \[7\] is neither a whole number nor a text"),
        ({"image_id": [5]}, r"not a COCO annotation file \(TypeError"),
        ({"segmentation": [[1, 2, 3, 4]]}, r"the polygon \[1, 2, 3, 4\] has not three points"),
        ({"segmentation": [[1, 2, 3, 4, 5, None]]}, r"the polygon \[1, 2, 3, 4, 5, None\]"),
        ({"segmentation": [[0, 0, 1e9, 0, 1e9, 5]]}, r"lies outside of its image, 24 x 16"),  # 40 GB once drawn
        ({"segmentation": {"size": [16, 24], "counts": [0, 385]}}, r"do not add up to 24 x 16 pixels"),
        ({"segmentation": {"size": [16, 24], "counts": [400, -16]}}, r"do not add up to 24 x 16 pixels"),
        ({"segmentation": {"size": [9999, 9999], "counts": [0, 384]}}, r"neither polygons nor run lengths of an image"),
        ({"segmentation": {"size": [16, 24], "counts": "~~~~"}}, r"no compressed text of COCO"),
        ({"segmentation": {"size": [16, 24], "counts": "P"}}, r"in the middle of a number|do not add up"),
        ({"segmentation": "polygon"}, r"neither polygons nor run lengths"),
    ],
)
def test_objects_that_would_crash_or_lie_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_objects(coco(tmp_path, [{**COCO_OBJECTS[0], **change}]))


def test_run_lengths_are_those_of_pycocotools() -> None:
    tools = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    for shape, share in (((16, 24), 0.5), ((300, 200), 0.001), ((5, 7), 0.0), ((700, 900), 0.0)):
        drawn = np.asfortranarray((generator.random(shape) < share).astype(np.uint8))
        counts = run_lengths(tools.encode(drawn)["counts"].decode())
        flat = drawn.ravel(order="F")
        assert sum(counts) == flat.size
        again = np.repeat(np.arange(len(counts)) % 2, counts)
        assert (again == flat).all()
        check_outline({"size": list(shape), "counts": tools.encode(drawn)["counts"].decode()}, shape[1], shape[0])


@pytest.mark.parametrize(
    "content",
    [
        "[" * 200_000, "[]", "3", '{"images": 3}', '{"images": [3], "annotations": [], "categories": []}',
        '{"images": [{"id": 5, "file_name": 3, "width": 24, "height": 16}], "annotations": [], "categories": []}',
        '{"images": [{"id": 5, "file_name": "a", "width": -4, "height": 1e999}], "annotations": [], "categories": []}',
        '{"images": [{"id": NaN, "file_name": "a", "width": 1, "height": 1}], "annotations": [], "categories": []}',
        "\ud800",
    ],
)  # fmt: skip
def test_files_that_are_no_annotations(tmp_path: Path, content: str) -> None:
    root = coco(tmp_path)
    (root / "annotations" / "instances_train2017.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(DataError, match=r"instances_train2017\.json is not a COCO annotation file"):
        open_objects(root)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xmin>1<", "<xmin>nan<", r"the box nan, 3, 24, 16 has its corners in another order"),
        ("<xmax>24<", "<xmax>inf<", r"the box 1, 3, inf, 16"),
        ("<xmax>24<", "<xmax>-3<", r"the box 1, 3, -3, 16"),
        ("<width>24<", "<width>0<", r"the width or height 0"),
        ("<width>24<", "<width>inf<", r"the width or height inf"),
        ("<width>24<", "<width>wide<", r"could not convert string to float"),
        ("<annotation>", "<?xml version='1.0' encoding='klingon'?><annotation>", r"is not a Pascal VOC annotation"),
    ],
)
def test_voc_annotations_that_lie(tmp_path: Path, old: str, new: str, message: str) -> None:
    voc(tmp_path, "2012", {"train": ["1"], "val": ["2"]})
    file = tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "1.xml"
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=rf"1\.xml is not a Pascal VOC annotation.*{message}|{message}"):
        open_objects(tmp_path)


def test_lists_that_are_no_text_or_no_regular_file(tmp_path: Path) -> None:
    voc(tmp_path, "2012", {"train": ["1"], "val": ["2"]})
    lists = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main"
    (lists / "val.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"val\.txt is no text in UTF-8"):
        open_objects(tmp_path)
    (lists / "val.txt").unlink()
    os.mkfifo(lists / "val.txt")
    with pytest.raises(DataError, match=r"val\.txt was expected and cannot be read \(it is a named pipe"):
        open_objects(tmp_path)
