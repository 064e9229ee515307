"""Where images come from: one spec string, one `Source`, whatever lies behind it.

A source knows its images by number and holds no Python object per image: names are one Arrow array, pixels stay in
their files until read. Labels are read from disk only when somebody asks for them, and training never does.
"""

from __future__ import annotations

import copy
import functools
import glob
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from understudy.artifacts import atomic, checksum, fingerprint
from understudy.errors import ConfigError, DataError
from understudy.philox import SUBSET, permutation
from understudy.sources.formats import FORMATS, format_of_file, holders, known_forms, split_image
from understudy.sources.formats.address import RemoteImages
from understudy.sources.formats.npy import ArrayImages
from understudy.sources.images import EncodedImages, Images
from understudy.sources.labels import Labels, Unlabeled
from understudy.sources.limits import ImageLimits


class Source:
    """Images by number, with names and, where they exist, labels.

    Args:
        spec: as the user wrote it.
        images: the storage.
        rows: (N,) int64, the storage's row of each image; all rows unless given.
        ids: (N,) int64, the number that an image's views are drawn with; it stays with the image through `subset`. The
            rows unless given.
        fingerprint: changes when the set of images, their order or their content (by size and time) does.
    """

    def __init__(
        self, spec: str, images: Images, rows: np.ndarray | None = None, ids: np.ndarray | None = None,
        fingerprint: str | None = None,
    ) -> None:  # fmt: skip
        self.spec = spec
        self.images = images
        self.rows = np.arange(len(images), dtype=np.int64) if rows is None else rows
        self.ids = self.rows if ids is None else ids
        self.fingerprint = images.fingerprint if fingerprint is None else fingerprint

    def __repr__(self) -> str:
        return f"Source({self.spec!r}, {len(self)} images)"

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, i: int) -> Image.Image:
        """Image `i` as RGB of 8 bits a channel.

        Raises:
            UnreadableImage: it cannot be read or decoded; the sentence names it.
        """
        return self.images.read(int(self.rows[i]))

    def content(self, i: int) -> bytes | memoryview:
        """The bytes that image `i` is made from.

        Raises:
            UnreadableImage: they cannot be read.
        """
        return self.images.content(int(self.rows[i]))

    def read_summed(self, i: int) -> tuple[Image.Image, int]:
        """Image `i`, and the checksum of what it is made from, which is read once."""
        images, row = self.images, int(self.rows[i])
        content = images.content(row)
        image = images.decode(row, content) if isinstance(images, EncodedImages) else images.read(row)
        return image, checksum(content)

    def name(self, i: int) -> str:
        """The name of image `i`: its path below the folder, or file and row."""
        return str(self.images.names(self.rows[i : i + 1])[0])

    @property
    def names(self) -> pa.Array:
        """All names, as an Arrow string array."""
        return self.images.names(self.rows)

    @functools.cached_property
    def _labels(self) -> Labels | Unlabeled | None:
        try:
            labels = self.images.labels()
        except Unlabeled as reason:
            return reason
        return None if labels is None else (labels[0][self.rows], labels[1])

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) int64 class numbers, or None when there are none. Read from disk at the first call."""
        return self._labels[0] if isinstance(self._labels, tuple) else None

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, by number, or None when there are no labels."""
        return self._labels[1] if isinstance(self._labels, tuple) else None

    @property
    def unlabeled(self) -> str:
        """What to say of a source without labels: that it has none, or why those that it has cannot be used."""
        if isinstance(self._labels, Unlabeled):
            return f"has labels that cannot be used: {self._labels}."
        return (
            "has no labels. Classes come from folders (CLASS/IMAGE), from a column called label, from .cls or .json "
            "members of tar shards, or from the data set itself."
        )

    def subset(self, indices: np.ndarray | Sequence[int]) -> Source:
        """The source of these images, in this order; each keeps its id, so its views stay the same."""
        places = np.asarray(indices, dtype=np.int64)
        ids = self.ids[places]
        part = Source(self.spec, self.images, self.rows[places], ids, fingerprint(self.fingerprint, ids))
        labels: Labels | Unlabeled | None = self.__dict__.get("_labels")
        if labels is not None:
            part.__dict__["_labels"] = (labels[0][places], labels[1]) if isinstance(labels, tuple) else labels
        return part

    def relabeled(self, labels: Labels) -> Source:
        """The same images with these labels in place of the storage's own."""
        other = copy.copy(self)
        other.__dict__["_labels"] = labels
        return other


