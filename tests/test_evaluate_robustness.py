"""Corruptions by what each is defined to do, official layouts on tiny files, and the means worked by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from understudy.errors import ConfigError, DataError
from understudy.evaluate.datasets.shifted import CIFAR10_CLASSES, imagenet_wnids, numbered_as
from understudy.evaluate.encoded_set import EncodedSet
from understudy.evaluate.measures.corruptions import (
    CORRUPTIONS,
    LARGE_STRENGTHS,
    SMALL_STRENGTHS,
    CorruptedImages,
    corrupt,
    frost_photographs,
)
from understudy.evaluate.measures.probe import main_probe
from understudy.evaluate.measures.shift import ALEXNET_ERROR, summary
from understudy.evaluate.open_set import has_halves, open_set
from understudy.evaluate.protocols.linear import Linear
from understudy.evaluate.protocols.robustness import Robustness, RobustnessSettings
from understudy.evaluate.settings import EvaluationSettings
from understudy.models.contract import Contract
from understudy.sources.decode import Geometry
from understudy.sources.source import Source, open_source

SETTINGS = EvaluationSettings()


@pytest.fixture
def two_l2_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.evaluate.measures.probe.L2_VALUES", (1.0, 0.01))


def photograph(size: int = 96, seed: int = 0) -> np.ndarray:
    """Something with edges, colors and fine grain."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    base = np.stack([0.5 + 0.4 * np.sin(9 * x), (x > y) * 0.8, 0.3 + 0.5 * y], axis=2)
    return (255 * np.clip(base + 0.05 * generator.normal(size=base.shape), 0, 1)).astype(np.uint8)


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "frost"])
def test_each_is_repeatable_and_stronger_with_severity(name: str, size: int) -> None:
    image = photograph(size)
    found = [corrupt(image, name, severity, 7) for severity in range(1, 6)]
    assert all(one.shape == image.shape and one.dtype == np.uint8 for one in found)
    assert (corrupt(image, name, 3, 7) == found[2]).all()
    if name in ("gaussian_noise", "shot_noise", "impulse_noise", "snow", "fog", "glass_blur", "elastic_transform"):
        assert (corrupt(image, name, 5, 8) != found[4]).any()  # another image, other draws
    off = [np.abs(one.astype(float) - image).mean() for one in found]
    assert off[4] > 1
    # Snow and the elastic transform change their kind between severities; the others only grow.
    if name not in ("snow", "elastic_transform", "glass_blur", "defocus_blur", "fog"):
        assert off == sorted(off)


def test_noise_has_the_strength_it_is_defined_by() -> None:
    gray = np.full((128, 128, 3), 128, np.uint8)
    level = 128 / 255
    for severity in (1, 3):
        noisy = corrupt(gray, "gaussian_noise", severity, 0) / 255
        assert noisy.std() == pytest.approx(LARGE_STRENGTHS["gaussian_noise"][severity - 1], rel=0.05)
        photons = LARGE_STRENGTHS["shot_noise"][severity - 1]
        shot = corrupt(gray, "shot_noise", severity, 0) / 255
        assert shot.mean() == pytest.approx(level, abs=0.02)
        assert shot.std() == pytest.approx(np.sqrt(level / photons), rel=0.08)
        hit = corrupt(gray, "impulse_noise", severity, 0)
        assert (hit != 128).mean() == pytest.approx(LARGE_STRENGTHS["impulse_noise"][severity - 1], rel=0.1)
        assert (hit == 255).sum() == pytest.approx((hit == 0).sum(), rel=0.1)


