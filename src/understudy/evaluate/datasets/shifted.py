"""Published test images whose classes are those of a training set: other photographs, drawings, corruptions.

They are classified by what the main evaluation images teach (`--eval-data`), class by class name: wnids, or for
ImageNet-v2, whose folders are numbers, the place among the sorted wnids. The metadata of the set: "home", where it is
had; where it falls into parts, "part" (one number an image id), "parts" (their names, "gaussian_noise/3") and
"normalize", whether errors are divided by AlexNet's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from understudy.errors import DataError
from understudy.evaluate.dataset import Dataset, EvaluationSet, below, within
from understudy.sources.formats.npy import ArrayImages, mapped_array
from understudy.sources.images import JoinedImages
from understudy.sources.source import Source, open_source

IMAGENET = 1000
WNID = re.compile(r"n\d{8}")
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HENDRYCKS = "Hendrycks and Dietterich, Benchmarking Neural Network Robustness, ICLR 2019"


def imagenet_wnids() -> list[str]:
    """The wnids of ImageNet's 1,000 classes, in the order of their numbers; timm keeps the list."""
    from timm.data import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


def numbered_as(source: Source, names: Sequence[str], title: str, *, published: bool = False) -> Int[np.ndarray, " M"]:
    """The labels of M test images alone, as class numbers (by `names`) of the main evaluation images.

    Classes are matched by name. Where the main images call their 1,000 classes otherwise (parquet: "tench, Tinca
    tinca"), wnids count ImageNet's. Folders that are all numbers, as ImageNet-v2's, count ImageNet's classes where the
    main images' are wnids of it, all or some, and else the main images' own.

    Args:
        source: M test images.
        names: of the main evaluation images' classes, by number.
        title: of the set, for messages.
        published: the classes are what they are: those that the main images lack are left out (-1), unless fewer than
            two are left. A user's own folders must all be named like the main images' classes.

    Raises:
        DataError: no labels, or a class is not among the main evaluation images' classes.
    """
    labels, own = source.labels, source.class_names
    if labels is None or own is None:
        raise DataError(f"{title} {source.unlabeled}")
    own = list(own)
    known = {name: number for number, name in enumerate(names)}
    used = [own[number] for number in np.unique(labels).tolist()]
    if not all(name in known for name in used):
        if all(name.isdecimal() for name in used):
            own = [name.lstrip("0") or "0" for name in own]
            wnids = imagenet_wnids() if all(WNID.fullmatch(name) for name in names) else []
            if set(names) <= set(wnids):  # all of ImageNet's classes, or some
                known = {str(number): known[wnid] for number, wnid in enumerate(wnids) if wnid in known}
            elif all(name.isdecimal() for name in names):  # numbers on both sides mean the same
                known, published = {name.lstrip("0") or "0": number for name, number in known.items()}, False
            else:
                known, published = {str(number): number for number in range(len(names))}, False
        elif len(names) == IMAGENET and not any(WNID.fullmatch(name) for name in names):
            known = {wnid: number for number, wnid in enumerate(imagenet_wnids())}
    table = np.array([known.get(name, -1) for name in own], dtype=np.int64)
    numbers: np.ndarray = table[labels]
    unknown = [own[number] for number in np.unique(labels[numbers < 0]).tolist()]
    if unknown and not (published and len(used) - len(unknown) >= 2):
        raise DataError(
            f"{len(unknown)} of {len(used)} classes of {title} are not among the {len(names)} of the main evaluation "
            f"images, e.g. '{unknown[0]}'; those are {', '.join(names[:5])}, ... Class folders must be named alike."
        )
    return numbers


