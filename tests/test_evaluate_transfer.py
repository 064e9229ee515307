"""Transfer sets in their official layouts, made of tiny files, and the protocol on them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from understudy.errors import DataError
from understudy.evaluate.dataset import EvaluationSet
from understudy.evaluate.datasets import DATASETS
from understudy.evaluate.datasets.objects import VOC_CLASSES
from understudy.evaluate.encoded_set import EncodedSet
from understudy.evaluate.open_set import kind_of, open_set
from understudy.evaluate.protocols.linear import Linear
from understudy.evaluate.protocols.transfer import Transfer
from understudy.evaluate.settings import EvaluationSettings, FinetuneSettings

SETTINGS = EvaluationSettings()
MEAN_CLASS = {"caltech101", "pets", "flowers102", "aircraft"}


@pytest.fixture
def few_l2_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.evaluate.measures.probe.L2_VALUES", (100.0, 1.0, 0.01, 0.0001))


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade % 256, 40, 90)).save(path)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def opened(name: str, folder: Path) -> tuple[EvaluationSet, list[str], list[str]]:
    """The set, and the class name of each training and test image."""
    dataset = open_set(f"{name}={folder}")
    assert dataset.kind == "labeled"
    halves = []
    for source in (dataset.train, dataset.test):
        assert source is not None
        assert source.labels is not None
        assert source.class_names is not None
        assert source.read(len(source) - 1).size == (12, 10)
        halves.append([source.class_names[number] for number in source.labels])
    return dataset, *halves


def test_every_missing_set_names_the_path_and_its_home(tmp_path: Path) -> None:
    for name in [name for name, declared in DATASETS.items() if declared.kind == "labeled"]:
        with pytest.raises(DataError, match=rf"{tmp_path}.* does not exist.*had at http"):
            open_set(f"{name}={tmp_path}")
    assert kind_of("pets") == "labeled"
    assert {"cifar10", "imagenet-r", "roxford5k", "coco"} <= DATASETS.keys()


def test_a_set_as_class_folders_keeps_its_convention(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                picture(tmp_path / split / name / f"{i}.png", i)
    dataset, train, test = opened("pets", tmp_path)
    assert dataset.metadata["metric"] == "mean_class"
    assert (len(train), len(test)) == (8, 4)


def test_dtd(tmp_path: Path) -> None:
    root = tmp_path / "dtd" / "dtd"
    for number, split in enumerate(("train", "val", "test")):
        text(root / "labels" / f"{split}1.txt", *(f"{name}/{name}_{number}.jpg" for name in ("dotted", "woven")))
        for name in ("dotted", "woven"):
            picture(root / "images" / name / f"{name}_{number}.jpg")
    for given in (tmp_path, tmp_path / "dtd"):
        dataset, train, test = opened("dtd", given)
        assert train == ["dotted", "woven", "dotted", "woven"]
        assert test == ["dotted", "woven"]
        assert dataset.metadata["validation"].tolist() == [2, 3]
        assert dataset.metadata["metric"] == "top1"


def test_pets(tmp_path: Path) -> None:
    root = tmp_path / "oxford-iiit-pet"
    for split, ids in (("trainval", ("Abyssinian_1", "beagle_2")), ("test", ("Abyssinian_9", "beagle_9"))):
        text(
            root / "annotations" / f"{split}.txt",
            *(f"{one} {1 if one[0] == 'A' else 2} {1 if one[0] == 'A' else 2} 1" for one in ids),
        )
        for one in ids:
            picture(root / "images" / f"{one}.jpg")
    dataset, train, test = opened("pets", tmp_path)
    assert (train, test) == (["Abyssinian", "Beagle"], ["Abyssinian", "Beagle"])
    assert "validation" not in dataset.metadata


def test_food101(tmp_path: Path) -> None:
    import json

    root = tmp_path / "food-101"
    for split, number in (("train", 1), ("test", 2)):
        names = {name: [f"{name}/{number}"] for name in ("ramen", "sushi")}
        text(root / "meta" / f"{split}.json", json.dumps(names))
        for name in names:
            picture(root / "images" / name / f"{number}.jpg")
    _, train, test = opened("food101", tmp_path)
    assert (train, test) == (["ramen", "sushi"], ["ramen", "sushi"])


def test_aircraft_has_three_splits(tmp_path: Path) -> None:
    """`torchvision:FGVCAircraft` calls trainval its training half; here the set's own three are wanted."""
    data = tmp_path / "fgvc-aircraft-2013b" / "data"
    text(data / "variants.txt", "707-320", "A380")
    for number, split in enumerate(("train", "val", "test", "trainval")):
        own = ["707-320", "A380"] if split == "train" else ["A380"]
        text(data / f"images_variant_{split}.txt", *(f"{number}{i} {name}" for i, name in enumerate(own)))
        for i in range(len(own)):
            picture(data / "images" / f"{number}{i}.jpg")
    dataset, train, test = opened("aircraft", tmp_path)
    assert (train, test) == (["707-320", "A380", "A380"], ["A380"])
    assert dataset.metadata["validation"].tolist() == [2]
    assert dataset.metadata["metric"] == "mean_class"


