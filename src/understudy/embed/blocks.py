"""A store in the making: blocks of consecutive images, each with a file of rows and a record of how far it is.

    store/<fingerprint>/blocks/0000.rows  0000.sums  0000.json  0001.rows ...

Each block is written by one process at a time; when all are complete, one process joins the rows. A block gives its
rows up only when they have reached the disk in their place, so there is never a second copy of everything.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from understudy.artifacts import Checksums, Store, atomic, read_table, write_json
from understudy.artifacts.seals import checksum
from understudy.errors import ConfigError, ModelError, StoreError
from understudy.sources.source import Source
from understudy.views.reader import Skipped

SUM = np.dtype("<u4")
SAVE_SECONDS = 10.0  # at most so much work is lost to a kill

log = logging.getLogger("understudy")


class Block:
    """The rows of `images`, positions in the source, written so far, and how far those were read.

    What `save` has recorded survives a kill. Rows go to the end of a plain file, not through a memory map: the process
    then holds a batch of them, not the file. Rows behind the last `save` are cut off when the file is opened again.
    """

    def __init__(self, store: Store, number: int, images: range, width: int, dtype: np.dtype[Any]) -> None:
        self.store, self.number, self.images, self.width, self.dtype = store, number, images, width, dtype
        stem = store.folder / "blocks" / f"{number:04d}"
        self.path, self.record_path = stem.with_suffix(".rows"), stem.with_suffix(".json")
        self.sums_path = stem.with_suffix(".sums")  # checksums of the images behind the rows
        self.skipped: list[tuple[int, str, str]]  # position, name, reason
        self.counts: tuple[int, int, int, int | None]
        """Position the images were read up to, rows written, images skipped, checksum of the rows' bytes."""
        self.seconds: float
        self._saved = self._entered = 0.0
        self._file: IO[bytes]
        self._sums: IO[bytes]
        self._begin()
        if self.record_path.exists():
            try:
                self._take_up(read_table(self.record_path, "The images of its block are embedded again."))
            except StoreError as error:
                log.warning(str(error))
            except (KeyError, TypeError, ValueError):
                log.warning(f"{self.record_path} is no record of a block. Its images are embedded again.")

    def _begin(self) -> None:
        """Be a block of which nothing was done."""
        self.skipped, self.counts, self.seconds = [], (self.images.start, 0, 0, 0), 0.0

    def _take_up(self, state: dict[str, Any]) -> None:
        """Go on from what an earlier life recorded, if its rows are there."""
        written = self.path.stat().st_size if self.path.exists() else 0
        moved = state["done"] == self.images.stop and not self.path.exists() and merging(self.store).exists()
        enough = moved or written >= state["rows"] * self.width * self.dtype.itemsize
        sums = self.sums_path.stat().st_size if self.sums_path.exists() else 0
        enough = enough and sums >= state["rows"] * SUM.itemsize
        if state["images"] == [self.images.start, self.images.stop] and enough:
            skipped = [(int(place), str(name), str(reason)) for place, name, reason in state["skipped"]]
            counts = (int(state["done"]), int(state["rows"]), len(skipped), state.get("checksum_of_rows"))
            self.skipped, self.counts, self.seconds = skipped, counts, float(state["seconds"])

    def begin_again_if_damaged(self) -> None:
        """Take up an unfinished block only if its rows are those that were written."""
        if not self.rows or self.checksum is None or self.complete:
            return
        if Checksums.of(self.path, (self.bytes,)).values != (self.checksum,):
            log.warning(
                f"{self.path} is damaged: its rows are not what was written, as their checksum shows. The "
                f"{self.done - self.images.start:,} images behind them are embedded again."
            )
            self._begin()

    @property
    def done(self) -> int:
        """Position in the source that the images were read up to."""
        return self.counts[0]

    @property
    def rows(self) -> int:
        """Rows written."""
        return self.counts[1]

    @property
    def checksum(self) -> int | None:
        """Of the bytes of the rows; None where an older version wrote them."""
        return self.counts[3]

    @property
    def complete(self) -> bool:
        """Whether all of its images were read."""
        return self.done == self.images.stop

    @property
    def bytes(self) -> int:
        """Size of the rows written."""
        return self.rows * self.width * self.dtype.itemsize

    def __enter__(self) -> Block:
        self._file = open(self.path, "r+b" if self.path.exists() else "w+b")
        self._sums = open(self.sums_path, "r+b" if self.sums_path.exists() else "w+b")
        for file, size in ((self._file, self.bytes), (self._sums, self.rows * SUM.itemsize)):
            file.truncate(size)
            file.seek(0, os.SEEK_END)
        self._saved = self._entered = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.save()
        finally:
            self._file.close()
            self._sums.close()

    def append(self, rows: np.ndarray, sums: np.ndarray, positions: np.ndarray, skipped: Skipped, done: int) -> None:
        """Add the rows of one batch, which ends before position `done` of the source, and the sums of its images."""
        assert rows.shape == (len(sums), self.width)
        self._sums.write(sums.astype(SUM).data)
        content = np.ascontiguousarray(rows)
        self._file.write(content.data)
        value = self.checksum
        if value is not None:
            value = checksum(content.reshape(-1).view(np.uint8).data, value)
        unreadable = sorted(set(range(self.done, done)) - set(positions.tolist()))
        self.skipped += [(place, name, reason) for place, (name, reason) in zip(unreadable, skipped, strict=True)]
        # In one assignment: Ctrl-C falls before or after it, never between counts that must agree.
        self.counts = (done, self.rows + len(rows), len(self.skipped), value)
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Make what was appended survive: rows first, then the record that counts them."""
        for file in (self._file, self._sums):
            file.flush()
            os.fsync(file.fileno())
        now = time.monotonic()
        self.seconds += now - self._entered
        self._saved = self._entered = now
        images, (done, rows, skipped, value) = [self.images.start, self.images.stop], self.counts
        state = {"images": images, "done": done, "rows": rows, "skipped": self.skipped[:skipped]}
        write_json(self.record_path, state | {"seconds": self.seconds, "checksum_of_rows": value})


def storable(rows: np.ndarray, dtype: np.dtype[Any], remedy: str) -> np.ndarray:
    """Embeddings in the stored precision.

    Raises:
        ConfigError: values beyond it; the sentence ends in the remedy.
    """
    with np.errstate(over="ignore"):
        stored = rows.astype(dtype)
    if not np.isfinite(stored).all():
        largest = f"{np.abs(rows).max():.4g}, beyond float16's largest number 65504"
        raise ConfigError(f"The teacher's embeddings reach {largest}. {remedy}")
    return stored


def checked_rows(rows: np.ndarray, dtype: np.dtype[Any], source: Source, positions: np.ndarray) -> np.ndarray:
    """The embeddings of images at some positions of a source, in the stored precision.

    Raises:
        ModelError: NaN or infinity.
        ConfigError: values beyond the precision.
    """
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise ModelError(
            f"The teacher's embeddings of {len(bad)} of {len(rows)} images contain NaN or infinity, the first being "
            f"{source.name(int(positions[bad[0]]))}. Check the teacher's weights and its input normalization."
        )
    return storable(rows, dtype, "Store them with --dtype float32.")


def merging(store: Store) -> Path:
    """The array while rows are put into it."""
    return store.folder / "embeddings.partial"


def take_back(store: Store) -> None:
    """Undo the last step of a merge that was killed before the manifest was written."""
    final = store.folder / "embeddings.npy"
    if final.exists() and not merging(store).exists():
        os.replace(final, merging(store))


def merge(store: Store, blocks: list[Block]) -> dict[str, str]:
    """Put the rows of complete blocks behind each other, as `embeddings.npy`.

    Killed and called again, it goes on: a block whose rows are gone had put them into the array.

    Returns:
        For the manifest, checksums of the array (its header, and each block that has rows), of the listing and of
        `images.npy`, the sums of the images behind the rows.

    Raises:
        StoreError: the array does not hold what its blocks had put there.
    """
    path = merging(store)
    with open(path, "r+b" if path.exists() else "w+b") as file:
        shape, kind = (sum(block.rows for block in blocks), blocks[0].width), blocks[0].dtype.str
        np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
        size, header = path.stat().st_size, file.tell()
        for block in blocks:
            assert block.complete
            start = file.tell()
            if block.path.exists():
                with open(block.path, "rb") as rows:
                    shutil.copyfileobj(rows, file, 1 << 20)
                assert file.tell() == start + block.bytes
                file.flush()
                os.fsync(file.fileno())
                block.path.unlink()
            elif size < start + block.bytes:
                raise StoreError(
                    f"{path} has {size:,} bytes, and its first {block.number + 1} blocks alone had "
                    f"{start + block.bytes:,}. Delete the folder {store.folder} and embed again."
                )
            file.seek(start + block.bytes)
        file.truncate()
    filled = [block for block in blocks if block.rows]
    checksums = Checksums.of(path, itertools.accumulate((block.bytes for block in filled), initial=header))
    for block, value in zip(filled, checksums.values[1:], strict=True):
        if block.checksum not in (None, value):
            block.record_path.unlink()
            raise StoreError(
                f"{path} is damaged: the rows of block {block.number} are not what was written, as their checksum "
                f"shows. Run the same command again: its {len(block.images):,} images are embedded again."
            )
    sums = [np.fromfile(block.sums_path, SUM, block.rows) for block in filled]
    with atomic(store.sums_path) as temporary, open(temporary, "wb") as content:
        np.save(content, np.concatenate(sums))
    os.replace(path, store.folder / "embeddings.npy")
    others = {place.name: str(Checksums.of(place)) for place in (store.listing_path, store.sums_path)}
    return {"embeddings.npy": str(checksums), **others}
