"""Published sets with training and test images, in their official layouts and splits.

The metadata of the set: "metric" ("top1", "mean_class", or "map11" for VOC 2007), "home", and "validation", the ids of
the training images that the set itself holds out to choose the l2 weight.

Where a set has no official split, one is drawn that is the same everywhere: Caltech-101, 30 images a class to train on
and the others to test; EuroSAT, a fifth of each class to test.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from understudy.errors import DataError
from understudy.evaluate.dataset import Dataset, EvaluationSet, below, listed
from understudy.evaluate.datasets.objects import EVERINGHAM, VOC_CLASSES, read_lines
from understudy.sources.formats.torchvision import TorchvisionImages
from understudy.sources.images import JoinedImages
from understudy.sources.source import Source


class TorchvisionDataset(Dataset):
    """A set that torchvision reads; the class is called as torchvision's.

    Attributes:
        first: the file or folder that torchvision looks for.
        splits: training, validation where there is one, test, by torchvision's names; one alone is divided here.
        shots: of one split alone, training images a class; four fifths unless given.
    """

    kind = "labeled"
    metric = "top1"
    first: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    shots: ClassVar[int | None] = None

    @classmethod
    def open(cls, path: str) -> EvaluationSet:
        """See `Dataset`."""
        root = below(path, cls.first, home=cls.home)
        name = cls.__name__
        halves = [
            Source(f"torchvision:{name}:{split}", TorchvisionImages(name, str(root), split, literal=True))
            for split in cls.splits
        ]
        metadata: dict[str, object] = {"metric": cls.metric, "home": cls.home}
        if len(halves) == 1:
            halves = list(divided(halves[0], cls.shots))
            metadata["split"] = "drawn here: the set has no official one"
        if len(halves) == 3:
            joined = JoinedImages([halves[0].images, halves[1].images])
            metadata["validation"] = np.arange(len(halves[0]), len(joined))
            halves = [Source(halves[0].spec, joined), halves[2]]
        return EvaluationSet(cls.name, "labeled", path, train=halves[0], test=halves[1], metadata=metadata)


def divided(source: Source, shots: int | None) -> tuple[Source, Source]:
    """Training and test images of a set without a split: per class `shots` images, or four fifths, drawn once for all.

    Raises:
        DataError: no labels.
    """
    if source.labels is None:
        raise DataError(f"{source.spec} {source.unlabeled}")
    order = np.random.Generator(np.random.Philox(key=[0, 0x5117])).permutation(len(source))
    train = []
    for number in np.unique(source.labels).tolist():
        own = order[source.labels[order] == number]
        count = min(shots, len(own) - 1) if shots is not None else round(0.8 * len(own))
        train.append(own[:count])
    chosen = np.sort(np.concatenate(train))
    return source.subset(chosen), source.subset(np.setdiff1d(np.arange(len(source)), chosen))


class CIFAR10(TorchvisionDataset):
    """Photographs of 10 classes, 32 x 32 pixels."""

    name = "cifar10"
    paper = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, Toronto 2009"
    home = "https://www.cs.toronto.edu/~kriz/cifar.html"
    first = "cifar-10-batches-py"


class CIFAR100(CIFAR10):
    """Photographs of 100 classes, 32 x 32 pixels."""

    name = "cifar100"
    first = "cifar-100-python"


class STL10(TorchvisionDataset):
    """Photographs of 10 classes, 96 x 96 pixels."""

    name = "stl10"
    paper = "Coates et al., An Analysis of Single-Layer Networks in Unsupervised Feature Learning, AISTATS 2011"
    home = "https://cs.stanford.edu/~acoates/stl10/"
    first = "stl10_binary"


class Caltech101(TorchvisionDataset):
    """Objects of 101 classes."""

    name = "caltech101"
    paper = "Fei-Fei et al., Learning Generative Visual Models from Few Training Examples, CVPR Workshops 2004"
    home = "https://data.caltech.edu/records/mzrjq-6wc02"
    first = "caltech101/101_ObjectCategories"
    splits = ("train",)
    metric = "mean_class"
    shots = 30


class OxfordIIITPet(TorchvisionDataset):
    """Cats and dogs of 37 breeds."""

    name = "pets"
    paper = "Parkhi et al., Cats and Dogs, CVPR 2012"
    home = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
    first = "oxford-iiit-pet/annotations"
    splits = ("trainval", "test")
    metric = "mean_class"


class Flowers102(TorchvisionDataset):
    """Flowers of 102 species."""

    name = "flowers102"
    paper = "Nilsback and Zisserman, Automated Flower Classification over a Large Number of Classes, ICVGIP 2008"
    home = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    first = "flowers-102/setid.mat"
    splits = ("train", "val", "test")
    metric = "mean_class"


class DTD(TorchvisionDataset):
    """Textures of 47 kinds."""

    name = "dtd"
    paper = "Cimpoi et al., Describing Textures in the Wild, CVPR 2014"
    home = "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
    first = "dtd/dtd/labels"
    splits = ("train", "val", "test")


class Food101(TorchvisionDataset):
    """Dishes of 101 kinds."""

    name = "food101"
    paper = "Bossard et al., Food-101: Mining Discriminative Components with Random Forests, ECCV 2014"
    home = "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"
    first = "food-101/meta"


class FGVCAircraft(TorchvisionDataset):
    """Aircraft of 100 variants."""

    name = "aircraft"
    paper = "Maji et al., Fine-Grained Visual Classification of Aircraft, arXiv:1306.5151"
    home = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
    first = "fgvc-aircraft-2013b/data"
    splits = ("train", "val", "test")
    metric = "mean_class"


class StanfordCars(TorchvisionDataset):
    """Cars of 196 models."""

    name = "cars"
    paper = "Krause et al., 3D Object Representations for Fine-Grained Categorization, ICCV Workshops 2013"
    home = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
    first = "stanford_cars/devkit"


class EuroSAT(TorchvisionDataset):
    """Satellite images of 10 kinds of land."""

    name = "eurosat"
    paper = "Helber et al., EuroSAT: A Novel Dataset for Land Use and Land Cover Classification, JSTARS 2019"
    home = "https://github.com/phelber/EuroSAT"
    first = "eurosat/2750"
    splits = ("train",)


class SVHN(TorchvisionDataset):
    """House numbers, 32 x 32 pixels."""

    name = "svhn"
    paper = "Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, NIPS Workshops 2011"
    home = "http://ufldl.stanford.edu/housenumbers/"
    first = "train_32x32.mat"


class Voc2007(Dataset):
    """Photographs with objects of 20 classes, several an image."""

    name = "voc2007"
    paper = EVERINGHAM
    kind = "labeled"
    home = "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/"

    @classmethod
    def open(cls, path: str) -> EvaluationSet:
        """`VOCdevkit/VOC2007`: JPEGImages, ImageSets/Main/CLASS_{train,val,test}.txt with 1, 0 (difficult) or -1."""
        root = below(path, "VOCdevkit/VOC2007/ImageSets/Main", home=cls.home) / "VOCdevkit" / "VOC2007"
        sources, marks = {}, {}
        for split in ("train", "val", "test"):
            columns = [_voc_list(root / "ImageSets" / "Main" / f"{one}_{split}.txt", cls.home) for one in VOC_CLASSES]
            ids = list(columns[0])
            marks[split] = np.array([[column[one] for column in columns] for one in ids], dtype=np.int8)
            sources[split] = [f"JPEGImages/{one}.jpg" for one in ids]
        train = listed(root, sources["train"] + sources["val"], home=cls.home)
        metadata = {
            "metric": "map11", "home": cls.home, "classes": VOC_CLASSES,
            "train_marks": np.concatenate([marks["train"], marks["val"]]), "test_marks": marks["test"],
            "validation": np.arange(len(sources["train"]), len(train)),
        }  # fmt: skip
        test = listed(root, sources["test"], home=cls.home)
        return EvaluationSet(cls.name, "labeled", path, train=train, test=test, metadata=metadata)


class Cub200(Dataset):
    """Birds of 200 species."""

    name = "cub200"
    paper = "Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, Caltech 2011"
    kind = "labeled"
    home = "https://www.vision.caltech.edu/datasets/cub_200_2011/"
    metric = "top1"

    @classmethod
    def open(cls, path: str) -> EvaluationSet:
        """`CUB_200_2011`: images.txt, image_class_labels.txt, train_test_split.txt (1 is training), images/."""
        root = below(path, "CUB_200_2011/images.txt", home=cls.home) / "CUB_200_2011"
        names, numbers, training = (
            [second for _, second in _pairs(root / f"{file}.txt", cls.home)]
            for file in ("images", "image_class_labels", "train_test_split")
        )
        if not len(names) == len(numbers) == len(training):
            raise DataError(f"{root}: {len(names)} images, {len(numbers)} labels, {len(training)} split marks.")
        classes = [name for _, name in _pairs(root / "classes.txt", cls.home)]
        known = {str(number): number - 1 for number in range(1, len(classes) + 1)}
        if odd := [number for number in numbers if number not in known]:
            raise DataError(f"{root / 'image_class_labels.txt'} has the class {odd[0]}; there are {len(classes)}.")
        labels = np.array([known[number] for number in numbers], dtype=np.int64)
        whole = listed(root, [f"images/{one}" for one in names], home=cls.home).relabeled((labels, classes))
        mark = np.array(training) == "1"
        train, test = whole.subset(np.flatnonzero(mark)), whole.subset(np.flatnonzero(~mark))
        return EvaluationSet(cls.name, cls.kind, path, train, test, metadata={"metric": cls.metric, "home": cls.home})


class Sun397(Dataset):
    """Scenes of 397 kinds."""

    name = "sun397"
    paper = "Xiao et al., SUN Database: Large-Scale Scene Recognition from Abbey to Zoo, CVPR 2010"
    kind = "labeled"
    home = "https://vision.princeton.edu/projects/2010/SUN/"
    metric = "top1"

    @classmethod
    def open(cls, path: str) -> EvaluationSet:
        """`SUN397`: class folders /a/abbey, and the first of the ten partitions, Training_01.txt and Testing_01.txt."""
        root = below(path, "SUN397/Training_01.txt", home=cls.home) / "SUN397"
        halves, labels = [], []
        for file in ("Training_01.txt", "Testing_01.txt"):
            names = [line.strip().lstrip("/") for line in _lines(root / file, cls.home)]
            halves.append(listed(root, names, home=cls.home))
            labels.append([one.rpartition("/")[0] for one in names])
        classes = sorted(set(labels[0]) | set(labels[1]))
        place = {one: number for number, one in enumerate(classes)}
        train, test = (
            half.relabeled((np.array([place[one] for one in own], dtype=np.int64), classes))
            for half, own in zip(halves, labels, strict=True)
        )
        return EvaluationSet(cls.name, cls.kind, path, train, test, metadata={"metric": cls.metric, "home": cls.home})


def _voc_list(path: Path, home: str) -> dict[str, int]:
    """{image: 1, 0 or -1}."""
    marks = dict(_pairs(path, home))
    if odd := next((image for image, mark in marks.items() if mark not in ("1", "0", "-1")), None):
        raise DataError(f"{path} has '{marks[odd]}' for {odd}, and a mark is 1, 0 or -1. The set is had at {home}.")
    return {image: int(mark) for image, mark in marks.items()}


def _pairs(path: Path, home: str) -> list[tuple[str, str]]:
    """The two words of each line."""
    lines = [line.split() for line in _lines(path, home)]
    if odd := next((line for line in lines if len(line) != 2), None):
        raise DataError(f"{path} has two words a line, and one line is '{' '.join(odd)[:80]}'. It is had at {home}.")
    return [(first, second) for first, second in lines]


def _lines(path: Path, home: str) -> list[str]:
    return [line for line in read_lines(path, home) if line.strip()]
