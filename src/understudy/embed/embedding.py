"""Images through a frozen encoder: into a store, resumably and by many processes, or into memory."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from understudy import __version__
from understudy.artifacts import ALONE, Store, StoreKey, Writers, blocks_of, fingerprint, lock, room_on_disk, sweep
from understudy.embed.blocks import Block, checked_rows, merge, take_back
from understudy.embed.mending import is_damaged, mend_embeddings, mend_listing
from understudy.errors import ConfigError, DataError, ModelError, StoreError, UnderstudyError, first_line
from understudy.models.malloc import keep_freed_memory
from understudy.models.probe import DRIFT, relative
from understudy.models.sharded import collective_calls
from understudy.sources.source import Source, read_listing, write_listing
from understudy.views.loader import ImageLoader
from understudy.views.reader import Skipped

if TYPE_CHECKING:
    from understudy.models.contract import Contract

log = logging.getLogger("understudy")

Progress = Callable[[int, int, str], None]

BLOCK, BLOCKS = 512, 256  # images in the smallest block, and how many blocks there are at most
SAMPLE = 256  # images spread over the source that a teacher must pass before the long way begins
DTYPES = ("float16", "float32")


@runtime_checkable
class Frozen(Protocol):
    """An encoder that can fill a store: a teacher, or a student that evaluation wraps as one."""

    spec: str
    width: int
    weights: str
    fingerprint: str
    library: str
    precision: str
    contract: Contract

    def to(self, device: torch.device) -> Any:
        """The same on another device."""

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) as the contract wants them -> (B, D)."""

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], of any size -> (B, D)."""


@dataclass(frozen=True)
class Inference:
    """How images go through an encoder."""

    device: str | torch.device = "cpu"  # where the encoder runs
    batch_size: int = 128  # images per forward pass
    workers: int | None = None  # processes that read images; None chooses
    progress: Progress | None = None  # called with (images done, images in all, note)

    def batches(
        self, source: Source, contract: Contract, parts: list[range] | None = None, *, sums: bool = False
    ) -> Generator[tuple[np.ndarray, Tensor, Skipped, np.ndarray]]:
        """Images without augmentation, as the contract wants them; see `ImageLoader`."""
        loader = ImageLoader(
            source, contract.geometry, batch_size=self.batch_size, workers=self.workers, parts=parts, sums=sums
        )
        return iter(loader)

    def run(self, encode: Callable[[Tensor], Tensor], pixels: Tensor) -> Float32[np.ndarray, "b D"]:
        """uint8 pixels, as float32 in [0, 1] on the device, through an encoder.

        Raises:
            ModelError: the encoder, which may be foreign code, fails.
        """
        try:
            with torch.inference_mode():
                rows = encode(pixels.to(self.device, non_blocking=True).float() / 255)
        except UnderstudyError:
            raise
        except Exception as error:
            raise ModelError(
                f"The encoder fails on a batch of {len(pixels)} images ({type(error).__name__}: {first_line(error)}). "
                "If memory is short, take a smaller --batch-size; --traceback shows where it arose."
            ) from error
        return rows.float().cpu().numpy()

    def report(self, done: int, total: int, images: int, start: float) -> None:
        """Progress, and the rate of the images that went through since a moment of the monotonic clock."""
        if self.progress is not None:
            rate = images / max(time.monotonic() - start, 1e-9)
            self.progress(done, total, f"{rate:,.0f} images/s")


def extract(
    encode: Callable[[Tensor], Tensor], contract: Contract, source: Source, inference: Inference | None = None
) -> tuple[Float32[np.ndarray, "n D"], Int64[np.ndarray, " n"], Skipped]:
    """Features of all images of a source, in memory.

    Differs from `embed`: nothing is written, and any function of prepared images will do.

    Args:
        encode: (B, 3, S, S) images as the contract wants them, on the device -> (B, D). Its module is in eval mode.
        contract: size, crop and normalization.
        source: N images.
        inference: device, batch size, workers and progress.

    Returns:
        Features (n, D) float32 in the order of the source; the positions (n,) int64 of the images they belong to; and
        name and reason of the N - n that could not be read.

    Raises:
        DataError: not one image could be read.
    """
    inference = inference or Inference()
    features: np.ndarray | None = None
    readable: list[np.ndarray] = []
    skipped: Skipped = []
    filled = done = 0
    start = time.monotonic()
    with keep_freed_memory(inference.device):
        for positions, pixels, unreadable, _ in inference.batches(source, contract):
            skipped += unreadable
            if len(positions):
                rows = inference.run(lambda images: encode(contract.prepare(images)), pixels)
                if features is None:
                    features = np.empty((len(source), rows.shape[1]), dtype=np.float32)
                features[filled : filled + len(rows)] = rows
                readable.append(positions)
                filled += len(rows)
            done = min(done + inference.batch_size, len(source))
            inference.report(done, len(source), done, start)
    if features is None:
        raise _nothing_readable(source, skipped)
    return features[:filled], np.concatenate(readable), skipped


def embed(
    teacher: Frozen, source: Source, root: str | os.PathLike[str], inference: Inference | None = None, *,
    dtype: str = "float16", check: bool = True, writers: Writers = ALONE,
) -> Store:  # fmt: skip
    """The teacher's embeddings of a source, as a store; a complete store of the same key is used as it is.

    Blocks of it that are no longer what was written, as their checksums show, are embedded again.

    Killed at any moment, it goes on where it was when it is called again, at the boundary of a batch and with any
    number of processes: with the same batch size the finished array has, on the CPU, the same bytes as without the
    kill, made by one process or by many. Memory does not grow with N.

    Args:
        teacher: a frozen encoder.
        source: N images; unreadable ones are skipped and listed in the manifest.
        root: folder of stores (the store is `root/<fingerprint>`), or one store, which must be this one.
        inference: device, batch size (at most a block: 512, more from 131,072 images on), workers, and progress, which
            counts the images of this process.
        dtype: "float16" or "float32", as stored.
        check: refuse an encoder that is no teacher. False stores whatever comes: a student that diverged is reported
            by the evaluation, protocol by protocol.
        writers: the processes that share the images; all call this with the same arguments but for the device.

    Returns:
        The store. Its manifest has, besides the key: rows, images, D, dtype, seconds (of all processes together),
        images_per_s (of one of them), skipped as `[[name, reason], ...]`, weights (what the teacher loaded) and
        versions. `open_rows` gives its images.

    Raises:
        ModelError: embeddings that are not finite, constant, or look like those of a random network.
        ConfigError: values beyond float16's range, or another dtype.
        DataError: not one image could be read.
        StoreError: `root` is a store of something else, or another process is writing it; or the teacher no longer
            gives the embeddings that are stored.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"Embeddings are stored as {' or '.join(DTYPES)}; got {dtype!r}.")
    inference = inference or Inference()
    key = store_key(teacher, source, dtype)
    store = Store.at(root, key)
    complete = writers.agree(store.complete)
    if complete:
        refuse_other_function(store, teacher)
    if complete and not writers.agree(writers.main and is_damaged(store)):
        return store
    work = _Embedding(teacher.to(torch.device(inference.device)), source, store, key, inference, check, writers)
    if complete:
        work.mend()
        return store
    with lock(store.folder) if writers.main else contextlib.nullcontext():
        work.begin()
        writers.barrier()
        if not writers.agree(store.complete):
            work.fill_share()
            writers.barrier()
            if writers.main:
                work.finish()
            writers.barrier()
    return store


