"""DAVIS: J and F against their definitions, propagation against a plain loop in float64, and the official layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from understudy.errors import DataError
from understudy.evaluate.encoded_set import EncodedSet, Figures, Progress
from understudy.evaluate.measures import propagation as module
from understudy.evaluate.measures.propagation import boundary_measure, frame_size, jaccard, outline, propagate_frame
from understudy.evaluate.open_set import open_set
from understudy.evaluate.protocols.davis import Davis
from understudy.evaluate.settings import EvaluationSettings
from understudy.models.contract import Contract
from understudy.models.encoder import Encoder
from understudy.models.teacher import Teacher


def disk(height: int, width: int, row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def test_jaccard_by_hand() -> None:
    left, right, none = np.zeros((3, 4, 6), bool)
    left[:, :3], right[:, 2:] = True, True
    assert jaccard(left, right) == pytest.approx(4 / 24)
    assert (jaccard(none, none), jaccard(left, none), jaccard(left, left)) == (1, 0, 1)
    void = np.zeros((4, 6), bool)
    void[:2] = True
    void[:, 2] = True  # what they share does not count
    assert jaccard(left, right, void) == 0


def test_outlines_by_hand() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:3] = True
    expected = ["11100", "10100", "11100", "00000"]
    assert ["".join(str(int(one)) for one in row) for row in outline(mask)] == expected
    assert not outline(np.ones((4, 5), bool)).any()  # the image's own edge is no outline


@pytest.mark.parametrize("seed", range(4))
def test_boundary_measure_equals_its_definition(seed: int) -> None:
    """Precision: the share of predicted outline pixels whose nearest true one is within reach; recall: the converse."""
    random = np.random.default_rng(seed)
    height, width = 120, 160  # a diagonal of 200: 1.6, so 2 pixels
    truth = disk(height, width, 60, 70, 30) | disk(height, width, 90, 120, 15)
    seen = disk(height, width, *random.uniform((57, 66), (63, 74)), 30 + random.uniform(-3, 3))
    void = disk(height, width, 20, 60, 20)
    for ignored in (None, void):
        masks = [mask if ignored is None else mask & ~ignored for mask in (seen, truth)]
        predicted, real = (np.argwhere(outline(mask)) for mask in masks)
        distances = cdist(predicted, real)
        precision, recall = (distances.min(1) <= 2).mean(), (distances.min(0) <= 2).mean()
        assert 0 < precision < 1 and 0 < recall < 1
        expected = 2 * precision * recall / (precision + recall)
        assert boundary_measure(seen, truth, ignored) == pytest.approx(expected)


def test_boundary_measure_of_nothing() -> None:
    none, some = np.zeros((50, 50), bool), disk(50, 50, 25, 25, 9)
    assert (boundary_measure(none, none), boundary_measure(some, none), boundary_measure(none, some)) == (1, 0, 0)
    assert boundary_measure(some, some) == 1
    assert boundary_measure(some, disk(50, 50, 8, 8, 4)) == 0


@pytest.mark.parametrize("memory_mb", [1024, 0])
def test_carrying_equals_a_plain_loop(memory_mb: int) -> None:
    random = np.random.default_rng(0)
    frames, channels, height, width, objects = 3, 6, 5, 7, 4
    context = random.normal(size=(frames, channels, height, width))
    context /= np.linalg.norm(context, axis=1, keepdims=True)
    target = random.normal(size=(channels, height, width))
    target /= np.linalg.norm(target, axis=0)
    masks = random.random((frames, objects, height, width))
    expected = np.zeros((objects, height, width))
    for i in range(height):
        for j in range(width):
            near = [
                (float(context[t, :, y, x] @ target[:, i, j]), masks[t, :, y, x])
                for t in range(frames)
                for y in range(max(0, i - 2), min(height, i + 3))
                for x in range(max(0, j - 2), min(width, j + 3))
            ]
            best = sorted(near, key=lambda one: -one[0])[:5]
            weights = np.exp(np.array([one[0] for one in best]) / 0.1)
            expected[:, i, j] = (
                np.sum([w * one[1] for w, one in zip(weights, best, strict=True)], axis=0) / weights.sum()
            )
    tensors = (torch.from_numpy(array).float() for array in (target, context, masks))
    found = propagate_frame(*tensors, radius=2, memory_mb=memory_mb)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_frames_are_480_by_multiples_of_64() -> None:
    assert frame_size(480, 854, 480, 16) == (480, 832)  # most of DAVIS
    assert frame_size(480, 910, 480, None) == (480, 896)
    assert frame_size(854, 480, 480, 8) == (832, 480)
    height, width = frame_size(480, 854, 480, 14)
    assert (height, width) == (448, 840) and height % 14 == width % 14 == 0


class Colors(nn.Module):
    """Features are colors: the mean of each 4 x 4 pixels, centered."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.Conv2d(3, 3, 4, 4)
        with torch.no_grad():
            self.grid.weight.zero_()
            self.grid.bias.zero_()
            for channel in range(3):
                self.grid.weight[channel, channel] = 1 / 16

    def forward(self, x: Tensor) -> Tensor:
        return self.grid(x).mean((2, 3))


