"""Every kind of source, on files made here and on the real data beside the checkout."""

from __future__ import annotations

import io
import os
import pickle
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from understudy.errors import ConfigError, DataError, UnreadableImage
from understudy.sources.evaluation import open_evaluation
from understudy.sources.formats.folder import FolderImages
from understudy.sources.source import Source, open_source, read_listing, write_listing


def color(number: int) -> np.ndarray:
    """An image that tells its number: of that shade, and 10 + number % 3 pixels wide."""
    return np.full((8, 10 + number % 3, 3), number, dtype=np.uint8)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(color(number)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number))
    return path


def shades(source: Source) -> list[int]:
    return [int(np.asarray(source.read(i))[0, 0, 0]) for i in range(len(source))]


def tree(root: Path, classes: tuple[str, ...] = ("cat", "ape", "dog"), each: int = 3) -> Path:
    for i, name in enumerate(classes):
        for j in range(each):
            write(root / name / f"{j}.png", 10 * i + j)
    return root


def table(numbers: range, **columns: object) -> pa.Table:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": png(n), "path": f"{n}.png"} for n in numbers], type=kind)
    return pa.table({"image": images, **{name: pa.array(values) for name, values in columns.items()}})


# --- folders -------------------------------------------------------------------------------------------------------


def test_a_folder_at_any_depth(tmp_path: Path):
    for name, number in (("b.png", 1), ("z/deep/er/a.PNG", 4), ("z/a.png", 3), ("a.png", 0), ("c/a.png", 2)):
        write(tmp_path / name, number)
    (tmp_path / "notes.txt").write_text("no image")
    write(tmp_path / ".hidden.png", 9)
    write(tmp_path / ".cache" / "a.png", 9)
    source = open_source(tmp_path)
    assert source.names.to_pylist() == ["a.png", "b.png", "c/a.png", "z/a.png", "z/deep/er/a.PNG"]
    assert shades(source) == [0, 1, 2, 3, 4]
    assert source.ids.tolist() == [0, 1, 2, 3, 4]
    assert source.name(4) == "z/deep/er/a.PNG"
    assert source.read(2).size == (12, 8)
    assert source.labels is None
    assert len(source) == 5
    assert str(tmp_path) in repr(source)


def test_class_folders_give_labels_by_sorted_name(tmp_path: Path):
    source = open_source(tree(tmp_path))
    assert source.class_names == ["ape", "cat", "dog"]
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert shades(source) == [10, 11, 12, 0, 1, 2, 20, 21, 22]


def test_other_folders_are_no_classes(tmp_path: Path):
    assert open_source(tree(tmp_path / "one", ("only",))).labels is None
    assert open_source(tree(tmp_path / "years" / "2024")).labels is not None
    assert open_source(tmp_path / "years").labels is None  # a level too many
    write(tree(tmp_path / "loose") / "stray.png", 5)
    assert open_source(tmp_path / "loose").labels is None


def test_the_fingerprint_follows_names_sizes_and_times(tmp_path: Path):
    before = open_source(tree(tmp_path)).fingerprint
    assert open_source(tmp_path).fingerprint == before
    os.utime(tmp_path / "cat" / "0.png", (1, 1))
    touched = open_source(tmp_path).fingerprint
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "00.png")
    renamed = open_source(tmp_path).fingerprint
    write(tmp_path / "cat" / "9.png", 1)
    assert len({before, touched, renamed, open_source(tmp_path).fingerprint}) == 4


def test_links_and_broken_links(tmp_path: Path):
    tree(tmp_path / "real", each=1)
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "real")
    (root / "again").symlink_to(root)  # a circle
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(root)
    assert source.names.to_pylist() == ["gone.png", "linked/ape/0.png", "linked/cat/0.png", "linked/dog/0.png"]
    with pytest.raises(UnreadableImage, match=r"gone\.png cannot be opened \(No such file"):
        source.read(0)
    assert int(np.asarray(source.read(1))[0, 0, 0]) == 10


