"""Images with a class index per pixel, as Pascal VOC, ADE20K, Cityscapes or plainly laid out, and the videos of DAVIS.

Whatever a set's own numbers are, what is read of images is 0 ... C - 1, and IGNORED where the set says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from understudy.artifacts import fingerprint
from understudy.errors import DataError, UnreadableImage
from understudy.evaluate.dataset import Dataset, EvaluationSet, within
from understudy.evaluate.datasets.objects import (
    EVERINGHAM,
    VOC_CLASSES,
    VOC_SOURCE,
    read_expected,
    read_lines,
    read_words,
)
from understudy.sources.decode import EXTENSIONS, open_image, to_rgb
from understudy.sources.limits import ImageLimits

IGNORED = 255

ADE_SOURCE = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
CITYSCAPES_SOURCE = "https://www.cityscapes-dataset.com/downloads/ (leftImg8bit and gtFine_trainvaltest.zip)"

CITYSCAPES_CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""The 19 of 34 labels that the benchmark scores, by their number in a labelIds file."""


@dataclass(frozen=True)
class Masks:
    """One split.

    Args:
        name: for messages.
        images: (N,) image files.
        masks: (N,) files of one class number per pixel, in the same order.
        classes: C names; () where the set has numbers only.
        count: C.
        table: (256,) from the number in a file to 0 ... C - 1 or IGNORED; -1 for numbers that no file may hold.
    """

    name: str
    images: Sequence[Path]
    masks: Sequence[Path]
    classes: tuple[str, ...]
    count: int
    table: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def fingerprint(self) -> str:
        """Changes with the listing and the meaning of the numbers."""
        return fingerprint([path.name for path in (*self.images, *self.masks)], self.count, list(self.table))

    def read(self, i: int) -> tuple[Image.Image, UInt8[np.ndarray, "H W"]]:
        """Image i, RGB, and the class of each of its pixels.

        Raises:
            DataError: a file is missing, the mask is no index mask, is of another size, or holds an unknown number.
            UnreadableImage: the image cannot be decoded.
        """
        image = to_rgb(read_expected(self.images[i]), str(self.images[i]))
        numbers = read_index_mask(self.masks[i])
        if numbers.shape != (image.height, image.width):
            raise DataError(
                f"The mask {self.masks[i]} is {numbers.shape[1]} x {numbers.shape[0]} pixels, its image "
                f"{self.images[i].name} {image.width} x {image.height}. They must be of one size."
            )
        classes = np.array(self.table, dtype=np.int16)[numbers]
        if (classes < 0).any():
            raise DataError(
                f"The mask {self.masks[i]} holds the number {int(numbers[classes < 0][0])}; this set has "
                f"{self.count} classes, and {IGNORED} for pixels to be ignored."
            )
        return image, classes.astype(np.uint8)


def read_index_mask(path: Path, source: str = "") -> UInt8[np.ndarray, "H W"]:
    """The numbers in a mask file, a palette's indices included; `source` is where its set is officially had.

    Raises:
        DataError: missing, no image, or colors instead of numbers.
    """
    content = read_expected(path, source)
    limits = ImageLimits.of_environment()
    try:
        with open_image(content, limits, ("PNG", "BMP", "TIFF", "GIF")) as mask:
            numbers = np.asarray(mask)
            mode = mask.mode
    except UnreadableImage as error:
        raise DataError(f"The mask {path} {error}") from None
    except Exception as error:  # PIL's decoders raise nearly anything on damaged files
        raise DataError(f"The mask {path} cannot be decoded ({type(error).__name__}: {error}).") from None
    if mode not in ("L", "P", "1"):
        raise DataError(f"The mask {path} has mode {mode}; an index mask has one 8-bit number per pixel (L or P).")
    return np.array(numbers, dtype=np.uint8)


