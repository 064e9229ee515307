"""Pictures that ask for too much: skipped with a sentence, without their memory and within their seconds."""

from __future__ import annotations

import io
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from understudy.errors import ConfigError, UnreadableImage
from understudy.sources import decode, decoder
from understudy.sources.decode import center, read_image_file, to_rgb
from understudy.sources.limits import ImageLimits
from understudy.sources.source import open_source


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[decoder.Decoder]:
    """A decoder of this test's own, in place of the process'."""
    own = decoder.Decoder()
    monkeypatch.setattr(decode, "_decoder", own)
    yield own
    if own._owner:
        own._stop()


@pytest.fixture
def gigabyte():
    """Room for a gigabyte beside what this process has taken, in addresses."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", ["img_b5_491.tif", "img_b6_139.gif"])
def test_bombs_that_were_found(shared: Path, name: str, gigabyte: None):
    path = shared / "cases" / "hostile" / name
    start = time.perf_counter()
    with pytest.raises(UnreadableImage, match=rf"{name} has [\d,]+ x [\d,]+ pixels.*\(UNDERSTUDY_IMAGE_"):
        to_rgb(read_image_file(str(path)), str(path))
    assert time.perf_counter() - start < 1


def test_limits_are_settings_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    data = encoded(Image.new("RGB", (30, 20)))
    for name, value, message in (
        ("PIXELS", "599", r"the image has 30 x 20 pixels: an image may have 599 \(UNDERSTUDY_IMAGE_PIXELS\)"),
        ("SIDE", "29", r"the image has 30 x 20 pixels, and a side may have 29 \(UNDERSTUDY_IMAGE_SIDE\)"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(f"UNDERSTUDY_IMAGE_{name}", value)
            with pytest.raises(UnreadableImage, match=message):
                to_rgb(data)
            with pytest.raises(UnreadableImage, match=message):
                to_rgb(Image.open(io.BytesIO(data)))
    monkeypatch.setenv("UNDERSTUDY_IMAGE_PIXELS", "6e2")
    assert to_rgb(data).size == (30, 20)
    for text in ("0", "-1", "1.5", "many", "inf"):
        monkeypatch.setenv("UNDERSTUDY_IMAGE_PIXELS", text)
        with pytest.raises(ConfigError, match=f"PIXELS is a whole number above 0; got '{text}'"):
            to_rgb(data)


def test_a_user_may_ask_for_more_than_pil_allows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # PIL refuses above twice as many
    data = encoded(Image.new("RGB", (30, 20)))
    monkeypatch.setenv("UNDERSTUDY_IMAGE_PIXELS", "201")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 101)
    with pytest.raises(UnreadableImage, match=r"has too many pixels: an image may have 201"):
        to_rgb(data)
    monkeypatch.setenv("UNDERSTUDY_IMAGE_PIXELS", "600")
    assert to_rgb(data).size == (30, 20)


def test_other_limits_make_another_set_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    usual = open_source(tmp_path)
    assert usual.fingerprint == usual.images.fingerprint
    monkeypatch.setenv("UNDERSTUDY_IMAGE_SIDE", "7")
    assert open_source(tmp_path).fingerprint != usual.fingerprint
    monkeypatch.setenv("UNDERSTUDY_IMAGE_SIDE", "65535")
    assert open_source(tmp_path).fingerprint == usual.fingerprint


@pytest.mark.parametrize("kind", ["BMP", "JPEG", "PNG", "GIF", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000"])
def test_sides_are_compared_before_unpacking(kind: str, monkeypatch: pytest.MonkeyPatch):
    data = encoded(Image.new("L" if kind == "GIF" else "RGB", (40, 40)), kind)
    monkeypatch.setenv("UNDERSTUDY_IMAGE_PIXELS", "100")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("unpacked"))
    with pytest.raises(UnreadableImage, match=r"40 x 40 pixels"):
        to_rgb(data)


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan stands there many times."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + b"\xff\xd9"


def plain_ppm(side: int) -> bytes:
    return f"P2 {side} {side} 255\n".encode() + b"7 " * side**2


@pytest.mark.parametrize("data", [many_scans(2048, 300), plain_ppm(1000)], ids=["scans", "plain"])
def test_slow_files_are_ended(data: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNDERSTUDY_IMAGE_SECONDS", "0.15")
    start = time.perf_counter()
    with pytest.raises(UnreadableImage, match=r"slow\.x takes more than 0\.15 s of a processor to unpack \(UNDERSTUDY"):
        to_rgb(data, "slow.x")
    assert time.perf_counter() - start < 5
    assert to_rgb(plain_ppm(2)).size == (2, 2)  # another process has taken its place


def test_a_tile_larger_than_its_image_finds_no_memory():
    # 64 x 64 pixels in one tile of 60,000 x 60,000, which packs into nothing: 3.6 GB.
    entries = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 60_000, 323: 60_000, 324: 0, 325: 64}
    entries[324] = 8 + 2 + 12 * len(entries) + 4
    folder = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    data = b"II*\0" + struct.pack("<IH", 8, len(entries)) + folder + bytes(4) + bytes(64)
    with pytest.raises(UnreadableImage):
        to_rgb(data)


@pytest.mark.usefixtures("child")
def test_a_crash_is_that_of_a_file(monkeypatch: pytest.MonkeyPatch):
    lines = "import os, signal, understudy.sources.decode as d; d.open_image = lambda *_: os.kill(os.getpid(), {}); "
    for number, message in ((signal.SIGSEGV, "crashed .SIGSEGV."), (signal.SIGKILL, "ended twice .status -9.")):
        monkeypatch.setattr(decoder, "COMMAND", lines.format(int(number)) + "d.serve_decoder()")
        with pytest.raises(UnreadableImage, match=message):
            to_rgb(plain_ppm(2))


def test_a_decoder_that_does_not_start_is_no_fault_of_the_image(
    child: decoder.Decoder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(decoder, "COMMAND", "raise SystemExit(3)")
    with pytest.raises(Exception, match="does not start: .* ended with 3") as caught:
        to_rgb(plain_ppm(2))
    assert not isinstance(caught.value, UnreadableImage)


def test_a_forked_process_has_its_own_decoder():
    assert to_rgb(plain_ppm(3)).size == (3, 3)
    parent = decode._decoder._pid
    receiver, sender = os.pipe()
    if (fork := os.fork()) == 0:
        sizes = [to_rgb(plain_ppm(side)).size[0] for side in (5, 6)]
        os.write(sender, bytes([*sizes, decode._decoder._pid != parent]))
        os._exit(0)  # its decoder ends with its input
    os.close(sender)
    mine = [to_rgb(plain_ppm(side)).size[0] for side in (3, 4)]
    os.waitpid(fork, 0)
    assert os.read(receiver, 3) == bytes([5, 6, 1]) and mine == [3, 4]
    os.close(receiver)


def test_a_decoder_ignores_what_is_sent_to_all_processes():
    assert to_rgb(plain_ppm(2)).size == (2, 2)
    pid = decode._decoder._pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    assert to_rgb(plain_ppm(2)).size == (2, 2) and decode._decoder._pid == pid


def test_nothing_is_imported_from_the_working_directory(
    child: decoder.Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "PIL.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    assert to_rgb(plain_ppm(2)).size == (2, 2)


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (2, 9_000)])
def test_a_line_of_pixels_is_cut_before_it_is_resized(shape: tuple[int, int], gigabyte: None):
    values = np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8)
    square = np.asarray(center(Image.fromarray(values), 224, 0.875, "bicubic"))
    assert square.shape == (224, 224, 3)
    middle = np.median(square, axis=1 if shape[0] == 1 else 0)
    assert np.isin(middle.round(), values).all() or shape[0] == 2


def test_what_is_cut_first_is_the_same_square(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(0).integers(0, 256, (300, 4, 3), dtype=np.uint8)
    for image in (Image.fromarray(values), Image.fromarray(values.transpose(1, 0, 2).copy())):
        for interpolation in ("bilinear", "bicubic", "lanczos"):
            monkeypatch.setattr(decode, "LONGEST_RESIZED", 10**9)
            whole = np.asarray(center(image, 32, 0.875, interpolation)).astype(int)
            monkeypatch.setattr(decode, "LONGEST_RESIZED", 64)
            assert np.abs(np.asarray(center(image, 32, 0.875, interpolation)) - whole).max() <= 1


def test_only_regular_files_are_opened(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "d.png"))
        (tmp_path / "list.txt").write_text("a.png\nb.png\nc.png\nd.png\n")
        for spec in (tmp_path, f"list:{tmp_path / 'list.txt'}"):
            source = open_source(spec)
            assert source.read(0).size == (8, 8) and len(source) == 4
            for i, kind in ((1, "named pipe"), (2, "device"), (3, "socket")):
                with pytest.raises(UnreadableImage, match=f"it is a {kind} and no regular file"):
                    source.read(i)


def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(ImageLimits().nbytes + 1)  # a hole, no bytes on the disk
    with pytest.raises(UnreadableImage, match=r"a\.png has 1,073,741,825 bytes, and an image file may have"):
        read_image_file(str(tmp_path / "a.png"))