def test_blurs_keep_the_mean_and_spread_a_point() -> None:
    point = np.zeros((97, 97, 3), np.uint8)
    point[48, 48] = 255
    for name, reach in (("defocus_blur", 4), ("motion_blur", 11)):
        found = CORRUPTIONS[name](point / 255.0, LARGE_STRENGTHS[name][0], np.random.default_rng(0))
        assert found.sum() == pytest.approx(3, rel=1e-6)
        rows, columns = np.nonzero(found[:, :, 0] > 1e-6)
        assert 0 < max(np.abs(rows - 48).max(), np.abs(columns - 48).max()) <= 2 * reach
    flat = np.full((96, 96, 3), 77, np.uint8)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "pixelate", "elastic_transform"):
        assert np.abs(corrupt(flat, name, 5, 0).astype(int) - 77).max() <= 1, name


def test_the_plain_ones_by_hand() -> None:
    image = np.zeros((96, 96, 3), np.uint8)
    image[:48] = (100, 50, 0)
    bright = corrupt(image, "brightness", 1, 0)
    assert bright[0, 0].tolist() == [125, 62, 0]  # value 100/255 + 0.1, hue and saturation as they were
    assert bright[95, 0].tolist() == [25, 25, 25]
    low = corrupt(image, "contrast", 1, 0)
    assert low[0, 0].tolist() == [70, 35, 0]  # mean 50: 50 + 0.4 * 50
    assert low[95, 0].tolist() == [30, 15, 0]
    small = corrupt(photograph(96), "pixelate", 5, 0)
    assert len(np.unique(small.reshape(-1, 3), axis=0)) <= 24 * 24
    with Image.fromarray(photograph(96)) as plain:
        path_free = np.asarray(plain.resize((96, 96)))
    assert np.abs(corrupt(path_free, "jpeg_compression", 1, 0).astype(int) - path_free).mean() < 12


