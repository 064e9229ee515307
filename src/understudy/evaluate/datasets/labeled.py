"""Published sets with training and test images, in their official layouts and splits.

Nothing is downloaded. What conventions ask is in the facts of the target: "metric" ("top1", "mean_class", or "map11"
for VOC 2007), and "validation", the ids of the training images that the set itself holds out to choose the l2 weight.

Where a set has no official split, one is drawn that is the same everywhere: Caltech-101, 30 images a class to train on
and the others to test; EuroSAT, a fifth of each class to test.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from understudy.errors import DataError
from understudy.evaluate.datasets.dataset import Layout, Target, below, listed
from understudy.sources.formats.torchvision import TorchvisionImages
from understudy.sources.images import JoinedImages
from understudy.sources.source import Source

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

VOC_HOME = "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/"
CUB_HOME = "https://www.vision.caltech.edu/datasets/cub_200_2011/"
SUN_HOME = "https://vision.princeton.edu/projects/2010/SUN/"
CALTECH_SHOTS = 30


def torchvision(
    dataset: str,
    first: str,
    home: str,
    *,
    splits: tuple[str, ...] = ("train", "test"),
    metric: str = "top1",
    shots: int | None = None,
) -> Layout:
    """A set that torchvision reads.

    Args:
        dataset: its class in `torchvision.datasets`.
        first: the file or folder that torchvision looks for.
        home: where the set is officially had.
        splits: training, validation where there is one, test, in torchvision's words; one alone is divided here.
        metric: what convention asks for.
        shots: of one split alone, training images a class; four fifths unless given.
    """

    def open_set(name: str, path: str) -> Target:
        root = below(path, first, had=home)
        halves = [Source(f"torchvision:{dataset}:{split}", _images(dataset, root, split)) for split in splits]
        metadata: dict[str, object] = {"metric": metric, "home": home}
        if len(halves) == 1:
            halves = list(divided(halves[0], shots))
            metadata["split"] = "drawn here: the set has no official one"
        if len(halves) == 3:
            joined = JoinedImages([halves[0].images, halves[1].images])
            metadata["validation"] = np.arange(len(halves[0]), len(joined))
            halves = [Source(halves[0].spec, joined), halves[2]]
        return Target(name, "labeled", path, train=halves[0], test=halves[1], metadata=metadata)

    return Layout("labeled", open_set, metric)


def divided(source: Source, shots: int | None) -> tuple[Source, Source]:
    """Training and test images of a set without a split: per class `shots` images, or four fifths, drawn once for all.

    Raises:
        DataError: no labels.
    """
    if source.labels is None:
        raise DataError(f"{source.spec} has no labels.")
    order = np.random.Generator(np.random.Philox(key=[0, 0x5117])).permutation(len(source))
    train = []
    for number in np.unique(source.labels).tolist():
        own = order[source.labels[order] == number]
        count = min(shots, len(own) - 1) if shots is not None else round(0.8 * len(own))
        train.append(own[:count])
    chosen = np.sort(np.concatenate(train))
    return source.subset(chosen), source.subset(np.setdiff1d(np.arange(len(source)), chosen))


def open_voc2007(name: str, path: str) -> Target:
    """`VOCdevkit/VOC2007`: JPEGImages, and ImageSets/Main/CLASS_{train,val,test}.txt with 1, 0 (difficult) or -1."""
    root = below(path, "VOCdevkit/VOC2007/ImageSets/Main", had=VOC_HOME) / "VOCdevkit" / "VOC2007"
    sources, marks = {}, {}
    for split in ("train", "val", "test"):
        columns = [_voc_list(root / "ImageSets" / "Main" / f"{one}_{split}.txt") for one in VOC_CLASSES]
        ids = list(columns[0])
        marks[split] = np.array([[column[one] for column in columns] for one in ids], dtype=np.int8)
        sources[split] = [f"JPEGImages/{one}.jpg" for one in ids]
    train = listed(root, sources["train"] + sources["val"], had=VOC_HOME)
    metadata = {
        "metric": "map11",
        "home": VOC_HOME,
        "classes": VOC_CLASSES,
        "train_marks": np.concatenate([marks["train"], marks["val"]]),
        "test_marks": marks["test"],
        "validation": np.arange(len(sources["train"]), len(train)),
    }
    test = listed(root, sources["test"], had=VOC_HOME)
    return Target(name, "labeled", path, train=train, test=test, metadata=metadata)


def _voc_list(path: Path) -> dict[str, int]:
    """{image: 1, 0 or -1}."""
    rows = [line.split() for line in _lines(path, VOC_HOME)]
    return {image: int(mark) for image, mark in rows}


def open_cub200(name: str, path: str) -> Target:
    """`CUB_200_2011`: images.txt, image_class_labels.txt, train_test_split.txt (1 is training), images/."""
    root = below(path, "CUB_200_2011/images.txt", had=CUB_HOME) / "CUB_200_2011"
    names, numbers, training = (
        [line.split()[1] for line in _lines(root / f"{file}.txt", CUB_HOME)]
        for file in ("images", "image_class_labels", "train_test_split")
    )
    if not len(names) == len(numbers) == len(training):
        raise DataError(f"{root}: {len(names)} images, {len(numbers)} labels, {len(training)} split marks.")
    classes = [line.split()[1] for line in _lines(root / "classes.txt", CUB_HOME)]
    labels = np.array(numbers, dtype=np.int64) - 1
    whole = listed(root, [f"images/{one}" for one in names], had=CUB_HOME).relabeled((labels, classes))
    mark = np.array(training) == "1"
    train, test = whole.subset(np.flatnonzero(mark)), whole.subset(np.flatnonzero(~mark))
    return Target(name, "labeled", path, train=train, test=test, metadata={"metric": "top1", "home": CUB_HOME})


def open_sun397(name: str, path: str) -> Target:
    """`SUN397`: class folders /a/abbey, and the first of the ten partitions, Training_01.txt and Testing_01.txt."""
    root = below(path, "SUN397/Training_01.txt", had=SUN_HOME) / "SUN397"
    halves, labels = [], []
    for file in ("Training_01.txt", "Testing_01.txt"):
        names = [line.strip().lstrip("/") for line in _lines(root / file, SUN_HOME)]
        halves.append(listed(root, names, had=SUN_HOME))
        labels.append([one.rpartition("/")[0] for one in names])
    classes = sorted(set(labels[0]) | set(labels[1]))
    place = {one: number for number, one in enumerate(classes)}
    train, test = (
        half.relabeled((np.array([place[one] for one in own], dtype=np.int64), classes))
        for half, own in zip(halves, labels, strict=True)
    )
    return Target(name, "labeled", path, train=train, test=test, metadata={"metric": "top1", "home": SUN_HOME})


def _lines(path: Path, home: str) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError:
        raise DataError(f"{path} does not exist. The set is had at {home}.") from None


def _images(dataset: str, root: Path, split: str) -> TorchvisionImages:
    return TorchvisionImages(dataset, str(root), split, literal=True)


LABELED: dict[str, Layout] = {
    "cifar10": torchvision("CIFAR10", "cifar-10-batches-py", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "cifar100": torchvision("CIFAR100", "cifar-100-python", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "stl10": torchvision("STL10", "stl10_binary", "https://cs.stanford.edu/~acoates/stl10/"),
    "caltech101": torchvision(
        "Caltech101",
        "caltech101/101_ObjectCategories",
        "https://data.caltech.edu/records/mzrjq-6wc02",
        splits=("train",),
        metric="mean_class",
        shots=CALTECH_SHOTS,
    ),
    "pets": torchvision(
        "OxfordIIITPet",
        "oxford-iiit-pet/annotations",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        splits=("trainval", "test"),
        metric="mean_class",
    ),
    "flowers102": torchvision(
        "Flowers102",
        "flowers-102/setid.mat",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        splits=("train", "val", "test"),
        metric="mean_class",
    ),
    "dtd": torchvision(
        "DTD", "dtd/dtd/labels", "https://www.robots.ox.ac.uk/~vgg/data/dtd/", splits=("train", "val", "test")
    ),
    "food101": torchvision("Food101", "food-101/meta", "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"),
    "aircraft": torchvision(
        "FGVCAircraft",
        "fgvc-aircraft-2013b/data",
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        splits=("train", "val", "test"),
        metric="mean_class",
    ),
    "cars": torchvision(
        "StanfordCars", "stanford_cars/devkit", "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
    ),
    "sun397": Layout("labeled", open_sun397, "top1"),
    "voc2007": Layout("labeled", open_voc2007),
    "cub200": Layout("labeled", open_cub200, "top1"),
    "eurosat": torchvision("EuroSAT", "eurosat/2750", "https://github.com/phelber/EuroSAT", splits=("train",)),
    "svhn": torchvision("SVHN", "train_32x32.mat", "http://ufldl.stanford.edu/housenumbers/"),
}
"""Published labeled sets by name."""
