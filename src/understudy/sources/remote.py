"""Images in parquet files that are not on this machine: `hf:NAME`, or any address that fsspec understands.

A listing asks for the footers alone. Images come a row group at a time, by its offset, and stay on this machine's disk
up to a bound, shared by all processes: in order, each row group is fetched once; at random, once if all fit.
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from understudy.artifacts import fingerprint
from understudy.errors import DataError
from understudy.philox import SUBSET, permutation
from understudy.sources.addresses import NoParquet, Shard, file_system, patiently, shards_below
from understudy.sources.cache import Cache
from understudy.sources.parquet import RowGroupImages, encoded, example_of, leaf_of, split_of

THREADS = 16
"""Requests at once while a listing is made: each waits for the network most of its time."""

TAIL = 2**16
"""Bytes asked for at the end of a file, in which most footers lie whole."""

MAPPED = 8
"""Row groups that one process holds mapped; their room on the disk is not free before it lets them go."""


class RemoteImages(RowGroupImages):
    """Images inside parquet files behind an address.

    Differs from `ParquetImages` in that row groups are kept on disk and not in memory, and are never unpacked.

    Args:
        url: any address on the file system.
        shards: with one schema; their rows follow each other.

    Raises:
        DataError: a file cannot be reached or is no parquet file; no column of images, or several.
    """

    def __init__(self, url: str, shards: Sequence[Shard]) -> None:
        self.url, self.shards = url, list(shards)
        self.versions = [fingerprint(shard.path, shard.size, shard.version) for shard in shards]
        self.fingerprint = fingerprint("remote", [(shard.name, shard.size, shard.version) for shard in shards])
        self.cache = Cache.of_machine()
        self._mapped: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._tails: pa.ChunkedArray | None = None
        super().__init__(
            [shard.path for shard in shards],
            [shard.name for shard in shards],
            (self._footer(number) for number in range(len(shards))),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": OrderedDict(), "_tails": None}

    def _footer(self, number: int) -> pq.FileMetaData:
        if self._tails is None:
            self._tails = self.cache.table(f"{fingerprint(self.versions)}-footers", self._all_tails).column(0)
        try:
            return pq.read_metadata(pa.BufferReader(self._tails[number].as_buffer()))
        except pa.ArrowException as error:
            raise DataError(f"{self.shards[number].path} is not a parquet file that can be read ({error}).") from None

    def _all_tails(self) -> pa.Table:
        with ThreadPoolExecutor(THREADS) as threads:
            return pa.table({"footer": pa.array(threads.map(self._tail, self.shards), type=pa.large_binary())})

    def _tail(self, shard: Shard) -> bytes:
        """The footer of a file, with the eight bytes behind it that give its length."""
        end = self._fetch(shard, max(0, shard.size - TAIL), shard.size)
        if end[-4:] != b"PAR1" or len(end) < 12:
            raise DataError(f"{shard.path} is not a parquet file: it does not end as one does.")
        length = 8 + int.from_bytes(end[-8:-4], "little")
        return end[-length:] if length <= len(end) else self._fetch(shard, max(0, shard.size - length), shard.size)

    def _group(self, group: int) -> pa.ChunkedArray:
        if group not in self._mapped:
            number, inner = self.groups[group].tolist()
            name = f"{self.versions[number]}-{fingerprint(self.column)[:4]}-{inner}"
            self._mapped[group] = self.cache.table(name, lambda: self._load(number, inner)).column(0)
            while len(self._mapped) > MAPPED:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(group)
        return self._mapped[group]

    def _load(self, number: int, inner: int) -> pa.Table:
        file = self._window(number, inner, self.column)
        return pa.table({"image": encoded(file, inner, self.column)})

    def _values(self, column: str) -> pa.ChunkedArray:
        def one(place: list[int]) -> pa.ChunkedArray:
            number, inner = place
            window = self._window(number, inner, column)
            return window.read_row_group(inner, columns=[column], use_threads=False).column(0)

        with ThreadPoolExecutor(THREADS) as threads:
            parts = list(threads.map(one, self.groups.tolist()))
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks])

    def _window(self, number: int, inner: int, column: str) -> pq.ParquetFile:
        """A parquet file of which only one column of one row group is there, fetched by one request."""
        footer, shard = self._footer(number), self.shards[number]
        about = footer.row_group(inner).column(leaf_of(footer, column))
        start = about.data_page_offset
        if about.has_dictionary_page:
            start = min(start, about.dictionary_page_offset)
        content = self._fetch(shard, start, start + about.total_compressed_size)
        return pq.ParquetFile(_Window(shard.size, start, content), metadata=footer, pre_buffer=False)

    def _fetch(self, shard: Shard, start: int, end: int) -> bytes:
        """Bytes of a file. Made again after a pause where a request fails; then a sentence ends the run."""

        def request() -> bytes:
            # The file system is asked for anew: in a forked process it has to be another one.
            system, _ = file_system(self.url)
            # Those that open a file to read of it would read ahead, too.
            options = {} if system.async_impl else {"cache_type": "none"}
            content = bytes(system.cat_file(shard.path, start, end, **options))
            if len(content) < end - start:
                raise EOFError(f"{len(content):,} of {end - start:,} bytes came")
            return content

        return patiently(shard.path, request)

    def near(self, rows: np.ndarray, limit: int) -> np.ndarray:
        """Places of `limit` of these rows, out of as few row groups as hold them, drawn always the same."""
        group = np.searchsorted(self.starts, rows, side="right") - 1
        rank = np.argsort(permutation(0, SUBSET, 0, len(self.groups)))
        return np.sort(np.argsort(rank[group], kind="stable")[:limit])

    def advice(self, rows: np.ndarray) -> str | None:
        """What reading these rows at random will cost where not all of their row groups can be kept; else None."""
        used = self.sizes[np.unique(np.searchsorted(self.starts, rows, side="right") - 1)]
        total, most = int(used.sum()), self.cache.most
        if total <= most:
            return None
        return (
            f"The images at {self.url} take {total / 1e9:.3g} GB and {self.cache.folder} keeps {most / 1e9:.3g} GB of "
            f"them: of the images of a batch, {1 - most / total:.0%} are fetched again, each with its row group of "
            f"{used.mean() / 1e6:.3g} MB. Set UNDERSTUDY_CACHE_GB to {np.ceil(1.05 * total / 1e9):.0f} or more, with "
            "UNDERSTUDY_CACHE on a disk that has the room, or use fewer images (--limit)."
        )


class _Window(io.RawIOBase):
    """A file of which only one part is there."""

    def __init__(self, size: int, start: int, content: bytes) -> None:
        super().__init__()
        self._size, self._start, self._content, self._at = size, start, memoryview(content), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        low = self._at - self._start
        assert low >= 0, "a read before the part that is there"
        content = self._content[low:] if size < 0 else self._content[low : low + size]
        self._at += len(content)
        return bytes(content)


def open_remote(url: str) -> RemoteImages:
    """Parquet files behind an address: one, a folder of them, or a pattern.

    Args:
        url: PROTOCOL://..., e.g. `s3://bucket/photos/train-*.parquet`.

    Raises:
        DataError: nothing there, no parquet files, files of several splits, or no network.
        MissingDependency: the protocol needs a package that is not installed.
    """
    found = shards_below(url)
    counts = Counter(split_of(shard.name) for shard in found)
    if len(counts) > 1:
        listed = ", ".join(f"{split or 'other'}: {counts[split]}" for split in sorted(counts))
        raise DataError(
            f"{url} holds parquet files of several splits ({listed}). Name the one to use, e.g. "
            f"{url.rstrip('/')}/{example_of([shard.name for shard in found])}."
        )
    return RemoteImages(url, found)


def open_listed(urls: Sequence[str]) -> RemoteImages:
    """Parquet files at these addresses, all on one file system, in this order."""
    others = [url for url in urls if url.partition("://")[0] != urls[0].partition("://")[0]]
    if others:
        raise DataError(f"A list names files of one file system; this one names {urls[0]} and {others[0]}.")
    found = [shard for url in urls for shard in shards_below(url)]
    return RemoteImages(urls[0], found)


def open_hub(name: str) -> RemoteImages:
    """A split of a data set of the Hugging Face hub.

    Args:
        name: `ORG/NAME`, `ORG/NAME@REVISION` or `ORG/NAME/FOLDER`, and `:SPLIT` after it; `train` where there is one,
            or the only split, unless written.

    Raises:
        DataError: no such set or split, no parquet files, several folders with files of the split, or no network.
    """
    name, _, split = name.partition(":")
    url, splits = hub_splits(name)
    if not split:
        split = "train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else ""
    if split not in splits:
        have = ", ".join(found or "(without a name)" for found in splits)
        raise DataError(f"hf:{name} has no split '{split or 'train'}'. It has: {have}. Write hf:{name}:SPLIT.")
    folders = sorted({_folder(shard.name) for shard in splits[split]})
    if len(folders) > 1:
        raise DataError(
            f"hf:{name} has files of the split '{split}' in several folders: {', '.join(folders[:8])}. Name one, e.g. "
            f"hf:{name}/{folders[0]}:{split}."
        )
    return RemoteImages(url, splits[split])


def hub_splits(name: str) -> tuple[str, dict[str, list[Shard]]]:
    """The address of a data set of the hub, and its parquet files by split.

    Args:
        name: without a split.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.@-]+)*", name):
        raise DataError(
            f"'hf:{name}' is not the name of a data set of the hub. Write hf:ORG/NAME or hf:ORG/NAME:SPLIT."
        )
    url = f"hf://datasets/{name}"
    try:
        return url, by_split(shards_below(url))
    except NoParquet as error:
        raise DataError(
            f"{error} The hub makes parquet of many other sets: try hf:{name.partition('@')[0]}@refs/convert/parquet. "
            f"Or fetch it (`hf download {name.partition('@')[0]} --repo-type dataset --local-dir FOLDER`) and give the "
            "folder."
        ) from None


def by_split(shards: Sequence[Shard]) -> dict[str, list[Shard]]:
    """Files by the split that their names say, "" where they say none."""
    found: dict[str, list[Shard]] = {}
    for shard in shards:
        found.setdefault(hub_split(shard.name), []).append(shard)
    return found


def hub_split(name: str) -> str:
    """The split of a file of the hub, of any name: `unlabeled-00000-of-00005.parquet`, `CONFIG/SPLIT/0000.parquet`."""
    match = re.search(r"(?:^|/)([\w.]+)-\d{4,}-of-\d{4,}[^/]*$", name) or re.search(r"(?:^|/)([\w.-]+)/\d{4,}\.", name)
    return match[1] if match else split_of(name)


def _folder(name: str) -> str:
    """The folder of a file, less the part that only names its split."""
    parent = PurePosixPath(name).parent
    return str(parent.parent if parent.name and parent.name == hub_split(name) else parent)