def test_glass_only_moves_pixels_near() -> None:
    """With hardly any blur (CIFAR's first strength) the colors are those that were there, nearly all of them near."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :16] = 200
    found = corrupt(image, "glass_blur", 1, 3)
    assert np.isin(found, (0, 200)).all()
    assert found.sum() == image.sum()  # swapped, not copied
    moved = (found != image).any(axis=2)
    assert moved[:, 12:20].any()
    assert moved[:, :12].mean() + moved[:, 20:].mean() < 0.05


def test_frost_needs_photographs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are none"):
        corrupt(photograph(), "frost", 1, 0)
    with pytest.raises(DataError, match="hendrycks/robustness"):
        frost_photographs(str(tmp_path), 96)
    Image.new("RGB", (60, 200), (255, 255, 255)).save(tmp_path / "frost1.png")
    found = corrupt(np.zeros((96, 96, 3), np.uint8), "frost", 5, 0, frost_photographs(str(tmp_path), 96))
    assert (found == int(0.75 * 255)).all()
    with pytest.raises(ConfigError, match="Did you mean 'fog'"):
        corrupt(photograph(), "fogg", 1, 0)
    with pytest.raises(ConfigError, match="1 to 5; got 6"):
        corrupt(photograph(), "fog", 6, 0)
    assert LARGE_STRENGTHS.keys() == SMALL_STRENGTHS.keys() == CORRUPTIONS.keys() == ALEXNET_ERROR.keys()


def test_means_by_hand() -> None:
    """Fog 80, 60 and thrice 70, contrast 50: errors 30 and 50. Speckle noise is an extra one and in no mean.

    AlexNet's errors are means over five severities, and contrast has but one.
    """
    fog = {("fog", severity): accuracy for severity, accuracy in enumerate((80.0, 60.0, 70.0, 70.0, 70.0), 1)}
    found = summary({**fog, ("contrast", 1): 50.0, ("speckle_noise", 1): 0.0}, normalize=True)
    assert (found["fog"], found["contrast"], found["speckle_noise"]) == (70, 50, 0)
    assert found["mean_error"] == pytest.approx(40)
    assert (found["severity_1"], found["severity_2"]) == (65, 60)
    assert found["mce"] == pytest.approx(30 / 0.819324)
    assert found["note"].startswith("Means are over 2 of 15 corruptions; missing: gaussian_noise")
    assert found["note"].endswith("The mCE is over 1 corruptions: of the others some severities are missing.")
    assert "mce" not in summary({("contrast", 1): 50.0}, normalize=True)
    both = {(name, s): float(50 + s) for name in ("fog", "contrast") for s in range(1, 6)}
    assert summary(both, normalize=True)["mce"] == pytest.approx((47 / 0.819324 + 47 / 0.853204) / 2)
    alexnet = {(name, s): 100 - 100 * error for name, error in ALEXNET_ERROR.items() for s in range(1, 6)}
    assert summary(alexnet, normalize=True)["mce"] == pytest.approx(100)  # by definition


class Colors:
    """An encoder whose features are the mean colors of four quarters."""

    contract = Contract(32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def colored(folder: Path, classes: int, each: int, seed: int) -> Source:
    generator = np.random.default_rng(seed)
    for number in range(classes):
        (folder / f"n{number:08d}").mkdir(parents=True)
        for i in range(each):
            pixels = np.full((32, 32, 3), 60 + 30 * number) + generator.normal(scale=12, size=(32, 32, 3))
            name = folder / f"n{number:08d}" / f"{i}.png"
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(name)
    return open_source(folder)


def as_rows(source: Source) -> np.ndarray:
    pixels = torch.stack([torch.from_numpy(np.array(source.read(i))).permute(2, 0, 1) for i in range(len(source))])
    return Colors().features(pixels.float() / 255).numpy()


def main_subject(tmp_path: Path) -> EncodedSet:
    train, test = colored(tmp_path / "train", 5, 12, 0), colored(tmp_path / "test", 5, 6, 1)
    return EncodedSet(
        "student", as_rows(test), as_rows(train), test.labels, train.labels, tuple(train.class_names or ()),
        encoder=Colors(), train_source=train, test_source=test, workers=0,
    )  # fmt: skip


@pytest.mark.usefixtures("two_l2_values")
def test_corruptions_made_on_the_fly(tmp_path: Path) -> None:
    encoded_set = main_subject(tmp_path)
    settings = EvaluationSettings(robustness=RobustnessSettings(severities=(1, 5), images=20), batch_size=16)
    figures = Robustness.evaluate(encoded_set, settings)
    assert figures["clean"] == 100
    assert figures["images"] == 20
    assert "frost needs its photographs" in figures["note"]
    assert len(figures.keys() & CORRUPTIONS.keys()) == 14
    assert figures["pixelate"] == figures["jpeg_compression"] == 100  # mean colors do not see them
    assert figures["brightness"] < 90  # which is what these features are made of
    assert figures["severity_5"] < figures["severity_1"]
    mean = np.mean([figures[name] for name in CORRUPTIONS if name != "frost"])
    assert figures["mean_error"] == pytest.approx(100 - mean)
    only = EvaluationSettings(robustness=RobustnessSettings(severities=(4,), images=20))
    probe = main_probe(encoded_set, only)
    chosen = np.sort(np.random.default_rng(0).permutation(30)[:20])
    assert encoded_set.test_source is not None
    assert encoded_set.test_labels is not None
    dark = CorruptedImages(encoded_set.test_source.subset(chosen), Geometry(32), "brightness", 4)
    rows = as_rows(Source("dark", dark))
    expected = 100 * (probe.classes[probe.classifier.scores(rows).argmax(1)] == encoded_set.test_labels[chosen]).mean()
    assert 0 < expected < 100
    assert Robustness.evaluate(encoded_set, only)["brightness"] == pytest.approx(expected)
    seen = CorruptedImages(encoded_set.test_source, Geometry(32), "fog", 2)  # type: ignore[arg-type]
    assert (np.asarray(seen.read(3)) == np.asarray(seen.read(3))).all()
    with pytest.raises(ConfigError, match="got 9"):
        Robustness.evaluate(encoded_set, EvaluationSettings(robustness=RobustnessSettings(severities=(9,))))
    with pytest.raises(ConfigError, match="names none"):
        Robustness.evaluate(encoded_set, EvaluationSettings(robustness=RobustnessSettings(severities=())))
    with pytest.raises(DataError, match="only features"):
        Robustness.evaluate(
            EncodedSet("s", encoded_set.test, encoded_set.train, encoded_set.test_labels, encoded_set.train_labels),
            SETTINGS,
        )


@pytest.mark.usefixtures("two_l2_values")
def test_some_of_the_classes_are_judged_among_themselves(tmp_path: Path) -> None:
    """ImageNet-A and -R: a subset of the wnids. Images of class 1, lightened, look like class 2, which is not there."""
    main = main_subject(tmp_path)
    colored(tmp_path / "shift" / "imagenet-a", 5, 4, 2)
    for number in (0, 2, 4):
        for file in (tmp_path / "shift" / "imagenet-a" / f"n{number:08d}").iterdir():
            file.unlink()
        (tmp_path / "shift" / "imagenet-a" / f"n{number:08d}").rmdir()
    target = open_set(f"imagenet-a={tmp_path / 'shift'}")
    assert target.kind == "shift"
    assert target.test is not None
    labels = numbered_as(target.test, main.class_names, "imagenet-a")
    assert set(labels) == {1, 3}
    rows = as_rows(target.test) + np.where(labels == 1, 30 / 255, 0)[:, None].astype(np.float32)
    encoded_set = EncodedSet(
        "student", rows, main.train, labels, main.train_labels, main.class_names, base=main, dataset=target,
        train_source=main.train_source, test_source=target.test,
    )  # fmt: skip
    whole = Linear.evaluate(main, SETTINGS)
    figures = Robustness.evaluate(encoded_set, SETTINGS)
    assert whole["top1"] == 100
    assert figures["classes"] == 2
    assert figures["top1"] >= 50
    assert figures["knn"] >= 50
    plain = EncodedSet("student", rows, main.train, labels, main.train_labels, main.class_names)
    assert Linear.evaluate(plain, SETTINGS)["top1"] <= 50  # with class 2 to choose from, class 1 is lost
    assert "probe" in main.cache  # fitted once, for `linear` and for every shifted set


def test_names_alone_are_looked_for_below_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As their archives unpack beside each other, and beside another set's halves."""
    monkeypatch.setenv("UNDERSTUDY_DATA", str(tmp_path))
    for archive in ("imagenetv2-top-images-format-val", "imagenetv2-threshold0.7-format-val", "sketch", "imagenet-a"):
        colored(tmp_path / archive, 2, 1 + len(archive) % 3, 0)
    for corruption in ("fog", "snow"):
        colored(tmp_path / "ImageNet-C" / corruption / "1", 2, 1, 0)
    colored(tmp_path / "train", 2, 1, 0)
    colored(tmp_path / "val", 2, 1, 0)
    colored(tmp_path / "pets" / "train", 3, 1, 0)
    colored(tmp_path / "pets" / "test", 3, 1, 0)
    sizes = {}
    for name in ("imagenet-v2-top", "imagenet-v2-threshold", "imagenet-sketch", "imagenet-a", "imagenet-c", "pets"):
        target = open_set(name)
        assert target.test is not None
        sizes[name] = len(target.test)
    assert sizes == {
        "imagenet-v2-top": 6, "imagenet-v2-threshold": 4, "imagenet-sketch": 2, "imagenet-a": 4, "imagenet-c": 4,
        "pets": 3,
    }  # fmt: skip
    (tmp_path / "shelf" / "cifar10").mkdir(parents=True)
    for split in ("train", "test"):
        (tmp_path / "shelf" / "cifar10" / f"{split}.parquet").touch()
    assert has_halves(str(tmp_path / "shelf"))
    (tmp_path / "shelf" / "dtd").mkdir()
    assert not has_halves(str(tmp_path / "shelf"))  # one set of several
    with pytest.raises(DataError, match=r"cub_200_2011"):  # train/ and val/ there are another set's
        open_set("cub200")
    assert len(open_set(f"cub200={tmp_path}").test or []) == 2  # unless the user says so


