"""Decoded and unpacked sources: the same images, only faster to reach."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from understudy.artifacts import checksums as checksums_module
from understudy.errors import DataError, UnreadableImage
from understudy.sources import pixels as pixels_module
from understudy.sources.pixels import PixelMap, UnpackedImages, decoded
from understudy.sources.source import Source, open_source


def noise(count: int, height: int = 12, width: int = 15) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write_folder(root: Path, images: np.ndarray) -> Path:
    for i, image in enumerate(images):
        path = root / ("even", "odd")[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def write_parquet(path: Path, images: np.ndarray, **options: int) -> Path:
    content = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        content.append(buffer.getvalue())
    pq.write_table(pa.table({"image": content, "label": np.arange(len(images)) % 4}), path, **options)
    return path


def same(one: Source, other: Source) -> None:
    assert len(one) == len(other)
    assert one.ids.tolist() == other.ids.tolist()
    assert one.fingerprint == other.fingerprint
    assert one.spec == other.spec
    assert one.names.to_pylist() == other.names.to_pylist()
    assert one.class_names == other.class_names
    assert (one.labels is None) == (other.labels is None)
    if one.labels is not None and other.labels is not None:
        assert one.labels.tolist() == other.labels.tolist()
    for i in range(len(one)):
        assert (np.asarray(one.read(i)) == np.asarray(other.read(i))).all()


def test_small_images_are_decoded_once(tmp_path: Path):
    source = open_source(write_folder(tmp_path / "images", noise(20)))
    calls: list[tuple[int, int, str]] = []
    fast = decoded(source, tmp_path / "store", progress=lambda *call: calls.append(call))
    assert isinstance(fast.images, PixelMap)
    assert isinstance(fast.images.array, np.memmap)
    assert fast.images.array.shape == (20, 12, 15, 3)
    assert calls == [(20, 20, "decoding")]
    same(fast, source)
    same(fast.subset([7, 3]), source.subset([7, 3]))
    same(pickle.loads(pickle.dumps(fast)), source)
    assert len(pickle.dumps(fast)) < 20_000
    # Found again, not made again, also without the images.
    shutil.rmtree(tmp_path / "images" / "odd")
    again = decoded(source, tmp_path / "store", progress=lambda *call: pytest.fail(f"decoded again: {call}"))
    assert (np.asarray(again.read(19)) == noise(20)[19]).all()
    assert decoded(fast, tmp_path / "store") is fast


def test_a_subset_is_another_set_of_pixels(tmp_path: Path):
    whole = open_source(write_folder(tmp_path / "images", noise(20)))
    part = whole.subset([5, 19, 2])
    for source in (whole, part):
        same(decoded(source, tmp_path / "store"), source)
    assert len(list((tmp_path / "store").glob("*.npy"))) == 2


def test_unreadable_images_stay_unreadable(tmp_path: Path):
    root = write_folder(tmp_path / "images", noise(6))
    (root / "even" / "002.png").write_text("a text")
    (root / "even" / "000.png").write_bytes(b"")
    source = open_source(root)
    for fast in (decoded(source, tmp_path / "store"), decoded(source, tmp_path / "store")):
        assert isinstance(fast.images, PixelMap)
        with pytest.raises(UnreadableImage, match=r"002\.png is not an image"):
            fast.read(1)
        with pytest.raises(UnreadableImage, match=r"000\.png is empty"):
            fast.read(0)
        assert (np.asarray(fast.read(2)) == noise(6)[4]).all()


def test_images_of_several_sizes_stay_as_they_are(tmp_path: Path):
    root = write_folder(tmp_path / "images", noise(6))
    Image.new("RGB", (9, 9)).save(root / "odd" / "005.png")
    source = open_source(root)
    assert decoded(source, tmp_path / "store") is source
    assert not list((tmp_path / "store").glob("*.npy"))
    metadata = json.loads(next((tmp_path / "store").glob("*.json")).read_text())
    assert "9 x 9, not 15 x 12" in metadata["because"]
    assert decoded(source, tmp_path / "store") is source


def test_large_images_and_large_sets_stay_as_they_are(tmp_path: Path):
    large = open_source(write_folder(tmp_path / "large", noise(2, 65, 20)))
    assert decoded(large, tmp_path / "store") is large
    many = open_source(write_folder(tmp_path / "many", noise(6)))
    assert decoded(many, tmp_path / "store", budget=6 * 12 * 15 * 3 - 1) is many
    assert not (tmp_path / "store").exists()


def test_an_interrupted_decoding_leaves_nothing_to_mistake_for_whole(tmp_path: Path):
    source = open_source(write_folder(tmp_path / "images", noise(6)))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoded(source, tmp_path / "store", progress=interrupt)
    assert list((tmp_path / "store").iterdir()) == []
    same(decoded(source, tmp_path / "store"), source)


def test_a_large_parquet_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pixels_module, "ROW_GROUP_CACHE", 1000)
    source = open_source(write_parquet(tmp_path / "a.parquet", noise(10, 70, 20), row_group_size=3), limit=8)
    fast = decoded(source, tmp_path / "store")
    assert isinstance(fast.images, UnpackedImages)
    same(fast, source)
    same(fast.subset([3, 0]), source.subset([3, 0]))
    same(pickle.loads(pickle.dumps(fast)), source)
    assert len(pickle.dumps(fast)) < 20_000
    monkeypatch.setattr(pixels_module, "_check_disk", lambda *_: pytest.fail("unpacked again"))
    again = decoded(source, tmp_path / "store")
    assert (np.asarray(again.read(0)) == noise(10, 70, 20)[source.ids[0]]).all()


@pytest.mark.parametrize("ending", [".npy", ".json", ".bytes", ".offsets.npy", ".bytes.json"])
@pytest.mark.parametrize("place", [0, 400, -1])
def test_damaged_pixels_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, ending: str, place: int):
    monkeypatch.setattr(pixels_module, "ROW_GROUP_CACHE", 1000)
    small = ending in (".npy", ".json")
    images = noise(20) if small else noise(50, 70, 20)
    source = open_source(write_parquet(tmp_path / "a.parquet", images, row_group_size=3))
    decoded(source, tmp_path / "store")
    path = tmp_path / "store" / f"{source.fingerprint}{ending}"
    content = bytearray(path.read_bytes())
    place = min(place, len(content) - 2)
    content[place] ^= 16
    path.write_bytes(content)
    monkeypatch.setattr(checksums_module, "_verified", set())
    same(decoded(source, tmp_path / "store"), source)
    content[place] ^= 16
    assert path.read_bytes() == content
    assert any(f"{path} is damaged" in record.message for record in caplog.records)


def test_a_small_parquet_of_large_images_is_not(tmp_path: Path):
    source = open_source(write_parquet(tmp_path / "a.parquet", noise(3, 70, 20)))
    assert decoded(source, tmp_path / "store") is source


def test_no_room_is_said_in_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = open_source(write_folder(tmp_path / "images", noise(6)))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(pixels_module.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(DataError, match=r"take 0\.0 GiB .* only 0\.0 GiB are free"):
        decoded(source, tmp_path / "store")


def test_cifar(shared: Path, tmp_path: Path):
    source = open_source(shared / "data" / "cifar10" / "test.parquet", limit=500)
    fast = decoded(source, tmp_path)
    assert isinstance(fast.images, PixelMap)
    same(fast.subset(np.arange(0, 500, 25)), source.subset(np.arange(0, 500, 25)))
