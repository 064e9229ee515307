"""Recorded teacher views: each view's embedding is computed once, then read by any later run, method or student.

A view is a pure function of (view seed, image, view number), so its embedding can be kept beside the store:

    store/<fingerprint>/views/<fingerprint>/manifest.json  0000.npy (N, D)  0000.done.npy (N,)  0001.npy ...

one pair of files for each view number, as large from the start as they will be. Any number of processes and runs write
them at once: a cell has one value, whoever computes it, and is marked only after its row has reached the disk. The mark
is the row's checksum: a row that was damaged is found when it is read, and recorded anew.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from understudy.artifacts import Store, fingerprint, read_table, write_json
from understudy.embed.blocks import storable
from understudy.embed.view_file import MARK, ViewFile, marks_of, marks_path
from understudy.errors import ModelError, StoreError
from understudy.views.augmentation import Recipe

FORMAT = 1

FLUSH_SECONDS = 10.0  # at most so much recording is lost to a kill

log = logging.getLogger("understudy")

SHAPE = 32
"""Rows of a forward pass on a CPU, about. How a matrix product is rounded depends on its shape, so with passes of one
shape a view has the same embedding, bit for bit, whatever stands beside it: live, recorded now, or before a kill."""

HEADROOM = 1.5
"""int8 cells reach so many times as far as the un-augmented embeddings do, in each dimension; beyond, they saturate."""


class RecordedViews:
    """The teacher's embeddings of augmented views, recorded as they are first needed.

    Differs from a `Store`: it grows while it is used, and holds V views of an image in place of the one un-augmented.

    Args:
        store: the complete store of the un-augmented images; row i here is row i there.
        encode: the teacher, (n, 3, S, S) in [0, 1] -> (n, D).
        recipe, size, seed: what the views are drawn from, and their side in pixels.
        batch_size: views in a batch, all of which may be new; see `in_fixed_batches`.
        dtype: "float32" gives what the teacher gives, bit for bit; "float16" and "int8" (a scale for each dimension)
            take a half and a quarter of the room. A run sees the stored value also when it is first computed.

    Raises:
        StoreError: the folder belongs to another format.
    """

    def __init__(
        self, store: Store, encode: Callable[[Tensor], Tensor], *, recipe: Recipe, size: int, seed: int,
        batch_size: int, dtype: str = "float16",
    ) -> None:  # fmt: skip
        self.rows, self.width = store.embeddings().shape
        self.dtype = dtype
        self.encode, self.batch_size = encode, batch_size
        # repr: a recipe is plain numbers, and any change of one makes other views.
        key = {"recipe": repr(recipe), "size": size, "seed": seed, "dtype": dtype}
        self.folder = store.folder / "views" / fingerprint(FORMAT, key)
        self.computed = self.read = self.saturated = 0
        """Views that the teacher was run on, that were read, and (int8) stored values that were cut off, so far."""
        self._enter({"format": FORMAT, "key": key, "rows": self.rows, "D": self.width})
        self.scale: np.ndarray | None = None
        if dtype == "int8":
            largest = np.zeros(self.width, np.float32)
            for start in range(0, self.rows, 65536):
                largest = np.maximum(largest, np.abs(store.embeddings()[start : start + 65536]).max(0))
            self.scale = np.maximum(largest * HEADROOM / 127, np.finfo(np.float16).tiny).astype(np.float32)
        self._open: dict[int, ViewFile] = {}
        self._written: dict[int, np.ndarray] = {}  # the marks of what this process wrote since the last flush
        self._flushed = time.monotonic()

    def _enter(self, manifest: dict[str, Any]) -> None:
        """Write the manifest where there is none, or none that can be read: it is known without its file."""
        path, before = self.folder / "manifest.json", None
        if path.exists():
            try:
                before = read_table(path, "It is written anew.")
            except StoreError as error:
                log.warning(str(error))
        if before is not None and before.get("format") != FORMAT:
            raise StoreError(
                f"{self.folder} has format {before.get('format')!r}, this version reads {FORMAT}. Delete it."
            )
        if before is None:
            write_json(path, manifest)

    def __call__(
        self, images: Float[Tensor, "m 3 S S"], index: Int64[Tensor, " n"], view: Int64[Tensor, " n"],
        place: Int64[Tensor, " m"] | None = None,
    ) -> Float[Tensor, "n D"]:  # fmt: skip
        """The embeddings of n views: read where they are recorded, else computed and recorded.

        Args:
            images: the views, in [0, 1], on the teacher's device.
            index: row of each in the store, on the CPU.
            view: number of each view, on the CPU.
            place: which of the n views the images are, in ascending order, on the CPU; all of them unless given. Views
                that are recorded (`Recorded`) may be left out.

        Returns:
            (n, D) float32 on the images' device.

        Raises:
            ModelError: an embedding that is not finite.
            ConfigError: an embedding beyond the stored precision.
            StoreError: a damaged row of a view that was left out; the next run records it anew.
        """
        result, recorded = self.read_recorded(index.numpy(), view.numpy())
        unknown = np.flatnonzero(~recorded)
        if len(unknown):
            if place is not None and not np.isin(unknown, place.numpy()).all():
                raise StoreError(
                    f"{self.folder} was damaged while it was read. Run the same command again: it goes on from the "
                    "last checkpoint, and the rows that were hit are recorded anew."
                )
            at = unknown if place is None else np.searchsorted(place.numpy(), unknown)
            new = images if len(at) == len(images) else images[torch.from_numpy(at).to(images.device)]
            fresh = in_fixed_batches(self.encode, new, self.batch_size).float().cpu().numpy()
            result[unknown] = self.record(index.numpy()[unknown], view.numpy()[unknown], fresh)
        self.computed += len(unknown)
        self.read += len(index) - len(unknown)
        rows = torch.from_numpy(result)
        if images.device.type == "cuda":
            rows = rows.pin_memory()  # else the host would wait for all that the device has still to do
        return rows.to(images.device, non_blocking=True)

    def read_recorded(
        self, index: Int64[np.ndarray, " n"], view: Int64[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, "n D"], Bool[np.ndarray, " n"]]:
        """(n, D) float32 rows, and which of them are recorded and whole: the others mean nothing."""
        rows, recorded = np.empty((len(index), self.width), np.float32), np.zeros(len(index), bool)
        for number in np.unique(view).tolist():
            places = np.flatnonzero(view == number)
            file, at = self._view(number), index[places]
            whole = file.whole(at)
            file.strike_out_damaged(at, whole)
            if number in self._written:
                whole |= self._written[number][at] != 0
            places = places[whole]
            rows[places] = self._loaded(file.cells[index[places]])
            recorded[places] = True
        return rows, recorded

    def record(
        self, index: Int64[np.ndarray, " n"], view: Int64[np.ndarray, " n"], rows: Float[np.ndarray, "n D"]
    ) -> Float[np.ndarray, "n D"]:
        """Write embeddings down; they are marked as recorded at the next flush.

        Returns:
            The rows as they will be read.

        Raises:
            ModelError: NaN or infinity.
            ConfigError: values beyond the stored precision.
        """
        if not np.isfinite(rows).all():
            bad = int((~np.isfinite(rows)).any(1).sum())
            raise ModelError(
                f"The teacher's embeddings of {bad} of {len(rows)} augmented views contain NaN or infinity. Check its "
                "weights and its input normalization."
            )
        stored = self._storable(rows)
        for number in np.unique(view).tolist():
            places = np.flatnonzero(view == number)
            self._view(number).cells[index[places]] = stored[places]
            self._written.setdefault(number, np.zeros(self.rows, MARK))[index[places]] = marks_of(stored[places])
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()
        return self._loaded(stored)

    def flush(self) -> None:
        """Rows to the disk first, then the marks that make them count."""
        for number, written in self._written.items():
            self._view(number).cells.flush()  # type: ignore[attr-defined]
            self._view(number).mark(written)
        self._written = {}
        self._flushed = time.monotonic()

    def full(self, pool: int) -> bool:
        """Whether the views 0 to pool - 1 of every image are recorded."""
        return all(
            marks_path(self.folder, number).is_file() and bool(self._view(number).marks.all()) for number in range(pool)
        )

    def _view(self, number: int) -> ViewFile:
        """The files of one view number, made where they are missing and mapped once."""
        if number not in self._open:
            self._open[number] = ViewFile(self.folder, number, (self.rows, self.width), np.dtype(self.dtype))
        return self._open[number]

    def _storable(self, rows: np.ndarray) -> np.ndarray:
        if self.scale is not None:
            steps: np.ndarray = np.rint(rows / self.scale)
            self.saturated += int((np.abs(steps) > 127).sum())
            return steps.clip(-127, 127).astype(np.int8)
        return storable(rows, np.dtype(self.dtype), "Record them with --views.dtype float32.")

    def _loaded(self, cells: np.ndarray) -> np.ndarray:
        rows: np.ndarray = cells.astype(np.float32)
        return rows if self.scale is None else rows * self.scale


class Recorded:
    """Which views are recorded, for any process: reading workers then do not cut them for nothing.

    It says no where it cannot know, as before the first flush, and of damaged rows; a yes stays true. Picklable.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[int, ViewFile] = {}

    def __call__(self, index: Int64[np.ndarray, " B"], view: Int64[np.ndarray, " B"]) -> Bool[np.ndarray, " B"]:
        """For each image whether this view of it is on the disk."""
        recorded = np.zeros(len(index), bool)
        for number in np.unique(view).tolist():
            if number not in self._open:
                if not marks_path(self.folder, number).is_file():
                    continue
                self._open[number] = ViewFile.there(self.folder, number)
            places = np.flatnonzero(view == number)
            recorded[places] = self._open[number].whole(index[places])
        return recorded

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_open": {}}  # each process maps the files for itself


def in_fixed_batches(
    encode: Callable[[Tensor], Tensor], images: Float[Tensor, "n 3 S S"], batch_size: int
) -> Float[Tensor, "n D"]:
    """Images through the teacher; on a CPU in passes of one shape, the last filled up with copies.

    The rows of a full batch, `batch_size` of them, are cut into equal passes of about `SHAPE`.
    """
    if images.device.type != "cpu":
        return encode(images)
    rows = math.ceil(batch_size / math.ceil(batch_size / SHAPE))
    count, passes = len(images), math.ceil(len(images) / rows)
    if count < passes * rows:
        images = images[torch.arange(passes * rows).clamp(max=count - 1)]
    return torch.cat([encode(part) for part in images.split(rows)])[:count]
