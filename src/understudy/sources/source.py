"""Where images come from: one spec string, one `Source`, whatever lies behind it.

A source knows its images by number and holds no Python object per image: names are one Arrow array, pixels stay in
their files until read. Labels are read from disk only when somebody asks for them, and training never does.
"""

from __future__ import annotations

import copy
import functools
import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from understudy.artifacts import atomic, fingerprint
from understudy.errors import ConfigError, DataError
from understudy.philox import SUBSET, permutation
from understudy.sources.arrays import ArrayImages, digits
from understudy.sources.arrow import ArrowImages, saved_files
from understudy.sources.decode import EXTENSIONS
from understudy.sources.folders import FolderImages, ListedImages, lines, scan
from understudy.sources.images import Images, Labels
from understudy.sources.parquet import ParquetImages, example_of, split_of
from understudy.sources.remote import RemoteImages, hub_splits, open_hub, open_listed, open_remote
from understudy.sources.tar import ShardImages
from understudy.sources.torchvision_sets import TorchvisionImages

EVALUATION_SPLITS = ("val", "valid", "validation", "test")
"""Names of the held-out half of a labeled root, in order of preference (ImageNet's public test half has no labels)."""

KINDS = (
    "a folder of images, *.parquet, *.tar, *.arrow, *.npy, list:FILE, torchvision:NAME, hf:ORG/NAME, an address of "
    "parquet files (s3://..., https://...), or digits"
)
"""What a data spec may be, for messages."""

LISTS = (".txt", ".csv", ".tsv")
"""Endings of files that name images, or files of images."""


