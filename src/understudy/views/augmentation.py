"""Augmentation as numbers: a view is a row of parameters, a pure function of (seed, image id, view number).

The row is drawn by a counter-based generator (`philox`), so a view can be made again on any machine, by any worker, in
any order. Geometry (crop, resize, flip) happens where the image is read; photometry (jitter, gray, blur) is batched on
the training device, in floating point, where torchvision on PIL images rounds to 8 bits after every step.

A row has P = 31 columns:

| columns | what |
|---|---|
| `AREA` 0-9 | share of the image that the crop covers, one for each of ten tries; 0 means no random crop |
| `ASPECT` 10-19 | width over height of the crop, one for each try |
| `TOP`, `LEFT` 20, 21 | where the crop lies in the room it has, in [0, 1) |
| `FLIP` 22 | 1 for a mirror image |
| `JITTER` 23 | 1 if the next five count |
| `BRIGHTNESS`, `CONTRAST`, `SATURATION` 24-26 | factors |
| `HUE` 27 | shift, in turns |
| `ORDER` 28 | which of the 24 orders of the four, as in `ORDERS` |
| `GRAY` 29 | 1 for grayscale |
| `SIGMA` 30 | of the Gaussian blur in pixels, 0 for none |
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from understudy.errors import ConfigError
from understudy.philox import VIEWS, random_words, uniforms
from understudy.settings import nearest
from understudy.sources.decode import RESAMPLING, center
from understudy.views.resize import enlarge_lines

TRIES = 10
AREA, ASPECT = slice(0, TRIES), slice(TRIES, 2 * TRIES)
TOP, LEFT, FLIP, JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, GRAY, SIGMA = range(20, 31)
COLUMNS = 31  # P, the numbers in a view row
ORDERS = np.array(list(itertools.permutations(range(4))))
"""(24, 4): in which order brightness (0), contrast (1), saturation (2) and hue (3) are jittered."""

ASPECTS = (3 / 4, 4 / 3)  # narrowest and widest crop, the same in every published recipe
BLUR_TAPS = 23
"""Width of the blur kernel: SimCLR's tenth of 224 pixels. The sigma of MoCo-v2 is in pixels whatever the image, so the
kernel is the same at other sizes: 5.5 sigma to each side at sigma 2, cut only where the image is narrower."""

CPU_VALUES = 2**21
"""Numbers (8 MiB) that photometry takes at a time on a CPU; with more, half the time goes into fresh memory."""


@dataclass(frozen=True)
class Recipe:
    """What views are drawn from."""

    name: str  # as in the settings
    scale: tuple[float, float] | None = (0.2, 1.0)
    """Share of the image that a crop covers, from and to; None for the plain centered square."""
    flip: float = 0.5  # probability of a mirror image
    jitter: float = 0.0  # probability of color jitter
    strengths: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Of brightness, contrast and saturation (factors in [1 - s, 1 + s]) and hue (shift in [-s, s] turns)."""
    gray: float = 0.0  # probability of grayscale
    blur: float = 0.0  # probability of Gaussian blur
    sigma: tuple[float, float] = (0.1, 2.0)  # of the blur, from and to, in pixels


_RECIPES = (
    Recipe("moco-v2", jitter=0.8, gray=0.2, blur=0.5),
    Recipe("moco-v2-small", jitter=0.8, gray=0.2),
    Recipe("weak"),
    Recipe("crop", scale=(0.08, 1.0)),
    Recipe("none", scale=None, flip=0.0),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}
"""moco-v2: Chen et al. 2020, arXiv 2003.04297, `main_moco.py --aug-plus`. weak: its geometry alone, as in SimReg.
crop: torchvision's RandomResizedCrop and RandomHorizontalFlip with their defaults, as in CompRess."""


def recipe_for(name: str | None, size: int) -> Recipe:
    """The recipe of that name; without one, MoCo-v2's.

    At or below 64 pixels that is its form without blur, which would leave little of an image so small.

    Args:
        name: a key of `RECIPES`, or None.
        size: side of the views in pixels.

    Raises:
        ConfigError: the name is unknown; the sentence lists the known ones.
    """
    if name is None:
        name = "moco-v2" if size > 64 else "moco-v2-small"
    if name not in RECIPES:
        raise ConfigError(f"Unknown view recipe '{name}'. {nearest(name, RECIPES)}")
    return RECIPES[name]