def test_names_that_are_no_text(tmp_path: Path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(name, "wb") as file:
            file.write(png(7))
    except OSError:
        pytest.skip("needs a file system that takes any bytes as a name")
    source = open_source(tmp_path)
    assert shades(source) == [7]
    assert source.name(0) == "caf\N{REPLACEMENT CHARACTER}.png"


def test_an_unreadable_image_is_named(tmp_path: Path):
    write(tmp_path / "a.jpg", 0)
    (tmp_path / "b.jpg").write_text("a text")
    (tmp_path / "c.jpg").write_bytes(b"")
    source = open_source(tmp_path)
    assert len(source) == 3  # listing opens no file
    for i, words in ((1, r"b\.jpg is not an image"), (2, r"c\.jpg is empty")):
        with pytest.raises(UnreadableImage, match=words):
            source.read(i)


def test_what_is_not_there_or_holds_nothing(tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"no images in .*: 1 other files"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=r"notes\.txt names no images, the first line is 'no image'"):
        open_source(tmp_path / "notes.txt")
    (tmp_path / "notes.pdf").write_text("no image")
    with pytest.raises(DataError, match=r"notes\.pdf is not a kind of data"):
        open_source(tmp_path / "notes.pdf")


def test_a_listing_holds_no_python_object_per_image():
    count = 50_000
    names = [b"class_%d/some_image_number_%08d.jpg" % (i // 1000, i) for i in range(count)]
    zeros = [0] * count
    tracemalloc.start()
    source = Source("test", FolderImages(Path("/data"), names, zeros, zeros))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 10 * count  # eight bytes of row number an image; names are in one Arrow buffer
    assert len(pickle.dumps(source)) < 70 * count


# --- limit, subset -------------------------------------------------------------------------------------------------


def test_a_limit_draws_from_all_over_and_always_the_same(tmp_path: Path):
    source = open_source(tree(tmp_path, each=30), limit=30)
    assert len(source) == 30
    assert source.names.to_pylist() == open_source(tmp_path, limit=30).names.to_pylist()
    assert source.labels is not None
    assert (np.bincount(source.labels) >= 5).all()  # not the first 30, which are all apes
    assert (np.diff(source.ids) > 0).all()
    whole = open_source(tmp_path)
    assert shades(source) == [shades(whole)[i] for i in source.ids]
    assert source.fingerprint != whole.fingerprint
    assert open_source(tmp_path, limit=90).fingerprint == whole.fingerprint
    with pytest.raises(ConfigError, match="got 0"):
        open_source(tmp_path, limit=0)


def test_a_subset_keeps_ids_names_and_labels(tmp_path: Path):
    whole = open_source(tree(tmp_path))
    part = whole.subset([7, 2, 3])
    assert part.ids.tolist() == [7, 2, 3]
    assert shades(part) == [21, 12, 0]
    again = part.subset(np.array([2, 0]))
    assert again.ids.tolist() == [3, 7]
    assert again.labels is not None
    assert again.labels.tolist() == [1, 2]
    assert again.names.to_pylist() == ["cat/0.png", "dog/1.png"]
    assert len({whole.fingerprint, part.fingerprint, again.fingerprint, whole.subset([2, 7, 3]).fingerprint}) == 4


@pytest.mark.parametrize("kind", ["folder", "parquet", "npy", "array", "digits"])
def test_sources_travel_to_other_processes(tmp_path: Path, kind: str):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    if kind == "folder":
        source = open_source(tree(tmp_path))
    elif kind == "parquet":
        pq.write_table(table(range(5)), tmp_path / "a.parquet")
        source = open_source(tmp_path / "a.parquet")
    elif kind == "npy":
        np.save(tmp_path / "a.npy", pixels)
        source = open_source(tmp_path / "a.npy")
    else:
        source = open_source(pixels if kind == "array" else "digits")
    first = np.asarray(source.read(3))  # opens files, which must not be pickled
    packed = pickle.dumps(source)
    if kind in ("folder", "parquet", "npy"):
        assert len(packed) < 5000
    assert (np.asarray(pickle.loads(packed).read(3)) == first).all()


# --- arrays, digits, torchvision -----------------------------------------------------------------------------------


def test_arrays_of_every_layout(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    gray = pixels[..., 0].copy()
    np.save(tmp_path / "last.npy", pixels)
    np.save(tmp_path / "first.npy", pixels.transpose(0, 3, 1, 2))
    np.save(tmp_path / "gray.npy", gray)
    for spec, wanted in (
        (pixels, pixels),
        (tmp_path / "last.npy", pixels),
        (tmp_path / "first.npy", pixels),
        (tmp_path / "gray.npy", np.repeat(gray[..., None], 3, axis=3)),
    ):
        source = open_source(spec)
        assert (np.stack([np.asarray(source.read(i)) for i in range(4)]) == wanted).all()
    assert (
        open_source(pixels).fingerprint == open_source(pixels.copy()).fingerprint != open_source(pixels + 1).fingerprint
    )
    assert source.name(2) == "gray.npy:2"


def test_arrays_that_are_no_images(tmp_path: Path):
    with pytest.raises(DataError, match="float32"):
        open_source(np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(DataError, match=re.escape("(2, 4, 4, 4)")):
        open_source(np.zeros((2, 4, 4, 4), np.uint8))
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy is not a \.npy file that can be read"):
        open_source(tmp_path / "a.npy")


def test_digits():
    whole, train, test = (open_source(spec) for spec in ("digits", "digits:train", "digits:test"))
    assert (len(whole), len(train), len(test)) == (1797, 1438, 359)
    seen = [{np.asarray(source.read(i)).tobytes() for i in range(len(source))} for source in (whole, train, test)]
    assert seen[1] | seen[2] == seen[0]
    assert not seen[1] & seen[2]
    assert whole.read(0).size == (32, 32)
    # Read without scikit-learn, which takes seconds to import; in the order of its own table.
    from sklearn.datasets import load_digits

    table = load_digits()
    assert whole.labels is not None and whole.labels.tolist() == table.target.tolist()
    expected = Image.fromarray(np.rint(table.images[7] * (255 / 16)).astype(np.uint8)).resize((32, 32), 3)
    assert (np.asarray(whole.read(7)) == np.asarray(expected.convert("RGB"))).all()
    assert test.labels is not None
    assert test.class_names == [str(i) for i in range(10)]
    assert np.bincount(test.labels, minlength=10).min() > 20
    with pytest.raises(DataError, match="digits:val"):
        open_source("digits:val")


def write_mnist(root: Path, prefix: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(size.to_bytes(4, "big") for size in pixels.shape)
    (raw / f"{prefix}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + sizes + pixels.tobytes())
    count = len(labels).to_bytes(4, "big")
    (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + count + labels.astype(np.uint8).tobytes())


def test_torchvision_data_sets_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNDERSTUDY_DATA", str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (9, 28, 28), dtype=np.uint8)
    write_mnist(tmp_path, "train", pixels[:6], np.array([3, 1, 4, 1, 5, 9]))
    write_mnist(tmp_path, "t10k", pixels[6:], np.array([2, 6, 5]))
    train, test = open_evaluation("torchvision:MNIST")
    assert (len(train), len(test)) == (6, 3)
    assert (np.asarray(train.read(4))[:, :, 1] == pixels[4]).all()
    assert (np.asarray(pickle.loads(pickle.dumps(test)).read(2))[:, :, 1] == pixels[8]).all()
    assert train.labels is not None
    assert train.labels.tolist() == [3, 1, 4, 1, 5, 9]
    assert train.class_names is not None
    assert train.class_names[3] == "3 - three"
    assert test.name(1) == "MNIST:test:1"
    assert open_source("torchvision:MNIST").fingerprint == train.fingerprint != test.fingerprint


def test_torchvision_data_sets_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNDERSTUDY_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"CIFAR100 is not complete below .*UNDERSTUDY_DATA.*download=True"):
        open_source("torchvision:CIFAR100")
    assert list(tmp_path.iterdir()) == []  # nothing was fetched
    with pytest.raises(DataError, match="Did you mean 'CIFAR10'"):
        open_source("torchvision:CIFER10")
    with pytest.raises(DataError, match="'valid'"):
        open_source("torchvision:CIFAR10:valid")
    with pytest.raises(DataError, match="FakeData does not come from files"):
        open_source("torchvision:FakeData")


# --- listings ------------------------------------------------------------------------------------------------------


def test_a_listing_brings_back_the_rows_in_their_order(tmp_path: Path):
    tree(tmp_path / "images")
    whole = open_source(tmp_path / "images")
    kept = whole.subset([8, 1, 2, 5])
    write_listing(tmp_path / "listing.parquet", kept)
    for source in (whole, tmp_path / "images", str(tmp_path / "images"), whole.subset(np.arange(9)[::-1])):
        found = read_listing(tmp_path / "listing.parquet", source)
        assert found.ids.tolist() == [8, 1, 2, 5]
        assert shades(found) == shades(kept)
    assert pq.read_table(tmp_path / "listing.parquet").column_names == ["id", "name"]


def test_a_listing_of_other_images_is_refused(tmp_path: Path):
    tree(tmp_path / "images")
    source = open_source(tmp_path / "images")
    write_listing(tmp_path / "listing.parquet", source)
    with pytest.raises(DataError, match="lists 9 images"):
        read_listing(tmp_path / "listing.parquet", source.subset([0, 1]))
    (tmp_path / "images" / "ape" / "1.png").rename(tmp_path / "images" / "ape" / "3.png")
    with pytest.raises(DataError, match="no longer has"):
        read_listing(tmp_path / "listing.parquet", tmp_path / "images")
    with pytest.raises(DataError, match=r"nowhere\.parquet cannot be read"):
        read_listing(tmp_path / "nowhere.parquet", source)


@pytest.mark.parametrize(
    "header",
    [
        b"", b"\x93NUMPY", b"PK\x03\x04" + bytes(60), b"\x93NUMPY\x01\x00\x10\x00{'descr':'|O',   ",
        b"(-1, 32, 32, 3)", b"(1 << 62, 32, 32, 3)", b"(2**40, 32, 32, 3)", b"(4611686018427387904, 4, 4, 3)",
        b"(1000000000000, 32, 32, 3)", b"(" * 9000, b"('a', 2)",
    ],
)  # fmt: skip
def test_arrays_whose_header_lies(tmp_path: Path, header: bytes):
    if header.startswith(b"("):
        text = b"{'descr':'|u1','fortran_order':False,'shape':" + header + b"}"
        text = text.ljust(-(-(len(text) + 11) // 64) * 64 - 11) + b"\n"
        header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(3072)
    (tmp_path / "a.npy").write_bytes(header)
    with pytest.raises(DataError, match=r"a\.npy is not a \.npy file that can be read"):
        open_source(tmp_path / "a.npy")
    os.mkfifo(tmp_path / "b.npy")
    with pytest.raises(DataError, match=r"b\.npy cannot be read \(it is a named pipe"):
        open_source(tmp_path / "b.npy")