def test_caltech101_draws_thirty_a_class_once_for_all(tmp_path: Path) -> None:
    root = tmp_path / "caltech101" / "101_ObjectCategories"
    for name, count in (("BACKGROUND_Google", 2), ("Faces", 2), ("anchor", 40), ("camera", 33)):
        for i in range(1, count + 1):
            picture(root / name / f"image_{i:04d}.jpg", i)
    for name in ("anchor", "camera"):
        (tmp_path / "caltech101" / "Annotations" / name).mkdir(parents=True)
    dataset, _, _ = opened("caltech101", tmp_path)
    assert dataset.train is not None
    assert dataset.test is not None
    counts = np.bincount(dataset.train.labels), np.bincount(dataset.test.labels)
    assert sorted(counts[0].tolist()) == [1, 30, 30]
    assert sorted(counts[1].tolist()) == [1, 3, 10]
    assert not set(dataset.train.ids) & set(dataset.test.ids)
    again = open_set(f"caltech101={tmp_path}")
    assert again.train is not None
    assert (again.train.ids == dataset.train.ids).all()


def test_eurosat(tmp_path: Path) -> None:
    for name in ("Forest", "River"):
        for i in range(10):
            picture(tmp_path / "eurosat" / "2750" / name / f"{name}_{i}.jpg", i)
    dataset, train, test = opened("eurosat", tmp_path)
    assert (train.count("Forest"), test.count("River")) == (8, 2)
    assert "drawn here" in dataset.metadata["split"]


def test_sun397(tmp_path: Path) -> None:
    root = tmp_path / "SUN397"
    text(root / "Training_01.txt", "/a/abbey/sun_1.jpg", "/c/cabin/outdoor/sun_2.jpg")
    text(root / "Testing_01.txt", "/c/cabin/outdoor/sun_3.jpg")
    for name in ("a/abbey/sun_1", "c/cabin/outdoor/sun_2", "c/cabin/outdoor/sun_3"):
        picture(root / f"{name}.jpg")
    _, train, test = opened("sun397", tmp_path)
    assert (train, test) == (["a/abbey", "c/cabin/outdoor"], ["c/cabin/outdoor"])
    (root / "a" / "abbey" / "sun_1.jpg").unlink()
    with pytest.raises(DataError, match=r"sun_1.jpg is listed, with 1 others, and does not exist.*princeton"):
        open_set(f"sun397={tmp_path}")


def test_cub200(tmp_path: Path) -> None:
    root = tmp_path / "CUB_200_2011"
    names = ["001.Albatross/a_1.jpg", "001.Albatross/a_2.jpg", "002.Auklet/b_1.jpg"]
    text(root / "images.txt", *(f"{i} {name}" for i, name in enumerate(names, 1)))
    text(root / "image_class_labels.txt", "1 1", "2 1", "3 2")
    text(root / "train_test_split.txt", "1 1", "2 0", "3 1")
    text(root / "classes.txt", "1 001.Albatross", "2 002.Auklet")
    for name in names:
        picture(root / "images" / name)
    _, train, test = opened("cub200", tmp_path)
    assert (train, test) == (["001.Albatross", "002.Auklet"], ["001.Albatross"])