@dataclass
class _Embedding:
    """The making of one store by this process and the others; see `embed` for the fields."""

    teacher: Frozen
    source: Source
    store: Store
    key: StoreKey
    inference: Inference
    check: bool
    writers: Writers

    @property
    def folder(self) -> Path:
        """Where the blocks are."""
        return self.store.folder / "blocks"

    def blocks(self) -> list[Block]:
        """All blocks as they are on the disk now."""
        cut = enumerate(blocks_of(len(self.source), smallest=BLOCK, most=BLOCKS))
        dtype = np.dtype(self.key.dtype)
        return [Block(self.store, number, images, self.teacher.width, dtype) for number, images in cut]

    def begin(self) -> None:
        """Put in order what a killed run left, and refuse what is no teacher."""
        if self.writers.main and not self.store.complete:  # another process may just have finished it
            with lock(self.folder):  # nobody else of a run that was killed is still writing
                sweep(self.folder)
                take_back(self.store)
        with collective_calls(self.teacher):
            if self.writers.main and not self.store.complete and self.check and not any(self.folder.glob("*.json")):
                _refuse_bad_teacher(self.teacher, self.source, self.inference)

    def fill_share(self) -> None:
        """What is still missing of this process' blocks."""
        device = self.inference.device
        with lock(self.folder, shared=True), keep_freed_memory(device), collective_calls(self.teacher):
            share = self.blocks()[self.writers.rank :: self.writers.world]
            unfinished = [block for block in share if not block.complete]
            for block in unfinished:
                block.begin_again_if_damaged()
            parts = [range(block.done, block.images.stop) for block in unfinished]
            total, missing = sum(len(block.images) for block in share), sum(map(len, parts))
            done_before, start = total - missing, time.monotonic()
            batches = self.inference.batches(self.source, self.teacher.contract, parts, sums=True)
            with contextlib.closing(batches):
                for block in unfinished:
                    with room_on_disk(block.path), block:
                        while not block.complete:
                            positions, pixels, unreadable, sums = next(batches)
                            done = min(block.done + self.inference.batch_size, block.images.stop)
                            missing -= done - block.done
                            rows = self._rows(positions, pixels, block.dtype)
                            block.append(rows, sums, positions, unreadable, done)
                            self.inference.report(total - missing, total, total - missing - done_before, start)

    def _rows(self, positions: np.ndarray, pixels: Tensor, dtype: np.dtype[Any]) -> np.ndarray:
        """The embeddings of a batch as they are stored."""
        rows = np.empty((0, self.teacher.width), dtype=np.float32)
        if len(positions):
            rows = self.inference.run(self.teacher, pixels)
        return checked_rows(rows, dtype, self.source, positions) if self.check else rows.astype(dtype)

    def finish(self) -> None:
        """Put the blocks behind each other, write the listing, and the manifest last.

        Raises:
            DataError: not one image could be read.
        """
        blocks = self.blocks()
        skipped = [(name, reason) for block in blocks for _, name, reason in block.skipped]
        rows = sum(block.rows for block in blocks)
        if rows == 0:
            raise _nothing_readable(self.source, skipped)
        unreadable = [place for block in blocks for place, _, _ in block.skipped]
        readable = np.delete(np.arange(len(self.source)), unreadable)
        write_listing(self.store.listing_path, self.source.subset(readable))
        with room_on_disk(self.store.manifest_path):
            checksums = merge(self.store, blocks)
        seconds, images = sum(block.seconds for block in blocks), len(self.source)
        probe = getattr(self.teacher, "probe", [])
        versions = {"understudy": __version__, "torch": torch.__version__, "numpy": np.__version__}
        self.store.finish(
            self.key, rows=rows, images=images, D=self.teacher.width, dtype=self.key.dtype, seconds=round(seconds, 2),
            images_per_s=round(images / seconds, 1), skipped=skipped, weights=self.teacher.weights, versions=versions,
            batch_size=self.inference.batch_size, checksums=checksums, **({"probe": probe} if probe else {}),
        )  # fmt: skip
        shutil.rmtree(self.folder)

    def mend(self) -> None:
        """Make anew what was damaged of a complete store."""
        alone = lock(self.store.folder) if self.writers.main else contextlib.nullcontext()
        with alone, keep_freed_memory(self.inference.device), collective_calls(self.teacher):
            if self.writers.main:
                mend_listing(self.store, self.source)
                cut = blocks_of(len(self.source), smallest=BLOCK, most=BLOCKS)
                mend_embeddings(self.store, self.source, cut, self._embedded)
        self.writers.barrier()

    def _embedded(self, images: range) -> np.ndarray:
        """The rows of a block, in the batches in which they were made at first."""
        size = self.store.manifest.get("batch_size", self.inference.batch_size)
        batches = replace(self.inference, batch_size=size).batches(self.source, self.teacher.contract, [images])
        with contextlib.closing(batches):
            return np.concatenate([self._rows(p, pixels, np.dtype(self.key.dtype)) for p, pixels, *_ in batches])


