"""The input contract of a network: which size, normalization and resampling it was trained on."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from understudy.errors import ModelError, ShapeError, first_line
from understudy.settings import nearest
from understudy.sources.decode import FITS, RESAMPLING, Geometry, center, to_rgb

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

LARGEST = 4096  # pixels of a side: a number in a file must not ask for all memory

TENS = 10.0  # from here on a std is one of pixels in 0..255; on [0, 1] it is at most 0.5, and 1 means none

SMALL = 64
"""At this size or below an untrained network sees the whole image in evaluation; above it, the usual 0.875 of it."""


@dataclass(frozen=True)
class Contract:
    """What a network expects of its input. Each teacher and each student carries its own.

    Args:
        size: side of the square input, in pixels.
        mean: per channel (red, green, blue), on pixels in [0, 1].
        std: per channel, on pixels in [0, 1].
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        crop: share of the resized shorter side that the center crop keeps: an image is resized to round(size / crop)
            on its shorter side, then cropped to size x size. 1.0 keeps the largest centered square.
        fit: "crop", as just said; "crop-floor", which rounds half a pixel down where it begins to crop; or "squash",
            which resizes both sides to round(size / crop), so that 1.0 keeps the whole image in other proportions.

    Raises:
        ModelError: a value that no network can have.
    """

    size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop: float = 1.0
    fit: str = "crop"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            numbers = tuple(float(number) for number in getattr(self, name))
            if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
                raise ModelError(f"An input {name} has three numbers (red, green, blue on [0, 1]); got {numbers}.")
            object.__setattr__(self, name, numbers)
        if min(self.std) <= 0:
            raise ModelError(f"An input std is positive in every channel; got {self.std}.")
        self._refuse_other_scale()
        if not 1 <= self.size <= LARGEST:
            raise ModelError(f"An input size is at least 1 pixel and at most {LARGEST}; got {self.size}.")
        if not 0 < self.crop <= 1:
            raise ModelError(f"A crop share lies in (0, 1]; got {self.crop}.")
        if self.interpolation not in RESAMPLING:
            raise ModelError(f"Unknown interpolation '{self.interpolation}'. {nearest(self.interpolation, RESAMPLING)}")
        if self.fit not in FITS:
            raise ModelError(f"Unknown way '{self.fit}' to fit an image into a square. {nearest(self.fit, FITS)}")

    def _refuse_other_scale(self) -> None:
        """Refuse the statistics of pixels in 0..255, with those that were meant.

        Raises:
            ModelError: the mean is beyond 1, or the std is one of tens.
        """
        if max(map(abs, self.mean)) <= 1 and max(self.std) < TENS:
            return
        # A std of 1 beside a mean of 0..255 leaves those pixels undivided; a smaller one was divided already.
        scales = (255 if max(map(abs, self.mean)) > 1 else 1, 255 if max(self.std) >= 1 else 1)
        means, stds = (
            ",".join(f"{number / scale:.6g}" for number in numbers)
            for numbers, scale in zip((self.mean, self.std), scales, strict=True)
        )
        raise ModelError(
            f"An input mean of {_listed(self.mean)} with a std of {_listed(self.std)} is for pixels from 0 to 255; "
            f"here they lie in [0, 1]. Divided by 255: mean {means} and std {stds}."
        )

    @classmethod
    def untrained(cls, size: int, interpolation: str = "bilinear") -> Contract:
        """The contract of a network that has none yet: ImageNet's statistics, as in the CoSS paper's scripts."""
        return cls(size, IMAGENET_MEAN, IMAGENET_STD, interpolation, crop=1.0 if size <= SMALL else 0.875)

    @property
    def geometry(self) -> Geometry:
        """What becomes of an image before it is normalized."""
        return Geometry(self.size, self.crop, self.interpolation, self.fit)

    def override(self, **values: Any) -> Contract:
        """This contract with other values; those that are None stay."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})

    def table(self) -> dict[str, Any]:
        """The contract as plain JSON, the inverse of `from_table`; `fit` is left out where it is the usual one."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if (name, value) != ("fit", "crop")
        }

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Contract:
        """A contract from JSON: `size` (a number, or [H, W] of a square), `mean`, `std`; the rest has defaults.

        Raises:
            ModelError: a key is missing or a value cannot be used.
        """
        if missing := [name for name in ("size", "mean", "std") if name not in table]:
            raise ModelError(f"An input contract needs size, mean, std; {', '.join(missing)} missing in {dict(table)}.")
        size = table["size"]
        try:
            if isinstance(size, list | tuple):
                if len(set(size)) != 1:
                    raise ModelError(f"An input must be square; this contract asks for {' x '.join(map(str, size))}.")
                size = size[0]
            values = int(size), tuple(map(float, table["mean"])), tuple(map(float, table["std"]))
            interpolation, crop = str(table.get("interpolation", "bilinear")), float(table.get("crop", 1.0))
        except (TypeError, ValueError, OverflowError) as error:
            raise ModelError(
                f"An input contract has numbers for size, mean, std and crop ({first_line(error)}); got {dict(table)}."
            ) from None
        return cls(*values, interpolation, crop, str(table.get("fit", "crop")))

    def preprocess(self, image: Image.Image) -> Float32[Tensor, "3 S S"]:
        """One image as the network wants it: what training saw of the same file, resized, cropped, normalized.

        Args:
            image: as PIL opens it, any kind of those that data sources read. EXIF, alpha, palettes and 16 bits are
                honored by the very function that decodes data (`understudy.sources.decode.to_rgb`).

        Returns:
            (3, S, S) float32.

        Raises:
            UnreadableImage: it cannot be decoded, or is larger than an image may be.
        """
        rgb = to_rgb(image, getattr(image, "filename", "") or "the image")
        square = center(rgb, *self.geometry)
        pixels = np.asarray(square, dtype=np.float32) / 255
        normalized = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(normalized.transpose(2, 0, 1)))

    def prepare(self, images: Tensor) -> Float[Tensor, "B 3 S S"]:
        """(B, 3, H, W) floating point in [0, 1] -> (B, 3, S, S) as the network wants it, same type and device.

        Resized only if the size differs, then normalized. Differs from `preprocess`: no cropping, because a view is
        already the square the network shall see.

        Raises:
            ShapeError: not a batch of color images.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ShapeError(
                f"A network takes (B, 3, H, W) floating point in [0, 1]; got {tuple(images.shape)} {images.dtype}."
            )
        if images.shape[-2:] != (self.size, self.size):
            if self.interpolation == "nearest":
                images = F.interpolate(images, size=(self.size, self.size), mode="nearest-exact")
            else:
                # Antialiased like PIL's own resizing; bicubic overshoots, where PIL clips to 0..255. PyTorch has
                # lanczos on the CPU only, and a device must not change the pixels: bicubic is its nearest kin.
                mode = "bilinear" if self.interpolation == "bilinear" else "bicubic"
                images = F.interpolate(images, (self.size, self.size), mode=mode, antialias=True)
                images = images.clamp(0, 1)
        return self.normalize(images)

    def normalize(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Pixels in [0, 1] by this network's mean and std, whatever their size."""
        mean, std = _statistics(self.mean, self.std, images.device, images.dtype)
        return (images - mean) / std


def _listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


@functools.cache
def _statistics(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Mean and std as (1, 3, 1, 1) tensors, kept: building them anew for each batch would wait for the device."""
    with torch.inference_mode(False):  # A tensor born in inference mode could not be used in training later.
        first, second = (torch.tensor(values, dtype=dtype, device=device).view(1, 3, 1, 1) for values in (mean, std))
    return first, second
