"""What a million images cost: time and memory of listing, embedding, graph and sampling, each in a process of its own.

    nice python benchmarks/million.py                      # 1,000,000 images, about 2 GB of disk, removed at the end
    nice python benchmarks/million.py --images 100000

Makes tar shards of synthetic 32 x 32 JPEG images (smooth random colors, no two alike) with `.cls` members, lists them
twice (the second time from the index that the first one left), embeds them with an encoder of one convolution
(N x 256, float16), builds the approximate graph of 31 neighbors with its measured recall, and runs 1,000 steps of the
sampler. With --files the same images lie in a folder, one file each.

Memory is the largest sum, sampled every 20 ms, of what this process and its workers hold that is not a mapped file
(RssAnon); what it held when the libraries were loaded is in it. Pages shared with workers count twice. The processor
time tells what a quiet machine would need: all stages but the listing use both cores.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SHARD, CLASSES = 10_000, 1000
STAGES = ("list", "list again", "embed", "graph", "sample")


def anonymous_mib() -> float:
    """Memory of this process and its children that is no mapped file."""
    total = 0.0
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for process in (str(os.getpid()), *children):
        try:
            status = Path(f"/proc/{process}/status").read_text()
            total += int(status.split("RssAnon:")[1].split()[0]) / 1024
        except (OSError, IndexError):  # it has just ended
            continue
    return total


class Peak(threading.Thread):
    """Samples the memory until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mib, self.stop = 0.0, threading.Event()

    def run(self) -> None:
        """Sample."""
        while not self.stop.wait(0.02):
            self.mib = max(self.mib, anonymous_mib())


def pictures(draw: np.random.Generator, count: int) -> np.ndarray:
    """(count, 32, 32, 3) uint8: sums of low cosines, gray ones stronger than colored ones, as in photographs."""
    waves = np.arange(6)
    lines = np.cos(np.pi * (np.arange(32) + 0.5) * waves[:, None] / 32)
    gray, color = (draw.standard_normal((count, channels, 6, 6), dtype=np.float32) for channels in (1, 3))
    amplitudes = (gray + 0.4 * color) / (1 + waves + waves[:, None])
    images = np.einsum("nckl,ki,lj->nijc", amplitudes, lines, lines, optimize=True)
    return np.clip(128 + 45 * images, 0, 255).astype(np.uint8)


def encoded(images: int) -> Iterator[tuple[int, bytes]]:
    """Number and JPEG of every image."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for start in range(0, images, SHARD):
        for number, pixels in enumerate(pictures(draw, min(SHARD, images - start)), start):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
            yield number, buffer.getvalue()


def make_files(folder: Path, images: int) -> None:
    """The images as files in class folders."""
    for number in range(min(CLASSES, images)):
        (folder / f"{number:03d}").mkdir()
    for number, content in encoded(images):
        (folder / f"{number % CLASSES:03d}" / f"{number:08d}.jpg").write_bytes(content)


def make_shards(folder: Path, images: int) -> None:
    """The images as tar shards, their classes beside them."""
    for shard, group in itertools.groupby(encoded(images), lambda pair: pair[0] // SHARD):
        with tarfile.open(folder / f"shard-{shard:05d}.tar", "w") as file:
            for number, content in group:
                for ending, member in (("jpg", content), ("cls", b"%d" % (number % CLASSES))):
                    about = tarfile.TarInfo(f"{number:08d}.{ending}")
                    about.size = len(member)
                    file.addfile(about, io.BytesIO(member))


def encoder() -> Any:
    """A teacher of 256 dimensions: 64 cosine patches of 8 x 8, both signs, rectified, averaged over quadrants."""
    import torch

    from understudy.models.contract import Contract
    from understudy.models.encoder import Encoder
    from understudy.models.teacher import Teacher

    waves = np.arange(8)
    lines = np.cos(np.pi * (np.arange(8) + 0.5) * waves[:, None] / 8)
    colors = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])
    patches = [
        sign * color[:, None, None] * np.outer(lines[i], lines[total - i]) / (1 + total)
        for total in range(4)
        for i in range(total + 1)
        for color in colors
        for sign in (1, -1)
    ]
    patches += [-patch.transpose(0, 2, 1) for patch in patches[: 64 - len(patches)]]
    convolution = torch.nn.Conv2d(3, 64, 8, stride=8, bias=False)
    convolution.weight.data = torch.from_numpy(np.stack(patches)).float()
    module = torch.nn.Sequential(convolution, torch.nn.ReLU(), torch.nn.AvgPool2d(2), torch.nn.Flatten())
    contract = Contract(size=32)
    return Teacher(Encoder(module, 256, contract, "cosines", "cosines", "computed", "cosines"))


def measure(stage: str, folder: Path) -> dict[str, Any]:
    """One stage, in this process."""
    import torch

    from understudy.artifacts import Store
    from understudy.embed.embedding import Inference, embed
    from understudy.neighbors.graph import build_graph
    from understudy.neighbors.settings import NeighborSettings
    from understudy.sources.source import open_source
    from understudy.views.batches import NeighborBatches

    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # threads and the matrix library are up
    teacher = encoder() if stage == "embed" else None
    source = open_source(folder / "images", listings=folder / "listings") if stage in ("embed", "sample") else None
    store = next((Store(path.parent) for path in folder.glob("store/*/manifest.json")), None)
    metadata: dict[str, Any] = {}
    peak = Peak()
    peak.start()
    begun, worked = time.perf_counter(), sum(os.times()[:4])
    if stage.startswith("list"):
        source = open_source(folder / "images", listings=folder / "listings")
        metadata["images"] = len(source)
    elif stage == "embed":
        store = embed(teacher, source, folder / "store", Inference(batch_size=512))
        metadata["rows"] = store.manifest["rows"]
    elif stage == "graph":
        build_graph(store, NeighborSettings(index="ivf"))
        metadata = {name: store.manifest["graph"][name] for name in ("built", "effort", "recall")}
    else:
        batches = NeighborBatches(len(source), 256, k=15, n=31, graph=store.graph(), steps=1000)
        metadata["last"] = int(sum(batch.index.sum() for batch in batches.iterate()) % 1000)
    seconds, cpu = time.perf_counter() - begun, sum(os.times()[:4]) - worked
    peak.stop.set()
    peak.join()
    return {"seconds": seconds, "cpu": cpu, "mib": peak.mib, **metadata}


def main() -> None:
    """Make the images, run every stage, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--files", action="store_true", help="a folder of files in place of tar shards")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it; finished stages are used again")
    parser.add_argument("--measure", nargs=2, metavar=("STAGE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        if not (folder / "images").is_dir():
            begun = time.perf_counter()
            (folder / "making").mkdir(parents=True)
            (make_files if options.files else make_shards)(folder / "making", options.images)
            (folder / "making").rename(folder / "images")
            print(f"{options.images:,} images made in {time.perf_counter() - begun:.0f} s", flush=True)
        print(f"| {'stage':10} | seconds | processor s | peak MiB outside files | |\n|---|---|---|---|---|")
        for stage in STAGES:
            command = [sys.executable, __file__, "--measure", stage, str(folder)]
            row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            told = ", ".join(f"{key} {row[key]}" for key in row if key not in ("seconds", "cpu", "mib"))
            print(f"| {stage:10} | {row['seconds']:.1f} | {row['cpu']:.1f} | {row['mib']:.0f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
