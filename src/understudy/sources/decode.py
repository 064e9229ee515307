"""Whatever an image file holds, as 8-bit RGB, and its center square; what cannot be decoded is never a crash.

It becomes `UnreadableImage`.

Differs from torchvision's loader (`Image.convert("RGB")`), which turns 16-bit grayscale almost white, drops alpha so
that the colors hidden under transparent pixels appear, and leaves photographs lying on their side.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from understudy.errors import UnreadableImage

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".jp2")
) | frozenset((".ppm", ".pgm", ".pbm", ".pnm"))
"""File names taken for images, in any case of letters."""

_ALPHA = frozenset(("RGBA", "LA", "PA", "La", "RGBa"))

RESAMPLING = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}
"""What interpolations are called, and what PIL calls them."""


def to_rgb(data: bytes | memoryview | Image.Image, name: str | Callable[[], str] = "the image") -> Image.Image:
    """Decode an image file's bytes, or convert an opened image, to RGB of 8 bits a channel.

    - EXIF orientation is applied; malformed EXIF counts as none.
    - Grayscale, bilevel, palette, YCbCr and CMYK (Adobe's inverted kind too) are converted; no ICC profile is used.
    - Transparency is composited on white, as viewers show it.
    - 16-bit grayscale is scaled by 255 / 65535 and rounded; floating point must lie in [0, 1].
    - Of an animation, the first frame.

    Args:
        data: a file's content, or an image that PIL has opened.
        name: for the sentence of the error; a function is called only then.

    Raises:
        UnreadableImage: empty, truncated, not an image, too large to be honest (PIL's bomb limit, 179 million pixels),
            or in a number format without a defined range.
    """
    try:
        return _decoded(data)
    except Exception as error:  # PIL's many decoders raise nearly anything on damaged files
        title = name if isinstance(name, str) else name()
        if isinstance(error, UnreadableImage):
            raise UnreadableImage(f"{title} {error}") from None
        if isinstance(error, UnidentifiedImageError):
            raise UnreadableImage(f"{title} is not an image in a known format.") from None
        raise UnreadableImage(f"{title} cannot be decoded ({type(error).__name__}: {error}).") from None


def _decoded(data: bytes | memoryview | Image.Image) -> Image.Image:
    if not isinstance(data, Image.Image) and len(data) == 0:
        raise UnreadableImage("is empty (0 bytes).")
    # PIL warns about odd but readable files (large, broken EXIF, palette transparency): they are read all the same.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data), formats=_formats())
        image.load()
        return _eight_bit_rgb(_upright(image))


@functools.cache
def _formats() -> tuple[str, ...]:
    """What PIL may take a file for. Left to itself it would hand PostScript, whatever it is called, to Ghostscript."""
    Image.init()
    formats = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
    return tuple(name for name in formats if name in Image.OPEN)  # AVIF came with Pillow 11.3


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception:  # malformed EXIF states no orientation: the pixels are as they are stored
        return image


def _eight_bit_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image)
        lowest, highest = int(values.min()), int(values.max())
        if lowest < 0 or highest > 65535:
            raise UnreadableImage(
                f"holds whole numbers from {lowest} to {highest}, and only 8 and 16 bits have a defined white."
            )
        return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):
            raise UnreadableImage(
                f"holds floating-point values from {values.min():g} to {values.max():g}, and only [0, 1] has a defined "
                "white."
            )
        return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
    if image.mode in _ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


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
