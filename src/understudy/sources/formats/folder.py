"""Image files in a folder of any depth, listed in one pass."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from understudy.errors import DataError
from understudy.sources.decode import EXTENSIONS, read_image_file
from understudy.sources.formats import Format, holders, split_image
from understudy.sources.images import EncodedImages, Images, Names, listing_fingerprint
from understudy.sources.labels import Labels, as_text, class_folders
from understudy.sources.splits import example_of, several_splits


@dataclass(frozen=True)
class Listing:
    """What a folder holds."""

    names: pa.Array  # (N,) large_binary, paths of the images below the folder
    sizes: np.ndarray  # (N,) int64, bytes of each; -1 for a link to nothing
    times: np.ndarray  # (N,) int64, modification times in nanoseconds
    holders: dict[str, list[str]]  # paths of files that hold many images each, by ending
    others: int  # how many other files there are


def scan(root: Path) -> Listing:
    """One pass over a folder.

    Folder by folder, each in the order of names: the same listing on any file system. Links to folders are followed,
    each real folder once. Names are bytes, as the file system has them: not every one is valid text.

    Raises:
        DataError: a folder may not be read.
    """
    names = Names()
    sizes, times = array("q"), array("q")
    files: dict[bytes, list[str]] = {ending.encode(): [] for ending in holders()}
    others = 0
    top = os.fsencode(root)
    folders, visited = [b""], set()
    while folders:
        below = folders.pop()
        folder = os.path.join(top, below)
        try:
            state = os.stat(folder)
            if (state.st_dev, state.st_ino) in visited:
                continue
            visited.add((state.st_dev, state.st_ino))
            images, inside, count = _read_folder(folder, below, files)
        except OSError as error:
            raise DataError(f"The folder {os.fsdecode(folder)} cannot be listed ({error.strerror}).") from None
        names.extend([path for path, _, _ in images])
        sizes.extend([size for _, size, _ in images])
        times.extend([time for _, _, time in images])
        others += count
        folders.extend(reversed(inside))
    sorted_files = {ending.decode(): sorted(paths) for ending, paths in files.items()}
    return Listing(names.finish(), np.asarray(sizes, np.int64), np.asarray(times, np.int64), sorted_files, others)


IMAGE_ENDINGS = frozenset(ending.encode() for ending in EXTENSIONS)


def _read_folder(
    folder: bytes, below: bytes, files: dict[bytes, list[str]]
) -> tuple[list[tuple[bytes, int, int]], list[bytes], int]:
    """What lies directly in a folder: images (path, size, time) and folders by name, and how many other files.

    Files that hold many images are appended to `files`, by ending.
    """
    images: list[tuple[bytes, int, int]] = []
    folders: list[bytes] = []
    others = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b"."):
                continue
            ending = name[name.rfind(b".") :].lower()
            if ending in IMAGE_ENDINGS and not entry.is_dir():
                try:
                    state = entry.stat()
                except OSError:  # a link to nothing is listed all the same, and reported when it is read
                    images.append((below + name, -1, -1))
                else:
                    images.append((below + name, state.st_size, state.st_mtime_ns))
            elif entry.is_dir():
                folders.append(below + name + b"/")
            elif ending in files:
                files[ending].append(os.fsdecode(below + name))
            else:
                others += 1
    return sorted(images), sorted(folders), others


class FolderImages(EncodedImages):
    """Image files below a folder: (N,) paths, sizes in bytes and modification times in nanoseconds.

    Labels: the class folders, where every image lies at `CLASS/FILE`.
    """

    def __init__(
        self, root: Path, names: pa.Array | Sequence[bytes], sizes: np.ndarray | Sequence[int],
        times: np.ndarray | Sequence[int],
    ) -> None:  # fmt: skip
        self.root = os.fsencode(root)
        self.paths = names if isinstance(names, pa.Array) else pa.array(names, type=pa.large_binary())
        self.fingerprint = listing_fingerprint(self.paths, np.asarray(sizes, np.int64), np.asarray(times, np.int64))

    def __len__(self) -> int:
        return len(self.paths)

    def content(self, row: int) -> bytes:
        """See `Images`."""
        return read_image_file(self.title(row))

    def title(self, row: int) -> str:
        """See `EncodedImages`: the whole path."""
        return os.fsdecode(os.path.join(self.root, self.paths[row].as_py()))

    def names(self, rows: np.ndarray) -> pa.Array:
        """See `Images`: paths below the folder."""
        return as_text(self.paths.take(pa.array(rows)))

    def labels(self) -> Labels | None:
        """See `Images`. Folders at another depth (by date, by camera) are no classes, nor is a single folder."""
        return class_folders(self.paths)


class Folder(Format):
    """A folder of images, or of files that hold many when it has those and no images."""

    name = "folder"
    form = "a folder of images"
    summary = "images at any depth; class subfolders are labels where labels are needed"

    @staticmethod
    def open(place: str, listings: Path | None) -> Images:
        """See `Format`."""
        place, image = split_image(place)
        root = Path(place)
        listing, kinds = scan(root), holders()
        if len(listing.names) and image:
            raise DataError(
                f"{root} is a folder of images, and '#{image}' says which extension or column of tar, parquet or Arrow "
                "files is the image."
            )
        if len(listing.names):
            return FolderImages(root, listing.names, listing.sizes, listing.times)
        present = {ending: names for ending, names in listing.holders.items() if names}
        if len(present) > 1:
            counts = " and ".join(f"{len(names)} {kinds[ending].files_title}" for ending, names in present.items())
            raise DataError(f"{root} holds {counts}. Name the ones to use, e.g. {root / ('*' + next(iter(present)))}.")
        if not present:
            raise DataError(
                f"There are no images in {root}: {listing.others} other files, none ending in "
                f"{', '.join(sorted(EXTENSIONS)[:6])}, ... or {', '.join(kinds)}. Check the path."
            )
        [(ending, names)] = present.items()
        kind = kinds[ending]
        if splits := several_splits(names):
            raise DataError(
                f"{root} holds {kind.files_title} of several splits ({splits}). Name the one to use, e.g. "
                f"{root / example_of(names)}."
            )
        return kind.open_files(kind.files_in(root, names), listings, image)
