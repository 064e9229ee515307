"""Masks: four layouts as their archives unpack, and every way they can be broken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from understudy.errors import DataError
from understudy.evaluate.datasets.masks import IGNORED, open_masks

NUMBERS = np.array([[0, 1, 2, 255], [7, 20, 3, 33]], dtype=np.uint8)
FOUR = np.where(NUMBERS == 255, 255, NUMBERS % 4).astype(np.uint8)


def write(image: Path, mask: Path, numbers: np.ndarray = NUMBERS, *, palette: bool = False) -> None:
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", numbers.shape[::-1], "red").save(image)
    picture = Image.fromarray(numbers)
    if palette:
        picture = picture.convert("P")  # as VOC and DAVIS store them: indices with colors for people
        picture.putdata(numbers.ravel().tolist())
        picture.putpalette([value for i in range(256) for value in (255 - i, i, 128)])
    picture.save(mask)


def voc(root: Path) -> Path:
    folder = root / "VOCdevkit" / "VOC2012"
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, name in (("train", "2007_000032"), ("val", "2007_000033")):
        (lists / f"{split}.txt").write_text(f"{name}\n")
        mask = folder / "SegmentationClass" / f"{name}.png"
        numbers = np.where(NUMBERS == 255, 255, np.minimum(NUMBERS, 20)).astype(np.uint8)
        write(folder / "JPEGImages" / f"{name}.jpg", mask, numbers, palette=True)
    return root


def ade(root: Path) -> Path:
    folder = root / "ADEChallengeData2016"
    for split, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        numbers = np.where(NUMBERS == 255, 150, NUMBERS).astype(np.uint8)
        write(folder / "images" / split / f"{name}.jpg", folder / "annotations" / split / f"{name}.png", numbers)
    return root


def cityscapes(root: Path) -> Path:
    for split, city in (("train", "aachen"), ("val", "frankfurt")):
        stem = f"{city}_000000_000019"
        image = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
        write(image, root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png")
        write(image, root / "gtFine" / split / city / f"{stem}_gtFine_instanceIds.png")
    return root


def plain(root: Path, numbers: np.ndarray = FOUR) -> Path:
    for split in ("train", "val"):
        write(root / "images" / split / "a.jpg", root / "masks" / split / "a.png", numbers)
    (root / "classes.txt").write_text("sky\nsea\nland\nship\n")
    return root


def test_voc(tmp_path: Path) -> None:
    for root in (voc(tmp_path), tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2012"):
        train, test = open_masks(root)
    assert (len(train), len(test), train.count, train.classes[0], train.classes[20]) == (
        1, 1, 21, "background", "tvmonitor",
    )  # fmt: skip
    image, mask = test.read(0)
    assert image.size == (4, 2)
    assert mask.tolist() == [[0, 1, 2, 255], [7, 20, 3, 20]]
    assert train.fingerprint != test.fingerprint


def test_ade_counts_from_one_and_ignores_zero(tmp_path: Path) -> None:
    train, _ = open_masks(ade(tmp_path))
    assert train.count == 150
    assert train.read(0)[1].tolist() == [[IGNORED, 0, 1, 149], [6, 19, 2, 32]]


def test_cityscapes_scores_19_of_its_labels(tmp_path: Path) -> None:
    train, test = open_masks(cityscapes(tmp_path))
    assert (train.count, train.classes[:2], train.classes[-1], len(test)) == (19, ("road", "sidewalk"), "bicycle", 1)
    # 7 is road, 20 the eighth scored one, 33 the last; 0 to 3 and a license plate's 255 are not scored.
    assert train.read(0)[1].tolist() == [[IGNORED] * 4, [0, 7, IGNORED, 18]]


def test_the_plain_layout(tmp_path: Path) -> None:
    train, _ = open_masks(plain(tmp_path))
    assert train.classes == ("sky", "sea", "land", "ship")
    assert train.read(0)[1].tolist() == [[0, 1, 2, 255], [3, 0, 3, 1]]


def test_a_mask_of_another_size_says_both(tmp_path: Path) -> None:
    plain(tmp_path)
    Image.new("L", (3, 5)).save(tmp_path / "masks" / "val" / "a.png")
    with pytest.raises(DataError, match=r"masks.val.a.png is 3 x 5 pixels, its image a.jpg 4 x 2"):
        open_masks(tmp_path)[1].read(0)


def test_unusable_masks_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.png holds the number 7; this set has 4 classes, and 255"):
        open_masks(plain(tmp_path, NUMBERS))[0].read(0)
    path = tmp_path / "masks" / "train" / "a.png"
    Image.new("RGB", (4, 2)).save(path)
    with pytest.raises(DataError, match=r"a.png has mode RGB; an index mask has one 8-bit number per pixel"):
        open_masks(tmp_path)[0].read(0)
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a.png cannot be decoded"):
        open_masks(tmp_path)[0].read(0)


@pytest.mark.parametrize(
    ("make", "file", "message"),
    [
        (voc, "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", r"val.txt was expected.*http://host\.robots"),
        (voc, "VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg", r"000033.jpg was expected.*http://host\.robots"),
        (ade, "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png", r"was expected.*csail\.mit"),
        (ade, "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg", r"images.validation lists no images"),
        (cityscapes, "gtFine/val/frankfurt/frankfurt_000000_000019_gtFine_labelIds.png", r"www\.cityscapes-dataset"),
        (plain, "classes.txt", r"classes.txt was expected"),
    ],
)
def test_what_is_missing_is_named_with_its_source(
    tmp_path: Path, make: Callable[[Path], Path], file: str, message: str
) -> None:
    (make(tmp_path) / file).unlink()
    with pytest.raises(DataError, match=message):
        open_masks(tmp_path)


def test_no_layout_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder .*x\."):
        open_masks(tmp_path / "x")
    with pytest.raises(DataError, match=r"laid out as none of: Pascal VOC .*SegmentationClass.*ADE20K.*Cityscapes"):
        open_masks(tmp_path)
    plain(tmp_path)
    (tmp_path / "classes.txt").write_text("one\n")
    with pytest.raises(DataError, match="names 1 classes; from 2 to 255"):
        open_masks(tmp_path)


def test_lists_that_are_no_text(tmp_path: Path):
    root = voc(tmp_path / "voc")
    (root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"val\.txt is no text in UTF-8"):
        open_masks(root)
    root = plain(tmp_path / "plain")
    (root / "classes.txt").write_bytes(b"\xef\xbb\xbf" + (root / "classes.txt").read_bytes())
    assert open_masks(root)[0].classes[0] == open_masks(plain(tmp_path / "other"))[0].classes[0]  # no mark in a name
    (root / "classes.txt").unlink()
    os.mkfifo(root / "classes.txt")
    with pytest.raises(DataError, match=r"classes\.txt was expected and cannot be read \(it is a named pipe"):
        open_masks(root)
