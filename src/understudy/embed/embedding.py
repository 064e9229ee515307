"""Images through a frozen encoder: into a store, resumably, or into memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from understudy import __version__
from understudy.artifacts import Store, StoreKey, lock, read_json, write_json
from understudy.data.loader import ImageLoader, Skipped
from understudy.data.sources import Source, read_listing, write_listing
from understudy.errors import ConfigError, DataError, ModelError, StoreError
from understudy.models.heap import kept_heap

if TYPE_CHECKING:
    from understudy.models.contract import Contract

Progress = Callable[[int, int, str], None]

SAVE_SECONDS = 10.0  # at most so much work is lost to a kill
SAMPLE = 256  # images spread over the source that a teacher must pass before the long way begins
DTYPES = ("float16", "float32")


@runtime_checkable
class Frozen(Protocol):
    """What can be embedded with: a teacher, or a student that evaluation dresses as one."""

    spec: str
    width: int
    weights: str
    fingerprint: str
    contract: Contract

    def to(self, device: torch.device) -> Any:
        """The same on another device."""

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) as the contract wants them -> (B, D)."""

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], of any size -> (B, D)."""


def extract(
    encode: Callable[[Tensor], Tensor],
    contract: Contract,
    source: Source,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 128,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[Float32[np.ndarray, "n D"], Int64[np.ndarray, " n"], Skipped]:
    """Features of all images of a source, in memory.

    Differs from `embed`: nothing is written, and any function of prepared images will do.

    Args:
        encode: (B, 3, S, S) images as the contract wants them, on the device -> (B, D). Its module is in eval mode.
        contract: size, crop and normalisation.
        source: N images.
        device: where images are put.
        batch_size: images per call.
        workers: processes that read images; None chooses.
        progress: called with (images done, N, note).

    Returns:
        Features (n, D) float32 in the order of the source; the positions (n,) int64 of the images they belong to; and
        name and reason of the N - n that could not be read.

    Raises:
        DataError: not one image could be read.
    """
    features: np.ndarray | None = None
    kept: list[np.ndarray] = []
    skipped: Skipped = []
    rows = 0
    with kept_heap(device):
        for _, positions, pixels, unreadable in _batches(source, contract, batch_size, workers, 0, progress):
            skipped += unreadable
            if len(positions):
                with torch.inference_mode():
                    found = encode(contract.prepare(_unit_range(pixels, device))).float().cpu().numpy()
                if features is None:
                    features = np.empty((len(source), found.shape[1]), dtype=np.float32)
                features[rows : rows + len(found)] = found
                kept.append(positions)
                rows += len(found)
    if features is None:
        raise _nothing_readable(source, skipped)
    return features[:rows], np.concatenate(kept), skipped


def embed(
    teacher: Frozen,
    source: Source,
    root: str | os.PathLike[str],
    *,
    dtype: str = "float16",
    judge: bool = True,
    device: str | torch.device = "cpu",
    batch_size: int = 128,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Store:
    """The teacher's embeddings of a source, as a store; a complete store of the same key is used as it is.

    Killed at any moment, it goes on where it was when it is called again, at the boundary of a batch: with the same
    batch size the finished array has, on the CPU, the same bytes as without the kill. Memory does not grow with N.

    Args:
        teacher: a frozen encoder.
        source: N images; unreadable ones are skipped and listed in the manifest.
        root: folder of stores (the store is `root/<fingerprint>`), or one store, which must be this one.
        dtype: "float16" or "float32", as stored.
        judge: refuse an encoder that is no teacher. False stores whatever comes: a student that diverged is reported
            by the evaluation, protocol by protocol.
        device: where the teacher runs.
        batch_size: images per forward pass.
        workers: processes that read images; None chooses.
        progress: called with (images done, N, note).

    Returns:
        The store. Its manifest has, besides the key: rows, images, D, dtype, seconds, images_per_s, skipped as
        `[[name, reason], ...]`, weights (what the teacher loaded) and versions. `open_rows` gives its images.

    Raises:
        ModelError: embeddings that are not finite, constant, or look like those of a random network.
        ConfigError: values beyond float16's range, or another dtype.
        DataError: not one image could be read.
        StoreError: `root` is a store of something else, or another process is writing it.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"Embeddings are stored as {' or '.join(DTYPES)}; got {dtype!r}.")
    key = store_key(teacher, source, dtype)
    store = Store.at(root, key)
    if store.complete:
        return store
    with lock(store.folder):
        if store.manifest_path.exists():  # another process has just finished it
            return store
        teacher = teacher.to(torch.device(device))
        partial = _Partial(store, teacher.width, np.dtype(dtype), len(source))
        if judge and not partial.progress_path.exists():
            _refuse_bad_teacher(teacher, source, device, batch_size, workers)
        with partial, kept_heap(device):
            batches = _batches(source, teacher.contract, batch_size, workers, partial.done, progress)
            for done, positions, pixels, unreadable in batches:
                rows = np.empty((0, teacher.width), dtype=np.float32)
                if len(positions):
                    with torch.inference_mode():
                        rows = teacher(_unit_range(pixels, device)).float().cpu().numpy()
                stored = _storable(rows, dtype, source, positions) if judge else rows.astype(dtype)
                partial.append(stored, positions, unreadable, done)
            skipped = [(name, reason) for _, name, reason in partial.skipped]
            if partial.rows == 0:
                raise _nothing_readable(source, skipped)
            partial.save()
            write_listing(store.listing_path, source.subset(partial.kept()))
            partial.publish()
        store.finish(
            key,
            rows=partial.rows,
            images=len(source),
            D=teacher.width,
            dtype=dtype,
            seconds=round(partial.seconds, 2),
            images_per_s=round(len(source) / partial.seconds, 1),
            skipped=skipped,
            weights=teacher.weights,
            versions={"understudy": __version__, "torch": torch.__version__, "numpy": np.__version__},
        )
        partial.forget()
    return store


