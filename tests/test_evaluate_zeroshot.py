"""Zero-shot: classes by the nearest text, of a file or of a text tower."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from understudy.errors import DataError, ModelError, ShapeError
from understudy.evaluate.encoded_set import EncodedSet
from understudy.evaluate.protocols.zeroshot import Zeroshot
from understudy.evaluate.settings import EvaluationSettings
from understudy.models.text import embed_texts
from understudy.settings import resolve

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


def settings(**own: Any) -> EvaluationSettings:
    return resolve(EvaluationSettings, {"protocols": "zeroshot", "zeroshot": own})


def rows(count: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts (6, 5 templates, 8), images (n, 8) near the mean of theirs, labels with a few missing."""
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(6, 1, 8)) + 0.3 * rng.normal(size=(6, 5, 8))
    labels = rng.integers(0, 6, count)
    images = texts.mean(axis=1)[labels] + rng.normal(size=(count, 8))
    labels[:7] = -1
    return texts.astype(np.float32), images.astype(np.float32), labels


def encoded(images: np.ndarray, labels: np.ndarray, **more: Any) -> EncodedSet:
    return EncodedSet("teacher", images, test_labels=labels, class_names=NAMES, **more)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with the classes in another order, and one more."""
    texts = rows()[0]
    order = [3, 1, 5, 0, 4, 2]
    names = ["none", *(NAMES[one] for one in order)]
    np.savez(tmp_path / "texts.npz", names=names, embeddings=np.concatenate([texts[:1] * 0 + 1, texts[order]]))
    return tmp_path / "texts.npz"


def test_the_nearest_text_by_hand(file: Path) -> None:
    texts, images, labels = rows()
    figures = Zeroshot.evaluate(encoded(images, labels), settings(text=str(file)))
    unit = texts / np.linalg.norm(texts, axis=2, keepdims=True)
    right, five, by_class = [], [], {}
    for image, label in zip(images, labels, strict=True):
        if label < 0:
            continue
        mean = unit.mean(axis=1)
        order = np.argsort([-image @ row / np.linalg.norm(image) / np.linalg.norm(row) for row in mean])
        right.append(order[0] == label)
        five.append(label in order[:5])
        by_class.setdefault(label, []).append(right[-1])
    assert figures["top1"] == pytest.approx(100 * np.mean(right))
    assert 30 < figures["top1"] < 99  # neither guessing nor trivial
    assert figures["top5"] == pytest.approx(100 * np.mean(five))
    assert figures["mean_class"] == pytest.approx(100 * np.mean([np.mean(hits) for hits in by_class.values()]))
    assert figures["images"] == 193


def test_a_student_is_asked_with_the_teachers_texts(file: Path) -> None:
    _, images, labels = rows()
    teacher = encoded(images, labels)
    student = dataclasses.replace(teacher, name="student_embed", test=3 * images, reference=teacher, aligned=True)
    assert Zeroshot.evaluate(student, settings(text=str(file))) == Zeroshot.evaluate(teacher, settings(text=str(file)))
    elsewhere = dataclasses.replace(student, aligned=False)
    assert "not meant to lie" in str(Zeroshot.evaluate(elsewhere, settings(text=str(file)))["note"])


def test_another_file_of_the_same_name_is_measured_anew(file: Path) -> None:
    before = settings(text=str(file)).identity_settings("zeroshot")
    with np.load(file) as content:
        arrays = dict(content)
    np.savez(file, **{**arrays, "embeddings": -arrays["embeddings"]})
    assert settings(text=str(file)).identity_settings("zeroshot") != before


def test_what_cannot_be_asked_is_a_sentence(file: Path, tmp_path: Path) -> None:
    _, images, labels = rows()
    with pytest.raises(ModelError, match=r"--zeroshot\.text FILE\.npz"):
        Zeroshot.evaluate(encoded(images, labels), settings())
    with pytest.raises(DataError, match="have none"):
        Zeroshot.evaluate(EncodedSet("teacher", images), settings(text=str(file)))
    with pytest.raises(ShapeError, match="width 8, the teacher's images 5"):
        Zeroshot.evaluate(encoded(images[:, :5], labels), settings(text=str(file)))
    other = dataclasses.replace(encoded(images, labels), class_names=("ant", "yak"))
    with pytest.raises(DataError, match="no text of the class 'yak'"):
        Zeroshot.evaluate(other, settings(text=str(file)))
    (tmp_path / "no.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="is not a file of texts"):
        Zeroshot.evaluate(encoded(images, labels), settings(text=str(tmp_path / "no.npz")))
    with pytest.raises(ModelError, match=r"timm:resnet18 has no text tower .* hf: and open_clip: have"):
        embed_texts("timm:resnet18", ["a"])
