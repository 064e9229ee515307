"""The fifteen corruptions of Hendrycks & Dietterich (ICLR 2019, arXiv 1903.12261), made on the fly.

Written from their definitions, with ImageNet-C's strengths for images above 64 pixels and CIFAR-10-C's below; lengths
in pixels are those of 224 and of 32, whatever the size. A corrupted image is a function of (corruption, severity, image
id): the same for every encoder of one input size. The released sets were made with other libraries' resampling, blur
and JPEG, so figures on these images are near those on the released ones, not equal to them. Frost is laid over
photographs that come with the authors' code; without a folder of them it cannot be made.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage

from understudy.artifacts import fingerprint, read_regular
from understudy.errors import ConfigError, DataError
from understudy.settings import nearest
from understudy.sources.decode import EXTENSIONS, Geometry, center, to_rgb
from understudy.sources.labels import Labels
from understudy.sources.source import Source

SMALL = 64

Pixels = Float[np.ndarray, "H W 3"]
Draws = np.random.Generator


def gaussian_noise(x: Pixels, c: float, rng: Draws) -> Pixels:
    """Normal noise of standard deviation c."""
    return x + rng.normal(scale=c, size=x.shape)


def shot_noise(x: Pixels, c: float, rng: Draws) -> Pixels:
    """Poisson noise of c photons at full brightness."""
    return rng.poisson(x * c) / c


def impulse_noise(x: Pixels, c: float, rng: Draws) -> Pixels:
    """A share c of the values replaced by 0 or 1."""
    hit = rng.random(x.shape) < c
    return np.where(hit, rng.integers(0, 2, x.shape), x)


def defocus_blur(x: Pixels, c: tuple[float, float], rng: Draws) -> Pixels:  # noqa: ARG001
    """A disk of radius c[0], its rim softened by a normal blur of sigma c[1]."""
    radius, soft = c
    reach, taps = (8, 1) if radius <= 8 else (int(radius), 2)
    axis = np.arange(-reach, reach + 1)
    disk = (axis[:, None] ** 2 + axis[None] ** 2 <= radius**2).astype(float)
    bell = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * soft**2))
    bell /= bell.sum()
    kernel = ndimage.correlate1d(ndimage.correlate1d(disk / disk.sum(), bell, 0, mode="mirror"), bell, 1, mode="mirror")
    return np.stack([ndimage.correlate(channel, kernel, mode="mirror") for channel in np.moveaxis(x, 2, 0)], axis=2)


def glass_blur(x: Pixels, c: tuple[float, int, int], rng: Draws) -> Pixels:
    """Blurred (sigma c[0]), each pixel swapped with one at most c[1] away, c[2] times over, and blurred again."""
    sigma, reach, rounds = c
    height, width = x.shape[:2]
    blurred = _normal(x, sigma)
    order = list(range(height * width))
    for _ in range(rounds):
        inner = (height - 2 * reach, width - 2 * reach)
        down, right = rng.integers(-reach, reach, (2, max(0, inner[0]), max(0, inner[1])))
        steps = (down * width + right).tolist()
        for h in range(height - reach - 1, reach - 1, -1):
            line = steps[h - reach]
            for w in range(width - reach - 1, reach - 1, -1):
                here = h * width + w
                there = here + line[w - reach]
                order[here], order[there] = order[there], order[here]
    return _normal(blurred.reshape(-1, 3)[order].reshape(x.shape), sigma)


def motion_blur(x: Pixels, c: tuple[int, float], rng: Draws) -> Pixels:
    """A trail of 2 c[0] + 1 pixels, weights a half bell of sigma c[1], at most 45 degrees from level."""
    return _trail(x, c[0], c[1], rng.uniform(-45, 45))


def zoom_blur(x: Pixels, c: np.ndarray, rng: Draws) -> Pixels:  # noqa: ARG001
    """The mean of the image and its enlargements by the factors c."""
    return (x + sum(_zoomed(x, factor) for factor in c)) / (len(c) + 1)


def snow(x: Pixels, c: tuple[float, ...], rng: Draws) -> Pixels:
    """Flakes: thresholded normal noise, enlarged and blurred into streaks, over a whitened image."""
    flakes = _zoomed(rng.normal(c[0], c[1], (*x.shape[:2], 1)), c[2])
    flakes[flakes < c[3]] = 0
    flakes = _trail(np.clip(flakes, 0, 1), int(c[4]), c[5], rng.uniform(-135, -45))
    gray = (x @ np.array([0.299, 0.587, 0.114]))[:, :, None]
    white = c[6] * x + (1 - c[6]) * np.maximum(x, 1.5 * gray + 0.5)
    return np.asarray(white + flakes + flakes[::-1, ::-1])


def frost(x: Pixels, c: tuple[float, float], rng: Draws, photographs: list[np.ndarray]) -> Pixels:
    """A piece of a photograph of frost over the image."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    height, width = x.shape[:2]
    top, left = (int(rng.integers(0, room + 1)) for room in (photograph.shape[0] - height, photograph.shape[1] - width))
    return np.asarray(c[0] * x + c[1] * photograph[top : top + height, left : left + width])


