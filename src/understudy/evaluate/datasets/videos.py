"""Videos with a mask of numbered objects for each frame, in the layout of DAVIS-2017."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from understudy.artifacts import fingerprint
from understudy.errors import DataError
from understudy.evaluate.dataset import Dataset, EvaluationSet, within
from understudy.evaluate.datasets.masks import read_index_mask
from understudy.evaluate.datasets.objects import read_expected
from understudy.sources.decode import to_rgb

DAVIS_SOURCE = "https://davischallenge.org/davis2017/code.html (DAVIS-2017-trainval-480p.zip)"


@dataclass(frozen=True)
class Videos:
    """The validation sequences by name, and the folder `DAVIS`."""

    root: Path
    names: Sequence[str]

    @property
    def fingerprint(self) -> str:
        """Changes with the list of sequences."""
        return fingerprint(list(self.names))

    def read(self, name: str) -> tuple[list[Image.Image], list[UInt8[np.ndarray, "H W"]]]:
        """Frames and masks of one sequence, in order.

        Raises:
            DataError: a file is missing, or a mask has another size than its frame.
            UnreadableImage: a frame cannot be decoded.
        """
        folder = self.root / "JPEGImages" / "480p" / name
        paths = sorted(folder.glob("*.jpg"))
        if len(paths) < 3:
            count = len(paths)
            raise DataError(f"{folder} holds {count} frames; three at least are needed. It comes from {DAVIS_SOURCE}.")
        frames, masks = [], []
        for path in paths:
            frame = to_rgb(read_expected(path), str(path))
            file = self.root / "Annotations" / "480p" / name / f"{path.stem}.png"
            mask = read_index_mask(file, DAVIS_SOURCE)
            if mask.shape != (frame.height, frame.width):
                raise DataError(
                    f"The mask {file} is {mask.shape[1]} x {mask.shape[0]} pixels, its frame {frame.width} x "
                    f"{frame.height}. They must be of one size."
                )
            frames.append(frame)
            masks.append(mask)
        return frames, masks


def open_videos(root: Path) -> Videos:
    """The validation sequences of DAVIS-2017 in the folder `DAVIS`, or in the one above it.

    `JPEGImages/480p/SEQUENCE/00000.jpg ...`, `Annotations/480p/SEQUENCE/00000.png ...`, `ImageSets/2017/val.txt`.

    Raises:
        DataError: the list of sequences is missing or empty.
    """
    root = root / "DAVIS" if (root / "DAVIS").is_dir() else root
    listing = root / "ImageSets" / "2017" / "val.txt"
    names = read_expected(listing, DAVIS_SOURCE).decode().split()
    if not names:
        raise DataError(f"{listing} names no sequences. It comes from {DAVIS_SOURCE}.")
    return Videos(root, names)


class Davis2017(Dataset):
    """30 videos with a mask of each object in each frame."""

    name = "davis"
    paper = "Pont-Tuset et al., The 2017 DAVIS Challenge on Video Object Segmentation, arXiv:1704.00675"
    kind = "videos"
    home = DAVIS_SOURCE

    @classmethod
    def open(cls, path: str) -> EvaluationSet:
        """See `Dataset`."""
        videos = open_videos(within(path, cls.name))
        return EvaluationSet(cls.name, cls.kind, path, metadata={"videos": videos, "fingerprint": videos.fingerprint})
