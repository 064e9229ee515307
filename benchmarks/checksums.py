"""What checksums cost: an embed with them and without, side by side, and the verification of a store that is opened.

    python benchmarks/checksums.py [--images 2000] [--rounds 5]

Random 32 px images through a small network, a teacher as cheap as any: a larger one makes the share smaller.
Both ways take turns; "without" puts a function that counts nothing in the place of the checksum, here and only here.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from understudy.artifacts import Checksums, Store, checksum, checksums
from understudy.embed import blocks
from understudy.embed.embedding import Inference, embed
from understudy.embed.view_file import marks_of
from understudy.models.contract import Contract
from understudy.models.encoder import Encoder
from understudy.models.resnet import small_resnet
from understudy.models.teacher import Teacher
from understudy.sources.source import open_source

WIDTH = 768


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    content = np.random.default_rng(0).bytes(64 << 20)
    print(f"CRC-32 of zlib: {len(content) / seconds(lambda: checksum(content)) / 1e9:.2f} GB/s")
    images = np.random.default_rng(0).integers(0, 256, (options.images, 32, 32, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", images)
        spent: dict[bool, list[float]] = {True: [], False: []}
        for number in range(options.rounds):
            for counted in (True, False) if number % 2 else (False, True):
                with contextlib.nullcontext() if counted else without():
                    begun = time.process_time()
                    store = embedded(Path(folder), f"store-{number}-{counted}")
                    spent[counted].append(time.process_time() - begun)
        medians = {counted: statistics.median(one) for counted, one in spent.items()}
        ratio = medians[True] / medians[False]
        print(f"embed: {medians[True]:.3f} s with, {medians[False]:.3f} s without, ratio {ratio:.4f} (processor time)")
        store = embedded(Path(folder), "opened")
        opened = seconds(lambda: verified(store))
        print(f"verified when opened: {opened * 1000:.2f} ms, {opened / medians[False]:.3%} of the embed")
        rows = np.asarray(store.embeddings())
        each = seconds(lambda: marks_of(rows)) / len(rows)
        share = each / (medians[False] / options.images)
        print(f"a recorded view: {each * 1e6:.2f} us a row of {WIDTH}, {share:.3%} of what the teacher takes for it")


def embedded(folder: Path, name: str) -> Store:
    """A fresh store."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(small_resnet("resnet8"), torch.nn.Linear(64, WIDTH))
    contract = Contract(32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    teacher = Teacher(Encoder(network.eval(), WIDTH, contract, "small", "small", "random", "fingerprint"))
    source = open_source(str(folder / "images.npy"))
    return embed(teacher, source, folder / name, Inference(workers=0), check=False)


def verified(store: Store) -> None:
    """Open the embeddings as a process that has just begun."""
    checksums._verified.clear()
    store.embeddings()


@contextlib.contextmanager
def without() -> Iterator[None]:
    """No checksum of any row in this block."""

    def none(cls: type[Checksums], path: Any, ends: Any = None) -> Checksums:  # noqa: ARG001
        bounds = tuple(ends or (1,))
        return cls(bounds, (0,) * len(bounds))

    with mock.patch.object(blocks, "checksum", return_value=0), mock.patch.object(Checksums, "of", classmethod(none)):
        yield


def seconds(work: Any) -> float:
    """The shortest of five."""
    spent = []
    for _ in range(5):
        begun = time.perf_counter()
        work()
        spent.append(time.perf_counter() - begun)
    return min(spent)


if __name__ == "__main__":
    main()
