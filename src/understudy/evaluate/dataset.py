"""One set of images that an encoder is evaluated on, and what a published set declares: how it lies on disk."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from understudy.errors import DataError
from understudy.sources.formats.folder import FolderImages
from understudy.sources.source import Source


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """One set of images to evaluate on; features of each of its sources are computed once.

    The kind is what protocols ask for: "labeled" (training and test images), "shift" (test images only, of classes that
    the main evaluation images have), "landmarks" (queries and a database), or a layout whose protocols read the files
    themselves; "main" for the main evaluation images. Arrays of the metadata are indexed by the images' ids
    (`Source.ids`), which survive the loss of images that cannot be read.
    """

    name: str  # figures are filed under "PROTOCOL@NAME"; "" for the main evaluation images
    kind: str
    spec: str  # where it is
    train: Source | None = None  # labeled images to learn from
    test: Source | None = None  # images to evaluate on, or a database to search
    queries: Source | None = None  # images to search with
    metadata: Mapping[str, Any] = field(default_factory=dict)  # what else the layout says, for protocols of this kind

    @property
    def sources(self) -> dict[str, Source]:
        """The images whose features protocols use, by role."""
        roles = {"train": self.train, "test": self.test, "queries": self.queries}
        return {role: source for role, source in roles.items() if source is not None}


class Dataset:
    """A published set in its official layout. Adding one takes a subclass in a file of `evaluate/datasets`.

    Nothing is downloaded.

    Attributes:
        name: what `--on` calls it.
        summary: what it is, in one line: the first of the docstring.
        paper: whose it is: authors, title, place and year; "" without a paper.
        kind: of its `EvaluationSet`.
        home: where it is officially had.
        metric: what its convention asks for ("top1", "mean_class"), where a root with train and test halves will do in
            place of its own layout; None where it will not.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    kind: ClassVar[str]
    home: ClassVar[str]
    metric: ClassVar[str | None] = None

    def __init_subclass__(cls) -> None:
        cls.summary = (cls.__doc__ or "").strip().partition("\n")[0].rstrip(".")

    @classmethod
    def open(cls, path: str) -> EvaluationSet:
        """The set in the folder that the user gave: its own, or the one that holds it.

        Raises:
            DataError: a file is missing; the sentence names it, and the place where the set is had.
        """
        raise NotImplementedError


def below(path: str, first: str, *, home: str) -> Path:
    """The folder in which the file or folder `first` lies: the one given, or one above it on the way to `first`.

    Raises:
        DataError: it is not there; the sentence names the path expected and where the set is officially had (`home`).
    """
    root = Path(os.path.expanduser(path))
    parts = Path(first).parts
    # .../VOC2007 for VOCdevkit/VOC2007/ImageSets: the user may name any folder on the way.
    for number, folder in zip(range(len(parts)), (root, *root.parents), strict=False):
        if root.parts[len(root.parts) - number :] == parts[:number] and (folder / first).exists():
            return folder
    raise DataError(f"{root / first} does not exist. Give the folder that holds {first}; the set is had at {home}.")


def within(path: str, *names: str) -> Path:
    """The folder of a set: the first of these names that is a folder in the one given, else the one given."""
    root = Path(os.path.expanduser(path))
    return next((root / name for name in names if (root / name).is_dir()), root)


def listed(root: Path, names: Sequence[str], *, home: str) -> Source:
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
                f"{root / name} is listed, with {len(names) - 1:,} others, and does not exist. The set is had at "
                f"{home}."
            ) from None
        sizes.append(state.st_size)
        times.append(state.st_mtime_ns)
    return Source(str(root), FolderImages(root, [name.encode() for name in names], sizes, times))
