"""Images through a frozen encoder: into a store, resumably and by many processes, or into memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from understudy import __version__
from understudy.artifacts import ALONE, Store, StoreKey, Writers, blocks_of, lock, room_on_disk, sweep
from understudy.embed.blocks import Block, merge, take_back
from understudy.errors import ConfigError, DataError, ModelError, StoreError
from understudy.models.malloc import keep_freed_memory
from understudy.models.sharded import collective_calls
from understudy.sources.listing import read_listing, write_listing
from understudy.sources.source import Source
from understudy.views.image_loader import ImageLoader
from understudy.views.reader import Skipped

if TYPE_CHECKING:
    from understudy.models.contract import Contract

Progress = Callable[[int, int, str], None]

BLOCK, BLOCKS = 512, 256  # images in the smallest block, and how many blocks there are at most
SAMPLE = 256  # images spread over the source that a teacher must pass before the long way begins
DTYPES = ("float16", "float32")


@runtime_checkable
class Frozen(Protocol):
    """What can be embedded with: a teacher, or a student that evaluation dresses as one."""

    spec: str
    width: int
    weights: str
    fingerprint: str
    precision: str
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
        contract: size, crop and normalization.
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
    rows = done = 0
    begun = time.monotonic()
    with keep_freed_memory(device):
        for positions, pixels, unreadable in _loader(source, contract, batch_size, workers):
            skipped += unreadable
            if len(positions):
                with torch.inference_mode():
                    found = encode(contract.prepare(_unit_range(pixels, device))).float().cpu().numpy()
                if features is None:
                    features = np.empty((len(source), found.shape[1]), dtype=np.float32)
                features[rows : rows + len(found)] = found
                kept.append(positions)
                rows += len(found)
            if progress is not None:
                done = min(done + batch_size, len(source))
                progress(done, len(source), _rate(done, begun))
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
    writers: Writers = ALONE,
    progress: Progress | None = None,
) -> Store:
    """The teacher's embeddings of a source, as a store; a complete store of the same key is used as it is.

    Killed at any moment, it goes on where it was when it is called again, at the boundary of a batch and with any
    number of processes: with the same batch size the finished array has, on the CPU, the same bytes as without the
    kill, made by one process or by many. Memory does not grow with N.

    Args:
        teacher: a frozen encoder.
        source: N images; unreadable ones are skipped and listed in the manifest.
        root: folder of stores (the store is `root/<fingerprint>`), or one store, which must be this one.
        dtype: "float16" or "float32", as stored.
        judge: refuse an encoder that is no teacher. False stores whatever comes: a student that diverged is reported
            by the evaluation, protocol by protocol.
        device: where the teacher runs.
        batch_size: images per forward pass, at most those of a block (512, more from 131,072 images on).
        workers: processes that read images; None chooses.
        writers: the processes that share the images; all call this with the same arguments but for the device.
        progress: called with (images done, images of this process, note).

    Returns:
        The store. Its manifest has, besides the key: rows, images, D, dtype, seconds (of all processes together),
        images_per_s (of one of them), skipped as `[[name, reason], ...]`, weights (what the teacher loaded) and
        versions. `open_rows` gives its images.

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
    if writers.agree(store.complete):
        return store
    teacher = teacher.to(torch.device(device))
    folder = store.folder / "blocks"
    with lock(store.folder) if writers.main else contextlib.nullcontext():
        if writers.main and not store.complete:  # another process may just have finished it
            with lock(folder):  # nobody else of a run that was killed is still writing
                sweep(folder)
                take_back(store)
        with collective_calls(teacher):
            if writers.main and not store.complete and judge and not any(folder.glob("*.json")):
                _refuse_bad_teacher(teacher, source, device, batch_size, workers)
        writers.barrier()
        if writers.agree(store.complete):
            return store
        with lock(folder, shared=True), keep_freed_memory(device), collective_calls(teacher):
            blocks = [
                Block(store, number, images, teacher.width, np.dtype(dtype))
                for number, images in enumerate(blocks_of(len(source), smallest=BLOCK, most=BLOCKS))
            ]
            share = blocks[writers.rank :: writers.world]
            _fill(share, teacher, source, judge, device, batch_size, workers, progress)
        writers.barrier()
        if writers.main:
            blocks = [block.again() for block in blocks]
            skipped = [(name, reason) for block in blocks for _, name, reason in block.skipped]
            rows = sum(block.rows for block in blocks)
            if rows == 0:
                raise _nothing_readable(source, skipped)
            gone = [place for block in blocks for place, _, _ in block.skipped]
            write_listing(store.listing_path, source.subset(np.delete(np.arange(len(source)), gone)))
            with room_on_disk(store.manifest_path):
                merge(store, blocks)
            seconds = sum(block.seconds for block in blocks)
            store.finish(
                key,
                rows=rows,
                images=len(source),
                D=teacher.width,
                dtype=dtype,
                seconds=round(seconds, 2),
                images_per_s=round(len(source) / seconds, 1),
                skipped=skipped,
                weights=teacher.weights,
                versions={"understudy": __version__, "torch": torch.__version__, "numpy": np.__version__},
            )
            shutil.rmtree(folder)
        writers.barrier()
    return store


