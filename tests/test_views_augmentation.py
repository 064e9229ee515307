"""Views against torchvision: the same crops from the same draws, the same pixels from the same parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import transforms as torchvision_v1
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from understudy.errors import ConfigError
from understudy.philox import VIEWS, random_words, uniforms
from understudy.settings import resolve
from understudy.views import augmentation as views
from understudy.views.augmentation import (
    AREA,
    BRIGHTNESS,
    CONTRAST,
    FLIP,
    GRAY,
    HUE,
    JITTER,
    ORDER,
    ORDERS,
    RECIPES,
    SATURATION,
    SIGMA,
    Recipe,
    center,
    crop_boxes,
    draw,
    geometry,
    geometry_of_batch,
    photometry,
    recipe_for,
)
from understudy.views.settings import ViewSettings

MOCO = RECIPES["moco-v2"]


def rows_of(recipe: Recipe, count: int, seed: int = 0) -> np.ndarray:
    return draw(seed, np.arange(count), np.zeros(count, dtype=np.int64), recipe)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def by_torchvision(pixels: np.ndarray | torch.Tensor, row: np.ndarray) -> torch.Tensor:
    """The photometry of one view, by torchvision's float functionals, one after another."""
    x = torch.as_tensor(np.ascontiguousarray(pixels)).float() / 255
    if row[JITTER]:
        steps = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
        for step in ORDERS[int(row[ORDER])]:
            x = steps[step](x, float(row[BRIGHTNESS + step]))
    if row[GRAY]:
        x = TF.rgb_to_grayscale(x, 3)
    if row[SIGMA]:
        taps = min(23, 2 * x.shape[-1] - 1)
        x = TF.gaussian_blur(x, [taps, taps], [float(row[SIGMA])] * 2)
    return x


# --- what is drawn -------------------------------------------------------------------------------------------------


def test_a_row_depends_on_seed_image_and_view_alone():
    ids, numbers = np.array([4, 9, 4, 0]), np.array([0, 3, 1, 7])
    together = draw(5, ids, numbers, MOCO)
    for i in (2, 0, 3, 1):
        assert (draw(5, ids[i : i + 1], numbers[i : i + 1], MOCO)[0] == together[i]).all()
    assert len(np.unique(together, axis=0)) == 4
    assert not (draw(6, ids, numbers, MOCO)[:, 0] == together[:, 0]).any()


