"""Image files of every awkward kind, made here, against pixels that are known."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from understudy.errors import UnreadableImage
from understudy.models.contract import Contract
from understudy.sources import samples
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
    with pytest.raises(
        UnreadableImage, match=r"too many pixels: an image may have 67,108,864 .UNDERSTUDY_IMAGE_PIXELS"
    ):
        to_rgb(bomb)


def test_pil_warnings_stay_inside(monkeypatch: pytest.MonkeyPatch, colors: np.ndarray):
    # Warnings are errors in this test run: a large but honest image is read all the same.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert (pixels(encoded(Image.fromarray(colors))) == colors).all()


def test_an_opened_image_is_converted(colors: np.ndarray, tmp_path: Path):
    Image.fromarray(colors).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert (np.asarray(to_rgb(image)) == colors).all()


# The numbers of samples: every depth, counting from white, the one clear color, ink.


def tiff(values: np.ndarray, tags: dict[int, int]) -> bytes:
    """An uncompressed little-endian TIFF of one strip with these tags beside the sides and the strip."""
    content, (height, width) = values.tobytes(), np.atleast_2d(values).shape
    given = {256: width, 257: height, 259: 1, 273: 0, 278: height, 279: len(content)} | tags
    entries, start = sorted(given), 8 + 2 + 12 * len(given) + 4
    given[273] = start
    folder = b"".join(struct.pack("<HHII", tag, 4, 1, given[tag]) for tag in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + folder + bytes(4) + content


BITS, PHOTOMETRIC, SAMPLES, FORMAT = 258, 262, 277, 339


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        (np.array([[0, 51, 255]], np.uint8), {BITS: 8}),
        (np.array([[0, 13107, 65535]], "<u2"), {BITS: 16}),
        (np.array([[0, 0.2, 1]], "<f4"), {BITS: 32, FORMAT: 3}),
    ],
)
@pytest.mark.parametrize("compression", [1, 8])
def test_counting_from_white_holds_at_every_depth(values: np.ndarray, tags: dict[int, int], compression: int):
    for photometric, expected in ((0, [255, 204, 0]), (1, [0, 51, 255])):
        data = tiff(values, tags | {PHOTOMETRIC: photometric, SAMPLES: 1})
        if compression != 1:
            packed = np.frombuffer(zlib.compress(values.tobytes()), np.uint8)
            data = tiff(packed, {**tags, PHOTOMETRIC: photometric, SAMPLES: 1, 256: 3, 257: 1, 259: 8, 278: 1})
        assert pixels(data)[0, :, 0].tolist() == expected
        assert np.asarray(to_rgb(Image.open(io.BytesIO(data))))[0, :, 0].tolist() == expected


def test_twelve_bits_have_their_own_white():
    packed = np.frombuffer(bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x00]), np.uint8)  # 0, 2048, 4095, 0
    data = tiff(packed, {256: 4, 257: 1, 278: 1, BITS: 12, PHOTOMETRIC: 1, SAMPLES: 1})
    assert pixels(data)[0, :, 0].tolist() == [0, 128, 255, 0]


def test_signed_samples_have_no_white():
    for kind, bits in (("<i1", 8), ("<i2", 16)):
        tags = {BITS: bits, PHOTOMETRIC: 1, SAMPLES: 1, FORMAT: 2}
        with pytest.raises(UnreadableImage, match="-5"):
            to_rgb(tiff(np.array([[0, -5]], kind), tags))
    assert pixels(tiff(np.array([[0, 5]], "<i1"), {BITS: 8, PHOTOMETRIC: 1, SAMPLES: 1, FORMAT: 2})).max() == 5


def png(values: np.ndarray, bits: int, kind: int, clear: bytes) -> bytes:
    """A PNG of packed rows, with its transparent color."""
    rows = b"".join(b"\x00" + row.tobytes() for row in values)
    width = values.shape[1] * 8 // bits if bits < 8 else values.shape[1]
    header = struct.pack(">IIBBBBB", width, len(values), bits, kind, 0, 0, 0)
    chunks = (b"IHDR", header), (b"tRNS", clear), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    packed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


CLOSE = np.array([[[2560] * 3, [2560, 2561, 2560]]], ">u2")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(np.array([[0b01000000]], np.uint8), 1, 0, b"\0\1"), [0, 255, 0, 0, 0, 0, 0, 0]),
        (png(np.array([[0b01000000]], np.uint8), 1, 0, b"\0\0"), [255] * 8),
        (png(np.array([[0b00011011]], np.uint8), 2, 0, b"\0\1"), [0, 255, 170, 255]),
        (png(np.array([[0x35]], np.uint8), 4, 0, b"\0\3"), [255, 85]),
        (png(np.array([[3, 51]], np.uint8), 8, 0, b"\0\3"), [255, 51]),
        (png(np.array([[25700, 25701]], ">u2"), 16, 0, struct.pack(">H", 25701)), [100, 255]),
        (png(np.array([[[9, 9, 9], [9, 8, 9]]], np.uint8), 8, 2, struct.pack(">3H", 9, 9, 9)), [255, 9]),
        # Only the lower byte of one channel differs.
        (png(CLOSE, 16, 2, struct.pack(">3H", 2560, 2561, 2560)), [10, 255]),
    ],
)  # fmt: skip
def test_the_transparent_color_holds_at_every_depth(data: bytes, expected: list[int]):
    assert pixels(data)[0, :, 0].tolist() == expected
    assert np.asarray(to_rgb(Image.open(io.BytesIO(data))))[0, :, 0].tolist() == expected


def test_a_transparent_color_is_turned_with_its_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png(CLOSE, 16, 2, struct.pack(">3H", 2560, 2561, 2560))
    chunk = exif.tobytes()[6:]
    framed = struct.pack(">I", len(chunk)) + b"eXIf" + chunk + struct.pack(">I", zlib.crc32(b"eXIf" + chunk))
    assert pixels(data[:33] + framed + data[33:])[:, 0, 0].tolist() == [10, 255]


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA"])
def test_rare_kinds_of_alpha(mode: str):
    plain = Image.new("LA" if mode == "La" else "RGBA", (3, 1))
    clear, half, solid = ((0, a) if mode == "La" else (0, 0, 0, a) for a in (0, 128, 255))
    plain.putdata([clear, half, solid])
    assert np.asarray(to_rgb(plain.convert(mode)))[0, :, 0].tolist() == [255, 127, 0]


def test_a_palette_with_alpha_of_its_own():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0, 0, 0, 0, 255], "RGBA")
    image.putdata([0, 1])
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [255, 0]


def test_compositing_in_bands_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(3).integers(0, 256, (37, 20, 4), dtype=np.uint8)
    image = Image.fromarray(values)
    expected = np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))
    monkeypatch.setattr(samples, "BAND", 100)
    assert (pixels(encoded(image)) == expected).all()


def test_ink_is_inverted_only_where_adobe_did():
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)  # stored inverted, and says so
    start = data.index(b"\xff\xee")
    plain = data[:start] + data[start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0] :]
    assert np.abs(pixels(data).astype(int) - [255, 0, 0]).max() < 12
    assert pixels(plain).max() < 12  # all cyan, no magenta, no yellow, all black


def test_no_profile_is_used_at_any_depth():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    eight = np.array([[0, 51, 255]], np.uint8)
    for values in (eight, eight.astype(np.uint16) * 257):
        assert pixels(encoded(Image.fromarray(values), icc_profile=profile))[0, :, 0].tolist() == [0, 51, 255]


# The same image, opened by PIL, is the same picture: `preprocess` is given such.


def kinds_of_files() -> dict[str, bytes]:
    rng = np.random.default_rng(5)
    color = Image.fromarray(rng.integers(0, 256, (10, 14, 3), dtype=np.uint8))
    alpha = Image.fromarray(rng.integers(0, 256, (10, 14, 4), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (10, 14), dtype=np.uint16))
    unit = Image.fromarray(rng.random((10, 14), dtype=np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6
    pages = {"save_all": True, "append_images": [color.transpose(Image.Transpose.ROTATE_180)]}
    return {
        "jpg": encoded(color, "JPEG", exif=exif),
        "progressive": encoded(color, "JPEG", progressive=True, exif=exif),
        "cmyk": encoded(color.convert("CMYK"), "JPEG", exif=exif),
        "gray jpg": encoded(color.convert("L"), "JPEG"),
        "mpo": encoded(color, "MPO", exif=exif, **pages),
        "png": encoded(color, exif=exif),
        "rgba": encoded(alpha, exif=exif),
        "la": encoded(alpha.convert("LA")),
        "palette": encoded(color.quantize(16), transparency=bytes(range(0, 256, 16))),
        "bits": encoded(color.convert("1")),
        "deep png": encoded(deep, exif=exif),
        "apng": encoded(color, **pages),
        "webp": encoded(alpha, "WEBP", lossless=True, exif=exif),
        "gif": encoded(color.quantize(16), "GIF", transparency=3, **pages),
        "avif": encoded(alpha, "AVIF", exif=exif),
        "bmp": encoded(color, "BMP"),
        "ppm": encoded(color, "PPM"),
        "pgm": b"P5 2 1 1000\n" + struct.pack(">2H", 500, 1000),
        "plain": b"P2 2 1 1000\n500 1000",
        "pbm": encoded(color.convert("1"), "PPM"),
        "tif": encoded(color, "TIFF", exif=exif),
        "lzw": encoded(alpha, "TIFF", compression="tiff_lzw"),
        "deep tif": encoded(deep, "TIFF"),
        "unit": encoded(unit, "TIFF"),
        "lab": encoded(color.convert("LAB"), "TIFF"),
        "cmyk tif": encoded(color.convert("CMYK"), "TIFF"),
        "jp2": encoded(color, "JPEG2000"),
        "deep jp2": encoded(deep, "JPEG2000"),
        "alpha jp2": encoded(alpha, "JPEG2000"),
    }


@pytest.mark.parametrize(("name", "data"), kinds_of_files().items(), ids=kinds_of_files().keys())
def test_an_opened_image_is_the_same_picture_as_its_file(name: str, data: bytes):
    whole, contract = pixels(data), Contract(8)
    unpacked = Image.open(io.BytesIO(data))
    unpacked.load()
    for image in (Image.open(io.BytesIO(data)), unpacked):
        assert (np.asarray(to_rgb(image)) == whole).all()
    seen = contract.preprocess(Image.open(io.BytesIO(data)))
    assert torch.equal(seen, contract.preprocess(Image.fromarray(whole)))
