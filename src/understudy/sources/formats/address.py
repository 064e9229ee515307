"""Images in parquet files that are not on this machine, at any address that fsspec understands.

A listing asks for the footers alone. Images come a row group at a time, by its offset, and stay on this machine's disk
up to a bound, shared by all processes: in order, each row group is fetched once; at random, once if all fit.
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from understudy.artifacts import fingerprint
from understudy.errors import DataError
from understudy.philox import SUBSET, permutation
from understudy.sources.addresses import Shard, file_system, patiently, shards_below
from understudy.sources.cache import Cache
from understudy.sources.formats import Format, split_image
from understudy.sources.formats.parquet import RowGroupImages, encoded, leaf_of
from understudy.sources.images import Images
from understudy.sources.splits import example_of, several_splits

THREADS = 16  # requests at once while a listing is made: each waits for the network most of its time
TAIL = 2**16  # bytes asked for at the end of a file, in which most footers lie whole
MAPPED = 8  # row groups that one process holds mapped; their room on the disk is not free before it lets them go


class RemoteImages(RowGroupImages):
    """Images inside parquet files behind an address.

    Differs from `ParquetImages` in that row groups are kept on disk and not in memory, and are never unpacked.

    Args:
        url: any address on the file system.
        shards: with one schema; their rows follow each other.

    Raises:
        DataError: a file cannot be reached or is no parquet file, or as for `TableImages`.
    """

    def __init__(self, url: str, shards: Sequence[Shard], image: str = "") -> None:
        self.url, self.shards = url, list(shards)
        self.versions = [fingerprint(shard.path, shard.size, shard.version) for shard in shards]
        self.fingerprint = fingerprint(
            "remote", [(shard.name, shard.size, shard.version) for shard in shards], *filter(None, [image])
        )
        self.cache = Cache.of_machine()
        self._mapped: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._tails: pa.ChunkedArray | None = None
        names = [shard.name for shard in shards]
        footers = ((self._footer(number), shard.size) for number, shard in enumerate(shards))
        super().__init__([shard.path for shard in shards], names, footers, image)

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
            number, inner = self.parts[group].tolist()

            column = self.columns[number]

            def load() -> pa.Table:
                return pa.table({"image": encoded(self._window(number, inner, column.path), inner, column)})

            name = f"{self.versions[number]}-{fingerprint(column.path)[:4]}-{inner}"
            self._mapped[group] = self.cache.table(name, load).column(0)
            while len(self._mapped) > MAPPED:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(group)
        return self._mapped[group]

    def _values(self, columns: Sequence[str]) -> list[pa.ChunkedArray]:
        def one(number: int, inner: int) -> pa.ChunkedArray:
            column = columns[number]
            window = self._window(number, inner, column)
            return window.read_row_group(inner, columns=[column], use_threads=False).column(0)

        chunks: list[list[pa.Array]] = [[] for _ in columns]
        with ThreadPoolExecutor(THREADS) as threads:
            for number, values in zip(self.parts[:, 0].tolist(), threads.map(one, *self.parts.T.tolist()), strict=True):
                chunks[number] += values.chunks
        return [pa.chunked_array(of_file) if of_file else pa.chunked_array([], pa.null()) for of_file in chunks]

    def _window(self, number: int, inner: int, column: str) -> pq.ParquetFile:
        """A parquet file of which only one column of one row group is there, fetched by one request."""
        footer, shard = self._footer(number), self.shards[number]
        about = footer.row_group(inner).column(leaf_of(footer, column))
        start = min(about.data_page_offset, about.dictionary_page_offset or about.data_page_offset)
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

    def in_few_groups(self, rows: np.ndarray, limit: int) -> np.ndarray:
        """Places of `limit` of these rows, out of as few row groups as hold them, drawn always the same."""
        rank = np.argsort(permutation(0, SUBSET, 0, len(self.parts)))
        return np.sort(np.argsort(rank[self.part_of(rows)], kind="stable")[:limit])

    def advice(self, rows: np.ndarray) -> str | None:
        """What reading these rows at random will cost where not all of their row groups can be kept; else None."""
        used = self.sizes[np.unique(self.part_of(rows))]
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


class Address(Format):
    """Parquet files behind an address: one, a folder of them, or a pattern."""

    name = "address"
    form = "an address of parquet files (s3://..., https://...)"
    summary = "a file, folder or pattern of parquet, at any address that fsspec reads (`s3://...`, `https://...`)"
    remote = True

    @staticmethod
    def accepts(spec: str) -> bool:
        """See `Format`."""
        return "://" in spec

    @staticmethod
    def open(place: str, listings: Path | None) -> Images:
        """The images of PROTOCOL://..., e.g. `s3://bucket/photos/train-*.parquet`; see `Format`.

        Raises:
            DataError: nothing there, no parquet files, files of several splits, or no network.
            MissingDependency: the protocol needs a package that is not installed.
        """
        place, image = split_image(place)
        shards = shards_below(place)
        names = [shard.name for shard in shards]
        if splits := several_splits(names):
            raise DataError(
                f"{place} holds parquet files of several splits ({splits}). Name the one to use, e.g. "
                f"{place.rstrip('/')}/{example_of(names)}."
            )
        return RemoteImages(place, shards, image)


def open_addresses(urls: Sequence[str], image: str = "") -> RemoteImages:
    """Parquet files at these addresses, all on one file system, in this order."""
    if others := [url for url in urls if url.partition("://")[0] != urls[0].partition("://")[0]]:
        raise DataError(f"A list names files of one file system; this one names {urls[0]} and {others[0]}.")
    return RemoteImages(urls[0], [shard for url in urls for shard in shards_below(url)], image)
