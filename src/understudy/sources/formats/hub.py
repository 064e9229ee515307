"""Data sets of the Hugging Face hub, read where they are."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from understudy.errors import DataError
from understudy.sources.addresses import NoParquet, Shard, shards_below
from understudy.sources.formats import Format, split_image
from understudy.sources.formats.address import RemoteImages
from understudy.sources.images import Images
from understudy.sources.splits import HELD_OUT_SPLITS, split_of


class Hub(Format):
    """A split of a data set of the Hugging Face hub."""

    name = "hub"
    form = "hf:ORG/NAME"
    summary = "parquet on the Hugging Face hub, read where it is; `@REVISION` and `/FOLDER` may follow the name, and "
    summary += "`:SPLIT`"
    prefix = "hf"
    remote = True

    @staticmethod
    def halves(spec: str) -> tuple[str, str] | None:
        """See `Format`.

        Raises:
            DataError: the set has no such halves.
        """
        spec, image = split_image(spec)
        if spec.count(":") != 1:
            return None
        splits = hub_splits(spec.removeprefix("hf:"))[1]
        behind = f"#{image}" if image else ""
        held_out = next((name for name in HELD_OUT_SPLITS if name in splits), None)
        if "train" not in splits or held_out is None:
            raise DataError(
                f"{spec} has the splits {', '.join(splits)}, and evaluation needs train and one of "
                f"{', '.join(HELD_OUT_SPLITS)}. Give two specs separated by a comma, e.g. {spec}:A,{spec}:B."
            )
        return f"{spec}:train{behind}", f"{spec}:{held_out}{behind}"

    @staticmethod
    def open(place: str, listings: Path | None) -> Images:
        """The images of `ORG/NAME`, `ORG/NAME@REVISION` or `ORG/NAME/FOLDER`, and `:SPLIT` after it; see `Format`.

        The split is `train` where there is one, or the only one, unless written.

        Raises:
            DataError: no such set or split, no parquet files, several folders with files of the split, or no network.
        """
        place, image = split_image(place)
        name, _, split = place.partition(":")
        url, splits = hub_splits(name)
        if not split:
            split = "train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else ""
        if split not in splits:
            names = ", ".join(known or "(without a name)" for known in splits)
            raise DataError(f"hf:{name} has no split '{split or 'train'}'. It has: {names}. Write hf:{name}:SPLIT.")
        folders = sorted({_folder(shard.name) for shard in splits[split]})
        if len(folders) > 1:
            raise DataError(
                f"hf:{name} has files of the split '{split}' in several folders: {', '.join(folders[:8])}. Name one, "
                f"e.g. hf:{name}/{folders[0]}:{split}."
            )
        return RemoteImages(url, splits[split], image)


def hub_splits(name: str) -> tuple[str, dict[str, list[Shard]]]:
    """The address of a data set of the hub, named without a split, and its parquet files by split."""
    if not re.fullmatch(r"[\w.-]+(/[\w.@-]+)*", name):
        raise DataError(
            f"'hf:{name}' is not the name of a data set of the hub. Write hf:ORG/NAME or hf:ORG/NAME:SPLIT."
        )
    url, splits = f"hf://datasets/{name}", dict[str, list[Shard]]()
    try:
        for shard in shards_below(url):
            splits.setdefault(hub_split(shard.name), []).append(shard)
        return url, splits
    except NoParquet as error:
        raise DataError(
            f"{error} The hub makes parquet of many other sets: try hf:{name.partition('@')[0]}@refs/convert/parquet. "
            f"Or fetch it (`hf download {name.partition('@')[0]} --repo-type dataset --local-dir FOLDER`) and give the "
            "folder."
        ) from None


def hub_split(name: str) -> str:
    """The split of a file of the hub, of any name: `unlabeled-00000-of-00005.parquet`, `CONFIG/SPLIT/0000.parquet`."""
    match = re.search(r"(?:^|/)([\w.]+)-\d{4,}-of-\d{4,}[^/]*$", name) or re.search(r"(?:^|/)([\w.-]+)/\d{4,}\.", name)
    return match[1] if match else split_of(name)


def _folder(name: str) -> str:
    """The folder of a file, less the part that only names its split."""
    parent = PurePosixPath(name).parent
    return str(parent.parent if parent.name and parent.name == hub_split(name) else parent)
