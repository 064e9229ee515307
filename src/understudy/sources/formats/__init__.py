"""The storage formats of images, a class each: `FORMATS` finds them, and everything that lists formats asks it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from understudy.registry import Registry
from understudy.sources.images import Images


class Format:
    """One way to store images. A spec belongs to the first format that accepts it, a file to that with its ending."""

    name: ClassVar[str]  # as in the registry
    form: ClassVar[str]  # how a spec is written, for messages and tables
    summary: ClassVar[str]  # one line
    prefix: ClassVar[str] = ""  # the word before the colon of a spec; "" for formats of files and folders
    endings: ClassVar[tuple[str, ...]] = ()  # endings of its files
    rejected_endings: ClassVar[tuple[str, ...]] = ()
    """Endings of files that it opens only to say why it cannot read them."""
    files_title: ClassVar[str] = ""
    """What to call its files where each holds many images, e.g. "tar shards"; "" where they do not."""
    remote: ClassVar[bool] = False  # whether the images are not on this machine

    @classmethod
    def accepts(cls, spec: str) -> bool:
        """Whether a spec that is no path belongs to this format."""
        return bool(cls.prefix) and spec.partition(":")[0] == cls.prefix

    @staticmethod
    def halves(spec: str) -> tuple[str, str] | None:
        """The specs of the training and the test half of a set that a spec gives as a whole; None without them."""
        return None

    @classmethod
    def open(cls, place: str, listings: Path | None) -> Images:
        """The images of a spec.

        Args:
            place: a path, an address, or what follows the prefix and its colon; for formats whose files hold many
                images, `#IMAGE` may follow, see `split_image`.
            listings: folder where the result of a long scan is kept; None keeps it in memory.

        Raises:
            DataError: nothing there, or something else.
        """
        path, image = split_image(place)
        return cls.open_files([Path(path)], listings, image)

    @staticmethod
    def open_files(files: Sequence[Path], listings: Path | None, image: str = "") -> Images:
        """The images of several files that hold many each, those of the first before those of the second.

        Args:
            files: paths.
            listings: as for `open`.
            image: which extension (tar) or column (parquet, Arrow) is the image; "" where nobody said.
        """
        raise NotImplementedError

    @staticmethod
    def files_in(folder: Path, names: Sequence[str]) -> list[Path]:
        """Which files to read, in their order, of all with this format's endings: their sorted paths below a folder."""
        return [folder / name for name in names]


ORDER = ("folder", "parquet", "tar", "arrow", "npy", "list", "torchvision", "hub", "address")
FORMATS: Registry[Format] = Registry(__name__, "Format", "data format", one_per_file=True, first=ORDER)


def holders() -> dict[str, type[Format]]:
    """The formats whose files hold many images each, by ending."""
    return {ending: kind for kind in FORMATS.values() if kind.files_title for ending in kind.endings}


def format_of_file(path: Path) -> type[Format] | None:
    """The format that reads a file, by its ending."""
    ending = path.suffix.lower()
    return next((kind for kind in FORMATS.values() if ending in kind.endings + kind.rejected_endings), None)


def split_image(spec: str) -> tuple[str, str]:
    """A spec, and which extension or column of its files is the image, as `#jpg` behind it says; "" where none does.

    A leading `~` is replaced by the home folder.

    What exists under the whole name is meant by it.
    """
    spec = os.path.expanduser(spec)
    place, mark, image = spec.rpartition("#")
    return (place, image) if mark and place and image and not os.path.exists(spec) else (spec, "")


def known_forms() -> str:
    """What a data spec may be, for messages."""
    *others, last = [kind.form for kind in FORMATS.values()]
    return f"{', '.join(others)}, or {last}"
