"""Parquet that is not on this machine, behind file systems in memory that count what is asked of them."""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry, known_implementations

from test_sources_source import shades, table
from understudy.errors import ConfigError, DataError, MissingDependency
from understudy.sources import addresses
from understudy.sources.cache import Cache
from understudy.sources.decode import Geometry
from understudy.sources.evaluation import open_evaluation
from understudy.sources.formats.address import RemoteImages
from understudy.sources.pixels import PixelMap, decoded
from understudy.sources.source import Source, open_source
from understudy.views.loader import ImageLoader


class Elsewhere(MemoryFileSystem):
    """A file system that counts; it stands for any other, and for the hub's under the hub's name."""

    protocol = "elsewhere"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    asked: ClassVar[list[tuple[str, int, int]]] = []
    failing: ClassVar[list[Exception]] = []

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if self.failing:
            raise self.failing.pop()
        content = super().cat_file(path, start, end, **options)
        self.asked.append((path, start or 0, len(content)))
        return content


class Hub(Elsewhere):
    protocol = "hf"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UNDERSTUDY_CACHE_GB", raising=False)
    for kind in (Elsewhere, Hub):
        monkeypatch.setitem(_registry, kind.protocol, kind)
        kind.store.clear()
        kind.clear_instance_cache()
    Elsewhere.asked.clear()
    Elsewhere.failing.clear()
    monkeypatch.setattr(addresses, "PAUSES", (0.0, 0.0))
    yield tmp_path / "cache"
    fsspec.filesystem("memory").store.clear()


def put(url: str, rows: pa.Table, **options: Any) -> str:
    written = io.BytesIO()
    pq.write_table(rows, written, **options)
    system, path = fsspec.url_to_fs(url)
    system.pipe_file(path, written.getvalue())
    return url


