"""A store that was damaged on the disk: what of it is made anew, and nothing else."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import numpy as np

from understudy.artifacts import Checksums, Store
from understudy.artifacts.checksums import damaged_at_opening, set_verified
from understudy.errors import StoreError
from understudy.sources.source import Source, read_listing, write_listing

FILES = ("listing.parquet", "embeddings.npy")  # in the order in which they are made anew: rows are found by the listing

log = logging.getLogger("understudy")


def is_damaged(store: Store) -> bool:
    """Whether the listing or the embeddings of a complete store are not what was written (see `VERIFIED_AT_OPEN`)."""
    checksums = store.checksums()
    there = [name for name in FILES if (store.folder / name).is_file()]
    return any(damaged_at_opening(store.folder / name, checksums.get(name)) for name in there)


def mend_listing(store: Store, source: Source) -> None:
    """Write a damaged listing anew, from the images and the names of those that could not be read.

    Raises:
        StoreError: those names do not tell which images are left.
    """
    if not (found := store.damaged("listing.parquet")):
        return
    manifest, rows = store.manifest, np.arange(len(source))
    if manifest["rows"] != len(source):
        skipped = [name for name, _ in manifest["skipped"]]
        rows = np.flatnonzero(~np.isin(source.names.to_numpy(zero_copy_only=False), skipped))
    if len(rows) != manifest["rows"]:
        raise StoreError(
            f"{store.listing_path} is damaged, and the names of the images that could not be read are those of others "
            f"too, so that it cannot be made anew. Delete {store.folder} and embed again."
        )
    write_listing(store.listing_path, source.subset(rows))
    _enter(store, "listing.parquet", found, Checksums.of(store.listing_path), "it was written anew")


def mend_embeddings(
    store: Store, source: Source, blocks: Sequence[range], embedded: Callable[[range], np.ndarray]
) -> None:
    """Embed the images of damaged rows again, and write those rows where they belong.

    The images go through the encoder in the batches in which they went at first, so that on the same machine the rows
    get the same bytes.

    Args:
        store: a complete store, its listing whole; nobody else writes it.
        source: what it was made from.
        blocks: positions of the source, as they were shared out at first.
        embedded: the rows of such a block, as they are stored.

    Raises:
        StoreError: other images can be read than before.
    """
    name = "embeddings.npy"
    if not (found := store.damaged(name)):
        return
    before, manifest, path = store.checksums()[name], store.manifest, store.folder / name
    places = np.arange(len(source))  # in the source, of each row
    if manifest["rows"] != len(source):
        places = np.flatnonzero(np.isin(source.ids, read_listing(store.listing_path, source).ids))
    parts = [store.rows_of(name, block) for block in found]
    with open(path, "r+b") as file:
        if found[0] == 0:
            header = {"descr": np.dtype(manifest["dtype"]).str, "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (manifest["rows"], manifest["D"])})
        file.truncate(before.ends[-1])
        for images in blocks:
            low, high = np.searchsorted(places, [images.start, images.stop]).tolist()
            lost = [range(max(low, part.start), min(high, part.stop)) for part in parts]
            if not any(len(part) for part in lost):
                continue
            rows = embedded(images)
            if len(rows) != high - low:
                raise StoreError(
                    f"{path} is damaged, and of its images {images.start:,} to {images.stop - 1:,} {len(rows):,} can "
                    f"be read where it were {high - low:,}. Delete {store.folder} and embed again."
                )
            for part in lost:
                if len(part):
                    file.seek(before.ends[0] + part.start * rows[0].nbytes)
                    file.write(np.ascontiguousarray(rows[part.start - low : part.stop - low]).data)
        file.flush()
        os.fsync(file.fileno())
    count = sum(map(len, parts))
    _enter(store, name, found, before.replaced(path, found), f"the {count:,} images behind it were embedded again")


def _enter(store: Store, name: str, found: list[int], now: Checksums, what: str) -> None:
    """Say what was made anew, and where it is not what it was, keep its checksums."""
    shown = ", ".join(store.describe(name, block) for block in found)
    before = store.checksums()[name]
    if now != before:
        store.amend(checksums={**store.manifest["checksums"], name: str(now)})
        what += "; its bytes are others than before, as another device, batch size or version of a library rounds them"
    log.warning(f"{store.folder / name} was damaged in {shown}: {what}.")
    set_verified(store.folder / name)