def store_key(encoder: Frozen, source: Source, dtype: str) -> StoreKey:
    """What the store of an encoder's features of a source is known by."""
    return StoreKey(
        teacher={"fingerprint": encoder.fingerprint, "spec": encoder.spec},
        preprocessing=encoder.contract.table(),
        data={"fingerprint": source.fingerprint, "spec": source.spec, "images": len(source)},
        dtype=dtype,
    )


def open_rows(store: Store, source: Source) -> Source:
    """The images behind the rows of a store, in row order.

    Args:
        store: a complete store.
        source: what it was made from; its unreadable images are left out of the result.

    Raises:
        StoreError: the store was made from other images.
        DataError: its listing names images that the source does not have.
    """
    manifest = store.manifest
    data = manifest["key"]["data"]
    if data["fingerprint"] != source.fingerprint:
        raise StoreError(
            f"The store {store.folder} was made from {data['spec']} ({data['images']:,} images, "
            f"{data['fingerprint']}), not from {source.spec} as it is now ({len(source):,} images, "
            f"{source.fingerprint}). Run `understudy embed` on it."
        )
    return source if manifest["rows"] == len(source) else read_listing(store.listing_path, source)


class _Partial:
    """The rows written so far and how far the source was read; what `save` has recorded survives a kill.

    Rows go to the end of a plain file behind an .npy header, not through a memory map: the process then holds a batch
    of them, not the file. Rows behind the last `save` are cut off when the file is opened again.

    Args:
        store: the store to be; its lock is held.
        width: D.
        dtype: as stored.
        images: N.
    """

    def __init__(self, store: Store, width: int, dtype: np.dtype[Any], images: int) -> None:
        self.width, self.dtype, self.images = width, dtype, images
        self.path, self.progress_path = store.folder / "embeddings.partial", store.folder / "partial.json"
        self.final = store.folder / "embeddings.npy"
        self.skipped: list[tuple[int, str, str]] = []  # position, name, reason
        self.counts = (0, 0, 0)  # images read, rows written, images skipped
        self.seconds = 0.0
        self._saved = self._entered = 0.0
        self._file: IO[bytes]

    @property
    def done(self) -> int:
        """Images read."""
        return self.counts[0]

    @property
    def rows(self) -> int:
        """Rows written."""
        return self.counts[1]

    def __enter__(self) -> _Partial:
        if self.final.exists() and not self.path.exists():
            os.replace(self.final, self.path)  # killed after `publish`, before the manifest
        exists = self.path.exists() and self.progress_path.exists()
        self._file = open(self.path, "r+b" if exists else "w+b")
        self._header(self.images)
        start = self._file.tell()
        if exists:
            state = read_json(self.progress_path)
            if self.path.stat().st_size >= start + state["rows"] * self.width * self.dtype.itemsize:
                self.skipped = [(place, name, reason) for place, name, reason in state["skipped"]]
                self.counts, self.seconds = (state["done"], state["rows"], len(self.skipped)), state["seconds"]
        self._file.truncate(start + self.rows * self.width * self.dtype.itemsize)
        self._file.seek(0, os.SEEK_END)
        self._saved = self._entered = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self.save()
        self._file.close()

    def append(self, rows: np.ndarray, positions: np.ndarray, skipped: Skipped, done: int) -> None:
        """Add the rows of one batch, which ends before position `done` of the source."""
        assert rows.shape[1:] == (self.width,)
        self._file.write(np.ascontiguousarray(rows).data)
        gone = sorted(set(range(self.done, done)) - set(positions.tolist()))
        self.skipped += [(place, name, reason) for place, (name, reason) in zip(gone, skipped, strict=True)]
        # In one assignment: Ctrl-C falls before or after it, never between counts that must agree.
        self.counts = (done, self.rows + len(rows), len(self.skipped))
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Make what was appended survive: rows first, then the record that counts them."""
        self._file.flush()
        os.fsync(self._file.fileno())
        now = time.monotonic()
        self.seconds += now - self._entered
        self._saved = self._entered = now
        done, rows, skipped = self.counts
        state = {"done": done, "rows": rows, "skipped": self.skipped[:skipped], "seconds": self.seconds}
        write_json(self.progress_path, state)

    def kept(self) -> np.ndarray:
        """Positions of the images that rows belong to, (rows,) int64."""
        return np.delete(np.arange(self.done), [place for place, _, _ in self.skipped])

    def publish(self) -> None:
        """Put the true number of rows into the header, and the file in its place."""
        end = self._file.tell()
        self._header(self.rows)
        self._file.seek(end)
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self.path, self.final)

    def forget(self) -> None:
        """Remove the record: the manifest is there."""
        self.progress_path.unlink()

    def _header(self, rows: int) -> None:
        # numpy pads the first dimension to 21 digits, so that the header of fewer rows has the same length.
        kind = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": kind, "fortran_order": False, "shape": (rows, self.width)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)


def _batches(
    source: Source, contract: Contract, batch_size: int, workers: int | None, start: int, progress: Progress | None
) -> Iterator[tuple[int, np.ndarray, Tensor, Skipped]]:
    """Batches of un-augmented images, each with the position it ends before; reports progress after each was used."""
    loader = ImageLoader(
        source,
        size=contract.size,
        crop=contract.crop,
        interpolation=contract.interpolation,
        batch_size=batch_size,
        workers=workers,
        start=start,
    )
    begun, done = time.monotonic(), start
    for positions, pixels, skipped in loader:
        done = min(done + batch_size, len(source))
        yield done, positions, pixels, skipped
        if progress is not None:
            rate = (done - start) / max(time.monotonic() - begun, 1e-9)
            progress(done, len(source), f"{rate:,.0f} images/s")


def _unit_range(pixels: Tensor, device: str | torch.device) -> Tensor:
    """uint8 pixels as float32 in [0, 1], on the device."""
    return pixels.to(device, non_blocking=True).float() / 255


def _storable(rows: np.ndarray, dtype: str, source: Source, positions: np.ndarray) -> np.ndarray:
    """The rows in the stored precision.

    Raises:
        ModelError: NaN or infinity.
        ConfigError: values that overflow the stored precision.
    """
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise ModelError(
            f"The teacher's embeddings of {len(bad)} of {len(rows)} images contain NaN or infinity, the first being "
            f"{source.name(int(positions[bad[0]]))}. Check the teacher's weights and its input normalisation."
        )
    with np.errstate(over="ignore"):
        stored = rows.astype(dtype)
    if not np.isfinite(stored).all():
        raise ConfigError(
            f"The teacher's embeddings reach {np.abs(rows).max():.4g}, beyond float16's largest number 65504. Store "
            "them with --dtype float32."
        )
    return stored


def _refuse_bad_teacher(
    teacher: Frozen, source: Source, device: str | torch.device, batch_size: int, workers: int | None
) -> None:
    """Embed a sample spread over the whole source (a folder begins with one class) and refuse what is no teacher.

    Raises:
        ModelError: as `models.teacher.check_embeddings` says.
    """
    from understudy.models.teacher import check_embeddings

    spread = np.unique(np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(np.int64))
    with contextlib.suppress(DataError):  # a sample without one readable image: the pass itself will tell
        sample = source.subset(spread)
        features, _, _ = extract(
            teacher.features, teacher.contract, sample, device=device, batch_size=batch_size, workers=workers
        )
        check_embeddings(features, teacher.spec)


def _nothing_readable(source: Source, skipped: Skipped) -> DataError:
    if not skipped:
        return DataError(f"{source.spec} holds no images.")
    return DataError(
        f"Not one of the {len(source):,} images of {source.spec} could be read. The first: {skipped[0][1]} Check that "
        "these are images."
    )
