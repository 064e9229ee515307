"""Data sets of torchvision, as it keeps them on disk."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from understudy.artifacts import fingerprint
from understudy.errors import DataError, UnreadableImage
from understudy.settings import nearest
from understudy.sources.decode import to_rgb
from understudy.sources.formats import Format
from understudy.sources.images import Images, numbered
from understudy.sources.labels import Labels, sorted_classes


class TorchvisionImages:
    """A classification data set of torchvision, already on disk. It is opened anew in each process.

    Args:
        name: the class in `torchvision.datasets`, e.g. "CIFAR10".
        root: the folder that torchvision keeps it in.
        split: "train", "test", or another that the data set has (`val`, `trainval`, ...).
        literal: the split is in the data set's own words; else "train" is all that it has beside the test images.

    Raises:
        DataError: unknown name or split, or the files are not there (nothing is downloaded).
    """

    def __init__(self, name: str, root: str, split: str = "train", *, literal: bool = False) -> None:
        self.name, self.root, self.split, self.literal = name, os.path.abspath(root), split, literal
        self._dataset: Any = None
        self._length = len(self.dataset)
        self.fingerprint = fingerprint("torchvision", name, split, self._length)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dataset": None}

    def __len__(self) -> int:
        return self._length

    @property
    def dataset(self) -> Any:
        """The torchvision data set."""
        if self._dataset is None:
            from torchvision import datasets

            names = [n for n in datasets.__all__ if isinstance(getattr(datasets, n), type)]
            if self.name not in names:
                raise DataError(f"torchvision has no data set '{self.name}'. {nearest(self.name, names)}")
            kind = getattr(datasets, self.name)
            parameters = inspect.signature(kind).parameters
            if "root" not in parameters:
                raise DataError(
                    f"torchvision:{self.name} does not come from files on disk, so it cannot be a data source."
                )
            arguments = self._arguments(parameters)
            try:
                self._dataset = kind(self.root, **arguments)
            except (RuntimeError, OSError) as error:
                written = "".join(f", {key}={value!r}" for key, value in arguments.items())
                raise DataError(
                    f"torchvision:{self.name} is not complete below {self.root} ({error}). Set UNDERSTUDY_DATA to the "
                    "folder it is in, or fetch it once with "
                    f'torchvision.datasets.{self.name}("{self.root}"{written}, download=True).'
                ) from None
            except (ValueError, TypeError) as error:
                raise DataError(f"torchvision:{self.name}:{self.split} cannot be opened: {error}.") from None
        return self._dataset

    def _arguments(self, parameters: Iterable[str]) -> dict[str, Any]:
        """The split in the data set's own words: `train=True`, `split="train"`, or `split="trainval"`."""
        parameters = set(parameters)
        if "split" in parameters:
            no_train_half = {"OxfordIIITPet", "FGVCAircraft"}
            split = (
                "trainval" if self.split == "train" and self.name in no_train_half and not self.literal else self.split
            )
            return {"split": split}
        if "train" in parameters:
            if self.split not in ("train", "test"):
                raise DataError(f"torchvision:{self.name} has the splits train and test; got '{self.split}'.")
            return {"train": self.split == "train"}
        if self.split != "train":
            raise DataError(f"torchvision:{self.name} has no splits; got '{self.split}'.")
        return {}

    def read(self, row: int) -> Image.Image:
        """See `Images`."""
        title = f"torchvision:{self.name}:{self.split}:{row}"
        try:
            image = self.dataset[row][0]
        except Exception as error:  # each data set opens its files its own way
            raise UnreadableImage(f"{title} cannot be read ({type(error).__name__}: {error}).") from None
        return to_rgb(image, title)

    def content(self, row: int) -> bytes:
        """See `Images`: the pixels, because the data set opens its files itself."""
        return self.read(row).tobytes()

    def names(self, rows: np.ndarray) -> pa.Array:
        """See `Images`: NAME:SPLIT:ROW."""
        return numbered([f"{self.name}:{self.split}"], np.zeros(len(rows), np.int64), np.asarray(rows))

    def labels(self) -> Labels | None:
        """See `Images`: whichever list of class numbers the data set keeps."""
        lists = (getattr(self.dataset, name, None) for name in ("targets", "_labels", "labels", "y"))
        numbers = next((np.asarray(values) for values in lists if values is not None), None)
        pairs = getattr(self.dataset, "_samples", None)  # (path, class number), as StanfordCars keeps them
        if numbers is None and pairs:
            numbers = np.asarray([number for _, number in pairs])
        if numbers is None or numbers.shape != (len(self),) or numbers.dtype.kind not in "iu" or numbers.min() < 0:
            return None
        names = getattr(self.dataset, "classes", None)
        distinct, codes = np.unique(numbers, return_inverse=True)
        if names is None or len(names) <= int(distinct[-1]):
            return sorted_classes(codes, [str(number) for number in distinct.tolist()], counted=True)
        return numbers.astype(np.int64), [str(name) for name in names]


class Torchvision(Format):
    """A data set of torchvision, by the name of its class."""

    name = "torchvision"
    form = "torchvision:NAME"
    summary = "a data set already downloaded, below the folder in `UNDERSTUDY_DATA` (`data` unless set)"
    prefix = "torchvision"

    @staticmethod
    def halves(spec: str) -> tuple[str, str] | None:
        """See `Format`."""
        return (f"{spec}:train", f"{spec}:test") if spec.count(":") == 1 else None

    @staticmethod
    def open(place: str, listings: Path | None) -> Images:
        """The images of NAME or NAME:SPLIT; see `Format`."""
        name, _, split = place.partition(":")
        return TorchvisionImages(name, os.path.expanduser(os.environ.get("UNDERSTUDY_DATA", "data")), split or "train")