@pytest.mark.usefixtures("two_l2_values")
def test_imagenet_c_layout(tmp_path: Path) -> None:
    for corruption in ("fog", "contrast"):
        for severity in range(1, 6):
            colored(tmp_path / "c" / corruption / str(severity), 3, 2, severity)
    target = open_set(f"imagenet-c={tmp_path / 'c'}")
    assert target.test is not None
    assert target.test.class_names == [f"n{i:08d}" for i in range(3)]
    names = target.test.names.to_pylist()
    for place, name in enumerate(names):
        assert target.metadata["parts"][target.metadata["part"][place]] == "/".join(name.split("/")[:2])
        assert target.test.class_names[target.test.labels[place]] == name.split("/")[2]
    train = colored(tmp_path / "t", 3, 30, 5)
    main = EncodedSet(
        "student", as_rows(train), as_rows(train), train.labels, train.labels, tuple(train.class_names or ())
    )
    encoded_set = EncodedSet(
        "student", as_rows(target.test), main.train, target.test.labels, main.train_labels, main.class_names, base=main,
        dataset=target, test_source=target.test,
    )  # fmt: skip
    figures = Robustness.evaluate(encoded_set, SETTINGS)
    assert figures["fog"] == figures["contrast"] == 100
    assert figures["mce"] == 0
    assert figures["images"] == 60
    (tmp_path / "archive" / "weather").mkdir(parents=True)
    (tmp_path / "c").rename(tmp_path / "archive" / "weather" / "c")
    for name in ("fog", "contrast"):
        (tmp_path / "archive" / "weather" / "c" / name).rename(tmp_path / "archive" / "weather" / name)
    (tmp_path / "archive" / "weather" / "c").rmdir()
    deeper = open_set(f"imagenet-c={tmp_path / 'archive'}")  # as the archives unpack, one folder more
    assert list(deeper.metadata["parts"]) == list(target.metadata["parts"])
    assert deeper.test is not None
    assert (deeper.test.labels == target.test.labels).all()
    colored(tmp_path / "bad", 2, 1, 0)
    with pytest.raises(DataError, match="CORRUPTION/SEVERITY/CLASS/IMAGE"):
        open_set(f"imagenet-c={tmp_path / 'bad'}")
    with pytest.raises(DataError, match=r"does not exist.*zenodo"):
        open_set(f"imagenet-c={tmp_path / 'none'}")


