"""One set of images that an encoder is judged on, whatever its layout on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from understudy.errors import DataError
from understudy.sources.formats.folder import FolderImages
from understudy.sources.source import Source


@dataclass(frozen=True, eq=False)
class Target:
    """One set of images to be judged on.

    Args:
        name: what the figures call it: a protocol's are filed under "PROTOCOL@NAME".
        kind: what protocols ask for: "labeled" (training and test images), "shift" (test images only, of classes that
            the main evaluation images have), "landmarks" (queries and a database), or a layout whose protocols read
            the files themselves.
        spec: where it is.
        train: labeled images to learn from; features are computed once.
        test: images to be judged on, or a database to search; features are computed once.
        queries: images to search with; features are computed once.
        metadata: what else the layout says, for the protocols of this kind. Arrays are indexed by the images' ids
            (`Source.ids`), which survive the loss of images that cannot be read.
    """

    name: str
    kind: str
    spec: str
    train: Source | None = None
    test: Source | None = None
    queries: Source | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sources(self) -> dict[str, Source]:
        """The image sets whose features protocols want, by role."""
        roles = {"train": self.train, "test": self.test, "queries": self.queries}
        return {role: source for role, source in roles.items() if source is not None}


@dataclass(frozen=True)
class Layout:
    """How a published set lies on disk.

    Args:
        kind: of the target it makes.
        open: (name, folder) -> the target; a missing file is named, with the place the set is officially had.
        metric: what convention asks for of the set, where a root with train and test halves will do in place of its
            own layout: class folders, parquet.
    """

    kind: str
    open: Callable[[str, str], Target]
    metric: str | None = None


def below(path: str, first: str, *, had: str) -> Path:
    """The folder in which `first` lies: the given one, its parent where it was named itself, or a sentence.

    Args:
        path: what the user gave.
        first: the file or folder that shows the layout, relative.
        had: where the set is officially had.

    Raises:
        DataError: it is not there; the sentence names the path expected and where to get the set.
    """
    root = Path(path).expanduser()
    parts = Path(first).parts
    for number in range(len(parts)):
        # .../VOC2007 for VOCdevkit/VOC2007/ImageSets: the user may name any folder on the way.
        folder = root
        for _ in range(number):
            folder = folder.parent
        if number and Path(*root.parts[-number:]) != Path(*parts[:number]):
            continue
        if (folder / first).exists():
            return folder
    raise DataError(f"{root / first} does not exist. Give the folder that holds {first}; the set is had at {had}.")


def within(path: str, *names: str) -> Path:
    """The folder of a set: the first of these names that is a folder in the one given, else the one given."""
    root = Path(path).expanduser()
    return next((root / name for name in names if (root / name).is_dir()), root)


def listed(root: Path, names: Sequence[str], *, had: str) -> Source:
    """The image files of a list, in its order.

    Raises:
        DataError: a file of the list is missing.
    """
    sizes, times = [], []
    for name in names:
        try:
            state = (root / name).stat()
        except OSError:
            raise DataError(
                f"{root / name} is listed, with {len(names) - 1:,} others, and does not exist. The set is had at {had}."
            ) from None
        sizes.append(state.st_size)
        times.append(state.st_mtime_ns)
    return Source(str(root), FolderImages(root, [name.encode() for name in names], sizes, times))
