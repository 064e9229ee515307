"""Decoding and augmentation against torchvision's, images/s on one core, in turn in one process.

    python benchmarks/views.py

Ours: the reader of the training loop and `photometry`, a batch at a time. Torchvision's: the same MoCo-v2 recipe as a
data set with transforms would run it, image by image (`RandomResizedCrop`, `ColorJitter`, `RandomGrayscale`,
`GaussianBlur`, flip, to float), after `Image.convert("RGB")`; its tensors are stacked. Real photographs at 224 pixels,
with one view and with two of each image, and 32 x 32 images, which we keep decoded and torchvision decodes each time.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import v2

from understudy.sources.pixels import decoded
from understudy.sources.source import Source, open_source
from understudy.views.augmentation import photometry, recipe_for
from understudy.views.batches import NeighborBatches
from understudy.views.loader import Loader, Reading
from understudy.views.reader import Views

SHARED = Path(__file__).resolve().parents[2] / "shared"


def ours(source: Source, size: int, views: int, batch: int, seed: int) -> torch.Tensor:
    """One batch of views, ready for a network."""
    batches = NeighborBatches(len(source), batch, seed=seed)
    recipe = recipe_for(None, size)
    cut = Views(size, recipe, seed, per_image=views)
    found = next(iter(Loader(source, batches, cut, reading=Reading(workers=0), steps=range(1))))
    return torch.stack(
        [photometry(pixels, rows, recipe) for pixels, rows in zip(found.pixels, found.rows, strict=True)]
    )


def theirs(contents: list[bytes], size: int, views: int, batch: int, seed: int) -> torch.Tensor:
    """The same by torchvision's transforms."""
    blur = [v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5)] if size > 64 else []
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0)),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            *blur,
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    torch.manual_seed(seed)
    chosen = torch.randperm(len(contents))[:batch].tolist()
    images = [Image.open(io.BytesIO(contents[i])).convert("RGB") for i in chosen]
    return torch.stack([torch.stack([transform(image) for image in images]) for _ in range(views)])


def rate(work: Callable[[int], torch.Tensor], batch: int, round_: int, least: float) -> float:
    """Images/s over at least so many seconds."""
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < least:
        work(1000 * round_ + done)
        done += 1
    return done * batch / (time.perf_counter() - begun)


def main() -> None:
    """Measure all three cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", default=str(SHARED / "data" / "imagenette" / "train"))
    parser.add_argument("--small", default=str(SHARED / "data" / "cifar10" / "test.parquet"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| images | views | torchvision images/s | ours images/s | ours / torchvision |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for spec, size, views, batch in (
            (options.photographs, 224, 1, 64), (options.photographs, 224, 2, 64), (options.small, 32, 1, 256),
        ):  # fmt: skip
            source = open_source(spec, limit=2000)
            contents = [bytes_of(source, i) for i in range(len(source))]
            source = decoded(source, Path(folder))
            pairs = []
            for number in range(options.rounds):
                least = options.seconds
                first = rate(lambda seed: theirs(contents, size, views, batch, seed), batch, number, least)  # noqa: B023
                second = rate(lambda seed: ours(source, size, views, batch, seed), batch, number, least)  # noqa: B023
                pairs.append((first, second))
            mean = [statistics.median(pair[i] for pair in pairs) for i in (0, 1)]
            ratio = statistics.median(second / first for first, second in pairs)
            print(f"| {size} px | {views} | {mean[0]:.0f} | {mean[1]:.0f} | {ratio:.2f} |", flush=True)


def bytes_of(source: Source, i: int) -> bytes:
    """The encoded file of an image, as a data set on disk would give it."""
    from understudy.sources.formats.folder import FolderImages
    from understudy.sources.formats.parquet import ParquetImages

    images, row = source.images, int(source.rows[i])
    if isinstance(images, FolderImages):
        return Path(source.spec, source.name(i)).read_bytes()
    assert isinstance(images, ParquetImages)
    return bytes(images.content(row))


if __name__ == "__main__":
    main()
