"""Images with boxes and outlines of the objects in them, in the layouts of COCO and of Pascal VOC.

Both become one table, in COCO's own terms: boxes are (x, y, width, height) in pixels, the left edge of the leftmost
pixel being 0; a crowd is neither learned nor asked for. Of VOC, boxes only: its 1-based inclusive corners are
converted, and objects marked difficult are crowds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from understudy.artifacts import fingerprint, read_regular
from understudy.errors import DataError, first_line
from understudy.evaluate.dataset import Dataset, EvaluationSet, within
from understudy.evaluate.datasets.annotations import checked_id, checked_object, checked_side
from understudy.sources.decode import to_rgb

COCO_SOURCE = "https://cocodataset.org/#download (train2017.zip, val2017.zip, annotations_trainval2017.zip)"
VOC_SOURCE = "http://host.robots.ox.ac.uk/pascal/VOC/ (VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar, ...)"

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

EVERINGHAM = "Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 2010"


@dataclass(frozen=True)
class Objects:
    """One split.

    Args:
        name: for messages.
        paths: (N,) image files.
        images: (N,) tables {"id", "width", "height"} in the order of the paths.
        annotations: of each image, tables {"id", "image_id", "category_id", "bbox", "area", "iscrowd"} and, where the
            set has outlines, "segmentation" (polygons or run lengths, as COCO writes them).
        categories: tables {"id", "name"}; ids may have gaps.
    """

    name: str
    paths: Sequence[Path]
    images: Sequence[Mapping[str, Any]]
    annotations: Sequence[Sequence[Mapping[str, Any]]]
    categories: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def outlined(self) -> bool:
        """Whether every object has an outline, so that masks can be learned."""
        objects = [one for of_image in self.annotations for one in of_image]
        return bool(objects) and all(one.get("segmentation") for one in objects)

    @property
    def fingerprint(self) -> str:
        """Changes with the annotations and the names of the files."""
        table = [[dict(one) for one in of_image] for of_image in self.annotations]
        return fingerprint([path.name for path in self.paths], table, [dict(one) for one in self.categories])

    def read(self, i: int) -> Image.Image:
        """Image i, RGB.

        Raises:
            DataError: it is missing, or of another size than its annotation says.
            UnreadableImage: it cannot be decoded.
        """
        image = to_rgb(read_expected(self.paths[i]), str(self.paths[i]))
        expected = (self.images[i]["width"], self.images[i]["height"])
        if image.size != expected:
            raise DataError(
                f"{self.paths[i]} is {image.width} x {image.height} pixels, its annotation says {expected[0]} x "
                f"{expected[1]}: the boxes would not fit."
            )
        return image

    def boxes(self, i: int) -> np.ndarray:
        """(n, 4) float64 corners x0, y0, x1, y1 of the objects of image i, in the order of its annotations."""
        corners = np.array([one["bbox"] for one in self.annotations[i]], dtype=np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        return corners

    def coco(self) -> dict[str, Any]:
        """The whole split as one COCO table."""
        return {
            "images": [dict(one) for one in self.images],
            "annotations": [dict(one) for of_image in self.annotations for one in of_image],
            "categories": [dict(one) for one in self.categories],
        }


def open_objects(root: Path) -> tuple[Objects, Objects]:
    """The training and the test split of a set in the layout of COCO or of Pascal VOC.

    COCO: `annotations/instances_{train,val}2017.json` beside `train2017/` and `val2017/` (or 2014). VOC: `VOC2007` and
    `VOC2012`, as the archives unpack into `VOCdevkit` (here or in the folder below): trained on trainval of both years,
    tested on test of 2007, as is the custom; with 2012 alone trained on train and tested on val.

    Raises:
        DataError: neither layout, a missing file (with its path, and where the set is had), or a broken annotation.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder {root}. A set with boxes is had from {COCO_SOURCE} or {VOC_SOURCE}.")
    for year in ("2017", "2014"):
        if (root / "annotations" / f"instances_train{year}.json").is_file():
            return _coco(root, f"train{year}"), _coco(root, f"val{year}")
    devkit = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    years = {year: devkit / f"VOC{year}" for year in ("2007", "2012") if (devkit / f"VOC{year}").is_dir()}
    if "2007" in years:
        return _voc([(folder, "trainval") for folder in years.values()]), _voc([(years["2007"], "test")])
    if "2012" in years:
        return _voc([(years["2012"], "train")]), _voc([(years["2012"], "val")])
    raise DataError(
        f"{root} is laid out neither as COCO (expected {root / 'annotations' / 'instances_train2017.json'}; from "
        f"{COCO_SOURCE}) nor as Pascal VOC (expected {root / 'VOCdevkit' / 'VOC2007'}; from {VOC_SOURCE})."
    )


def read_expected(path: Path, source: str = "") -> bytes:
    """The bytes of a file that a layout says is there.

    Raises:
        DataError: it is not there; names the path and where the set is officially had (`source`).
    """
    try:
        return read_regular(path)
    except OSError as error:
        where = f" It comes from {source}." if source else ""
        raise DataError(f"{path} was expected and cannot be read ({error.strerror}).{where}") from None


def read_lines(path: Path, source: str = "") -> list[str]:
    """The lines of a text file that a layout says is there.

    Raises:
        DataError: it is not there, or is no text.
    """
    try:
        return read_expected(path, source).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8.") from None