def store_key(encoder: Frozen, source: Source, dtype: str) -> StoreKey:
    """What the store of an encoder's features of a source is known by."""
    teacher = {"fingerprint": encoder.fingerprint, "spec": encoder.spec}
    if encoder.library:  # another version may compute something else from the same weights
        digest = fingerprint(encoder.fingerprint, encoder.library)
        teacher |= {"fingerprint": digest, "library": encoder.library}
    return StoreKey(
        teacher=teacher,
        preprocessing=encoder.contract.table(),
        data={"fingerprint": source.fingerprint, "spec": source.spec, "images": len(source)},
        dtype=dtype,
        precision=encoder.precision,
    )


def refuse_other_function(store: Store, teacher: Frozen) -> None:
    """Refuse a store whose teacher has the same identity, but answers otherwise than when it filled it.

    Raises:
        StoreError: something that is no part of its identity decides its embeddings, and has changed.
    """
    now, before = getattr(teacher, "probe", []), store.manifest.get("probe", [])
    if len(now) != len(before) or not now:
        return
    moved = relative(torch.tensor(now, dtype=torch.float64), torch.tensor(before, dtype=torch.float64))
    if moved > DRIFT:
        raise StoreError(
            f"{teacher.spec} has the weights and the code that filled {store.folder}, and yet its embedding of a test "
            f"image has moved by {100 * moved:.2g} % of its length: a file or a setting that it reads has changed. "
            "Restore it, or name another --store."
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
    if manifest["rows"] == len(source):
        return source
    store.require_whole("listing.parquet")
    return read_listing(store.listing_path, source)


def _refuse_bad_teacher(teacher: Frozen, source: Source, inference: Inference) -> None:
    """Embed a sample spread over the whole source (a folder begins with one class) and refuse what is no teacher."""
    from understudy.models.teacher import check_embeddings

    spread = np.unique(np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(np.int64))
    with contextlib.suppress(DataError):  # a sample without one readable image: the pass itself reports that
        sample = source.subset(spread)
        features, _, _ = extract(teacher.features, teacher.contract, sample, replace(inference, progress=None))
        if warning := check_embeddings(features, teacher.spec):
            log.warning("%s", warning)


def _nothing_readable(source: Source, skipped: Skipped) -> DataError:
    if not skipped:
        return DataError(f"{source.spec} holds no images.")
    return DataError(
        f"Not one of the {len(source):,} images of {source.spec} could be read. The first: {skipped[0][1]} Check that "
        "these are images."
    )
