"""Tar shards as tar, Python and WebDataset write them, whole and damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from test_sources_source import png, shades
from understudy.errors import DataError, UnreadableImage
from understudy.sources import tar_index
from understudy.sources.evaluation import open_evaluation
from understudy.sources.formats import tar
from understudy.sources.formats.tar import TarImages
from understudy.sources.source import open_source, read_listing, write_listing


def pack(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    """Written by Python's own tarfile, the oracle of what a tar is."""
    with tarfile.open(path, "w", format=form) as file:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            file.addfile(about, io.BytesIO(content))
    return path


def sample(number: int, **beside: bytes) -> list[tuple[str, bytes]]:
    return [
        (f"{number:06d}.png", png(number)),
        *((f"{number:06d}.{ending}", content) for ending, content in beside.items()),
    ]


def test_shards_read_any_row_in_any_order(tmp_path: Path):
    for number in range(3):
        members = [member for i in range(4) for member in sample(4 * number + i, cls=b"%d" % (i % 3))]
        pack(tmp_path / f"shard-{number}.tar", members)
    source = open_source(tmp_path)
    order = np.random.default_rng(0).permutation(12)
    assert shades(source.subset(order)) == order.tolist()
    assert source.names.to_pylist()[4:6] == ["shard-1.tar/000004.png", "shard-1.tar/000005.png"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 2, 0] * 3
    assert source.class_names == ["0", "1", "2"]
    assert shades(open_source(f"{tmp_path}/shard-[12].tar")) == list(range(4, 12))
    assert shades(open_source(tmp_path / "shard-2.tar")) == [8, 9, 10, 11]
    (tmp_path / "list.txt").write_text("shard-2.tar\n\nshard-0.tar\n")
    assert shades(open_source(tmp_path / "list.txt")) == [8, 9, 10, 11, 0, 1, 2, 3]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar(tmp_path: Path, form: int):
    long = "d" * 60 + "/" + "e" * (60 if form == tarfile.USTAR_FORMAT else 200)
    names = [f"./{long}/a.png", f"{long}/b.PNG", "c.png"]
    if form != tarfile.USTAR_FORMAT:
        names.append("caf\N{LATIN SMALL LETTER E WITH ACUTE}.png")
    pack(tmp_path / "a.tar", [(name, png(i)) for i, name in enumerate(names)], form)
    source = open_source(tmp_path / "a.tar")
    assert source.names.to_pylist() == [f"a.tar/{name.removeprefix('./')}" for name in names]
    assert shades(source) == list(range(len(names)))


def test_sizes_beyond_octal():
    header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
    big = 9 * 2**30  # GNU writes it in binary
    info = tarfile.TarInfo("a.png")
    info.size = big
    header = info.tobuf(tarfile.GNU_FORMAT)
    assert header[124] & 0x80
    assert tar_index._size(header) == big