def fog(x: Pixels, c: tuple[float, float], rng: Draws) -> Pixels:
    """A plasma cloud of strength c[0], its detail falling by c[1] an octave."""
    side = 1 << (max(x.shape[:2]) - 1).bit_length()
    cloud = _plasma(side, c[1], rng)[: x.shape[0], : x.shape[1], None]
    return np.asarray((x + c[0] * cloud) * x.max() / (x.max() + c[0]))


def brightness(x: Pixels, c: float, rng: Draws) -> Pixels:  # noqa: ARG001
    """The value of hue, saturation and value raised by c."""
    value = x.max(axis=2, keepdims=True)
    raised = np.clip(value + c, 0, 1)
    return np.asarray(np.where(value > 0, x * raised / np.maximum(value, 1e-12), raised))


def contrast(x: Pixels, c: float, rng: Draws) -> Pixels:  # noqa: ARG001
    """Distances from each channel's mean times c."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    return np.asarray((x - mean) * c + mean)


def elastic_transform(x: Pixels, c: tuple[float, float, float], rng: Draws) -> Pixels:
    """An affine map that moves three points by at most c[2], then a smooth field: sigma c[1], strength c[0]."""
    height, width = x.shape[:2]
    side = min(height, width)
    strength, sigma, reach = (number * (side * 244 / 224 if side > SMALL else side) for number in c)
    middle, third = np.array([height // 2, width // 2]), min(height, width) // 3
    points = np.array([middle + third, [middle[0] - third, middle[1] + third], middle - third], dtype=float)
    moved = points + rng.uniform(-reach, reach, points.shape)
    # Rows (y, x, 1) of the moved points to the original ones: where each pixel of the result comes from.
    back = np.linalg.solve(np.c_[moved, np.ones(3)], points)
    field = [ndimage.gaussian_filter(rng.uniform(-1, 1, (height, width)), sigma, mode="reflect", truncate=3)
             for _ in range(2)] if sigma > 0 else [np.zeros((height, width))] * 2  # fmt: skip
    grid = np.mgrid[:height, :width].astype(float)
    wave = grid + strength * np.stack(field)
    channels = []
    for channel in np.moveaxis(x, 2, 0):
        turned = ndimage.affine_transform(channel, back[:2].T, back[2], order=1, mode="mirror")
        channels.append(ndimage.map_coordinates(turned, wave, order=1, mode="reflect"))
    return np.stack(channels, axis=2)


def pixelate(x: Pixels, c: float, rng: Draws) -> Pixels:  # noqa: ARG001
    """Shrunk to a share c of the side and enlarged again, by box filters."""
    image = _image(x)
    size = image.size
    small = image.resize((max(1, int(size[0] * c)), max(1, int(size[1] * c))), Image.Resampling.BOX)
    return np.asarray(small.resize(size, Image.Resampling.BOX)) / 255.0


def jpeg_compression(x: Pixels, c: int, rng: Draws) -> Pixels:  # noqa: ARG001
    """JPEG of quality c."""
    buffer = io.BytesIO()
    _image(x).save(buffer, "JPEG", quality=c)
    return np.asarray(Image.open(buffer)) / 255.0


CORRUPTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog,
        brightness, contrast, elastic_transform, pixelate, jpeg_compression,
    )
}  # fmt: skip
"""The fifteen, in the order of the paper's tables."""

LARGE_STRENGTHS: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": tuple(
        np.arange(1, end, step) for end, step in ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
    ),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": (25, 18, 15, 10, 7),
}  # fmt: skip
"""ImageNet-C's, severities 1 to 5; those of the elastic transform are shares of 244 pixels for images of 224."""

SMALL_STRENGTHS: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": tuple(np.arange(1, end, 0.01) for end in (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
}  # fmt: skip
"""CIFAR-10-C's, severities 1 to 5; those of the elastic transform are shares of the side."""