def test_classes_of_imagenet_by_name_number_and_part(tmp_path: Path) -> None:
    """Names in place of wnids, ImageNet-v2's numbers against a part of ImageNet, and classes that are not shared."""
    wnids = imagenet_wnids()
    assert (len(wnids), wnids[0], wnids[217], wnids[999]) == (1000, "n01440764", "n02102040", "n15075141")
    tench, springer, zebra = wnids[0], wnids[217], "n02391049"
    for name in (tench, springer, zebra):
        colored(tmp_path / "r" / name, 1, 1, 0)
        (tmp_path / "r" / name / "n00000000" / "0.png").rename(tmp_path / "r" / name / "0.png")
        (tmp_path / "r" / name / "n00000000").rmdir()
    source = open_source(tmp_path / "r")
    assert source.class_names == [tench, springer, zebra]
    names = [f"class {number}" for number in range(1000)]
    assert numbered_as(source, names, "r").tolist() == [0, 217, 340]  # 340 is the zebra in every list of labels
    assert numbered_as(source, [springer, tench, "n03000684"], "r", published=True).tolist() == [1, 0, -1]
    with pytest.raises(DataError, match="1 of 3 classes of r are not among the 3"):
        numbered_as(source, [springer, tench, "n03000684"], "r")
    with pytest.raises(DataError, match="2 of 3 classes of r"):  # one class alone can be told from nothing
        numbered_as(source, ["n03000684", tench], "r", published=True)
    for old, new in ((tench, "0"), (springer, "217"), (zebra, "340")):
        (tmp_path / "r" / old).rename(tmp_path / "r" / new)
    numbers = open_source(tmp_path / "r")
    assert numbers.class_names == ["0", "217", "340"]
    assert numbered_as(numbers, [tench, springer, zebra], "v2", published=True).tolist() == [0, 1, 2]
    assert numbered_as(numbers, [tench, zebra], "v2", published=True).tolist() == [0, -1, 1]
    assert numbered_as(numbers, names, "v2", published=True).tolist() == [0, 217, 340]
    with pytest.raises(DataError, match="2 of 3 classes of v2"):
        numbered_as(numbers, ["a", "b", "c"], "v2", published=True)


