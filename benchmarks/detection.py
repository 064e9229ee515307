"""Does a detector over a backbone of ours learn? Mask R-CNN on a few images of coco128, judged on the same images.

    python benchmarks/detection.py RUN --store STORE    # the backbone of that run's student; dev/RECORDS.md

A few hundred steps on coco128's 64 training images leave AP on its 64 test images near nothing whatever the backbone:
that says little about the protocol. The images with the largest objects, learned by heart, do: a wrong target, a wrong
scale or a wrong category anywhere between backbone and pycocotools would keep AP down. No benchmark of an encoder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from understudy.cli import main as understudy

SHARED = Path(__file__).resolve().parents[2] / "shared"


def main() -> None:
    """Lay out the images, train and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run folder, or any model spec with weights")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "coco128")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.04, help="for batches of 16")
    parser.add_argument("--store", default="store", help="the run's: its features need not be computed again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subset(options.data, options.images, Path(folder) / "coco")
        understudy(
            [
                "evaluate", options.model, "--on", f"coco={folder}/coco", "--protocols", "detection",
                "--detection.iterations", str(options.iterations), "--detection.batch-size", "2",
                "--detection.size", str(options.size), "--detection.lr", str(options.lr), "--detection.rois", "32",
                "--store", options.store,
            ]
        )  # fmt: skip


def subset(data: Path, count: int, folder: Path) -> None:
    """The training images whose smallest object fills most of them, as a COCO root whose halves are the same."""
    table = json.loads((data / "annotations" / "instances_train2017.json").read_text())
    smallest = dict.fromkeys((image["id"] for image in table["images"]), 1.0)
    area = {image["id"]: image["width"] * image["height"] for image in table["images"]}
    objects = dict.fromkeys(smallest, 0)
    for one in table["annotations"]:
        image = one["image_id"]
        objects[image] += 1
        smallest[image] = min(smallest[image], one["area"] / area[image])
    chosen = sorted((image for image in smallest if objects[image]), key=lambda image: -smallest[image])[:count]
    few = {
        **table,
        "images": [image for image in table["images"] if image["id"] in chosen],
        "annotations": [one for one in table["annotations"] if one["image_id"] in chosen],
    }
    (folder / "annotations").mkdir(parents=True)
    for half in ("train2017", "val2017"):
        (folder / half).symlink_to((data / "train2017").resolve())
        (folder / "annotations" / f"instances_{half}.json").write_text(json.dumps(few))


if __name__ == "__main__":
    main()