def test_what_is_no_image_is_passed_over(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        folder = tarfile.TarInfo("cats")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        for name in ("cats/._0.png", ".hidden/1.png", "cats/notes.txt", "cats/7.png"):
            about = tarfile.TarInfo(name)
            about.size = len(png(7))
            file.addfile(about, io.BytesIO(png(7)))
        link = tarfile.TarInfo("cats/8.png")
        link.type, link.linkname = tarfile.LNKTYPE, "cats/7.png"
        file.addfile(link)
    source = open_source(tmp_path / "a.tar")
    assert source.names.to_pylist() == ["a.tar/cats/7.png", "a.tar/cats/8.png"]
    with pytest.raises(UnreadableImage, match=r"^a\.tar/cats/8\.png is a link"):
        source.read(1)


def test_labels_of_several_kinds(tmp_path: Path):
    def labels(*samples: list[tuple[str, bytes]]) -> tuple[list[int] | None, list[str] | None]:
        pack(tmp_path / "a.tar", [member for members in samples for member in members])
        source = open_source(tmp_path / "a.tar")
        return None if source.labels is None else source.labels.tolist(), source.class_names

    assert labels(sample(0), sample(1)) == (None, None)
    assert labels(sample(0, cls=b"dog\n"), sample(1, cls=b"cat")) == ([1, 0], ["cat", "dog"])
    as_json = [json.dumps({"label": label, "caption": "a photo"}).encode() for label in (2, 0)]
    assert labels(sample(0, json=as_json[0]), sample(1, json=as_json[1])) == ([2, 0], ["0", "1", "2"])
    assert labels(sample(0, json=as_json[0], cls=b"1"), sample(1, cls=b"0")) == ([1, 0], ["0", "1"])  # .cls wins
    assert labels(sample(0, json=b'{"caption": "x"}'), sample(1, json=as_json[1])) == (None, None)
    assert labels(sample(0, json=b"{broken"), sample(1, json=as_json[1])) == (None, None)
    assert labels(sample(0, cls=b"1"), sample(1)) == (None, None)
    # The label may come before its image, and two images of a sample share it.
    pair = [("a.cls", b"3"), ("a.left.png", png(0)), ("a.right.png", png(1)), ("b.png", png(2)), ("b.cls", b"1")]
    assert labels(pair) == ([3, 3, 1], ["0", "1", "2", "3"])
    # Without labels beside the images, class folders.
    assert labels([("dog/0.png", png(0)), ("cat/1.png", png(1))]) == ([1, 0], ["cat", "dog"])
    assert labels([("./train/dog/0.png", png(0)), ("./train/cat/1.png", png(1))]) == ([1, 0], ["cat", "dog"])
    assert labels([("train/dog/0.png", png(0)), ("cat/1.png", png(1))]) == (None, None)


def test_damaged_members_are_listed_and_the_rest_is_read(tmp_path: Path):
    path = pack(tmp_path / "a.tar", [member for i in range(5) for member in sample(i, cls=b"%d" % (i % 2))])
    with tarfile.open(path) as file:
        starts = {member.name: member.offset for member in file}
    content = bytearray(path.read_bytes())
    content[starts["000001.png"] + 530 : starts["000001.png"] + 550] = bytes(20)  # in the image
    content[starts["000003.png"] + 100] ^= 0xFF  # in the header
    path.write_bytes(content)
    source = open_source(path)
    assert len(source) == 5
    seen: dict[int, int | str] = {}
    for i in range(5):
        try:
            seen[i] = int(np.asarray(source.read(i))[0, 0, 0])
        except UnreadableImage as error:
            seen[i] = str(error)
    assert [seen[i] for i in (0, 2, 4)] == [0, 2, 4]
    assert str(seen[1]) == "a.tar/000001.png is not an image in a known format."
    assert str(seen[3]) == f"a.tar/(damaged header at byte {starts['000003.png']}) has a damaged header."
    assert source.labels is not None
    assert source.labels[[0, 1, 2, 4]].tolist() == [0, 1, 0, 0]


def test_a_shard_cut_off(tmp_path: Path):
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(noise, "PNG")
    path = pack(tmp_path / "a.tar", [("a.png", png(3)), ("b.png", noise.getvalue())])
    with tarfile.open(path) as file:
        start = file.getmembers()[1].offset_data
    os.truncate(path, start + 1000)
    source = open_source(path)
    assert int(np.asarray(source.read(0))[0, 0, 0]) == 3
    with pytest.raises(UnreadableImage, match=rf"b\.png is cut off: 1,000 of {len(noise.getvalue()):,} bytes"):
        source.read(1)


def test_what_is_no_uncompressed_tar(tmp_path: Path):
    plain = pack(tmp_path / "a.tar", sample(0)).read_bytes()
    (tmp_path / "b.tar").write_bytes(gzip.compress(plain))
    (tmp_path / "c.tar.bz2").write_bytes(bz2.compress(plain))
    (tmp_path / "d.tar").write_text("hello " * 200)
    (tmp_path / "e.tar").write_bytes(b"")
    pack(tmp_path / "f.tar", [("notes.md", b"text")])
    for name, words in (
        ("b.tar", r"b\.tar is compressed \(gzip\)"),
        ("c.tar.bz2", r"is compressed \(bzip2\)"),
        ("d.tar", r"d\.tar is not a tar file"),
        ("e.tar", r"e\.tar is not a tar file"),
        ("f.tar", r"no images in .*f\.tar"),
    ):
        with pytest.raises(DataError, match=words):
            open_source(tmp_path / name)
    with pytest.raises(DataError, match=r"braces mean nothing"):
        open_source(f"{tmp_path}/{{000..009}}.tar")


def test_the_index_is_made_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = pack(tmp_path / "a.tar", [member for i in range(6) for member in sample(i, cls=b"%d" % (i % 2))])
    kept = tmp_path / "listings"
    first = open_source(path, listings=kept)
    packed = pickle.dumps(first)
    assert [file.suffix for file in kept.iterdir()] == [".index"]
    monkeypatch.setattr(tar, "index", lambda *_: pytest.fail("the shards were scanned again"))
    for again in (open_source(path, listings=kept), pickle.loads(packed)):
        assert shades(again) == list(range(6))
        assert again.names == first.names
        assert again.labels is not None
        assert again.labels.tolist() == [0, 1] * 3
        assert again.fingerprint == first.fingerprint
    monkeypatch.undo()
    os.utime(path, (1, 1))
    assert open_source(path, listings=kept).fingerprint != first.fingerprint
    assert len(list(kept.iterdir())) == 2


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tar, "OPEN_SHARDS", 2)
    for i in range(5):
        pack(tmp_path / f"{i}.tar", sample(i))
    source = open_source(tmp_path)
    for order in ([0, 1, 2, 3, 4], [4, 0, 3, 1, 2]):
        assert shades(source.subset(order)) == order
        assert isinstance(source.images, TarImages)
        assert len(source.images._open) == 2
    assert len(pickle.loads(pickle.dumps(source)).images._open) == 0


