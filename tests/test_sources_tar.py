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

from test_sources_source import png, shades, write
from understudy.errors import DataError, UnreadableImage
from understudy.sources import tar_members
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
    big = 9 * 2**30  # GNU writes it in binary
    info = tarfile.TarInfo("a.png")
    info.size = big
    block = info.tobuf(tarfile.GNU_FORMAT)
    assert block[124] & 0x80
    assert tar_members.size_of(block) == big


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
    assert labels(sample(0, json=as_json[0]), sample(1, json=as_json[1])) == ([1, 0], ["0", "2"])
    assert labels(sample(0, json=as_json[0], cls=b"1"), sample(1, cls=b"0")) == ([1, 0], ["0", "1"])  # .cls wins
    assert labels(sample(0, json=b'{"caption": "x"}'), sample(1, json=as_json[1])) == (None, None)
    assert labels(sample(0, json=b"{broken"), sample(1, json=as_json[1])) == (None, None)
    assert labels(sample(0, cls=b"1"), sample(1)) == (None, None)
    # The label may come before its image.
    assert labels([("a.cls", b"3"), ("a.png", png(0)), ("b.png", png(2)), ("b.cls", b"1")]) == ([1, 0], ["1", "3"])
    # Without labels beside the images, class folders.
    assert labels([("dog/0.png", png(0)), ("cat/1.png", png(1))]) == ([1, 0], ["cat", "dog"])
    assert labels([("./train/dog/0.png", png(0)), ("./train/cat/1.png", png(1))]) == ([1, 0], ["cat", "dog"])
    assert labels([("train/dog/0.png", png(0)), ("cat/1.png", png(1))]) == (None, None)


def test_one_sample_has_one_image(tmp_path: Path):
    mask = png(200)
    for half, numbers in (("train", range(4)), ("test", range(4, 6))):
        (tmp_path / half).mkdir()
        members = [member for i in numbers for member in sample(i, cls=b"%d" % (i % 2), **{"seg.png": mask})]
        members.append(("000099.seg.png", mask))  # a mask whose photograph is not there
        pack(tmp_path / half / "0.tar", members)
    source = open_source(tmp_path / "train", listings=tmp_path / "kept")
    assert shades(source) == [0, 1, 2, 3]
    assert source.fingerprint == open_source(tmp_path / "train", listings=tmp_path / "kept").fingerprint
    masks = open_source(f"{tmp_path}/train#seg.png", listings=tmp_path / "kept")
    assert shades(masks) == [200] * 5
    assert masks.fingerprint != source.fingerprint
    assert shades(open_source(f"{tmp_path}/train/0.tar#png")) == [0, 1, 2, 3]
    assert shades(open_source(f"{tmp_path}/train/*.tar#*.png")) == [200] * 5
    (tmp_path / "list.txt").write_text("train/0.tar\n")
    assert shades(open_source(f"{tmp_path}/list.txt#png")) == [0, 1, 2, 3]
    train, test = open_evaluation(f"{tmp_path}#png")
    assert (shades(train), shades(test)) == ([0, 1, 2, 3], [4, 5])
    with pytest.raises(DataError, match=r"no images in .*no member ending in jpg"):
        open_source(f"{tmp_path}/train#jpg")
    write(tmp_path / "photos" / "a.png", 1)
    with pytest.raises(DataError, match=r"photos is a folder of images, and '#png' says"):
        open_source(f"{tmp_path}/photos#png")


def test_which_of_several_images_is_meant_has_to_be_said(tmp_path: Path):
    pair = [("a.left.png", png(0)), ("a.right.png", png(1)), ("a.cls", b"1"), ("b.left.png", png(2)), ("b.cls", b"3")]
    path = pack(tmp_path / "a.tar", pair)
    with pytest.raises(DataError, match=r"sample 'a' has 2 images, a\.left\.png, a\.right\.png\. Say .*#left\.png"):
        open_source(path)
    assert shades(open_source(f"{path}#left.png")) == [0, 2]
    both = open_source(f"{path}#left.png,right.png")
    assert shades(both) == [0, 1, 2]
    assert both.labels is not None
    assert both.labels.tolist() == [0, 0, 1]  # two images of a sample share its label
    pack(path, [("a.jpg", png(5)), ("a.png", png(6))])
    with pytest.raises(DataError, match=r"sample 'a' has 2 images, a\.jpg, a\.png\."):
        open_source(path)
    assert shades(open_source(f"{path}#png")) == [6]
    # A dot in a name is no second image where none stands beside.
    pack(path, [("holiday.2024.png", png(7)), ("holiday.2024.cls", b"1"), ("sea.png", png(8)), ("sea.cls", b"0")])
    dots = open_source(path)
    assert shades(dots) == [7, 8]
    assert dots.labels is not None
    assert dots.labels.tolist() == [1, 0]


def header(name: str = "a.png", **fields: bytes | int) -> bytes:
    """A header of Python's with some bytes changed (`at_POSITION`), its checksum made right again."""
    info = tarfile.TarInfo(name)
    info.size = int(fields.pop("size", 0))
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    for field, value in fields.items():
        at = int(field.removeprefix("at_"))
        assert isinstance(value, bytes)
        block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: str, content: bytes) -> bytes:
    return header(name, size=len(content)) + content + bytes(-len(content) % 512)


