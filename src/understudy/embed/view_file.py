"""The files of one recorded view number: a row for each image, and a mark beside it that is the row's checksum."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt32

from understudy.artifacts import check_regular, checksum, read_table, room_on_disk
from understudy.errors import StoreError, first_line

MARK = np.dtype(np.uint32)
"""Type of the marks: 0 is no row, anything else the checksum of one."""

OLD_MARK = np.dtype(np.uint8)
"""Of the marks that older versions wrote: 1 is a row, of which nothing more is known."""

log = logging.getLogger("understudy")


class ViewFile:
    """Rows and marks of one view number, mapped; made, as large as they will be, where they are missing.

    A row is compared with its mark when a process first reads it. Cells have one value, whoever computes them, so any
    number of processes may write at once.

    Args:
        folder: of the recorded views.
        number: of the view.
        shape: (N, D).
        dtype: of the rows.
        writable: False where it is only asked which rows are there; the files must exist then.
    """

    def __init__(
        self, folder: Path, number: int, shape: tuple[int, int], dtype: np.dtype[Any], *, writable: bool = True
    ) -> None:
        self.path, self.marks_path = folder / f"{number:04d}.npy", marks_path(folder, number)
        self.cells = _mapped(self.path, shape, dtype, writable)
        size = self.marks_path.stat().st_size if self.marks_path.exists() else 0
        old = size == len(_header(shape[:1], OLD_MARK)) + shape[0]
        self.marks = _mapped(self.marks_path, shape[:1], OLD_MARK if old else MARK, writable)
        self._compared = np.zeros(shape[0], bool)
        if old and writable:
            log.warning(
                f"{self.marks_path} was written without checksums, so that damage to these recorded views is not seen: "
                "`understudy doctor --store FOLDER --add-checksums` adds them."
            )

    @classmethod
    def there(cls, folder: Path, number: int) -> ViewFile:
        """The files of a view number that are there, to be read.

        Raises:
            StoreError: the manifest beside them cannot be read.
        """
        path = folder / "manifest.json"
        manifest = read_table(path, "Train with these views again: it is written anew.")
        try:
            shape, dtype = (int(manifest["rows"]), int(manifest["D"])), np.dtype(manifest["key"]["dtype"])
        except (KeyError, TypeError, ValueError):
            raise StoreError(f"{path} does not say what the views are. Delete {folder}.") from None
        return cls(folder, number, shape, dtype, writable=False)

    def damaged_header(self) -> Path | None:
        """The one of the two files whose first bytes, which are known, are others."""
        for path, array in ((self.path, self.cells), (self.marks_path, self.marks)):
            header = _header(array.shape, array.dtype)
            with open(path, "rb") as file:
                if file.read(len(header)) != header:
                    return path
        return None

    def whole(self, index: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which of these rows are recorded, and are what was written."""
        if self.marks.dtype == OLD_MARK:
            return np.asarray(self.marks[index] == 1)
        marks = np.asarray(self.marks[index])
        whole: np.ndarray = marks != 0
        fresh = np.flatnonzero(whole & ~self._compared[index])
        if len(fresh):
            whole[fresh] = marks_of(self.cells[index[fresh]]) == marks[fresh]
            self._compared[index[fresh[whole[fresh]]]] = True
        return whole

    def strike_out_damaged(self, index: Int64[np.ndarray, " n"], whole: Bool[np.ndarray, " n"]) -> None:
        """Take the marks off those of these rows that are not `whole`, so that they are recorded anew."""
        lost = index[~whole & (self.marks[index] != 0)]
        if len(lost):
            self.marks[lost] = 0
            shown = ", ".join(map(str, np.unique(lost)[:5])) + (", ..." if len(lost) > 5 else "")
            both = f"{self.path} or {self.marks_path.name}"
            log.warning(f"{both} is damaged in {len(lost):,} rows ({shown}): they are recorded anew.")

    def mark(self, marks: UInt32[np.ndarray, " N"]) -> None:
        """Make the rows that have a mark here count; they have reached the disk."""
        written = marks != 0
        self.marks[written] = marks[written] if self.marks.dtype == MARK else 1
        self.marks.flush()  # type: ignore[attr-defined]


def marks_path(folder: Path, number: int) -> Path:
    """The file of the marks of a view number."""
    return folder / f"{number:04d}.done.npy"


def marks_of(rows: np.ndarray) -> UInt32[np.ndarray, " n"]:
    """The marks of rows (n, D)."""
    content = np.ascontiguousarray(rows).view(np.uint8)
    return np.array([checksum(row.data) or 1 for row in content], MARK)


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What numpy writes before an array."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], writable: bool) -> np.ndarray:
    """A memory map of a file of zeros, which is made if there is none; refused in another shape.

    All of its room is taken at once: were a full disk found out by writing to the map, it would kill the process.
    """
    if writable and not path.exists():
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
            if hasattr(os, "posix_fallocate"):
                # Before others may write: where the file system cannot do it, the C library writes zeros by itself.
                with room_on_disk(path), open(temporary, "rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            # A link, not a rename: never over a file that another process has made since and may have written to.
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    header = _header(shape, dtype)
    if writable:
        _check_header(path, header, shape, dtype)
    try:
        check_regular(path)
        return np.memmap(path, dtype, "r+" if writable else "r", len(header), shape)
    except (OSError, ValueError, OverflowError) as error:
        raise StoreError(
            f"{path} is no array of {dtype} {shape} ({first_line(error)}). Delete {path.parent}."
        ) from None


def _check_header(path: Path, header: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse an array that is another; a header with a damaged byte is written anew, as all of it is known."""
    try:
        check_regular(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}). Delete {path.parent}.") from None
    with open(path, "r+b") as file:
        found = file.read(len(header))
        wrong = sum(a != b for a, b in zip(found, header, strict=False)) + len(header) - len(found)
        size = os.fstat(file.fileno()).st_size
        if wrong > 2 or size != len(header) + int(np.prod(shape)) * dtype.itemsize:
            described = f"{size:,} bytes that are no array"
            with contextlib.suppress(ValueError, OSError):
                array = np.lib.format.open_memmap(path, mode="r")
                described = f"{array.dtype} {array.shape}"
            raise StoreError(f"{path} holds {described}, not {dtype} {shape}. Delete {path.parent}.")
        if wrong:
            file.seek(0)
            file.write(header)
            log.warning(f"{path} is damaged in its header: it was written anew.")