def test_draws_follow_the_recipe():
    count = 20_000
    rows = rows_of(MOCO, count)
    for column, share in ((FLIP, 0.5), (JITTER, 0.8), (GRAY, 0.2)):
        assert set(np.unique(rows[:, column])) == {0, 1}
        assert abs(rows[:, column].mean() - share) < 4 * math.sqrt(share * (1 - share) / count)
    assert abs((rows[:, SIGMA] > 0).mean() - 0.5) < 0.015
    for values, low, high in (
        (rows[:, 0], 0.2, 1.0),
        (np.log(rows[:, 10]), math.log(3 / 4), math.log(4 / 3)),
        (rows[:, BRIGHTNESS], 0.6, 1.4),
        (rows[:, CONTRAST], 0.6, 1.4),
        (rows[:, SATURATION], 0.6, 1.4),
        (rows[:, HUE], -0.1, 0.1),
        (rows[rows[:, SIGMA] > 0, SIGMA], 0.1, 2.0),
    ):
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-4
    assert stats.chisquare(np.bincount(rows[:, ORDER].astype(int), minlength=24)).pvalue > 1e-4
    # Columns do not follow each other: the largest of all correlations is as small as chance has it.
    correlation = np.corrcoef(np.c_[rows, rows_of(MOCO, count, seed=1)].T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 6 / math.sqrt(count)


def test_every_order_of_the_jitter_is_possible():
    assert len({tuple(order) for order in ORDERS.tolist()}) == 24


def test_recipes_and_their_defaults():
    small, weak, none = (rows_of(RECIPES[name], 500) for name in ("moco-v2-small", "weak", "none"))
    crop = rows_of(RECIPES["crop"], 500)
    assert 0.08 <= crop[:, AREA].min() < 0.085 and 0.2 <= weak[:, AREA].min() < 0.205
    assert not crop[:, [JITTER, GRAY, SIGMA]].any()
    assert (small[:, SIGMA] == 0).all()
    assert small[:, JITTER].any()
    assert not weak[:, [JITTER, GRAY, SIGMA]].any()
    assert weak[:, FLIP].any()
    assert not none[:, [0, FLIP, JITTER, GRAY, SIGMA]].any()
    # A weak view is the MoCo-v2 view without its photometry.
    assert (weak[:, : FLIP + 1] == rows_of(MOCO, 500)[:, : FLIP + 1]).all()
    assert recipe_for(None, 64).name == "moco-v2-small"
    assert recipe_for(None, 65).name == "moco-v2"
    assert recipe_for("weak", 32) is RECIPES["weak"]
    with pytest.raises(ConfigError, match=r"moco-v3.*Did you mean 'moco-v2'"):
        recipe_for("moco-v3", 32)


def test_the_settings_know_every_recipe():
    for name in RECIPES:
        assert resolve(ViewSettings, {"recipe": name}).recipe == name
    assert resolve(ViewSettings).recipe is None
    with pytest.raises(ConfigError, match="moco-v3"):
        resolve(ViewSettings, {"recipe": "moco-v3"})


# --- geometry ------------------------------------------------------------------------------------------------------


class Drawn:
    """What a call to torch would have drawn, taken from given numbers."""

    def __init__(self, numbers: Iterator[float], value: float = 0.0) -> None:
        self.numbers, self.value = numbers, value

    def uniform_(self, low: float, high: float) -> Drawn:
        return Drawn(self.numbers, low + (high - low) * next(self.numbers))

    def item(self) -> float:
        return self.value


@pytest.mark.parametrize(("height", "width"), [(224, 224), (120, 333), (40, 500), (500, 40), (3, 4), (1, 1)])
def test_crops_are_torchvisions_own_from_the_same_draws(monkeypatch: pytest.MonkeyPatch, height: int, width: int):
    image, fallbacks = Image.new("RGB", (width, height)), 0
    for seed, scale in ((0, (0.2, 1.0)), (1, (0.08, 1.0)), (2, (0.9, 1.0))):
        recipe = Recipe("test", scale=scale)
        rows = rows_of(recipe, 40, seed)
        boxes = np.stack(crop_boxes(rows, height, width), axis=1)
        for i, u in enumerate(uniforms(random_words(seed, VIEWS, np.arange(40), 0, 32)).tolist()):
            tries, places = iter([u[j // 2 + 10 * (j % 2)] for j in range(20)]), iter(u[20:22])
            fake = SimpleNamespace(
                empty=lambda _, tries=tries: Drawn(tries),
                tensor=np.array,
                log=np.log,
                exp=lambda drawn: Drawn(drawn.numbers, math.exp(drawn.value)),
                randint=lambda low, high, size, places=places: Drawn(places, low + int(next(places) * (high - low))),
            )
            with monkeypatch.context() as patch:
                patch.setattr(torchvision_v1, "torch", fake)
                wanted = torchvision_v1.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])
            fallbacks += next(places, None) is not None
            assert boxes[i].tolist() == list(wanted)
    if max(height, width) > 4 * min(height, width):
        assert fallbacks > 5  # the central crop of long images was really compared


def test_crops_are_distributed_as_torchvisions():
    image, count = Image.new("RGB", (200, 150)), 3000
    torch.manual_seed(0)
    get = torchvision_v1.RandomResizedCrop.get_params
    theirs = np.array([get(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    ours = np.stack(crop_boxes(rows_of(MOCO, count), 150, 200), axis=1)
    for column in range(4):  # top, left, height, width
        assert stats.ks_2samp(theirs[:, column], ours[:, column]).pvalue > 1e-4
    assert stats.ks_2samp(theirs[:, 2] * theirs[:, 3], ours[:, 2] * ours[:, 3]).pvalue > 1e-4


def test_boxes_lie_inside_images_of_many_shapes():
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 300, 2000), rng.integers(1, 300, 2000)
    top, left, height, width = crop_boxes(rows_of(MOCO, 2000), heights, widths)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height > 0).all()
    assert (width > 0).all()
    assert (top + height <= heights).all()
    assert (left + width <= widths).all()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [24, 96])
def test_geometry_is_torchvisions_resized_crop(interpolation: str, size: int):
    image = Image.fromarray(noise(70, 90, 3))
    rows = rows_of(MOCO, 12)
    assert set(rows[:, FLIP]) == {0, 1}
    for row, box in zip(rows, np.stack(crop_boxes(rows, 70, 90), axis=1).tolist(), strict=True):
        if interpolation == "lanczos":  # torchvision's PIL path has it, its public modes too
            mode = v2.InterpolationMode.LANCZOS
        else:
            mode = v2.InterpolationMode(interpolation)
        wanted = TF.resized_crop(image, *box, size=[size, size], interpolation=mode)
        if row[FLIP]:
            wanted = TF.horizontal_flip(wanted)
        assert (geometry(image, row, size, interpolation) == np.asarray(wanted).transpose(2, 0, 1)).all()


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 32), (31, 20, 32), (9, 17, 17), (8, 8, 64), (64, 64, 64), (33, 64, 64), (1, 1, 5)],
)
def test_a_whole_batch_is_resized_as_pil_does_it_bit_for_bit(height: int, width: int, size: int):
    pixels, rows = noise(70, height, width, 3), rows_of(RECIPES["weak"], 70)
    # Saturated pixels too: rounding must not overflow.
    pixels[:20] = np.where(pixels[:20] > 127, 255, 0)
    found = geometry_of_batch(pixels, rows, size)
    wanted = np.stack([geometry(Image.fromarray(image), row, size) for image, row in zip(pixels, rows, strict=True)])
    assert found.shape == (70, 3, size, size)
    assert (found == wanted).all()