@pytest.mark.usefixtures("two_l2_values")
def test_cifar10_c_is_judged_by_the_plain_mean(tmp_path: Path) -> None:
    """Shades tell the classes; of severity 3 of the noise every image has the next class's: 20 % of it, 10 of both."""
    labels = np.tile(np.arange(10), 2)
    shades = (20 + 20 * labels[:, None, None, None] + np.zeros((1, 32, 32, 3))).astype(np.uint8)
    right, wrong = shades, (shades - 20 * (labels[:, None, None, None] == 9) + 20 * (labels < 9)[:, None, None, None])
    np.save(tmp_path / "labels.npy", np.tile(labels, 5))
    np.save(tmp_path / "fog.npy", np.concatenate([right] * 5))
    np.save(tmp_path / "gaussian_noise.npy", np.concatenate([right, right, wrong.astype(np.uint8), right, right]))
    target = open_set(f"cifar10-c={tmp_path}")
    assert target.test is not None
    rows = as_rows(target.test)
    main = EncodedSet(
        "s", rows[:100], rows[:100], target.test.labels[:100], target.test.labels[:100], tuple(CIFAR10_CLASSES)
    )
    encoded_set = EncodedSet(
        "s", rows, main.train, target.test.labels, main.train_labels, main.class_names, base=main, dataset=target,
        test_source=target.test,
    )  # fmt: skip
    figures = Robustness.evaluate(encoded_set, SETTINGS)
    assert (figures["fog"], figures["gaussian_noise"], figures["mean_error"]) == (100, 80, 10)
    assert (figures["severity_2"], figures["severity_3"]) == (100, 50)
    assert "mce" not in figures  # AlexNet's errors are those on ImageNet-C


def test_cifar10_c_layout(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.tile(generator.integers(0, 10, 6), 5)
    np.save(tmp_path / "labels.npy", labels)
    pixels = {}
    for name in ("fog", "gaussian_noise"):
        pixels[name] = generator.integers(0, 255, (30, 32, 32, 3), dtype=np.uint8)
        np.save(tmp_path / f"{name}.npy", pixels[name])
    target = open_set(f"cifar10-c={tmp_path}")
    assert target.test is not None
    assert len(target.test) == 60
    assert (np.asarray(target.test.read(41)) == pixels["gaussian_noise"][11]).all()
    assert target.test.labels[41] == labels[11]
    assert target.metadata["parts"][target.metadata["part"][41]] == "gaussian_noise/2"
    assert target.test.name(41) == "gaussian_noise.npy:11"
    np.save(tmp_path / "snow.npy", pixels["fog"][:12])
    with pytest.raises(DataError, match=r"snow.npy holds 12 images, labels.npy 30"):
        open_set(f"cifar10-c={tmp_path}")
    with pytest.raises(DataError, match=r"labels.npy does not exist.*zenodo"):
        open_set(f"cifar10-c={tmp_path / 'none'}")