BEHIND = member("b.png", png(3)) + bytes(1024)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (header(at_124=b"\xff" * 12), "damaged header"),  # -1, in binary
        (header(at_124=b"\x80" + b"\xff" * 11), "damaged header"),  # 2 ** 88 - 1
        (header(at_124=b"-0000001000\0"), "damaged header"),
        (header(at_124=b"\x80\0\0\0\x10" + bytes(7)), "is cut off: .* of 1,152,921,504,606,846,976 bytes"),
        (header("././@LongLink", at_156=b"L", at_124=b"\x80\0\0\0\x10" + bytes(7)), "damaged header"),
        (header("././@LongLink", at_156=b"L", at_124=b"\xff" * 12), "damaged header"),
        (header("x", at_156=b"x", at_124=b"77777777777\0"), "damaged header"),
        (header("x", at_156=b"g", at_124=b"\xff" * 12), "damaged header"),
    ],
)
def test_sizes_that_lie(tmp_path: Path, start: bytes, words: str):
    (tmp_path / "a.tar").write_bytes(start + BEHIND)
    source = open_source(tmp_path / "a.tar")
    assert len(source) == 2
    with pytest.raises(UnreadableImage, match=words):
        source.read(0)
    assert shades(source.subset([1])) == [3]  # what lies behind is not lost


@pytest.mark.parametrize(
    "records",
    [
        b"20 size=-9999999999\n", b"5000 path=a.png\n", b"0 path=a\n", b"9" * 6000 + b" a=b\n", b"5 a=\n" * 100_000,
        b"7 size=\n", b"1 size=5\n", b"14 size=99999\n",
    ],
)  # fmt: skip
def test_pax_records_that_lie(tmp_path: Path, records: bytes):
    extended = header("x", at_156=b"x", size=len(records)) + records + bytes(-len(records) % 512)
    (tmp_path / "a.tar").write_bytes(extended + member("a.png", png(9)) + BEHIND)
    source = open_source(tmp_path / "a.tar")
    assert shades(source.subset([len(source) - 1])) == [3]
    assert len(source) == 2


def test_appended_tar_files_are_read(tmp_path: Path):
    parts = [pack(tmp_path / f"{i}.part", [*sample(i, cls=b"%d" % i)]).read_bytes() for i in range(3)]
    (tmp_path / "a.tar").write_bytes(parts[0])
    alone = open_source(tmp_path / "a.tar")
    (tmp_path / "all.tar").write_bytes(b"".join(parts) + bytes(4 << 20))
    source = open_source(tmp_path / "all.tar")
    assert (shades(alone), shades(source)) == ([0], [0, 1, 2])
    assert source.class_names == ["0", "1", "2"]
    with open(tmp_path / "hole.tar", "wb") as file:  # 4 TiB of nothing, then the rest
        file.write(parts[0])
        file.seek(4 << 40)
        file.write(parts[1])
        file.truncate(8 << 40)
    assert shades(open_source(tmp_path / "hole.tar")) == [0, 1]


def test_names_that_lead_elsewhere_and_sparse_members(tmp_path: Path):
    names = ["/etc/cat/0.png", "../dog/1.png", "a/../../2.png"]
    sparse = header("sparse.png", at_156=b"S", at_482=b"\1", size=512)
    sparse += bytes(504) + b"\1" + bytes(7) + bytes(512) + b"x" * 512  # two more blocks of its map, then content
    (tmp_path / "a.tar").write_bytes(b"".join(member(name, png(i)) for i, name in enumerate(names)) + sparse + BEHIND)
    source = open_source(tmp_path / "a.tar")
    assert source.names.to_pylist() == [f"a.tar/{name}" for name in (*names, "sparse.png", "b.png")]
    assert shades(source.subset([0, 1, 2, 4])) == [0, 1, 2, 3]
    with pytest.raises(UnreadableImage, match=r"sparse\.png is a link or a sparse file"):
        source.read(3)
    records = b"22 GNU.sparse.major=1\n"
    extended = header("x", at_156=b"x", size=len(records)) + records + bytes(-len(records) % 512)
    (tmp_path / "b.tar").write_bytes(extended + member("c.png", png(1)) + BEHIND)
    with pytest.raises(UnreadableImage, match=r"c\.png is a link or a sparse file"):
        open_source(tmp_path / "b.tar").read(0)


def test_a_label_of_8_gigabytes(tmp_path: Path):
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(member("a.png", png(1)) + header("a.cls", size=8 << 30))
        file.truncate(file.tell() + (8 << 30))
        file.seek(0, os.SEEK_END)
        file.write(member("b.png", png(2)) + member("b.cls", b"3") + bytes(1024))
    source = open_source(tmp_path / "a.tar")
    assert shades(source) == [1, 2]
    assert source.labels is None
    assert (
        "a.tar/a.png has none that can be read: the member with its label has 8,589,934,592 bytes" in source.unlabeled
    )


def test_only_regular_files_are_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(DataError, match=r"a\.tar cannot be opened \(it is a named pipe and no regular file\)"):
        open_source(tmp_path / "a.tar")


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


@pytest.mark.parametrize("place", [0, 300, -1])
def test_a_damaged_index_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture, place: int):
    path = pack(tmp_path / "a.tar", [member for i in range(6) for member in sample(i, cls=b"%d" % (i % 2))])
    open_source(path, listings=tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    content = bytearray(kept.read_bytes())
    content[place] ^= 4
    kept.write_bytes(content)
    assert shades(open_source(path, listings=tmp_path / "kept")) == list(range(6))
    content[place] ^= 4
    assert kept.read_bytes() == content
    assert any(f"{kept} is damaged" in record.message for record in caplog.records)


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