def voc(tmp_path: Path, images: int = 30) -> EvaluationSet:
    """Images 0, 1, 2, ... over train, val, test; each shows up to two classes, some are difficult."""
    root = tmp_path / "VOCdevkit" / "VOC2007"
    splits = {"train": range(images), "val": range(images, 2 * images), "test": range(2 * images, 3 * images)}
    for split, ids in splits.items():
        for number, name in enumerate(VOC_CLASSES):
            marks = ["0" if i % 11 == number else "1" if i % 3 == number or i % 4 == number else "-1" for i in ids]
            lines = (f"{i:06d} {mark:>2}" for i, mark in zip(ids, marks, strict=True))
            text(root / "ImageSets" / "Main" / f"{name}_{split}.txt", *lines)
        for i in ids:
            picture(root / "JPEGImages" / f"{i:06d}.jpg", i)
    return open_set(f"voc2007={tmp_path}")


@pytest.mark.usefixtures("few_l2_values")
def test_voc2007_marks_and_mean_average_precision(tmp_path: Path) -> None:
    dataset = voc(tmp_path)
    assert dataset.train is not None
    assert dataset.test is not None
    marks = dataset.metadata["train_marks"]
    assert marks.shape == (60, 20)
    assert marks[5].tolist()[:6] == [-1, 1, 1, -1, -1, 0]  # 5 % 4 = 1, 5 % 3 = 2, and class 5 difficult
    generator = np.random.default_rng(0)
    truth = [dataset.metadata["train_marks"], dataset.metadata["test_marks"]]
    rows = [(one[:, :4] > 0) + 0.3 * generator.normal(size=(len(one), 4)) for one in truth]
    encoded_set = EncodedSet(
        "student", rows[1], rows[0], dataset=dataset, train_source=dataset.train, test_source=dataset.test
    )
    figures = Transfer.evaluate(encoded_set, SETTINGS)
    assert 85 < figures["map11"] <= 100
    assert figures["validation"] > 85
    assert "4 of 20 classes" in figures["note"]
    noise = [generator.normal(size=one.shape) for one in rows]
    random = EncodedSet(
        "student", noise[1], noise[0], dataset=dataset, train_source=dataset.train, test_source=dataset.test
    )
    assert Transfer.evaluate(random, SETTINGS)["map11"] < 70
    broken = rows[1].copy()
    broken[2] = np.nan
    with pytest.raises(DataError, match="1 of 30 rows"):
        Transfer.evaluate(
            EncodedSet("s", broken, rows[0], dataset=dataset, train_source=dataset.train, test_source=dataset.test),
            SETTINGS,
        )
    (tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "cat_val.txt").unlink()
    with pytest.raises(DataError, match=r"cat_val.txt was expected and cannot be read.*robots.ox.ac.uk"):
        open_set(f"voc2007={tmp_path}")


@pytest.mark.usefixtures("few_l2_values")
def test_the_convention_decides_the_figure_and_the_choice(tmp_path: Path) -> None:
    """Uneven classes: the mean over classes is not top-1, and the set's own validation images are used."""
    for split, counts in (("train", (40, 10, 10)), ("test", (30, 5, 5))):
        for name, count in zip("abc", counts, strict=True):
            for i in range(count):
                picture(tmp_path / split / name / f"{i}.png", i)
    dataset, _, _ = opened("pets", tmp_path)
    assert dataset.train is not None
    assert dataset.test is not None
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(3, 5))
    rows = [centers[one.labels] + 1.2 * generator.normal(size=(len(one), 5)) for one in (dataset.train, dataset.test)]
    sources = {"train_source": dataset.train, "test_source": dataset.test}
    plain = EncodedSet("student", rows[1], rows[0], dataset.test.labels, dataset.train.labels, **sources)
    judged = EncodedSet(
        "student", rows[1], rows[0], dataset.test.labels, dataset.train.labels, dataset=dataset, **sources
    )
    figures, top1 = Transfer.evaluate(judged, SETTINGS), Transfer.evaluate(plain, SETTINGS)
    assert next(iter(figures)) == "mean_class"
    assert next(iter(top1)) == "top1"
    assert figures["mean_class"] != figures["top1"]
    assert top1 == {**Linear.evaluate(plain, SETTINGS)}  # one protocol, the same split, the same optimum
    own = EvaluationSet("x", "labeled", "", dataset.train, dataset.test, metadata={"validation": np.arange(0, 60, 3)})
    other = EncodedSet("student", rows[1], rows[0], dataset.test.labels, dataset.train.labels, dataset=own, **sources)
    assert Transfer.evaluate(other, SETTINGS)["validation"] != top1["validation"]
    with pytest.raises(DataError, match="only features"):
        Transfer.evaluate(plain, EvaluationSettings(finetune=FinetuneSettings(epochs=1)))
