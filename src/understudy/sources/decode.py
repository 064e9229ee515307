"""Whatever an image file holds, as 8-bit RGB, and its center square; what cannot be decoded is never a crash.

It becomes `UnreadableImage`, and so does what is larger or slower than `limits` allow.

Differs from torchvision's loader (`Image.convert("RGB")`), which turns 16-bit grayscale almost white, drops alpha so
that the colors hidden under transparent pixels appear, and leaves photographs lying on their side.
"""

from __future__ import annotations

import functools
import io
import os
import warnings
from collections.abc import Callable
from typing import NamedTuple

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from understudy.artifacts import open_regular
from understudy.errors import DataError, UnreadableImage, first_line
from understudy.sources.decoder import Decoder, serve
from understudy.sources.limits import BYTES, ImageLimits, variable
from understudy.sources.samples import eight_bit_rgb, unpack

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".jp2")
) | frozenset((".ppm", ".pgm", ".pbm", ".pnm"))
"""File names taken for images, in any case of letters."""

RESAMPLING = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}
"""What interpolations are called, and what PIL calls them."""

FITS = ("crop", "crop-floor", "squash")
"""How an image comes into a square: the middle of it, the same where half a pixel is rounded down, or all of it."""

LONGEST_RESIZED = 64  # times its shorter side


IN_PLACE = frozenset(("jpeg", "zip", "gif", "raw"))
"""PIL's decoders that are C and take a time which the number of pixels tells; WebP's has no name before it runs."""

WEBP_COST = 4  # it holds the pixels four times
TILES = 2**14  # of an uncompressed file: each is a turn of a loop in Python
PASSES = 2**26  # pixels, times how often they are gone over, that are unpacked in place: less than a second

_decoder = Decoder()


def to_rgb(data: bytes | memoryview | Image.Image, name: str | Callable[[], str] = "the image") -> Image.Image:
    """Decode an image file's bytes, or convert an opened image, to RGB of 8 bits a channel.

    - EXIF orientation is applied; malformed EXIF counts as none.
    - Grayscale, bilevel, palette, YCbCr and CMYK (Adobe's inverted kind too) are converted, white is white where a file
      counts from white to black; no ICC profile is used, at any depth.
    - Transparency, of a channel, a palette or one color, is composited on white, as viewers show it.
    - 16-bit grayscale is scaled by 255 / 65535 and rounded, 12-bit by 255 / 4095; floating point must lie in [0, 1].
    - Of an animation, the first frame; an image that PIL has opened, as it stands.

    A file is unpacked only within `ImageLimits`: its sides are compared first, and where they do not tell what it will
    cost (compressed TIFF, AVIF, JPEG 2000, JPEG of many scans, plain PPM, run-length BMP), `decoder` does it.

    Args:
        data: a file's content, or an image that PIL has opened.
        name: for the sentence of the error; a function is called only then.

    Raises:
        UnreadableImage: empty, truncated, not an image, beyond the limits, or in a number format without a defined
            range.
        ConfigError: a limit that is no number.
        DataError: no process can be started to decode it.
    """
    limits = ImageLimits.of_environment()
    try:
        return _decoded(data, limits)
    except UnreadableImage as error:
        title = name if isinstance(name, str) else name()
        raise UnreadableImage(f"{title} {error}") from None


def read_image_file(path: str) -> bytes:
    """The content of a file that shall be an image.

    Raises:
        UnreadableImage: it is not there, no regular file (a pipe or a device could be read for ever), or larger than
            any image within the limits.
    """
    most = ImageLimits.of_environment().nbytes
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > most:
                raise UnreadableImage(f"{path} has {size:,} bytes, and an image file may have {most:,}.")
            return file.read(size)  # of `most` bytes the room would be set aside at once
    except OSError as error:
        raise UnreadableImage(f"{path} cannot be opened ({error.strerror}).") from None


def serve_decoder() -> None:
    """What the process of `decoder` does."""
    serve(lambda data, limits: _decoded(data, limits, in_child=True))