def open_masks(root: Path) -> tuple[Masks, Masks]:
    """The training and the validation split of a set in one of four layouts, in this folder or the one below it.

    - Pascal VOC: `VOCdevkit/VOC2012` with `JPEGImages`, `SegmentationClass`, `ImageSets/Segmentation/{train,val}.txt`;
      21 classes, 255 ignored.
    - ADE20K (SceneParse150): `ADEChallengeData2016/{images,annotations}/{training,validation}`; 150 classes, 0 ignored.
    - Cityscapes: `leftImg8bit/{train,val}/CITY` and `gtFine/{train,val}/CITY`; 19 classes, the other labels ignored.
    - Any: `images/{train,val}`, `masks/{train,val}` with the same names ending in .png, and `classes.txt` with one name
      a line; 255 ignored.

    Raises:
        DataError: none of them, a missing file (with its path, and where the set is had), or an empty split.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder {root}. A set with masks is had from {VOC_SOURCE} or {ADE_SOURCE}.")
    for voc in (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root):
        if (voc / "SegmentationClass").is_dir():
            return _voc(voc, "train"), _voc(voc, "val")
    for ade in (root / "ADEChallengeData2016", root):
        if (ade / "annotations" / "training").is_dir():
            return _ade(ade, "training"), _ade(ade, "validation")
    if (root / "leftImg8bit").is_dir():
        return _cityscapes(root, "train"), _cityscapes(root, "val")
    if (root / "masks").is_dir():
        return _plain(root, "train"), _plain(root, "val")
    raise DataError(
        f"{root} is laid out as none of: Pascal VOC (expected {root / 'VOCdevkit' / 'VOC2012' / 'SegmentationClass'}; "
        f"from {VOC_SOURCE}), ADE20K (expected {root / 'ADEChallengeData2016' / 'annotations' / 'training'}; from "
        f"{ADE_SOURCE}), Cityscapes (expected {root / 'leftImg8bit'}; from {CITYSCAPES_SOURCE}), or images, masks and "
        "classes.txt."
    )


def _voc(root: Path, split: str) -> Masks:
    listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    names = read_words(listing, VOC_SOURCE)
    images = [root / "JPEGImages" / f"{name}.jpg" for name in names]
    masks = [root / "SegmentationClass" / f"{name}.png" for name in names]
    classes = ("background", *VOC_CLASSES)
    return _split(listing, images, masks, classes, lambda i: i if i <= 20 or i == IGNORED else -1, VOC_SOURCE)


def _ade(root: Path, split: str) -> Masks:
    folder = root / "images" / split
    images = _listed(folder, ADE_SOURCE)
    masks = [root / "annotations" / split / f"{path.stem}.png" for path in images]
    # The file objectInfo150.txt names the classes; the numbers are what is scored.
    return _split(folder, images, masks, 150, lambda i: IGNORED if i == 0 else i - 1 if i <= 150 else -1, ADE_SOURCE)


def _cityscapes(root: Path, split: str) -> Masks:
    folder = root / "leftImg8bit" / split
    ending = "_leftImg8bit.png"
    images = [path for path in _listed(folder, CITYSCAPES_SOURCE, "*/*") if path.name.endswith(ending)]
    names = [f"{path.parent.name}/{path.name.removesuffix(ending)}_gtFine_labelIds.png" for path in images]
    masks = [root / "gtFine" / split / name for name in names]
    scored = {number: place for place, number in enumerate(CITYSCAPES_CLASSES)}
    classes = tuple(CITYSCAPES_CLASSES.values())
    return _split(folder, images, masks, classes, lambda i: scored.get(i, IGNORED), CITYSCAPES_SOURCE)


def _plain(root: Path, split: str) -> Masks:
    names = tuple(line.strip() for line in read_lines(root / "classes.txt") if line.strip())
    if not 2 <= len(names) <= IGNORED:
        raise DataError(f"{root / 'classes.txt'} names {len(names)} classes; from 2 to {IGNORED} can be told apart.")
    folder = root / "images" / split
    images = _listed(folder, "")
    masks = [root / "masks" / split / f"{path.stem}.png" for path in images]
    return _split(folder, images, masks, names, lambda i: i if i < len(names) or i == IGNORED else -1, "")


def _listed(folder: Path, source: str, pattern: str = "*") -> list[Path]:
    if not folder.is_dir():
        where = f" It comes from {source}." if source else ""
        raise DataError(f"The folder {folder} was expected and does not exist.{where}")
    return sorted(path for path in folder.glob(pattern) if path.suffix.lower() in EXTENSIONS)


def _split(
    name: Path, images: list[Path], masks: list[Path], classes: tuple[str, ...] | int, number: Callable[[int], int],
    source: str,
) -> Masks:  # fmt: skip
    if not images:
        raise DataError(f"{name} lists no images.")
    for path in (*images, *masks):
        if not os.path.isfile(path):
            where = f" It comes from {source}." if source else ""
            raise DataError(f"{path} was expected and does not exist.{where}")
    names, count = ((), classes) if isinstance(classes, int) else (classes, len(classes))
    return Masks(str(name), images, masks, names, count, tuple(number(i) for i in range(256)))


class MasksDataset(Dataset):
    """A set with masks: `metadata["train"]` and `metadata["test"]` are its splits, which the protocol reads itself."""

    kind = "masks"

    @classmethod
    def open(cls, path: str) -> EvaluationSet:
        """See `Dataset`."""
        train, test = open_masks(within(path, cls.name))
        metadata = {"train": train, "test": test, "fingerprint": fingerprint(train.fingerprint, test.fingerprint)}
        return EvaluationSet(cls.name, cls.kind, path, metadata=metadata)


class VocMasks(MasksDataset):
    """Masks of 20 classes and background."""

    name = "voc-masks"
    paper = EVERINGHAM
    home = VOC_SOURCE


class Ade20k(MasksDataset):
    """Scenes with masks of 150 classes."""

    name = "ade20k"
    paper = "Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017"
    home = ADE_SOURCE


class Cityscapes(MasksDataset):
    """Streets with masks of 19 classes."""

    name = "cityscapes"
    paper = "Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016"
    home = CITYSCAPES_SOURCE


class IndexMasks(MasksDataset):
    """Your own: images, masks of class numbers and classes.txt."""

    name = "index-masks"
    home = "your own"


DAVIS_SOURCE = "https://davischallenge.org/davis2017/code.html (DAVIS-2017-trainval-480p.zip)"


@dataclass(frozen=True)
class Videos:
    """The validation sequences by name, and the folder `DAVIS`."""

    root: Path
    names: Sequence[str]

    @property
    def fingerprint(self) -> str:
        """Changes with the list of sequences."""
        return fingerprint(list(self.names))

    def read(self, name: str) -> tuple[list[Image.Image], list[UInt8[np.ndarray, "H W"]]]:
        """Frames and masks of one sequence, in order.

        Raises:
            DataError: a file is missing, or a mask has another size than its frame.
            UnreadableImage: a frame cannot be decoded.
        """
        folder = self.root / "JPEGImages" / "480p" / name
        paths = sorted(folder.glob("*.jpg"))
        if len(paths) < 3:
            count = len(paths)
            raise DataError(f"{folder} holds {count} frames; three at least are needed. It comes from {DAVIS_SOURCE}.")
        frames, masks = [], []
        for path in paths:
            frame = to_rgb(read_expected(path), str(path))
            file = self.root / "Annotations" / "480p" / name / f"{path.stem}.png"
            mask = read_index_mask(file, DAVIS_SOURCE)
            if mask.shape != (frame.height, frame.width):
                raise DataError(
                    f"The mask {file} is {mask.shape[1]} x {mask.shape[0]} pixels, its frame {frame.width} x "
                    f"{frame.height}. They must be of one size."
                )
            frames.append(frame)
            masks.append(mask)
        return frames, masks


def open_videos(root: Path) -> Videos:
    """The validation sequences of DAVIS-2017 in the folder `DAVIS`, or in the one above it.

    `JPEGImages/480p/SEQUENCE/00000.jpg ...`, `Annotations/480p/SEQUENCE/00000.png ...`, `ImageSets/2017/val.txt`.

    Raises:
        DataError: the list of sequences is missing or empty.
    """
    root = root / "DAVIS" if (root / "DAVIS").is_dir() else root
    listing = root / "ImageSets" / "2017" / "val.txt"
    names = read_words(listing, DAVIS_SOURCE)
    if not names:
        raise DataError(f"{listing} names no sequences. It comes from {DAVIS_SOURCE}.")
    return Videos(root, names)


class Davis2017(Dataset):
    """30 videos with a mask of each object in each frame."""

    name = "davis"
    paper = "Pont-Tuset et al., The 2017 DAVIS Challenge on Video Object Segmentation, arXiv:1704.00675"
    kind = "videos"
    home = DAVIS_SOURCE

    @classmethod
    def open(cls, path: str) -> EvaluationSet:
        """See `Dataset`."""
        videos = open_videos(within(path, cls.name))
        return EvaluationSet(cls.name, cls.kind, path, metadata={"videos": videos, "fingerprint": videos.fingerprint})
