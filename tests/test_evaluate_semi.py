"""Few labels: draws that are balanced and repeatable, the published lists, and fine-tuning that learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from understudy.errors import ConfigError, DataError
from understudy.evaluate.encoded_set import Embedding, EncodedSet
from understudy.evaluate.measures.logistic import logistic_regression
from understudy.evaluate.measures.probe import draw
from understudy.evaluate.measures.training import finetuned
from understudy.evaluate.protocols.semi import Semi, SemiSettings
from understudy.evaluate.settings import EvaluationSettings, FinetuneSettings
from understudy.models.settings import StudentSettings
from understudy.models.student import Student, build_student
from understudy.sources.source import open_source


def clouds(count: int, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centers = np.random.default_rng(9).normal(size=(classes, 6))
    return centers[labels] + 0.8 * generator.normal(size=(count, 6)), labels


def settings(*shares: str, draws: int = 3, **others: object) -> EvaluationSettings:
    return EvaluationSettings(semi=SemiSettings(shares=shares, draws=draws, **others))  # type: ignore[arg-type]


def test_draws_are_balanced_repeatable_and_different() -> None:
    labels = np.repeat([0, 1, 2], [300, 40, 3])
    one = draw("10%", labels, seed=0, number=0)
    assert np.bincount(labels[one]).tolist() == [30, 4, 1]  # at least one of each
    assert (draw("10%", labels, seed=0, number=0) == one).all()
    assert (draw("10%", labels, seed=0, number=1) != one).any()
    assert (draw("10%", labels, seed=1, number=0) != one).any()
    assert np.bincount(labels[draw("5", labels, seed=0, number=0)]).tolist() == [5, 5, 3]
    for wrong in ("0%", "101%", "half", "-1", "2.5"):
        with pytest.raises(ConfigError, match="is no share of labels"):
            draw(wrong, labels, seed=0, number=0)


@pytest.mark.slow
def test_mean_and_deviation_over_draws() -> None:
    """One image a class: nothing to choose the l2 weight with, so it is 1; the fits by hand."""
    train, labels = clouds(400)
    test, truth = clouds(200, seed=1)
    figures = Semi.evaluate(EncodedSet("student", test, train, truth, labels), settings("1", "25%"))
    scores = []
    for number in range(3):
        chosen = draw("1", labels, seed=0, number=number)
        fit = logistic_regression(train[chosen], labels[chosen], 4, 1.0)
        scores.append(100 * (fit.scores(test).argmax(1) == truth).mean())
    assert figures["top1 1"] == pytest.approx(np.mean(scores))
    assert figures["top1 1 std"] == pytest.approx(np.std(scores, ddof=1))
    assert (figures["draws 1"], figures["images 1"], figures["images 25%"]) == (3, 4, 100)
    assert figures["top1 25%"] > figures["top1 1"]
    assert "top1 25% std" in figures
    single = Semi.evaluate(EncodedSet("student", test, train, truth, labels), settings("25%", draws=1))
    assert "top1 25% std" not in single  # one draw has no deviation


def pictures(folder: Path, each: int, seed: int) -> Path:
    """Two classes, told apart by which half is bright: an average color says nothing."""
    generator = np.random.default_rng(seed)
    for number, name in enumerate(("left", "right")):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = generator.integers(0, 60, (32, 32, 3))
            pixels[:, 16 * number : 16 * number + 16] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{name}_{i}.png")
    return folder


def photographed(tmp_path: Path) -> EncodedSet:
    torch.manual_seed(0)
    train, test = open_source(pictures(tmp_path / "train", 24, 0)), open_source(pictures(tmp_path / "test", 10, 1))
    student = build_student(StudentSettings("small:resnet8x0.25"), 8).eval()
    rows = np.random.default_rng(0).normal(size=(68, student.width))
    return EncodedSet(
        "student", rows[48:], rows[:48], test.labels, train.labels, ("left", "right"), encoder=student,
        train_source=train, test_source=test, workers=0,
    )  # fmt: skip


def test_the_published_lists(tmp_path: Path) -> None:
    encoded_set = photographed(tmp_path)
    (tmp_path / "1percent.txt").write_text("left_3.png\nright_7.png\nright_8.png\nleft_1.png\n")
    figures = Semi.evaluate(encoded_set, settings("1%", lists=str(tmp_path)))
    assert (figures["draws 1%"], figures["images 1%"]) == (1, 4)
    assert "top1 1% std" not in figures
    with pytest.raises(DataError, match=r"10percent.txt cannot be read .No such file.*SimCLR"):
        Semi.evaluate(encoded_set, settings("10%", lists=str(tmp_path)))
    (tmp_path / "1percent.txt").write_text("left_3.png\nn01440764_1.JPEG\n")
    with pytest.raises(DataError, match="lists 2 images, and 1 of them are among the 48"):
        Semi.evaluate(encoded_set, settings("1%", lists=str(tmp_path)))
    (tmp_path / "1percent.txt").write_text("left_3.png\nleft_4.png\n")
    with pytest.raises(DataError, match="2 labeled images are of one class"):
        Semi.evaluate(encoded_set, settings("1%", lists=str(tmp_path)))


def test_fine_tuning_learns_and_leaves_the_encoder_alone(tmp_path: Path) -> None:
    encoded_set = photographed(tmp_path)
    assert isinstance(encoded_set.encoder, Student)
    before = {name: one.clone() for name, one in encoded_set.encoder.state_dict().items()}
    chosen = EvaluationSettings(finetune=FinetuneSettings(epochs=12, lr=0.5), semi=SemiSettings(("50%",), draws=1))
    figures = Semi.evaluate(encoded_set, chosen)
    # Flips make left and right alike to a network that pools: it must learn from what augmentation leaves.
    assert figures["top1 50%"] < 80  # the frozen features are noise
    assert 0 <= figures["finetuned_top1 50%"] <= 100
    assert all((before[name] == one).all() for name, one in encoded_set.encoder.state_dict().items())
    assert not encoded_set.encoder.training
    again = Semi.evaluate(encoded_set, chosen)
    assert again["finetuned_top1 50%"] == figures["finetuned_top1 50%"]


@pytest.mark.slow
def test_fine_tuning_by_color(tmp_path: Path) -> None:
    """A task that augmentation leaves whole: bright against dark."""
    generator = np.random.default_rng(0)
    for split, each in (("train", 24), ("test", 12)):
        for number, name in enumerate(("dark", "bright")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = generator.integers(100 * number, 100 * number + 120, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    train, test = open_source(tmp_path / "train"), open_source(tmp_path / "test")
    torch.manual_seed(0)
    student = build_student(StudentSettings("small:resnet8x0.25"), 8).eval()
    rows = np.ones((72, student.width))
    encoded_set = EncodedSet("student", rows[48:], rows[:48], test.labels, train.labels, encoder=student,
                      train_source=train, test_source=test, workers=0)  # fmt: skip
    figures = finetuned(encoded_set, EvaluationSettings(finetune=FinetuneSettings(epochs=15, lr=0.1)))
    assert figures["finetuned_top1"] > 90
    assert figures["finetuned_mean_class"] == figures["finetuned_top1"]  # as many test images of each
    with pytest.raises(DataError, match="only features"):
        finetuned(EncodedSet("s", rows[48:], rows[:48], test.labels, train.labels), EvaluationSettings())
    embedding = EncodedSet("student_embed", rows[48:], rows[:48], test.labels, train.labels, encoder=Embedding(student),
                        train_source=train, test_source=test, workers=0)  # fmt: skip
    assert "frozen" in finetuned(embedding, EvaluationSettings())["note"]