def sequence(root: Path, name: str, frames: int = 5, void: bool = False) -> None:
    """A red and a green square on blue, moving by 4 pixels a frame."""
    for folder in ("JPEGImages", "Annotations"):
        (root / folder / "480p" / name).mkdir(parents=True)
    for t in range(frames):
        picture = np.zeros((64, 128, 3), np.uint8)
        picture[..., 2] = 255
        numbers = np.zeros((64, 128), np.uint8)
        for number, (top, left) in enumerate([(8, 8 + 4 * t), (40, 96 - 4 * t)], 1):
            picture[top : top + 16, left : left + 16] = (255, 0, 0) if number == 1 else (0, 255, 0)
            numbers[top : top + 16, left : left + 16] = number
        if void:
            numbers[-4:] = 255
        # PNG inside, so that colors are exact; the official name all the same.
        Image.fromarray(picture).save(root / "JPEGImages" / "480p" / name / f"{t:05d}.jpg", format="png")
        Image.fromarray(numbers).save(root / "Annotations" / "480p" / name / f"{t:05d}.png")


def official(root: Path, *names: str) -> Path:
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(names) + "\n")
    for name in names:
        sequence(root, name, void=name == "void")
    return root


CONTRACT = Contract(32, mean=(0.3, 0.3, 0.3), std=(0.5, 0.5, 0.5), interpolation="nearest")


def davis(network: nn.Module, root: Path, progress: Progress | None = None) -> Figures:
    teacher = Teacher(Encoder(network, 3, CONTRACT, "colors", "colors", "by hand", "1"))
    target = open_set(f"davis={root}")
    encoded_set = EncodedSet(
        "teacher", np.empty((0, 0), np.float32), encoder=teacher, dataset=target, progress=progress
    )
    return Davis.evaluate(encoded_set, EvaluationSettings())


def test_what_is_told_apart_by_color_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORT", 64)
    official(tmp_path / "DAVIS", "bike-packing", "void")
    notes: list[str] = []
    figures = davis(Colors(), tmp_path, lambda done, total, note: notes.append(f"{done}/{total} {note}"))
    assert (figures["objects"], figures["sequences"]) == (4, 2)
    assert figures["j"] > 90 and figures["f"] > 90
    assert figures["j_recall"] == figures["f_recall"] == 100
    assert figures["j_and_f"] == pytest.approx((figures["j"] + figures["f"]) / 2)
    assert notes == ["1/2 bike-packing", "2/2 void"]
    # Features that say nothing leave only the place: the objects move out of it.
    blind = Colors()
    nn.init.zeros_(blind.grid.weight)
    nn.init.ones_(blind.grid.bias)
    assert davis(blind, tmp_path / "DAVIS")["j"] < figures["j"] - 30


def test_what_is_missing_or_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2017.val.txt was expected.*https://davischallenge\.org"):
        davis(Colors(), tmp_path)
    root = official(tmp_path, "dogs")
    mask = root / "Annotations" / "480p" / "dogs" / "00002.png"
    Image.new("L", (64, 96)).save(mask)
    with pytest.raises(DataError, match=r"00002.png is 64 x 96 pixels, its frame 128 x 64"):
        davis(Colors(), root)
    mask.unlink()
    with pytest.raises(DataError, match=r"00002.png was expected.*comes from https://davischallenge"):
        davis(Colors(), root)
    Image.new("L", (128, 64)).save(mask)
    Image.new("L", (128, 64)).save(mask.with_name("00000.png"))
    with pytest.raises(DataError, match="The first mask of dogs .* holds no object"):
        davis(Colors(), root)
    for path in (root / "JPEGImages" / "480p" / "dogs").glob("0000[1-4].jpg"):
        path.unlink()
    with pytest.raises(DataError, match="dogs holds 1 frames; three at least"):
        davis(Colors(), root)
