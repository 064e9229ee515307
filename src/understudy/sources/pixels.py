"""Sources made cheap to read at random: small images decoded once, large parquet files unpacked once.

Neither changes a single pixel that training sees; both are files in a folder beside the stores, keyed by the source's
fingerprint, written once and mapped by every process.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from understudy.artifacts import Checksums, atomic, is_whole, read_json, write_json
from understudy.artifacts.checksums import damaged_at_opening
from understudy.errors import DataError, UnreadableImage
from understudy.sources.decode import to_rgb
from understudy.sources.formats.npy import ArrayImages
from understudy.sources.formats.parquet import ROW_GROUP_CACHE, ParquetImages
from understudy.sources.labels import Labels
from understudy.sources.source import Source

log = logging.getLogger("understudy")

SMALL = 64  # longest side in pixels at which an image is kept decoded: there, decoding costs more than reading 12 KiB

Progress = Callable[[int, int, str], None]


class PixelMap(ArrayImages):
    """The decoded images (N, H, W, 3) of another source, row for row; names and labels stay with that source."""

    def __init__(self, path: Path, origin: Source, unreadable: dict[int, str]) -> None:
        super().__init__(path, unreadable=unreadable)
        self.origin = origin
        self.fingerprint = origin.fingerprint

    def content(self, row: int) -> bytes | memoryview:
        """See `Images`: that of the source."""
        return self.origin.content(row)

    def names(self, rows: np.ndarray) -> pa.Array:
        """See `Images`."""
        return self.origin.images.names(self.origin.rows[rows])

    def labels(self) -> Labels | None:
        """See `Images`."""
        labels, names = self.origin.labels, self.origin.class_names
        return None if labels is None or names is None else (labels, names)


class UnpackedImages:
    """The encoded bytes of another source in one plain file, mapped into memory: one seek an image, whatever the order.

    Offsets (N + 1,) int64 say where each begins and ends; names and labels stay with that source.
    """

    def __init__(self, path: Path, offsets: np.ndarray, origin: Source) -> None:
        self.path, self.offsets, self.origin = os.fspath(path), offsets, origin
        self.fingerprint = origin.fingerprint
        self._bytes: np.ndarray | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_bytes": None}

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def read(self, row: int) -> Image.Image:
        """See `Images`."""
        if self._bytes is None:
            self._bytes = np.memmap(self.path, dtype=np.uint8, mode="r")
        start, end = self.offsets[row : row + 2].tolist()
        return to_rgb(self._bytes[start:end].tobytes(), lambda: self.origin.name(row))

    content = PixelMap.content
    names = PixelMap.names
    labels = PixelMap.labels


def decoded(
    source: Source, folder: str | os.PathLike[str], *, budget: int = 8 * 2**30, progress: Progress | None = None
) -> Source:
    """The same source in the form that is fastest to read at random, made on first use and found afterwards.

    - Images all of one size, at most 64 pixels: one uint8 array (N, H, W, 3), if it fits the budget.
    - Parquet whose images exceed what a process keeps of it: their encoded bytes in one plain file, as large as the
      images in the parquet files, because random reading would decode a whole row group for each image.
    - Anything else: the source itself.

    Args:
        source: any source.
        folder: where the files are kept; several sources may share it.
        budget: largest array of decoded pixels, in bytes.
        progress: called with images done, images in all, and a note.

    Returns:
        A source with the same images, ids, names, labels and fingerprint.

    Raises:
        DataError: there is no room on the disk; both figures are in the sentence.
    """
    folder = Path(folder)
    images = source.images
    if isinstance(images, ArrayImages) and images.pixels is not None:
        return source
    shape = _common_shape(source)
    if shape is not None and len(source) * shape[0] * shape[1] * 3 <= budget:
        decoded_source = _decode(source, folder, shape, progress)
        if decoded_source is not None:
            return decoded_source
    if isinstance(images, ParquetImages) and images.encoded_bytes > ROW_GROUP_CACHE:
        return _unpack(source, images, folder, progress)
    return source


def _common_shape(source: Source) -> tuple[int, int] | None:
    """(H, W) of the first readable image among a few, None when it is not small."""
    for i in range(min(len(source), 16)):
        try:
            width, height = source.read(i).size
        except UnreadableImage:
            continue
        return (height, width) if max(width, height) <= SMALL else None
    return None


def _decode(source: Source, folder: Path, shape: tuple[int, int], progress: Progress | None) -> Source | None:
    """The source over its decoded pixels; None when not all images have this shape."""
    path, metadata_path = folder / f"{source.fingerprint}.npy", folder / f"{source.fingerprint}.json"
    if not _is_whole(metadata_path, {"checksums": path}):
        _check_disk(folder, len(source) * shape[0] * shape[1] * 3)
        try:
            unreadable = _write_pixels(source, path, shape, progress)
            metadata: dict[str, Any] = {"shape": shape, "unreadable": unreadable, "checksums": str(Checksums.of(path))}
        except _AnotherSize as other:
            metadata = {"shape": None, "because": str(other)}
        write_json(metadata_path, metadata)  # last: the pixels are complete, or there is no point in trying
    metadata = read_json(metadata_path)
    if metadata["shape"] is None:
        return None
    skipped = {int(row): reason for row, reason in metadata["unreadable"].items()}
    return Source(source.spec, PixelMap(path, source, skipped), ids=source.ids)


def _is_whole(metadata_path: Path, files: Mapping[str, Path]) -> bool:
    """Whether files are there and are what was written, as those who wrote them say last; what is not is made anew.

    `files` are named by the entries of their checksums, which older versions did not write.
    """
    if not metadata_path.exists() or not is_whole(metadata_path):
        return False
    metadata = read_json(metadata_path)
    for name, path in files.items():
        checksums = Checksums.parse(metadata.get(name))
        if checksums is not None and (not path.exists() or damaged_at_opening(path, checksums)):
            log.warning(f"{path} is damaged, as its checksums show: it is made anew.")
            return False
    return True


class _AnotherSize(Exception):
    """An image is not of the size of the first one."""


def _write_pixels(source: Source, path: Path, side: tuple[int, int], progress: Progress | None) -> dict[int, str]:
    """Decode every image into one `.npy` file; returns the rows that cannot be, with the reasons."""
    height, width = side
    unreadable = {}
    # Written in order, not through a memory map: a full disk is then an error and not a bus fault.
    with atomic(path) as temporary, temporary.open("wb") as file:
        shape = (len(source), height, width, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for i in range(len(source)):
            try:
                image = source.read(i)
            except UnreadableImage as error:
                unreadable[i] = str(error)
                image = Image.new("RGB", (width, height))
            if image.size != (width, height):
                raise _AnotherSize(f"{source.name(i)} is {image.width} x {image.height}, not {width} x {height}")
            file.write(image.tobytes())
            if progress and ((i + 1) % 256 == 0 or i + 1 == len(source)):
                progress(i + 1, len(source), "decoding")
    return unreadable


def _unpack(source: Source, images: ParquetImages, folder: Path, progress: Progress | None) -> Source:
    """The source over its encoded bytes in one file."""
    path, offsets_path = folder / f"{source.fingerprint}.bytes", folder / f"{source.fingerprint}.offsets.npy"
    checksums_path = folder / f"{source.fingerprint}.bytes.json"
    known = not checksums_path.exists() or _is_whole(checksums_path, {"bytes": path, "offsets": offsets_path})
    if not offsets_path.is_file() or not known:
        _check_disk(folder, images.encoded_bytes * len(source) // len(images))
        offsets = np.zeros(len(source) + 1, dtype=np.int64)
        with atomic(path) as temporary, temporary.open("wb") as file:
            for i, row in enumerate(source.rows.tolist()):
                try:
                    content = images.content(row)
                except UnreadableImage:
                    content = memoryview(b"")  # an image without bytes is reported each time it is asked for
                file.write(content)
                offsets[i + 1] = offsets[i] + len(content)
                if progress and ((i + 1) % 256 == 0 or i + 1 == len(source)):
                    progress(i + 1, len(source), "unpacking")
        checksums_path.unlink(missing_ok=True)
        with atomic(offsets_path) as temporary, temporary.open("wb") as file:  # last: then the bytes are complete
            np.save(file, offsets)
        write_json(checksums_path, {"bytes": str(Checksums.of(path)), "offsets": str(Checksums.of(offsets_path))})
    return Source(source.spec, UnpackedImages(path, np.load(offsets_path), source), ids=source.ids)


def _check_disk(folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise DataError(
            f"The images take {size / 2**30:.1f} GiB in {folder} and only {free / 2**30:.1f} GiB are free. Make room, "
            "put the store elsewhere (--store), or use fewer images (--limit)."
        )