def at_ratio(recipe: Recipe, ratio: float) -> Recipe:
    """The recipe for views so many times as wide as those it speaks of: a blur is narrower by the same ratio."""
    if ratio == 1 or not recipe.blur:
        return recipe
    return replace(recipe, sigma=(recipe.sigma[0] * ratio, recipe.sigma[1] * ratio))


def draw(
    seed: int, ids: Int64[np.ndarray, " B"], views: Int64[np.ndarray, " B"], recipe: Recipe
) -> Float64[np.ndarray, "B 31"]:
    """The rows of B views.

    The same random words serve every recipe: a weak view is the MoCo-v2 view without its photometry.

    Args:
        seed: 0 <= seed < 2^64.
        ids: the images' ids, as in `Source.ids`.
        views: which view of each image, counted from 0.
        recipe: what to draw from.

    Returns:
        (B, P) rows, columns as in the table above.

    Raises:
        ConfigError: the seed is outside its range.
    """
    u = uniforms(random_words(seed, VIEWS, ids, views, 32))
    rows = np.empty((len(u), COLUMNS))
    if recipe.scale is None:
        rows[:, AREA] = 0
    else:
        rows[:, AREA] = recipe.scale[0] + (recipe.scale[1] - recipe.scale[0]) * u[:, AREA]
    low, high = np.log(ASPECTS)
    rows[:, ASPECT] = np.exp(low + (high - low) * u[:, ASPECT])
    rows[:, [TOP, LEFT]] = u[:, [TOP, LEFT]]
    rows[:, FLIP] = u[:, FLIP] < recipe.flip
    rows[:, JITTER] = u[:, JITTER] < recipe.jitter
    strengths = np.array(recipe.strengths)
    rows[:, BRIGHTNESS : HUE + 1] = strengths * (2 * u[:, BRIGHTNESS : HUE + 1] - 1) + (1, 1, 1, 0)
    rows[:, ORDER] = np.floor(24 * u[:, ORDER])
    rows[:, GRAY] = u[:, GRAY] < recipe.gray
    low, high = recipe.sigma
    rows[:, SIGMA] = np.where(u[:, SIGMA] < recipe.blur, low + (high - low) * u[:, SIGMA + 1], 0)
    return rows


