"""The plain geometry of an image: its center square, as networks are evaluated on it."""

from __future__ import annotations

from PIL import Image

RESAMPLING = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}
"""What interpolations are called, and what PIL calls them."""


def center(image: Image.Image, size: int, crop: float, interpolation: str) -> Image.Image:
    """Evaluation geometry: the shorter side to round(size / crop), then the size x size square in the middle.

    Args:
        image: RGB.
        size: side of the result in pixels.
        crop: share of the resized shorter side that is kept.
        interpolation: a key of `RESAMPLING`, antialiased as in PIL.
    """
    width, height = image.size
    short = round(size / crop)
    if min(width, height) != short:
        shape = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        image = image.resize(shape, RESAMPLING[interpolation])
    if image.size == (size, size):
        return image
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))