def _fill(
    share: list[Block],
    teacher: Frozen,
    source: Source,
    judge: bool,
    device: str | torch.device,
    batch_size: int,
    workers: int | None,
    progress: Progress | None,
) -> None:
    """What is still missing of a process' blocks."""
    todo = [block for block in share if not block.whole]
    parts = [range(block.done, block.images.stop) for block in todo]
    total, missing = sum(len(block.images) for block in share), sum(map(len, parts))
    before, begun = total - missing, time.monotonic()
    with contextlib.closing(iter(_loader(source, teacher.contract, batch_size, workers, parts))) as batches:
        for block in todo:
            with room_on_disk(block.path), block:
                while not block.whole:
                    positions, pixels, unreadable = next(batches)
                    rows = np.empty((0, teacher.width), dtype=np.float32)
                    if len(positions):
                        with torch.inference_mode():
                            rows = teacher(_unit_range(pixels, device)).float().cpu().numpy()
                    stored = _storable(rows, block.dtype, source, positions) if judge else rows.astype(block.dtype)
                    done = min(block.done + batch_size, block.images.stop)
                    missing -= done - block.done
                    block.append(stored, positions, unreadable, done)
                    if progress is not None:
                        progress(total - missing, total, _rate(total - missing - before, begun))


def store_key(encoder: Frozen, source: Source, dtype: str) -> StoreKey:
    """What the store of an encoder's features of a source is known by."""
    return StoreKey(
        teacher={"fingerprint": encoder.fingerprint, "spec": encoder.spec},
        preprocessing=encoder.contract.table(),
        data={"fingerprint": source.fingerprint, "spec": source.spec, "images": len(source)},
        dtype=dtype,
        precision=encoder.precision,
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


def _loader(
    source: Source, contract: Contract, batch_size: int, workers: int | None, parts: list[range] | None = None
) -> ImageLoader:
    """Un-augmented images as the contract wants them."""
    return ImageLoader(
        source,
        size=contract.size,
        crop=contract.crop,
        interpolation=contract.interpolation,
        batch_size=batch_size,
        workers=workers,
        parts=parts,
    )


def _rate(images: int, begun: float) -> str:
    return f"{images / max(time.monotonic() - begun, 1e-9):,.0f} images/s"


def _unit_range(pixels: Tensor, device: str | torch.device) -> Tensor:
    """uint8 pixels as float32 in [0, 1], on the device."""
    return pixels.to(device, non_blocking=True).float() / 255


def _storable(rows: np.ndarray, dtype: np.dtype[Any], source: Source, positions: np.ndarray) -> np.ndarray:
    """The rows in the stored precision.

    Raises:
        ModelError: NaN or infinity.
        ConfigError: values that overflow the stored precision.
    """
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise ModelError(
            f"The teacher's embeddings of {len(bad)} of {len(rows)} images contain NaN or infinity, the first being "
            f"{source.name(int(positions[bad[0]]))}. Check the teacher's weights and its input normalization."
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