def crop_boxes(
    rows: Float64[np.ndarray, "B 31"], heights: int | np.ndarray, widths: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The crops of B views, from their rows and the images' sides: top, left, height and width, pixels, (B,) int64.

    The first of ten tries that fits into the image, else the largest centered box of an allowed shape; the same rule,
    from the same draws, as torchvision's `RandomResizedCrop`.
    """
    heights, widths = (np.broadcast_to(side, len(rows)).astype(np.int64) for side in (heights, widths))
    area = rows[:, AREA] * (heights * widths)[:, None]
    w = np.rint(np.sqrt(area * rows[:, ASPECT])).astype(np.int64)
    h = np.rint(np.sqrt(area / rows[:, ASPECT])).astype(np.int64)
    fits = (w > 0) & (w <= widths[:, None]) & (h > 0) & (h <= heights[:, None])
    first, one = fits.argmax(axis=1), np.arange(len(rows))
    shape = widths / heights
    fits_any = fits[one, first]
    largest_width = np.where(shape > ASPECTS[1], np.rint(heights * ASPECTS[1]), widths)
    largest_height = np.where(shape < ASPECTS[0], np.rint(widths / ASPECTS[0]), heights)
    width = np.where(fits_any, w[one, first], largest_width).astype(np.int64)
    height = np.where(fits_any, h[one, first], largest_height).astype(np.int64)
    top = np.where(fits_any, np.floor(rows[:, TOP] * (heights - height + 1)), (heights - height) // 2).astype(np.int64)
    left = np.where(fits_any, np.floor(rows[:, LEFT] * (widths - width + 1)), (widths - width) // 2).astype(np.int64)
    return top, left, height, width


def geometry(
    image: Image.Image, row: Float64[np.ndarray, " 31"], size: int, interpolation: str = "bilinear"
) -> UInt8[np.ndarray, "3 S S"]:
    """Crop, resize and flip one image.

    Args:
        image: RGB.
        row: its view row.
        size: S, side of the view in pixels.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos", antialiased as in PIL.

    Returns:
        (3, S, S) pixels, transposed from PIL's.
    """
    if not row[AREA].any():
        view = center(image, size, 1.0, interpolation)
    else:
        top, left, height, width = (int(side[0]) for side in crop_boxes(row[None], image.height, image.width))
        box = image.crop((left, top, left + width, top + height))
        view = box.resize((size, size), RESAMPLING[interpolation])
    if row[FLIP]:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(view).transpose(2, 0, 1)


def geometry_of_batch(
    pixels: UInt8[np.ndarray, "B H W 3"], rows: Float64[np.ndarray, "B 31"], size: int
) -> UInt8[np.ndarray, "B 3 S S"]:
    """Crop, bilinearly resize and flip a batch of decoded images of one size, bit for bit as `geometry` does.

    At 32 x 32 several times faster than calls into PIL, image by image. For images no larger than the views (H and W at
    most S), and view rows with random crops.
    """
    batch, height, width = pixels.shape[:3]
    top, left, crop_height, crop_width = crop_boxes(rows, height, width)
    result = np.empty((batch, size, 3, size), dtype=np.uint8)
    for start in range(0, batch, 32):  # few enough that all intermediate results stay in the cache
        part = slice(start, start + 32)
        lines = pixels[part].transpose(0, 2, 3, 1).reshape(-1, width, 3 * height)
        across = enlarge_lines(lines, left[part], crop_width[part], size, rows[part, FLIP])
        lines = across.reshape(-1, size, 3, height).transpose(0, 3, 2, 1).reshape(-1, height, 3 * size)
        result[part] = enlarge_lines(lines, top[part], crop_height[part], size).reshape(-1, size, 3, size)
    return result.transpose(0, 2, 1, 3)


@torch.no_grad()
def photometry(
    pixels: UInt8[Tensor, "B 3 S S"], rows: Float64[Tensor, "B 31"], recipe: Recipe
) -> Float32[Tensor, "B 3 S S"]:
    """Color jitter, grayscale and blur, each image by its own row, on the pixels' device.

    Every step equals torchvision's v2 functional of the same parameters on float images.

    Args:
        pixels: cropped views.
        rows: their view rows. Leave them on the CPU: what they decide is read there, and fetching them waits for the
            device.
        recipe: what the rows were drawn from; steps it never takes are left out.

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    few = max(1, CPU_VALUES // max(1, pixels[:1].numel()))
    if pixels.device.type == "cpu" and len(pixels) > few:
        parts = zip(pixels.split(few), rows.split(few), strict=True)
        return torch.cat([photometry(part, part_rows, recipe) for part, part_rows in parts])
    x = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    row = rows.numpy(force=True)
    if recipe.jitter:
        x = _jitter(x, row)
    if recipe.gray:
        index, gray = _flagged(x, row[:, GRAY])
        x.index_copy_(0, index, _luma(gray)[:, None].expand_as(gray))
    if recipe.blur and row[:, SIGMA].any():
        index, sharp = _flagged(x, row[:, SIGMA])
        x.index_copy_(0, index, _blur(sharp, _to_device(row[row[:, SIGMA] > 0, SIGMA], x.device)))
    return x


def _flagged(x: Tensor, flags: np.ndarray) -> tuple[Tensor, Tensor]:
    """The images whose flag is above zero, and where they stand."""
    index = torch.from_numpy(np.flatnonzero(flags > 0)).to(x.device, non_blocking=True)
    return index, x.index_select(0, index)


def _to_device(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device, non_blocking=True)


def _luma(x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B S S"]:
    red, green, blue = x.unbind(1)
    return torch.mul(red, 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _jitter(x: Float[Tensor, "B 3 S S"], rows: Float64[np.ndarray, "B 31"]) -> Float[Tensor, "B 3 S S"]:
    """Brightness, contrast, saturation and hue, in each image's own order.

    The first three are one formula, clamp(f x + (1 - f) c), with c zero, the mean luma, or the luma of each pixel: all
    images take a step at once, whatever it is for each. The hue is another, so the images are sorted by when its turn
    comes; those without jitter are last and left out.
    """
    steps = np.where(rows[:, [JITTER]] > 0, ORDERS[rows[:, ORDER].astype(np.int64)], -1)
    turn = np.where(rows[:, JITTER] > 0, (steps == 3).argmax(axis=1), 4)
    order = np.argsort(turn, kind="stable")
    ends = np.searchsorted(turn[order], range(5))
    rows, steps = rows[order], steps[order].T
    factors = np.ones(steps.shape)
    for kind in (0, 1, 2):
        factors = np.where(steps == kind, rows[:, BRIGHTNESS + kind], factors)
    to_mean, to_pixel = (np.where(steps == kind, 1 - factors, 0) for kind in (1, 2))
    # All numbers that the device needs, in one transfer.
    numbers = _to_device(np.concatenate([factors, to_mean, to_pixel, rows[None, :, HUE]]), x.device)[:, :, None, None]

    x = x.index_select(0, torch.from_numpy(order).to(x.device, non_blocking=True))
    jittered = slice(0, int(ends[4]))
    y = x[jittered]
    for step in range(4):
        factor, by_mean, by_pixel = (numbers[row, jittered] for row in (step, 4 + step, 8 + step))
        luma = _luma(y)
        mean = luma.mean((1, 2), keepdim=True)
        luma.mul_(by_pixel).addcmul_(mean, by_mean)
        y.mul_(factor[:, None]).add_(luma[:, None]).clamp_(0, 1)
        now = slice(int(ends[step]), int(ends[step + 1]))
        _turn_hue(x[now], numbers[12, now])
    return x.index_select(0, torch.from_numpy(np.argsort(order)).to(x.device, non_blocking=True))


def _turn_hue(x: Float[Tensor, "B 3 S S"], shift: Float[Tensor, "B 1 1"]) -> None:
    """Shift the hue by `shift` turns, saturation and value kept, in place.

    The same as through HSV and back, without its case distinctions. With high and low the largest and smallest channel
    and d their difference, the hue in sixths of a turn is 1 + (green + blue - red - low) / d with the sign of
    green - blue; and a channel whose pure color lies at c is low + d * clamp(2 - |hue - c|, 0, 1), distances taken
    around the circle.
    """
    red, green, blue = x.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    d = high - low
    hue = (green - low).add_(blue - red).div_(d.clamp_min(1e-12)).add_(1).copysign_(green - blue)
    hue.add_(shift, alpha=6)
    hue.sub_(torch.round(hue / 6), alpha=6)
    low -= d
    for channel, pure in enumerate((0.0, 2.0, -2.0)):
        distance = (hue - pure).abs_().sub_(3).abs_()  # 3 - |hue - c| around the circle
        torch.addcmul(low, d, distance.clamp_(1, 2), out=x[:, channel])


def _blur(x: Float[Tensor, "B 3 S S"], sigma: Float[Tensor, " B"]) -> Float[Tensor, "B 3 S S"]:
    """Gaussian blur, each image with its own sigma: two passes of one line of the kernel, borders reflected."""
    batch, channels, size, _ = x.shape
    taps = min(BLUR_TAPS, 2 * size - 1)
    reach = taps // 2
    at = torch.arange(-reach, reach + 1, dtype=torch.float32, device=x.device)
    line = torch.softmax(-0.5 * (at / sigma[:, None]).square(), dim=1).repeat_interleave(channels, 0)
    padded = F.pad(x, (reach, reach, reach, reach), mode="reflect").reshape(1, batch * channels, size + 2 * reach, -1)
    rows = F.conv2d(padded, line[:, None, None, :], groups=batch * channels)
    return F.conv2d(rows, line[:, None, :, None], groups=batch * channels).reshape(x.shape)