def read_words(path: Path, source: str = "") -> list[str]:
    """The words of a text file that a layout says is there; otherwise as `read_lines`."""
    return [word for line in read_lines(path, source) for word in line.split()]


def _coco(root: Path, split: str) -> Objects:
    path = root / "annotations" / f"instances_{split}.json"
    one: Any = None
    try:
        table = json.loads(read_expected(path, COCO_SOURCE))
        images, paths, of_image = {}, [], dict[int | str, list[Any]]()
        for one in table["images"]:
            number = checked_id(one["id"])
            images[number] = {"id": number, "width": checked_side(one["width"]), "height": checked_side(one["height"])}
            paths.append(root / split / one["file_name"])
            of_image[number] = []
        for one in table["categories"]:
            checked_id(one["id"])
        known = {one["id"] for one in table["categories"]}
        if len(images) < len(paths) or len(known) < len(table["categories"]):
            raise DataError(f"{path}: two images, or two categories, have the same id.")
        for one in table["annotations"]:
            if one["image_id"] not in of_image or one["category_id"] not in known:
                raise DataError(
                    f"{path}: object {one['id']} names image {one['image_id']}, category {one['category_id']}; the "
                    "image or the category is not in the file."
                )
            of_image[one["image_id"]].append(checked_object(one, images[one["image_id"]]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        entry = f", {str(one)[:200]}" if one is not None else ""
        raise DataError(
            f"{path} is not a COCO annotation file ({type(error).__name__}: {first_line(error)}{entry})."
        ) from None
    if not any(of_image.values()):
        raise DataError(f"{path} holds no objects: {len(images)} images, 0 annotations.")
    return Objects(str(path), paths, list(images.values()), list(of_image.values()), table["categories"])


def _voc(parts: Sequence[tuple[Path, str]]) -> Objects:
    paths: list[Path] = []
    images: list[dict[str, Any]] = []
    annotations: list[list[dict[str, Any]]] = []
    objects = 0
    for folder, split in parts:
        listing = folder / "ImageSets" / "Main" / f"{split}.txt"
        for name in read_words(listing, VOC_SOURCE):
            file = folder / "Annotations" / f"{name}.xml"
            width, height, objects_of_image = _voc_image(file)
            number = len(paths) + 1  # the years use the same names
            of_image = []
            for category, (x0, y0, x1, y1), difficult in objects_of_image:
                objects += 1
                of_image.append(
                    {
                        "id": objects, "image_id": number, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0), "iscrowd": difficult,
                    }
                )  # fmt: skip
            paths.append(folder / "JPEGImages" / f"{name}.jpg")
            images.append({"id": number, "width": width, "height": height})
            annotations.append(of_image)
    listed = " and ".join(str(folder / "ImageSets" / "Main" / f"{split}.txt") for folder, split in parts)
    if not objects:
        raise DataError(f"{listed}: {len(paths)} images are listed, with 0 objects in all.")
    categories = [{"id": number, "name": name} for number, name in enumerate(VOC_CLASSES, 1)]
    return Objects(listed, paths, images, annotations, categories)


def _voc_image(file: Path) -> tuple[int, int, list[tuple[int, tuple[float, float, float, float], int]]]:
    """Width, height, and of each object its category, 0-based corners and whether it is difficult."""
    try:
        root = ElementTree.fromstring(read_expected(file, VOC_SOURCE))
        objects = []
        for one in root.iter("object"):
            name = _text(one, "name")
            x0, y0, x1, y1 = (float(_text(one, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
            if name not in VOC_CLASSES:
                raise DataError(f"{file}: '{name}' is none of the {len(VOC_CLASSES)} classes of Pascal VOC.")
            if not (math.isfinite(x0 + y0 + x1 + y1) and x0 <= x1 and y0 <= y1):
                raise ValueError(f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} has its corners in another order")
            difficult = int((one.findtext("difficult") or "0").strip() == "1")
            # The first pixel is number 1 and the last one belongs to the box.
            objects.append((VOC_CLASSES.index(name) + 1, (x0 - 1, y0 - 1, x1, y1), difficult))
        width, height = (checked_side(float(_text(root, f"size/{side}"))) for side in ("width", "height"))
        return width, height, objects
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{file} is not a Pascal VOC annotation ({error}).") from None


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no <{path}> in <{element.tag}>")
    return text.strip()


class ObjectsDataset(Dataset):
    """A set with boxes: `metadata["train"]` and `metadata["test"]` are its splits, which the protocol reads itself."""

    kind = "objects"

    @classmethod
    def open(cls, path: str) -> EvaluationSet:
        """See `Dataset`."""
        train, test = open_objects(within(path, cls.name))
        metadata = {"train": train, "test": test, "fingerprint": fingerprint(train.fingerprint, test.fingerprint)}
        return EvaluationSet(cls.name, cls.kind, path, metadata=metadata)


class Coco(ObjectsDataset):
    """Objects of 80 classes with boxes and outlines."""

    name = "coco"
    paper = "Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014"
    home = COCO_SOURCE


class Voc(ObjectsDataset):
    """Objects of 20 classes with boxes."""

    name = "voc"
    paper = EVERINGHAM
    home = VOC_SOURCE