class ClassFolders(Dataset):
    """Test images in class folders, directly or one down; the archive unpacks into the folder `archive`."""

    kind = "shift"
    archive: ClassVar[str]

    @classmethod
    def open(cls, path: str) -> EvaluationSet:
        """See `Dataset`."""
        root = within(path, cls.archive, cls.name)
        if not root.is_dir():
            raise DataError(f"{root} does not exist. Give the folder of class folders; the set is had at {cls.home}.")
        inside = [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
        if len(inside) == 1:  # the archive's own folder, in one of the user's
            root = inside[0]
        test = open_source(root)
        if test.labels is None:
            raise DataError(f"{root} must hold class folders, and {test.unlabeled} It is had at {cls.home}.")
        return EvaluationSet(cls.name, "shift", path, test=test, metadata={"home": cls.home})


class ImagenetV2(ClassFolders):
    """New photographs of ImageNet's classes, matched frequency."""

    name = "imagenet-v2"
    paper = "Recht et al., Do ImageNet Classifiers Generalize to ImageNet?, ICML 2019"
    home = "https://github.com/modestyachts/ImageNetV2"
    archive = "imagenetv2-matched-frequency-format-val"


class ImagenetV2Threshold(ImagenetV2):
    """ImageNet-v2, threshold 0.7."""

    name = "imagenet-v2-threshold"
    archive = "imagenetv2-threshold0.7-format-val"


class ImagenetV2Top(ImagenetV2):
    """ImageNet-v2, top images."""

    name = "imagenet-v2-top"
    archive = "imagenetv2-top-images-format-val"


class ImagenetSketch(ClassFolders):
    """Drawings of ImageNet's classes."""

    name = "imagenet-sketch"
    paper = "Wang et al., Learning Robust Global Representations by Penalizing Local Predictive Power, NeurIPS 2019"
    home = "https://github.com/HaohanWang/ImageNet-Sketch"
    archive = "sketch"


class ImagenetA(ClassFolders):
    """Photographs of 200 classes that a ResNet-50 gets wrong."""

    name = "imagenet-a"
    paper = "Hendrycks et al., Natural Adversarial Examples, CVPR 2021"
    home = "https://github.com/hendrycks/natural-adv-examples"
    archive = "imagenet-a"


class ImagenetR(ClassFolders):
    """Art, toys and drawings of 200 classes."""

    name = "imagenet-r"
    paper = "Hendrycks et al., The Many Faces of Robustness, ICCV 2021"
    home = "https://github.com/hendrycks/imagenet-r"
    archive = "imagenet-r"


class ImagenetC(Dataset):
    """ImageNet's validation images under 15 corruptions of 5 severities."""

    name = "imagenet-c"
    paper = HENDRYCKS
    kind = "shift"
    home = "https://zenodo.org/records/2235448 (ImageNet-C)"

    @classmethod
    def open(cls, path: str) -> EvaluationSet:
        """`CORRUPTION/SEVERITY/WNID/IMAGE`, severities 1 to 5."""
        root = within(path, "ImageNet-C", cls.name)
        if not root.is_dir():
            raise DataError(f"{root} does not exist. Give the folder of corruptions; the set is had at {cls.home}.")
        source = open_source(root)
        names = source.names
        depth = pc.count_substring(names, "/")
        # The archives unpack into noise/, blur/, weather/, digital/: one folder more, or none.
        levels = int(depth[0].as_py())
        if levels not in (3, 4) or not pc.all(pc.equal(depth, levels)).as_py():
            raise DataError(
                f"{root} must hold CORRUPTION/SEVERITY/CLASS/IMAGE and nothing else; there is {names[0].as_py()}. The "
                f"set is had at {cls.home}."
            )
        pieces = pc.split_pattern(names, "/")
        corruption, severity, wnid = (pc.list_element(pieces, levels - back) for back in (3, 2, 1))
        part = pc.binary_join_element_wise(corruption, severity, pa.scalar("/", corruption.type)).dictionary_encode()
        wnids = wnid.dictionary_encode()
        classes = [str(one) for one in wnids.dictionary.to_pylist()]
        test = source.relabeled((_numbers(wnids), classes))
        metadata = {"part": _numbers(part), "parts": part.dictionary.to_pylist(), "normalize": True, "home": cls.home}
        return EvaluationSet(cls.name, "shift", path, test=test, metadata=metadata)


class Cifar10C(Dataset):
    """CIFAR-10's test images under corruptions of 5 severities."""

    name = "cifar10-c"
    paper = HENDRYCKS
    kind = "shift"
    home = "https://zenodo.org/records/2535967 (CIFAR-10-C)"

    @classmethod
    def open(cls, path: str) -> EvaluationSet:
        """`labels.npy` (50,000,) and CORRUPTION.npy (50,000, 32, 32, 3): 10,000 images for each severity in turn."""
        root = below(str(within(path, "CIFAR-10-C", cls.name)), "labels.npy", home=cls.home)
        labels = mapped_array(root / "labels.npy")
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not np.isin(labels, range(len(CIFAR10_CLASSES))).all():
            raise DataError(f"{root / 'labels.npy'} must hold a class from 0 to 9 for each image. Had at {cls.home}.")
        labels = labels.astype(np.int64)
        files = sorted(file for file in root.glob("*.npy") if file.name != "labels.npy")
        if not files:
            raise DataError(f"{root} holds labels.npy and no corruption (gaussian_noise.npy, ...). Had at {cls.home}.")
        storages = [ArrayImages(file) for file in files]
        total = len(labels)
        for file, storage in zip(files, storages, strict=True):
            if len(storage) != total or total % 5:
                raise DataError(f"{file} holds {len(storage)} images, labels.npy {total}; both must be 5 severities.")
        part = np.repeat(np.arange(5 * len(files)), total // 5)
        parts = [f"{file.stem}/{severity}" for file in files for severity in range(1, 6)]
        source = Source(path, JoinedImages(storages)).relabeled((np.tile(labels, len(files)), CIFAR10_CLASSES))
        metadata = {"part": part, "parts": parts, "normalize": False, "home": cls.home}
        return EvaluationSet(cls.name, "shift", path, test=source, metadata=metadata)


def _numbers(encoded: pa.DictionaryArray) -> np.ndarray:
    return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
