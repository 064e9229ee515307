"""From the samples of an image to 8-bit RGB on white: depths, counting from white, alpha and the one clear color."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from understudy.errors import UnreadableImage

DEEP = frozenset(("I", "I;16", "I;16L", "I;16B", "I;16N", "F"))
"""PIL's modes of more than 8 bits a sample: what it knows of their meaning it does not apply."""

BAND = 2**22  # pixels that are composited at once


@dataclass(frozen=True)
class Samples:
    """What a file says of its samples, PIL leaves to its user, and an image forgets when it is turned."""

    white: int = 65535  # the largest number, of a deep sample
    from_white: bool = False  # deep samples count from white (0) to black
    signed: bool = False  # samples are -128 ... 127, and PIL reads them as 0 ... 255
    plain_ink: bool = False  # CMYK that PIL has inverted though it was not


def unpack(image: Image.Image) -> tuple[Image.Image, Samples]:
    """The unpacked image, its transparent color in PIL's own numbers, and what is to be known of its samples.

    An image that is unpacked already has forgotten how deep its samples were: there a transparent color of 16 bits is
    compared in 8.
    """
    clear, rawmode = image.info.get("transparency"), ""
    if image.format == "PNG" and getattr(image, "tile", None):
        rawmode = str(image.tile[0].args)  # type: ignore[attr-defined]
    packed = _content(image) if isinstance(clear, tuple) and rawmode == "RGB;16B" else b""
    image.load()
    if packed and isinstance(clear, tuple):
        shown = _other_colors(image, packed, clear)
        image = image.copy()
        del image.info["transparency"]
        image.putalpha(shown)
    elif isinstance(clear, tuple) and max(clear) > 255:
        image = _with_clear(image, tuple(value >> 8 for value in clear))
    elif isinstance(clear, int) and rawmode in ("L;2", "L;4"):  # PIL widens such samples to 8 bits, but not this one
        image = _with_clear(image, clear * (255 // (2 ** int(rawmode[-1]) - 1)))
    return image, _samples(image)


def _samples(image: Image.Image) -> Samples:
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        deep = image.mode in DEEP
        return Samples(
            white=4095 if deep and tags.get(BITSPERSAMPLE, (16,))[0] == 12 else 65535,
            from_white=deep and tags.get(PHOTOMETRIC_INTERPRETATION, 0) == 0,  # 0 where there is none, as PIL has it
            signed=image.mode == "L" and tags.get(SAMPLEFORMAT, (1,))[0] == 2,
        )
    # Adobe writes ink inverted, and that it was Adobe; PIL inverts without asking.
    plain = image.format in ("JPEG", "MPO") and image.mode == "CMYK" and "adobe" not in image.info
    return Samples(plain_ink=plain)


def eight_bit_rgb(image: Image.Image, samples: Samples) -> Image.Image:
    """An unpacked image as RGB of 8 bits a channel, on white.

    Raises:
        UnreadableImage: numbers without a defined range; the sentence lacks its subject.
    """
    if samples.signed and (lowest := int(np.asarray(image).view(np.int8).min())) < 0:
        raise UnreadableImage(f"holds signed numbers down to {lowest}, and only those from 0 have a defined white.")
    if image.mode in DEEP:
        gray, clear = _gray(image, samples), image.info.get("transparency")
        if isinstance(clear, int):
            gray[np.asarray(image) == clear] = 255
        return Image.fromarray(gray).convert("RGB")
    if samples.plain_ink:
        image = ImageChops.invert(image)
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray(image: Image.Image, samples: Samples) -> np.ndarray:
    """(H, W) uint8 of samples of more than 8 bits."""
    values: np.ndarray = np.asarray(image)
    lowest, highest = values.min(), values.max()
    if image.mode == "F":
        if not (lowest >= 0 and highest <= 1):
            raise UnreadableImage(
                f"holds floating-point values from {lowest:g} to {highest:g}, and only [0, 1] has a defined white."
            )
        unit: np.ndarray = np.rint((1 - values if samples.from_white else values) * 255)
        return unit.astype(np.uint8)
    if lowest < 0 or highest > samples.white:
        raise UnreadableImage(
            f"holds whole numbers from {lowest} to {highest}, and only 8 and 16 bits have a defined white."
        )
    table = ((np.arange(samples.white + 1) * 255 + samples.white // 2) // samples.white).astype(np.uint8)
    gray: np.ndarray = np.take(table[::-1] if samples.from_white else table, values)
    return gray


def _on_white(image: Image.Image) -> Image.Image:
    """Composited on white, in bands: beside the image there is never more than the result."""
    whole = Image.new("RGB", image.size)
    if image.mode == "La":
        image = image.convert("LA")  # the only way PIL knows
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        whole.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB"), (0, top))
    return whole


def _with_clear(image: Image.Image, clear: int | tuple[int, ...]) -> Image.Image:
    """The image with another transparent color; nobody else's is changed."""
    image = image.copy()
    image.info["transparency"] = clear
    return image


def _content(image: Image.Image) -> bytes:
    """The file of an image that is not unpacked yet."""
    file = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(0)
    content: bytes = file.read()
    file.seek(place)
    return content


def _other_colors(image: Image.Image, packed: bytes, clear: tuple[int, ...]) -> Image.Image:
    """(mode L) 0 where an image of 16 bits a channel has this color, else 255.

    Of each sample PIL keeps the high byte; read as if the lower one came first, the same file yields the others.
    """
    lower = Image.open(io.BytesIO(packed), formats=("PNG",))
    lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
    high, low = np.asarray(image), np.asarray(lower)
    differs = np.zeros(high.shape[:2], bool)
    for channel, value in enumerate(clear):
        differs |= (high[..., channel] != value >> 8) | (low[..., channel] != value & 255)
    return Image.fromarray(differs.astype(np.uint8) * 255)