def open_source(
    spec: str | os.PathLike[str] | np.ndarray,
    *,
    limit: int | None = None,
    listings: str | os.PathLike[str] | None = None,
) -> Source:
    """Open a set of images.

    Args:
        spec: a folder of images at any depth (hidden names are passed over); a folder, file or glob of Hugging Face
            image parquet, of tar shards in WebDataset's layout, or of Arrow files (a data set saved to disk); a list of
            paths, one a line, of images or of such files (`*.txt` or `list:FILE`), or a table of them (`*.csv`,
            `*.tsv`); a `.npy` file or an array, uint8 (N, H, W, 3), (N, H, W) or (N, 3, H, W);
            `torchvision:NAME` or `torchvision:NAME:SPLIT` below the folder in the environment variable UNDERSTUDY_DATA
            (`data` unless set); `hf:ORG/NAME` or `hf:ORG/NAME:SPLIT`, parquet of the Hugging Face hub, or the address
            of parquet files that fsspec can reach (`s3://...`), a folder, file or glob: see `formats.address`;
            `digits`, `digits:train`, `digits:test` (scikit-learn's, upscaled to 32 x 32 RGB, split 80 / 20). Behind
            tar, parquet and Arrow `#IMAGE` says which extension or column is the image.
        limit: use only this many images, drawn at random by their place in the listing, always the same ones; the
            first ones would all be of one class where folders are classes. Of images that are not on this machine,
            whole row groups are drawn.
        listings: folder where the index of tar shards is kept for later calls; in memory unless given.

    Raises:
        DataError: nothing there, no images in it, or more than one way to read it.
        ConfigError: a limit below 1.
    """
    if isinstance(spec, np.ndarray):
        source = Source("array", ArrayImages(spec))
    else:
        spec = os.fspath(spec)
        images = _images(spec, None if listings is None else Path(listings))
        source = Source(spec, images, fingerprint=ImageLimits.of_environment().mark(images.fingerprint))
    return limited(source, limit)


def limited(source: Source, limit: int | None) -> Source:
    """At most so many images of a source, drawn at random by their place in the listing, always the same ones.

    Raises:
        ConfigError: a limit below 1.
    """
    if limit is None or limit >= len(source):
        return source
    if limit < 1:
        raise ConfigError(f"A limit is at least 1 image; got {limit}.")
    if isinstance(source.images, RemoteImages):  # images from all over would be fetched with all that is around them
        return source.subset(source.images.in_few_groups(source.rows, limit))
    return source.subset(np.sort(permutation(0, SUBSET, 0, len(source))[:limit]))


def _images(spec: str, listings: Path | None) -> Images:
    for kind in FORMATS.values():
        if kind.accepts(spec):
            return kind.open(spec.partition(":")[2] if kind.prefix else spec, listings)
    place, _ = split_image(spec)
    path, exists = Path(place), os.path.exists(place)
    if any(mark in place for mark in "*?[") and not exists:
        return _glob(spec, listings)
    if os.path.isdir(place):
        return FORMATS["folder"].open(spec, listings)
    if not exists:
        hint = " Write a range of shards as a pattern (shard-*.tar): braces mean nothing here." if "{" in spec else ""
        raise DataError(f"The data {spec} does not exist. Give {known_forms()}.{hint}")
    if (file_format := format_of_file(path)) is None:
        raise DataError(
            f"{spec} is not a kind of data this version reads ('{path.suffix}'). Give {known_forms()}; unpack an "
            "archive into a folder first."
        )
    return file_format.open(spec, listings)


def _glob(spec: str, listings: Path | None) -> Images:
    """The images of files that match a pattern."""
    pattern, image = split_image(spec)
    files, kinds = sorted(map(Path, glob.glob(pattern, recursive=True))), holders()
    endings = {file.suffix.lower() for file in files}
    if len(endings) != 1 or not endings <= kinds.keys():
        matches = f"{files[0]} and {len(files) - 1} more" if files else "nothing"
        raise DataError(f"The pattern {spec} must match files of one kind, {', '.join(kinds)}; it matches {matches}.")
    return kinds[endings.pop()].open_files(files, listings, image)


def write_listing(path: str | os.PathLike[str], source: Source) -> None:
    """Write which image stands in which row, columns id and name; labels stay where they are."""
    table = pa.table({"id": pa.array(source.ids), "name": source.names})
    table = table.replace_schema_metadata({"spec": source.spec, "fingerprint": source.fingerprint})
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def read_listing(path: str | os.PathLike[str], source: Source | str | os.PathLike[str]) -> Source:
    """The images of a listing that `write_listing` made of a source (or of a spec's), in its order.

    Raises:
        DataError: the listing cannot be read, or the source no longer has these images under these numbers.
    """
    if not isinstance(source, Source):
        source = open_source(source)
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"The listing {path} cannot be read ({error}). Embed the images again.") from None
    ids = table.column("id").to_numpy()
    order = np.argsort(source.ids, kind="stable")
    place = np.searchsorted(source.ids, ids, sorter=order)
    present = place < len(order)
    listed = source.subset(order[np.where(present, place, 0)])
    if not (present.all() and (listed.ids == ids).all() and _same_names(listed.names, table.column("name"))):
        raise DataError(
            f"{path} lists {len(ids)} images that {source.spec} no longer has under the same names and numbers (it has "
            f"{len(source)}). Embed the images again."
        )
    return listed


def _same_names(names: pa.Array, column: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.equal(names, column.combine_chunks().cast(names.type))).as_py())
