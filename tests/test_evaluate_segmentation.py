"""Segmentation: mIoU against scikit-learn, windows that cover, and a linear layer that learns colors."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score, recall_score
from torch import nn

from understudy.errors import DataError
from understudy.evaluate.datasets.masks import IGNORED, open_masks
from understudy.evaluate.encoded_set import EncodedSet, Figures
from understudy.evaluate.measures import segmenter as module
from understudy.evaluate.measures.segmenter import confusion_matrix, mean_iou, windows
from understudy.evaluate.open_set import open_set
from understudy.evaluate.protocols.segmentation import Segmentation, SegmentationSettings
from understudy.evaluate.settings import EvaluationSettings
from understudy.models.contract import Contract
from understudy.models.dense import dense_features
from understudy.models.encoder import Encoder
from understudy.models.resnet import small_resnet
from understudy.models.teacher import Teacher


def segmentation(network: nn.Module, root: Path, settings: SegmentationSettings, seed: int = 0) -> Figures:
    teacher = Teacher(Encoder(network, 64, Contract(32), "small", "small", "random", "1"))
    encoded_set = EncodedSet(
        "teacher", np.empty((0, 0), np.float32), encoder=teacher, dataset=open_set(f"index-masks={root}")
    )
    return Segmentation.evaluate(encoded_set, EvaluationSettings(segmentation=settings, seed=seed))


def test_miou_equals_scikit_learns() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 5, (40, 30)).astype(np.uint8)
    truth[random.random(truth.shape) < 0.2] = IGNORED
    predicted = np.where(random.random(truth.shape) < 0.6, truth, random.integers(0, 5, truth.shape)) % 5
    confusion = confusion_matrix(truth, predicted, 7)  # classes 5 and 6 occur nowhere
    scored = truth != IGNORED
    flat = truth[scored], predicted[scored]
    assert mean_iou(confusion) == pytest.approx(
        {
            "miou": 100 * jaccard_score(*flat, average="macro"),
            "mean_accuracy": 100 * recall_score(*flat, average="macro"),
            "accuracy": 100 * accuracy_score(*flat),
            "classes": 5,
        }
    )


def test_a_class_that_is_only_predicted_costs_miou_and_not_mean_accuracy() -> None:
    figures = mean_iou(confusion_matrix(np.zeros((2, 2), np.uint8), np.array([[0, 0], [0, 2]]), 3))
    assert figures == pytest.approx({"miou": 37.5, "mean_accuracy": 75, "accuracy": 75, "classes": 2})


@pytest.mark.parametrize(("height", "width", "side"), [(32, 32, 32), (32, 50, 32), (97, 33, 32), (64, 1, 1)])
def test_windows_cover_every_pixel_and_stay_inside(height: int, width: int, side: int) -> None:
    seen = np.zeros((height, width), int)
    for top, left in windows(height, width, side):
        assert 0 <= top <= height - side and 0 <= left <= width - side
        seen[top : top + side, left : left + side] += 1
    assert seen.min() >= 1


def colors(root: Path, images: int = 3) -> Path:
    """Red on the left and blue on the right, the border between them ignored; of several shapes."""
    for split, i in itertools.product(("train", "val"), range(images)):
        width = 40 + 10 * i
        picture = np.zeros((30, width, 3), np.uint8)
        mask = np.zeros((30, width), np.uint8)
        border = 10 + 6 * i
        picture[:, :border, 0], picture[:, border:, 2] = 200, 200
        mask[:, border:] = 1
        mask[:, border - 3 : border + 3] = IGNORED
        for folder, array, ending in (("images", picture, "png"), ("masks", mask, "png")):
            path = root / folder / split / f"{i}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    (root / "classes.txt").write_text("red\nblue\n")
    return root


def test_a_linear_layer_learns_colors_and_the_backbone_nothing(tmp_path: Path) -> None:
    data = colors(tmp_path)
    torch.manual_seed(0)
    backbone = small_resnet("resnet8")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    settings = SegmentationSettings(iterations=40, batch_size=4, size=32, lr=0.05)
    figures = segmentation(backbone, data, settings)
    assert figures["miou"] > 95
    assert (figures["classes"], figures["images"]) == (2, 3)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_the_figures_are_a_function_of_the_seed(tmp_path: Path) -> None:
    data = colors(tmp_path)
    torch.manual_seed(0)
    backbone = small_resnet("resnet8x0.25")
    settings = SegmentationSettings(iterations=2, batch_size=2, size=32, lr=0.01)
    first, again, other = (segmentation(backbone, data, settings, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_crops_keep_image_and_mask_together(tmp_path: Path) -> None:
    train, _ = open_masks(colors(tmp_path))
    crops = module._Crops(train, np.arange(60) % 3, 32, 0, Contract(32, interpolation="nearest"))
    flipped = 0
    for pixels, truth in crops:  # type: ignore[attr-defined]
        assert pixels.shape == (3, 32, 32) and truth.shape == (32, 32)
        assert bool((pixels[0][truth == 0] > 0.7).all()) and bool((pixels[2][truth == 1] > 0.7).all())
        rows = truth[:, :].long()
        both = (rows == 0).any() and (rows == 1).any()
        flipped += bool(both and torch.where(rows == 1)[1].min() < torch.where(rows == 0)[1].min())
    assert 10 < flipped < 50


def test_the_layer_sits_on_strides_16_and_32_or_on_the_last_map() -> None:
    import timm

    head = module.LinearHead(dense_features(timm.create_model("test_resnet", num_classes=0), (64, 64)), 3)
    assert (head.places, head.linear.weight.shape) == ([3, 4], (3, 192 + 96, 1, 1))
    assert module.LinearHead(dense_features(small_resnet("resnet8"), (32, 32)), 3).places == [2]
    vit = dense_features(timm.create_model("test_vit", num_classes=0), (64, 64))
    assert module.LinearHead(vit, 3)([torch.rand(2, 64, 4, 4)]).shape == (2, 3, 4, 4)


def test_what_cannot_be_scored_is_a_sentence(tmp_path: Path) -> None:
    data = colors(tmp_path, images=1)
    settings = SegmentationSettings(iterations=1, batch_size=2, size=32)
    Image.new("L", (9, 9)).save(data / "masks" / "val" / "0.png")
    with pytest.raises(DataError, match=r"0.png is 9 x 9 pixels, its image 0.png 40 x 30"):
        segmentation(small_resnet("resnet8x0.25"), data, settings)
    Image.new("L", (40, 30), IGNORED).save(data / "masks" / "val" / "0.png")
    with pytest.raises(DataError, match="every pixel of 1 masks is to be ignored"):
        segmentation(small_resnet("resnet8x0.25"), data, settings)