class Source:
    """Images by number, with names and, where they exist, labels.

    Args:
        spec: what was asked for.
        images: the storage.
        rows: (N,) int64, the storage's row of each image; all rows unless given.
        ids: (N,) int64, the number that an image's views are drawn with; it stays with the image through `subset`. The
            rows unless given.
        fingerprint: changes when the set of images, their order or their content (by size and time) does.
    """

    def __init__(
        self,
        spec: str,
        images: Images,
        rows: np.ndarray | None = None,
        ids: np.ndarray | None = None,
        fingerprint: str | None = None,
    ) -> None:
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

    def name(self, i: int) -> str:
        """The name of image `i`: its path below the folder, or file and row."""
        return str(self.images.names(self.rows[i : i + 1])[0])

    @property
    def names(self) -> pa.Array:
        """All names, as an Arrow string array."""
        return self.images.names(self.rows)

    @functools.cached_property
    def _labels(self) -> Labels | None:
        found = self.images.labels()
        return None if found is None else (found[0][self.rows], found[1])

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) int64 class numbers, or None when there are none. Read from disk at the first call."""
        return None if self._labels is None else self._labels[0]

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, by number, or None when there are no labels."""
        return None if self._labels is None else self._labels[1]

    def subset(self, indices: np.ndarray | Sequence[int]) -> Source:
        """The source of these images, in this order; each keeps its id, so its views stay the same."""
        chosen = np.asarray(indices, dtype=np.int64)
        ids = self.ids[chosen]
        part = Source(self.spec, self.images, self.rows[chosen], ids, fingerprint(self.fingerprint, ids))
        known: Labels | None = self.__dict__.get("_labels")
        if known is not None:
            part.__dict__["_labels"] = (known[0][chosen], known[1])
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
            of parquet files that fsspec can reach (`s3://...`), a folder, file or glob: see `remote`; `digits`,
            `digits:train`, `digits:test` (scikit-learn's, upscaled to 32 x 32 RGB, split
            80 / 20).
        limit: use only this many images, drawn at random by their place in the listing, always the same ones; the
            first ones would all be of one class where folders are classes. Of images that are not on this
            machine, whole row groups are drawn.
        listings: folder where what one scan of tar shards found is kept for later calls; kept in memory unless given.

    Raises:
        DataError: nothing there, no images in it, or more than one way to read it.
        ConfigError: a limit below 1.
    """
    if isinstance(spec, np.ndarray):
        source = Source("array", ArrayImages(spec))
    else:
        spec = os.fspath(spec)
        source = Source(spec, _images(spec, None if listings is None else Path(listings)))
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
        return source.subset(source.images.near(source.rows, limit))
    return source.subset(np.sort(permutation(0, SUBSET, 0, len(source))[:limit]))


def _images(spec: str, listings: Path | None) -> Images:
    kind, _, rest = spec.partition(":")
    if kind == "digits":
        return digits(rest)
    if kind == "torchvision":
        name, _, split = rest.partition(":")
        return TorchvisionImages(name, os.environ.get("UNDERSTUDY_DATA", "data"), split or "train")
    if kind == "list":
        return _listed(Path(rest).expanduser(), listings)
    if kind == "hf":
        return open_hub(rest)
    if "://" in spec:
        return open_remote(spec)
    path = Path(spec).expanduser()
    if any(mark in spec for mark in "*?[") and not path.exists():
        files = sorted(Path(found) for found in glob.glob(str(path), recursive=True))
        endings = sorted({file.suffix for file in files})
        if len(endings) != 1 or endings[0] not in HOLDERS:
            found = f"{files[0]} and {len(files) - 1} more" if files else "nothing"
            raise DataError(
                f"The pattern {spec} must match files of one kind, {', '.join(HOLDERS)}; it matches {found}."
            )
        return _held(files, endings[0], listings)
    if path.is_dir():
        return _folder(path, listings)
    if not path.exists():
        hint = " Write a range of shards as a pattern (shard-*.tar): braces mean nothing here." if "{" in spec else ""
        raise DataError(f"The data {spec} does not exist. Give {KINDS}.{hint}")
    if path.suffix in HOLDERS:
        return _held([path], path.suffix, listings)
    if path.suffix in LISTS:
        return _listed(path, listings)
    if path.suffix == ".npy":
        return ArrayImages(path)
    if path.suffix in (".tgz", ".gz", ".bz2", ".xz", ".zst"):
        return ShardImages([path])  # whose sentence names the compression
    raise DataError(
        f"{spec} is not a kind of data this version reads ('{path.suffix}'). Give {KINDS}; unpack an archive into a "
        "folder first."
    )


HOLDERS = {".parquet": "parquet files", ".tar": "tar shards", ".arrow": "Arrow files"}
"""Endings of files that hold many images each."""


def _held(files: list[Path], ending: str, listings: Path | None) -> Images:
    """Files of one kind that hold many images each."""
    if ending == ".tar":
        return ShardImages(files, listings)
    return ParquetImages(files) if ending == ".parquet" else ArrowImages(files)


def _listed(file: Path, listings: Path | None) -> Images:
    """The images, or files of images, that a list names."""
    if not file.is_file():
        raise DataError(f"The list {file} does not exist. Give a text file with one path a line.")
    if file.suffix not in (".csv", ".tsv"):
        ending = _ending_of(file)
        if ending in HOLDERS:
            urls = lines(file).to_pylist()
            if b"://" in urls[0]:
                return open_listed([os.fsdecode(url) for url in urls])
            files = [file.parent / os.fsdecode(line) for line in urls]
            missing = [str(name) for name in files if not name.is_file() or name.suffix != ending]
            if missing:
                raise DataError(
                    f"{file} names {len(files)} files, and {len(missing)} of them are no {HOLDERS[ending]} that are "
                    f"there, e.g. {missing[0]}. Paths are relative to the list's own folder."
                )
            return _held(files, ending, listings)
    return ListedImages(file)


def _ending_of(file: Path) -> str:
    """The ending of the first path in a list."""
    with open(file, "rb") as content:
        first = next((line for line in content if line.strip()), b"")
    return os.path.splitext(os.fsdecode(first.strip()))[1]


def _folder(root: Path, listings: Path | None) -> Images:
    """A folder of images, or of files that hold many when it has those and no images."""
    found = scan(root)
    if len(found.names):
        return FolderImages(root, found.names, found.sizes, found.times)
    kinds = [ending for ending, names in found.containers.items() if names]
    if len(kinds) > 1:
        counts = " and ".join(f"{len(found.containers[ending])} {HOLDERS[ending]}" for ending in kinds)
        raise DataError(f"{root} holds {counts}. Name the ones to use, e.g. {root / ('*' + kinds[0])}.")
    if not kinds:
        raise DataError(
            f"There are no images in {root}: {found.others} other files, none ending in "
            f"{', '.join(sorted(EXTENSIONS)[:6])}, ... or {', '.join(HOLDERS)}. Check the path."
        )
    names = found.containers[kinds[0]]
    of_split = Counter(map(split_of, names))
    if len(of_split) > 1:
        counts = ", ".join(f"{split or 'other'}: {of_split[split]}" for split in sorted(of_split))
        raise DataError(
            f"{root} holds {HOLDERS[kinds[0]]} of several splits ({counts}). Name the one to use, e.g. "
            f"{root / example_of(names)}."
        )
    files = saved_files(root, names) if kinds[0] == ".arrow" else [root / name for name in names]
    return _held(files, kinds[0], listings)


def open_evaluation(
    spec: str | os.PathLike[str], *, listings: str | os.PathLike[str] | None = None
) -> tuple[Source, Source]:
    """Open labeled images to evaluate on.

    Args:
        spec: a root with `train` and one of `val`, `valid`, `validation`, `test` (folders of class folders, or parquet,
            tar or Arrow files named so); `digits`; `torchvision:NAME`; or two specs separated by a comma.
        listings: as for `open_source`.

    Returns:
        The training and the test half, their class numbers meaning the same: those of the training half.

    Raises:
        DataError: a half is missing, has no labels, or the test half has a class that the training half lacks.
    """
    spec = os.fspath(spec)
    parts = [spec] if Path(spec).exists() else [part.strip() for part in spec.split(",")]
    if len(parts) == 2:
        first, second = parts
    elif len(parts) != 1:
        raise DataError(f"Evaluation data is one labeled root or two specs 'TRAIN,TEST'; got {len(parts)} in '{spec}'.")
    elif spec.startswith("hf:") and spec.count(":") == 1:
        splits = hub_splits(spec.removeprefix("hf:"))[1]
        held_out = next((name for name in EVALUATION_SPLITS if name in splits), None)
        if "train" not in splits or held_out is None:
            raise DataError(
                f"{spec} has the splits {', '.join(splits)}, and evaluation needs train and one of "
                f"{', '.join(EVALUATION_SPLITS)}. Give two specs separated by a comma, e.g. {spec}:A,{spec}:B."
            )
        first, second = f"{spec}:train", f"{spec}:{held_out}"
    elif spec == "digits" or (spec.startswith("torchvision:") and spec.count(":") == 1):
        first, second = f"{spec}:train", f"{spec}:test"
    else:
        return _agreeing(*_halves(spec, None if listings is None else Path(listings)), spec)
    return _agreeing(open_source(first, listings=listings), open_source(second, listings=listings), spec)


def _halves(spec: str, listings: Path | None) -> tuple[Source, Source]:
    root = Path(spec).expanduser()
    if not root.is_dir():
        raise DataError(
            f"The evaluation data {spec} is not a folder. Give a labeled root with train and val or test, or two "
            "specs separated by a comma."
        )
    held_out = next((name for name in EVALUATION_SPLITS if (root / name).is_dir()), None)
    if (root / "train").is_dir() and held_out is not None:
        return open_source(root / "train", listings=listings), open_source(root / held_out, listings=listings)
    for ending, names in scan(root).containers.items():
        by_split: dict[str, list[Path]] = {}
        for name in names:
            by_split.setdefault(split_of(name), []).append(root / name)
        held_out = next((name for name in EVALUATION_SPLITS if name in by_split), None)
        if "train" in by_split and held_out is not None:
            first, second = (_held(by_split[name], ending, listings) for name in ("train", held_out))
            return Source(f"{spec}/train", first), Source(f"{spec}/{held_out}", second)
    inside = ", ".join(sorted(os.listdir(root))[:8]) or "nothing"
    raise DataError(
        f"{spec} is not a labeled root: it needs train and one of {', '.join(EVALUATION_SPLITS)} (folders of class "
        f"folders, or parquet, tar or Arrow files so named), and holds {inside}. Give such a root, or two specs "
        "separated by a comma."
    )


def _agreeing(train: Source, test: Source, spec: str) -> tuple[Source, Source]:
    """Both halves with the class numbers of the training half."""
    for title, half in (("training", train), ("test", test)):
        if half.labels is None:
            raise DataError(
                f"The {title} half {half.spec} of the evaluation data {spec} has no labels. Classes come from folders "
                "(CLASS/IMAGE), from a column called label, from .cls or .json members of tar shards, or from the "
                "data set itself."
            )
    known, names = train.class_names, test.class_names
    assert known is not None
    assert names is not None
    if known == names:
        return train, test
    assert test.labels is not None
    used = {names[number] for number in np.unique(test.labels).tolist()}
    unknown = sorted(used - set(known))
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(used)} test classes are not among the {len(known)} training classes of {spec}, "
            f"e.g. '{unknown[0]}'. Training classes: {', '.join(known[:8])}, ..."
        )
    place = {name: number for number, name in enumerate(known)}
    renumber = np.array([place.get(name, -1) for name in names], dtype=np.int64)
    return train, test.relabeled((renumber[test.labels], known))


def write_listing(path: str | os.PathLike[str], source: Source) -> None:
    """Write which image stands in which row, columns id and name; labels stay where they are."""
    table = pa.table({"id": pa.array(source.ids), "name": source.names})
    table = table.replace_schema_metadata({"spec": source.spec, "fingerprint": source.fingerprint})
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def read_listing(path: str | os.PathLike[str], source: Source | str | os.PathLike[str]) -> Source:
    """The images of a listing, in its order.

    Args:
        path: what `write_listing` wrote.
        source: the source that the listing was taken from, or its spec.

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
    known = place < len(order)
    indices = order[np.where(known, place, 0)]
    chosen = source.subset(indices)
    if not (known.all() and (chosen.ids == ids).all() and _same_names(chosen.names, table.column("name"))):
        raise DataError(
            f"{path} lists {len(ids)} images that {source.spec} no longer has under the same names and numbers (it has "
            f"{len(source)}). Embed the images again."
        )
    return chosen


def _same_names(names: pa.Array, listed: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.equal(names, listed.combine_chunks().cast(names.type))).as_py())