def corrupt(
    pixels: UInt8[np.ndarray, "H W 3"], name: str, severity: int, image_id: int,
    photographs: list[np.ndarray] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:  # fmt: skip
    """One corrupted image, severity 1 to 5; its id draws what is random, `photographs` of frost are in [0, 1].

    Raises:
        ConfigError: an unknown corruption, or a severity that there is not.
        DataError: frost without photographs.
    """
    if name not in CORRUPTIONS:
        raise ConfigError(f"Unknown corruption '{name}'. {nearest(name, CORRUPTIONS)}")
    if not 1 <= severity <= 5:
        raise ConfigError(f"Severities are 1 to 5; got {severity}.")
    strengths = SMALL_STRENGTHS if max(pixels.shape[:2]) <= SMALL else LARGE_STRENGTHS
    number = list(CORRUPTIONS).index(name)
    rng = np.random.Generator(np.random.Philox(key=[image_id, 100 * number + severity]))
    x, c = pixels / 255.0, strengths[name][severity - 1]
    if name == "frost" and not photographs:
        raise DataError("Frost is laid over photographs, and there are none.")
    corrupted = CORRUPTIONS[name](x, c, rng, *([photographs] if name == "frost" else []))
    return np.asarray(_image(corrupted))


class CorruptedImages:
    """The images of a source as an encoder would see them, by its own contract, then corrupted."""

    def __init__(
        self, source: Source, geometry: Geometry, name: str, severity: int, photographs: list[np.ndarray] | None = None
    ) -> None:
        self.source, self.geometry = source, geometry
        self.name, self.severity, self.photographs = name, severity, photographs
        *usual, fit = geometry
        self.fingerprint = fingerprint(
            "corrupted", source.fingerprint, tuple(usual), name, severity, *([fit] if fit != "crop" else [])
        )

    def __len__(self) -> int:
        return len(self.source)

    def read(self, row: int) -> Image.Image:
        """See `Images`."""
        pixels = np.asarray(center(self.source.read(row), *self.geometry))
        number = int(self.source.ids[row])
        return Image.fromarray(corrupt(pixels, self.name, self.severity, number, self.photographs))

    def content(self, row: int) -> bytes | memoryview:
        """See `Images`: that of the whole image, as it is stored."""
        return self.source.content(row)

    def names(self, rows: np.ndarray) -> pa.Array:
        """See `Images`."""
        return self.source.names.take(pa.array(np.asarray(rows)))

    def labels(self) -> Labels | None:
        """See `Images`."""
        return None


def frost_photographs(folder: str, size: int) -> list[np.ndarray]:
    """The photographs of frost in a folder, values in [0, 1], none smaller than the images.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    root = Path(os.path.expanduser(folder))
    files = sorted(path for path in root.glob("*") if path.suffix.lower() in EXTENSIONS)
    if not files:
        raise DataError(
            f"{root} holds no photographs of frost. They are frost1.png to frost6.jpg of the authors' repository "
            "hendrycks/robustness."
        )
    photographs = []
    for path in files:
        try:
            image = to_rgb(read_regular(path), str(path))
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}).") from None
        if size <= SMALL:  # as CIFAR-10-C shrinks them
            image = image.resize((max(size, image.width // 5), max(size, image.height // 5)), Image.Resampling.BICUBIC)
        if min(image.size) < size:
            factor = size / min(image.size)
            image = image.resize((round(image.width * factor) + 1, round(image.height * factor) + 1))
        photographs.append(np.asarray(image) / 255.0)
    return photographs


def _image(x: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(x * 255, 0, 255).astype(np.uint8))


def _normal(x: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest"))


def _trail(x: np.ndarray, radius: int, sigma: float, degrees: float) -> np.ndarray:
    """Copies of the image along a direction, weights a half bell; edges are repeated."""
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    height, width = x.shape[:2]
    down, right = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
    trail = np.zeros_like(x)
    for step, weight in enumerate(weights):
        rows = np.clip(np.arange(height) + round(step * down), 0, height - 1)
        columns = np.clip(np.arange(width) + round(step * right), 0, width - 1)
        trail += weight * x[rows][:, columns]
    return trail


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle of the image, enlarged by the factor to the image's own size."""
    extents = [int(np.ceil(side / factor)) for side in x.shape[:2]]
    corners = [(side - extent) // 2 for side, extent in zip(x.shape, extents, strict=False)]
    rows, columns = (slice(start, start + extent) for start, extent in zip(corners, extents, strict=True))
    large = ndimage.zoom(x[rows, columns], (factor, factor, 1), order=1)
    starts = [(have - want) // 2 for have, want in zip(large.shape[:2], x.shape[:2], strict=True)]
    middle = large[starts[0] : starts[0] + x.shape[0], starts[1] : starts[1] + x.shape[1]]
    return np.array(middle)


def _plasma(side: int, decay: float, rng: Draws) -> np.ndarray:
    """A cloud by diamonds and squares on a torus, (side, side) in [0, 1]; side is a power of two."""
    cloud, step, wild = np.zeros((side, side)), side, 100.0

    def mean_of(*corners: np.ndarray) -> np.ndarray:
        return sum(corners) / 4 + wild * rng.uniform(-wild, wild, corners[0].shape)

    while step >= 2:
        half = step // 2
        corner = cloud[::step, ::step]
        below = np.roll(corner, -1, 0)
        cloud[half::step, half::step] = mean_of(corner, below, np.roll(corner, -1, 1), np.roll(below, -1, 1))
        middle = cloud[half::step, half::step]
        cloud[::step, half::step] = mean_of(middle, np.roll(middle, 1, 0), corner, np.roll(corner, -1, 1))
        cloud[half::step, ::step] = mean_of(middle, np.roll(middle, 1, 1), corner, np.roll(corner, -1, 0))
        step, wild = half, wild / decay
    cloud -= cloud.min()
    return cloud / max(float(cloud.max()), 1e-12)