@pytest.mark.parametrize("crop", [1.0, 0.875, 224 / 256])
@pytest.mark.parametrize(("width", "height"), [(50, 50), (61, 97), (97, 61), (20, 31), (33, 32)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_center_is_torchvisions_resize_and_center_crop(crop: float, width: int, height: int, interpolation: str):
    image, size = Image.fromarray(noise(height, width, 3)), 32
    mode = v2.InterpolationMode(interpolation)
    wanted = TF.center_crop(TF.resize(image, [round(size / crop)], interpolation=mode), [size, size])
    assert (np.asarray(center(image, size, crop, interpolation)) == np.asarray(wanted)).all()


def test_recipe_none_is_the_center():
    image = Image.fromarray(noise(40, 57, 3))
    row = rows_of(RECIPES["none"], 1)[0]
    assert (geometry(image, row, 32) == np.asarray(center(image, 32, 1.0, "bilinear")).transpose(2, 0, 1)).all()


# --- photometry ----------------------------------------------------------------------------------------------------


def neutral(count: int) -> np.ndarray:
    rows = np.zeros((count, views.COLUMNS))
    rows[:, BRIGHTNESS : SATURATION + 1] = 1
    return rows


def awkward(count: int, size: int = 16) -> torch.Tensor:
    """Noise, grays, pure colors, black and white: where hue has its corners."""
    pixels = noise(count, 3, size, size)
    pixels[: count // 4] = np.where(pixels[: count // 4] > 127, 255, 0)
    pixels[count // 4 : count // 2] = pixels[count // 4 : count // 2, :1]
    return torch.from_numpy(pixels)


def difference(pixels: torch.Tensor, rows: np.ndarray, recipe: Recipe = MOCO) -> float:
    found = photometry(pixels, torch.from_numpy(rows), recipe)
    assert found.dtype == torch.float32
    wanted = torch.stack([by_torchvision(image, row) for image, row in zip(pixels, rows, strict=True)])
    return float((found - wanted).abs().max())


@pytest.mark.parametrize(
    ("column", "low", "high"),
    [(BRIGHTNESS, 0, 2.5), (CONTRAST, 0, 2.5), (SATURATION, 0, 2.5), (HUE, -0.5, 0.5)],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_each_jitter_alone(column: int, low: float, high: float):
    rows = neutral(48)
    rows[:, JITTER] = 1
    rows[:, column] = np.linspace(low, high, 48)
    rows[:, ORDER] = np.arange(48) % 24
    assert difference(awkward(48), rows) < 1e-5


def test_all_jitters_in_every_order():
    rows = rows_of(MOCO, 96)
    rows[:, ORDER] = np.arange(96) % 24
    rows[:, [GRAY, SIGMA]] = 0
    assert 0 < rows[:, JITTER].sum() < 96
    assert difference(awkward(96), rows) < 1e-5


def test_grayscale_alone():
    rows = neutral(20)
    rows[::2, GRAY] = 1
    assert difference(awkward(20), rows) < 1e-6


@pytest.mark.parametrize("size", [5, 16, 40])
def test_blur_alone(size: int):
    rows = neutral(12)
    rows[1:, SIGMA] = np.linspace(0.1, 2.0, 11)
    assert difference(awkward(12, size), rows) < 1e-5


def test_neutral_rows_change_nothing():
    pixels = awkward(8)
    assert (photometry(pixels, torch.from_numpy(neutral(8)), MOCO) == pixels / 255).all()


def test_photometry_takes_any_layout_and_an_empty_batch():
    pixels, rows = awkward(10), torch.from_numpy(rows_of(MOCO, 10))
    wanted = photometry(pixels, rows, MOCO)
    assert (photometry(pixels.contiguous(memory_format=torch.channels_last), rows, MOCO) == wanted).all()
    assert wanted.is_contiguous()
    assert photometry(pixels[:0], rows[:0], MOCO).shape == (0, 3, 16, 16)


def test_a_view_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch):
    pixels, rows = awkward(20), torch.from_numpy(rows_of(MOCO, 20))
    together = photometry(pixels, rows, MOCO)
    alone = torch.cat([photometry(pixels[i : i + 1], rows[i : i + 1], MOCO) for i in range(20)])
    assert torch.allclose(alone, together, atol=1e-6)
    monkeypatch.setattr(views, "CPU_VALUES", 7 * pixels[0].numel())  # 7, 7 and 6 at a time
    assert torch.allclose(photometry(pixels, rows, MOCO), together, atol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_end_to_end_against_torchvision(shared: Path, name: str):
    """From a photograph to the view, by torchvision's own functionals on the same parameters."""
    files = sorted((shared / "data" / "imagenette" / "train").glob("*/*.JPEG"))[:120:10]
    recipe, size = RECIPES[name], 64
    rows = rows_of(recipe, len(files), seed=11)
    images = [Image.open(file).convert("RGB") for file in files]
    pixels = np.stack([geometry(image, row, size) for image, row in zip(images, rows, strict=True)])
    found = photometry(torch.from_numpy(pixels), torch.from_numpy(rows), recipe)
    for image, row, view in zip(images, rows, found, strict=True):
        if recipe.scale is None:
            wanted = TF.center_crop(TF.resize(image, [size]), [size, size])
        else:
            box = [int(side[0]) for side in crop_boxes(row[None], image.height, image.width)]
            wanted = TF.resized_crop(image, *box, size=[size, size])
        # The paper's order: flip last. It changes nothing but the order of sums.
        wanted = by_torchvision(np.asarray(wanted).transpose(2, 0, 1), row)
        assert (view - (wanted.flip(-1) if row[FLIP] else wanted)).abs().max() < 1e-5


@pytest.mark.gpu
def test_the_gpu_makes_the_same_views():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pixels, rows = awkward(64, 32), torch.from_numpy(rows_of(MOCO, 64))
    there = photometry(pixels.cuda(), rows, MOCO)
    assert there.is_cuda
    assert (there.cpu() - photometry(pixels, rows, MOCO)).abs().max() < 1e-5