def open_image(data: bytes | memoryview, limits: ImageLimits, formats: tuple[str, ...] | None = None) -> Image.Image:
    """A file as PIL opens it, not yet unpacked and not too large.

    Raises:
        UnreadableImage: it is. And whatever PIL raises.
    """
    if len(data) == 0:
        raise UnreadableImage("is empty (0 bytes).")
    own = Image.MAX_IMAGE_PIXELS
    if own is not None and limits.pixels > 2 * own:
        Image.MAX_IMAGE_PIXELS = limits.pixels  # the user has asked for more than PIL allows
    try:
        image = Image.open(io.BytesIO(data), formats=formats or _formats())
    except Image.DecompressionBombError:
        raise UnreadableImage(f"has too many pixels: {limits.most_pixels}.") from None
    limits.check(*image.size)
    return image


def _decoded(data: bytes | memoryview | Image.Image, limits: ImageLimits, *, in_child: bool = False) -> Image.Image:
    """See `to_rgb`; the sentences of errors lack their subject."""
    try:
        # PIL warns about odd but readable files (large, broken EXIF, palette transparency): they are read all the same.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(data, Image.Image):
                limits.check(*data.size)
                image = data
            elif in_child:
                image = open_image(data, limits)
            elif data[4:8] == b"ftyp":  # AVIF: not even its header is read by Python
                return _decoder.decode(data, limits)
            else:
                image = open_image(data, limits)
                if not _in_place(image, data):
                    return _decoder.decode(data, limits)
            image, samples = unpack(image)
            return eight_bit_rgb(_upright(image), samples)
    except DataError:  # a sentence already
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("is not an image in a known format.") from None
    except MemoryError:
        raise UnreadableImage(
            f"takes more than {limits.nbytes:,} bytes of memory to unpack, {BYTES} for each pixel allowed "
            f"({variable('pixels')})."
        ) from None
    except Exception as error:  # PIL's many decoders raise nearly anything on damaged files
        raise UnreadableImage(f"cannot be decoded ({type(error).__name__}: {first_line(error)}).") from None


def _in_place(image: Image.Image, data: bytes | memoryview) -> bool:
    """Whether an opened file is unpacked here: its decoder's time and memory follow from its pixels."""
    passes, tiles = 1, getattr(image, "tile", [])
    if image.format in ("JPEG", "MPO"):
        passes = _scans(image, data)
    elif image.format == "WEBP":
        passes, tiles = WEBP_COST, []
    if len(tiles) > TILES or any(tile.codec_name not in IN_PLACE for tile in tiles):
        return False
    return passes * image.width * image.height <= PASSES


def _scans(image: Image.Image, data: bytes | memoryview) -> int:
    """How often a JPEG goes over its pixels, which its header does not tell."""
    first = image.fp.tell() + 2  # type: ignore[attr-defined]  # where the first scan says how many channels it has
    together = data[first : first + 1] == bytes((getattr(image, "layers", 0),))
    if image.format == "JPEG" and together and not image.info.get("progressive"):
        return 1  # another scan would be an error
    return max(1, bytes(data).count(b"\xff\xda"))  # a marker that stands nowhere else but in a thumbnail


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


class Geometry(NamedTuple):
    """How an image becomes the square that a network sees; the arguments of `center`."""

    size: int
    crop: float = 1.0
    interpolation: str = "bilinear"
    fit: str = "crop"


def center(image: Image.Image, size: int, crop: float, interpolation: str, fit: str = "crop") -> Image.Image:
    """Evaluation geometry: the shorter side to round(size / crop), then the size x size square in the middle.

    Args:
        image: RGB.
        size: side of the result in pixels.
        crop: share of the resized shorter side that is kept.
        interpolation: a key of `RESAMPLING`, antialiased as in PIL.
        fit: of `FITS`; "squash" brings both sides, not the shorter one, to round(size / crop).
    """
    width, height = image.size
    short = round(size / crop)
    shape = (width, height)
    if fit == "squash":
        shape = (short, short)
    elif min(width, height) != short:
        shape = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    left, top = ((side - size) // 2 if fit == "crop-floor" else round((side - size) / 2) for side in shape)
    if max(shape) > LONGEST_RESIZED * short:
        # Of a line of pixels the whole would be as long as it is wide the other way: only the square is made. Across,
        # then down: in this order PIL does the whole.
        across, down, kind = width / shape[0], height / shape[1], RESAMPLING[interpolation]
        image = image.resize((size, height), kind, box=(left * across, 0, (left + size) * across, height))
        return image.resize((size, size), kind, box=(0, top * down, size, (top + size) * down))
    if shape != image.size:
        image = image.resize(shape, RESAMPLING[interpolation])
    if image.size == (size, size):
        return image
    return image.crop((left, top, left + size, top + size))