def test_halves_and_splits(tmp_path: Path):
    for name, numbers in (("pets-train-0", (0, 1)), ("pets-train-1", (2, 3)), ("pets-val-0", (4, 5))):
        members = [member for i in numbers for member in sample(i, cls=b"%d" % (i % 2))]
        pack(tmp_path / f"{name}.tar", members)
    train, test = open_evaluation(tmp_path, listings=tmp_path / "listings")
    assert (shades(train), shades(test)) == ([0, 1, 2, 3], [4, 5])
    assert len(list((tmp_path / "listings").iterdir())) == 2
    with pytest.raises(DataError, match=r"tar shards of several splits \(train: 2, val: 1\)"):
        open_source(tmp_path)


def test_a_listing_of_shards(tmp_path: Path):
    pack(tmp_path / "a.tar", [member for i in range(5) for member in sample(i)])
    source = open_source(tmp_path / "a.tar")
    write_listing(tmp_path / "listing.parquet", source.subset([4, 0]))
    assert shades(read_listing(tmp_path / "listing.parquet", tmp_path / "a.tar")) == [4, 0]


def test_a_mapped_index_costs_no_memory(tmp_path: Path):
    count = 20_000
    path = tmp_path / "a.tar"
    header = tarfile.TarInfo("0000000.png").tobuf(tarfile.USTAR_FORMAT)
    pattern = np.tile(np.frombuffer(header, np.uint8), (count, 1))
    digits = np.char.zfill(np.arange(count).astype("S7"), 7).view(np.uint8).reshape(count, 7)
    pattern[:, :7] = digits
    checksums = pattern.astype(np.int64).sum(1) - pattern[:, 148:156].astype(np.int64).sum(1) + 256
    pattern[:, 148:156] = np.frombuffer(b"".join(b"%06o\0 " % c for c in checksums.tolist()), np.uint8).reshape(-1, 8)
    path.write_bytes(pattern.tobytes() + bytes(1024))
    open_source(path, listings=tmp_path / "kept")
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    source = open_source(path, listings=tmp_path / "kept")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == count
    assert source.name(12_345) == "a.tar/0012345.png"
    assert held < 12 * count  # the row numbers, 8 bytes an image
    assert pa.total_allocated_bytes() - before < count
