"""Whether the images behind a store are still those that it was made from, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from understudy.artifacts import ALONE, Store, Writers, checksum
from understudy.embed.embedding import Inference, open_rows
from understudy.errors import DataError, StoreError, UnreadableImage
from understudy.sources.source import Source
from understudy.views.tuning import max_workers
from understudy.views.workers import Workers, results

AT_ONCE = 256  # images that a process reads for one answer
NAMED = 5  # changed images that the sentence names
UNREADABLE = -1


def verify_images(store: Store, source: Source, inference: Inference | None = None, writers: Writers = ALONE) -> Store:
    """Read all images again and compare them with the checksums that were taken when they were embedded.

    A store is known by names, sizes and times of the images, which a file that was rewritten may share. This costs
    reading all files once; nothing is decoded.

    Args:
        store: a complete store.
        source: what it was made from.
        inference: workers and progress.
        writers: the processes that call this; the first of them reads, the others wait.

    Returns:
        The store.

    Raises:
        DataError: some are others; the sentence names them.
        StoreError: the store has no checksums of its images, or they are damaged.
    """
    try:
        if writers.main:
            _compare(store, source, inference or Inference())
    finally:
        writers.barrier()
    return store


def _compare(store: Store, source: Source, inference: Inference) -> None:
    if not store.sums_path.is_file():
        raise StoreError(
            f"{store.folder} was made by a version that kept no checksums of the images, so --verify-images has "
            "nothing to compare with. Delete the folder and embed again."
        )
    if store.damaged(store.sums_path.name):
        raise StoreError(f"{store.sums_path} is not what was written. Delete {store.folder} and embed again.")
    images, known = open_rows(store, source), np.load(store.sums_path, allow_pickle=False)
    jobs = [range(low, min(low + AT_ONCE, len(images))) for low in range(0, len(images), AT_ONCE)]
    changed: list[int] = []
    reading = Workers(max_workers(source) if inference.workers is None else inference.workers)
    for job, sums in zip(jobs, results(_SumReader(images), jobs, reading), strict=True):
        changed += (job.start + np.flatnonzero(sums != known[job.start : job.stop])).tolist()
        if inference.progress is not None:
            inference.progress(job.stop, len(images), "comparing with the images that were embedded")
    if changed:
        names = ", ".join(images.name(i) for i in changed[:NAMED]) + (", ..." if len(changed) > NAMED else "")
        raise DataError(
            f"{len(changed):,} of the {len(images):,} images of {source.spec} are not those that {store.folder} was "
            f"made from, though names, sizes and times are: {names}. Restore them; or give these files a new time "
            "(`touch`), and all is made anew."
        )


@dataclass
class _SumReader(Dataset[np.ndarray]):
    """Turns a range of positions into checksums (b,) int64."""

    source: Source

    def __getitem__(self, positions: range) -> np.ndarray:
        sums = np.full(len(positions), UNREADABLE, np.int64)
        for place, position in enumerate(positions):
            try:
                sums[place] = checksum(self.source.content(position))
            except UnreadableImage:
                continue
        return sums