def groups(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.group") if not path.name.endswith("-footers.group"))


def test_only_footers_are_listed_and_a_row_group_comes_by_one_request(cache: Path):
    noise = np.random.default_rng(0).bytes(200_000)  # what nobody asks for
    put("elsewhere://set/a.parquet", table(range(7), other=[noise] * 7), row_group_size=3, compression="none")
    put("elsewhere://set/b.parquet", table(range(7, 12), other=[noise] * 5), row_group_size=2, compression="none")
    source = open_source("elsewhere://set")
    assert len(source) == 12
    assert len(Elsewhere.asked) == 2
    assert all(length <= 2**16 for _, _, length in Elsewhere.asked)
    Elsewhere.asked.clear()
    order = np.random.default_rng(0).permutation(12)
    assert shades(source.subset(order)) == order.tolist()
    assert len(Elsewhere.asked) == 6  # each of the row groups, once
    assert sum(length for _, _, length in Elsewhere.asked) < 10_000  # of 2.4 MB
    assert len(groups(cache)) == 6
    assert source.names.to_pylist()[6:8] == ["a.parquet:6", "b.parquet:0"]
    # Another process finds what this one has fetched, the footers too.
    Elsewhere.asked.clear()
    again = open_source("elsewhere://set")
    assert again.fingerprint == source.fingerprint
    assert shades(again) == list(range(12))
    assert shades(pickle.loads(pickle.dumps(source))) == list(range(12))
    assert Elsewhere.asked == []
    assert len(pickle.dumps(source)) < 5000


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_the_same_images_and_labels_as_from_a_local_file(tmp_path: Path, compression: str, dictionary: bool):
    rows = table([*range(9), *range(9)], label=["dog", "cat"] * 9)  # type: ignore[arg-type]
    options = {"row_group_size": 4, "compression": compression, "use_dictionary": dictionary}
    pq.write_table(rows, tmp_path / "a.parquet", **options)
    local, remote = open_source(tmp_path / "a.parquet"), open_source(put("memory://set/a.parquet", rows, **options))
    file = open_source(f"file://{tmp_path}/a.parquet")
    assert shades(remote) == shades(local) == shades(file)
    assert remote.labels is not None and local.labels is not None and file.labels is not None
    assert remote.labels.tolist() == local.labels.tolist() == file.labels.tolist()
    assert remote.class_names == ["cat", "dog"]
    assert remote.names.to_pylist() == local.names.to_pylist()


def test_a_footer_longer_than_the_first_request(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("understudy.sources.formats.address.TAIL", 64)
    source = open_source(put("elsewhere://set/a.parquet", table(range(5)), row_group_size=1))
    assert len(Elsewhere.asked) == 2
    assert shades(source) == list(range(5))


def test_the_cache_is_bounded_and_forgets_what_was_used_least(cache: Path, monkeypatch: pytest.MonkeyPatch):
    put("elsewhere://set/a.parquet", table(range(40)), row_group_size=4)
    source = open_source("elsewhere://set/a.parquet")
    source.read(0)
    (only,) = groups(cache)
    size = (cache / only).stat().st_size
    footers = next(cache.glob("*-footers.group")).stat().st_size
    monkeypatch.setenv("UNDERSTUDY_CACHE_GB", repr((3.5 * size + footers) / 1e9))
    source = open_source("elsewhere://set/a.parquet")
    Elsewhere.asked.clear()
    os.utime(next(cache.glob("*-footers.group")), (2**32, 2**32))
    assert shades(source) == list(range(40))  # in order, each row group once, whatever is kept
    assert len(Elsewhere.asked) == 9
    assert len(groups(cache)) == 3
    fresh = open_source("elsewhere://set/a.parquet")  # maps nothing yet
    Elsewhere.asked.clear()
    assert shades(fresh.subset([39, 35, 31])) == [39, 35, 31]
    assert Elsewhere.asked == []


def test_what_a_cache_that_is_too_small_will_cost(monkeypatch: pytest.MonkeyPatch):
    source = open_source(put("elsewhere://set/a.parquet", table(range(40)), row_group_size=4))
    images = source.images
    assert isinstance(images, RemoteImages)
    assert images.advice(source.rows) is None
    monkeypatch.setenv("UNDERSTUDY_CACHE_GB", repr(float(images.sizes[:4].sum()) / 1e9))
    images = open_source("elsewhere://set/a.parquet").images
    assert isinstance(images, RemoteImages)
    said = images.advice(source.rows)
    assert said is not None
    share = 1 - images.sizes[:4].sum() / images.sizes.sum()
    assert f"{share:.0%} are fetched again" in said and "UNDERSTUDY_CACHE_GB to 1 or more" in said
    assert images.advice(source.rows[:16]) is None  # four row groups fit
    assert images.advice(source.rows[:17]) is not None


def test_a_row_group_larger_than_the_cache_is_read_all_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE_GB", "1e-9")
    source = open_source(put("elsewhere://set/a.parquet", table(range(12)), row_group_size=4))
    assert shades(source) == list(range(12))


def test_memory_is_that_of_few_row_groups(cache: Path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 2**20), dtype=np.uint8)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": bytes(row), "path": None} for row in noise], type=kind)
    put("memory://set/a.parquet", pa.table({"image": rows}), row_group_size=4, compression="none", use_dictionary=False)
    del rows
    before = pa.total_allocated_bytes()
    source = open_source("memory://set/a.parquet")
    images = source.images
    assert isinstance(images, RemoteImages)
    for i in range(64):
        assert bytes(images.content(i)) == bytes(noise[i])
        assert pa.total_allocated_bytes() - before < 2**20  # mapped, not held
    assert sum(path.stat().st_size for path in cache.glob("*.group")) > 64 * 2**20


def test_processes_that_read_share_what_they_fetch(tmp_path: Path):
    pq.write_table(table(range(64)), tmp_path / "a.parquet", row_group_size=16)
    source = open_source(f"file://{tmp_path}/a.parquet")
    source.read(0)  # the parent has opened it before it forks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        loader = ImageLoader(source, Geometry(8), batch_size=8, workers=2)
        read = [(positions, pixels) for positions, pixels, *_ in loader]
    assert np.concatenate([positions for positions, _ in read]).tolist() == list(range(64))
    assert [int(image[0, 0, 0]) for _, pixels in read for image in pixels] == list(range(64))
    assert len(groups(tmp_path / "cache")) == 4


def test_small_images_are_decoded_once(tmp_path: Path):
    source = open_source(put("elsewhere://set/a.parquet", table(range(0, 30, 3)), row_group_size=4))
    fast = decoded(source, tmp_path / "store")
    assert isinstance(fast.images, PixelMap)
    assert shades(fast) == shades(source)


def test_a_limit_takes_whole_row_groups(cache: Path):
    source = open_source(put("elsewhere://set/a.parquet", table(range(40)), row_group_size=4), limit=10)
    images = source.images
    assert isinstance(images, RemoteImages)
    assert len(source) == 10
    assert shades(source) == sorted(shades(source))
    assert len(groups(cache)) == 3
    assert shades(source) == shades(open_source("elsewhere://set/a.parquet", limit=10))
    assert shades(source) != list(range(10))


def test_a_failed_request_is_made_again(tmp_path: Path):
    source = open_source(put("elsewhere://set/a.parquet", table(range(4))))
    Elsewhere.failing[:] = [TimeoutError("no answer")] * 2
    assert shades(source) == list(range(4))


def test_the_network_fails_for_good():
    put("elsewhere://set/a.parquet", table(range(8)), row_group_size=4)
    Elsewhere.failing[:] = [ConnectionError("no route")] * 9
    with pytest.raises(
        DataError, match=r"set/a\.parquet cannot be reached: 3 attempts failed.*ConnectionError: no route"
    ):
        open_source("elsewhere://set")
    Elsewhere.failing.clear()
    source = open_source("elsewhere://set")
    source.read(0)
    Elsewhere.failing[:] = [ConnectionError("no route")] * 9
    assert shades(source.subset([3, 0])) == [3, 0]  # what is there needs no network
    with pytest.raises(DataError, match="what is done is kept"):
        source.read(4)  # and is no image that may be skipped


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_reading_process_ends_the_run_with_the_sentence_alone():
    source = open_source(put("elsewhere://set/a.parquet", table(range(8))))
    Elsewhere.failing[:] = [ConnectionError("no route")] * 9
    loader = ImageLoader(source, Geometry(8), batch_size=4, workers=1)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(caught.value).startswith("elsewhere://set/a.parquet cannot be reached")


def test_what_is_not_there_and_what_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(DataError, match=r"elsewhere://nowhere does not exist"):
        open_source("elsewhere://nowhere")
    with pytest.raises(DataError, match=r"nothing at elsewhere://set/\*\.parquet"):
        open_source("elsewhere://set/*.parquet")
    with pytest.raises(DataError, match=r"gopher://host/a is not an address that can be read .*gopher"):
        open_source("gopher://host/a")
    system = fsspec.filesystem("elsewhere")
    system.pipe_file("elsewhere://other/a.tar", b"x")
    system.pipe_file("elsewhere://other/b.tar", b"x")
    with pytest.raises(DataError, match=r"holds no parquet files \(2 \.tar\)"):
        open_source("elsewhere://other")
    with pytest.raises(DataError, match=r"other/a\.tar is not a parquet file"):
        open_source("elsewhere://other/a.tar")
    put("elsewhere://texts/a.parquet", pa.table({"text": ["a"], "n": [1]}))
    with pytest.raises(DataError, match=r"no column of images. Its columns are: text \(string\), n \(int64\)"):
        open_source("elsewhere://texts/a.parquet")
    put("elsewhere://halves/data/train-00000-of-00002.parquet", table(range(2)))
    put("elsewhere://halves/data/test-00000-of-00001.parquet", table(range(2)))
    with pytest.raises(
        DataError, match=r"several splits \(test: 1, train: 1\).*elsewhere://halves/data/train\*\.parquet"
    ):
        open_source("elsewhere://halves")
    assert len(open_source("elsewhere://halves/data/train*.parquet")) == 2
    monkeypatch.setitem(known_implementations, "s3", {"class": "no_such_package.S3", "err": "Install s3fs"})
    with pytest.raises(MissingDependency, match=r"s3:// needs a package that is not installed: pip install s3fs\."):
        open_source("s3://bucket/a.parquet")


def test_a_cache_that_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    put("elsewhere://set/a.parquet", table(range(4)))
    for text in ("much", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("UNDERSTUDY_CACHE_GB", text)
        with pytest.raises(ConfigError, match=f"above 0; got '{text}'"):
            open_source("elsewhere://set")
    monkeypatch.delenv("UNDERSTUDY_CACHE_GB")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be kept in .*file .*Set UNDERSTUDY_CACHE to a folder with room"):
        open_source("elsewhere://set")


def test_a_cache_on_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Cache, "_make_room", full)
    said = re.escape(f"cannot be kept in {tmp_path} (No space left on device). Set UNDERSTUDY_CACHE to")
    with pytest.raises(DataError, match=said):
        Cache(tmp_path, 10**9).table("one", lambda: pa.table({"bytes": [b"x"]}))
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*.partial"))


def test_parts_of_a_killed_process_make_room(tmp_path: Path):
    cache = Cache(tmp_path, 1)
    (tmp_path / ".a.group.1.partial").write_bytes(b"x" * 100)
    (tmp_path / ".b.group.2.partial").write_bytes(b"x" * 100)
    os.utime(tmp_path / ".a.group.1.partial", (1, 1))
    assert cache.table("c", lambda: pa.table({"x": [1]})).num_rows == 1
    assert not (tmp_path / ".a.group.1.partial").exists()
    assert (tmp_path / ".b.group.2.partial").exists()  # somebody may be writing it


def test_a_list_of_addresses(tmp_path: Path):
    urls = [put(f"elsewhere://set/{name}.parquet", table(rows)) for name, rows in (("b", range(3)), ("a", range(3, 5)))]
    (tmp_path / "shards.txt").write_text("\n".join(urls))
    assert shades(open_source(tmp_path / "shards.txt")) == list(range(5))
    (tmp_path / "shards.txt").write_text("\n".join([*urls, "memory://set/c.parquet"]))
    with pytest.raises(DataError, match="names files of one file system"):
        open_source(tmp_path / "shards.txt")


# --- the hub -------------------------------------------------------------------------------------------------------


def pets() -> Source:
    put("hf://datasets/us/pets/data/train-00000-of-00002.parquet", table(range(3), label=[0, 1, 0]))
    put("hf://datasets/us/pets/data/train-00001-of-00002.parquet", table(range(3, 5), label=[1, 1]))
    put("hf://datasets/us/pets/data/test-00000-of-00001.parquet", table(range(5, 7), label=[0, 1]))
    put("hf://datasets/us/pets/data/wild_ones-00000-of-00001.parquet", table(range(7, 9), label=[0, 1]))
    fsspec.filesystem("hf").pipe_file("hf://datasets/us/pets/README.md", b"# Pets")
    return open_source("hf:us/pets")


def test_splits_of_the_hub():
    assert shades(pets()) == [0, 1, 2, 3, 4]
    assert shades(open_source("hf:us/pets:test")) == [5, 6]
    assert shades(open_source("hf:us/pets:wild_ones")) == [7, 8]
    assert open_source("hf:us/pets").names.to_pylist()[0] == "data/train-00000-of-00002.parquet:0"
    with pytest.raises(DataError, match=r"no split 'val'. It has: test, train, wild_ones. Write hf:us/pets:SPLIT"):
        open_source("hf:us/pets:val")
    train, test = open_evaluation("hf:us/pets")
    assert (shades(train), shades(test)) == ([0, 1, 2, 3, 4], [5, 6])
    assert test.labels is not None and test.labels.tolist() == [0, 1]


def test_one_split_needs_no_name():
    put("hf://datasets/us/one/data/wild-00000-of-00001.parquet", table(range(2)))
    assert shades(open_source("hf:us/one")) == [0, 1]
    with pytest.raises(DataError, match=r"has the splits wild, and evaluation needs train"):
        open_evaluation("hf:us/one")


def test_folders_and_revisions_of_the_hub():
    for number, name in enumerate(("large/train/0000", "small/train/0000", "small/test/0000")):
        put(f"hf://datasets/us/sizes@refs/convert/parquet/{name}.parquet", table([number]))  # type: ignore[arg-type]
    with pytest.raises(
        DataError, match=r"'train' in several folders: large, small. Name one, e\.g\. hf:.*/large:train"
    ):
        open_source("hf:us/sizes@refs/convert/parquet")
    assert shades(open_source("hf:us/sizes@refs/convert/parquet/small:train")) == [1]
    assert shades(open_source("hf:us/sizes@refs/convert/parquet/small:test")) == [2]


def test_what_the_hub_does_not_have():
    with pytest.raises(DataError, match=r"hf://datasets/us/none does not exist"):
        open_source("hf:us/none")
    with pytest.raises(DataError, match=r"'hf:us/a b' is not the name of a data set"):
        open_source("hf:us/a b")
    fsspec.filesystem("hf").pipe_file("hf://datasets/us/tars/a.tar", b"x")
    fsspec.filesystem("hf").pipe_file("hf://datasets/us/tars/README.md", b"x")
    with pytest.raises(DataError, match=r"no parquet files .*try hf:us/tars@refs/convert/parquet.*hf download us/tars"):
        open_source("hf:us/tars")
