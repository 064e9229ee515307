"""Image files of every awkward kind, made here, against pixels that are known."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from understudy.errors import UnreadableImage
from understudy.sources.decode import to_rgb


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = to_rgb(data)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture
def colors() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_plain_color_is_untouched(colors: np.ndarray, kind: str):
    assert (pixels(encoded(Image.fromarray(colors), kind)) == colors).all()


def test_grayscale_and_bilevel():
    gray = np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5)
    assert (pixels(encoded(Image.fromarray(gray))) == gray[:, :, None]).all()
    bits = Image.fromarray(gray > 100)
    assert (pixels(encoded(bits)) == np.where(gray > 100, 255, 0)[:, :, None]).all()


def test_palette(colors: np.ndarray):
    image = Image.fromarray(colors).quantize(16)
    assert (pixels(encoded(image)) == np.asarray(image.convert("RGB"))).all()


def test_palette_transparency_becomes_white():
    image = Image.new("P", (2, 2))
    image.putpalette([200, 10, 20, 0, 0, 255])
    image.putdata([0, 1, 1, 0])
    found = pixels(encoded(image, transparency=bytes([0, 128])))
    assert found[0, 0].tolist() == [255, 255, 255]  # wholly transparent: the hidden red does not show
    assert np.abs(found[0, 1].astype(int) - [127, 127, 255]).max() <= 1  # half blue, half white


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode: str):
    image = Image.new(mode, (3, 1))
    clear, half, solid = ((0, a) if mode == "LA" else (0, 0, 0, a) for a in (0, 128, 255))
    image.putdata([clear, half, solid])
    assert pixels(encoded(image))[0, :, 0].tolist() == [255, 127, 0]


def test_sixteen_bit_grayscale_keeps_its_range():
    values = np.array([[0, 128, 257, 25700, 32768, 65535]], dtype=np.uint16)
    expected = np.rint(values * (255 / 65535)).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        assert (pixels(encoded(Image.fromarray(values), kind))[:, :, 0] == expected).all()
    graymap = b"P5 6 1 65535\n" + values.astype(">u2").tobytes()
    assert (pixels(graymap)[:, :, 0] == expected).all()


def png_16_bit_color(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which PIL reads and cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values.shape[:2]
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_color():
    values = np.random.default_rng(1).integers(0, 65536, (4, 5, 3), dtype=np.uint16)
    found = pixels(png_16_bit_color(values)).astype(int)
    assert np.abs(found - values / 257).max() <= 1


def test_floating_point_in_the_unit_range():
    values = np.array([[0.0, 0.25, 1.0]], dtype=np.float32)
    assert pixels(encoded(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 64, 255]


def test_numbers_without_a_range_are_refused():
    with pytest.raises(UnreadableImage, match="-3 to 7.5"):
        to_rgb(encoded(Image.fromarray(np.array([[-3, 7.5]], dtype=np.float32)), "TIFF"))
    with pytest.raises(UnreadableImage, match="0 to 100000"):
        to_rgb(encoded(Image.fromarray(np.array([[0, 100_000]], dtype=np.int32)), "TIFF"))


def test_cmyk_jpeg():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    found = pixels(encoded(image, "JPEG", quality=95)).astype(int)
    assert np.abs(found - [255, 0, 0]).max() < 12


TURNED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(colors: np.ndarray, orientation: int, kind: str):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(colors), kind, exif=exif, **options)
    assert (pixels(data) == TURNED[orientation](colors)).all()


def test_malformed_exif_is_no_reason_to_lose_the_image(colors: np.ndarray):
    data = encoded(
        Image.fromarray(colors), "WEBP", lossless=True, exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff broken"
    )
    assert (pixels(data) == colors).all()


def test_first_frame_of_an_animation(colors: np.ndarray):
    first, second = Image.fromarray(colors).quantize(64), Image.new("P", (9, 6))
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    assert (pixels(data) == np.asarray(first.convert("RGB"))).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_files_are_unreadable_and_say_so(kind: str):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(UnreadableImage, match=r"^photo\.x cannot be decoded"):
        to_rgb(data[: len(data) // 2], "photo.x")


def test_what_is_no_image():
    with pytest.raises(UnreadableImage, match=r"a\.jpg is empty"):
        to_rgb(b"", "a.jpg")
    with pytest.raises(UnreadableImage, match=r"a\.jpg is not an image"):
        to_rgb(b"this is a text about cats\n" * 10, "a.jpg")


def test_postscript_is_never_run(colors: np.ndarray):
    with pytest.raises(UnreadableImage, match="not an image in a known format"):
        to_rgb(encoded(Image.fromarray(colors), "EPS"))


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "AVIF", "MPO"])
def test_other_formats_of_photographs(kind: str):
    smooth = np.stack([*np.meshgrid(np.arange(0, 250, 8), np.arange(0, 250, 8)), np.full((32, 32), 90)], axis=-1)
    found = pixels(encoded(Image.fromarray(smooth.astype(np.uint8)), kind))
    assert np.abs(found.astype(int) - smooth).mean() < 6


def test_a_decompression_bomb_is_unreadable():
    header = png_16_bit_color(np.zeros((1, 1, 3), np.uint16))
    # The same file, its header claiming 20,000 x 20,000 pixels.
    size = struct.pack(">II", 20_000, 20_000)
    fields = b"IHDR" + size + header[24:29]
    bomb = header[:12] + fields + struct.pack(">I", zlib.crc32(fields)) + header[33:]
    with pytest.raises(UnreadableImage, match="DecompressionBomb"):
        to_rgb(bomb)


def test_pil_warnings_stay_inside(monkeypatch: pytest.MonkeyPatch, colors: np.ndarray):
    # Warnings are errors in this test run: a large but honest image is read all the same.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert (pixels(encoded(Image.fromarray(colors))) == colors).all()


def test_an_opened_image_is_converted(colors: np.ndarray, tmp_path: Path):
    Image.fromarray(colors).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert (np.asarray(to_rgb(image)) == colors).all()
