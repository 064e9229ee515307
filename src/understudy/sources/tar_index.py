"""Where the images of tar files lie, and their labels, sample by sample as WebDataset has them."""

from __future__ import annotations

import fnmatch
import itertools
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from understudy.errors import DataError
from understudy.sources.decode import EXTENSIONS
from understudy.sources.images import Names
from understudy.sources.labels import LABEL_COLUMNS, class_text
from understudy.sources.tar_members import DAMAGED, Member, members

NO_LABEL, CLS, JSON = 0, 1, 2  # kinds of the member that holds a sample's label
LABELS = {b".cls": CLS, b".json": JSON}
COLUMNS = {"shard": "i", "at": "q", "size": "q", "label_at": "q", "label_size": "q", "label_kind": "b"}
"""Columns of an index beside `name`, with the type of each."""

IMAGE_ENDINGS = frozenset(ending.encode() for ending in EXTENSIONS)
KINDS = 4096  # extensions of two parts that are told apart


@dataclass
class Choice:
    """Which members are the images: one a sample.

    A plain extension (`.jpg`) is an image. One of two parts (`.seg.png`) is none where it stands beside a plain one in
    any sample: it is a mask, a depth map, another view.

    Args:
        said: the extensions that are images, as the user says them, without the first dot; `*` stands for anything.
    """

    said: tuple[str, ...]
    beside: set[bytes] = field(default_factory=set)
    together: dict[tuple[bytes, ...], bytes] = field(default_factory=dict)  # extensions of one sample, and its name

    def images(self, sample: Sequence[Member]) -> list[Member]:
        """The members of a sample that may be images; what stands beside what is noted."""
        images = [one for one in sample if self._may_be(one)]
        if not self.said and len(images) > 1:
            extensions = sorted({one.extension for one in images if one.size != DAMAGED})
            plain = [extension for extension in extensions if extension.count(b".") == 1]
            if plain and len(self.beside) < KINDS:
                self.beside.update(set(extensions) - set(plain))
            if len(extensions) > 1 and len(self.together) < KINDS:
                self.together.setdefault(tuple(extensions), images[0].sample)
        return images

    def _may_be(self, member: Member) -> bool:
        if member.size == DAMAGED:
            return True
        if self.said:
            extension = member.extension.decode(errors="replace").removeprefix(".")
            return any(fnmatch.fnmatchcase(extension, pattern) for pattern in self.said)
        return _ending(member) in IMAGE_ENDINGS

    def chosen(self, names: pa.Array) -> np.ndarray:
        """Which of (N,) members are images indeed.

        Raises:
            DataError: a sample has several, and nobody said which.
        """
        for extensions, sample in self.together.items():
            left = [extension.decode(errors="replace") for extension in extensions if extension not in self.beside]
            if len(left) > 1:
                shown = sample.decode(errors="replace")
                example = left[0].removeprefix(".")
                raise DataError(
                    f"The sample '{shown}' has {len(left)} images, {', '.join(f'{shown}{one}' for one in left[:4])}. "
                    f"Say behind the data which extension is the image, e.g. FOLDER#{example}, or several, "
                    f"#{','.join(one.removeprefix('.') for one in left[:4])}: then each is an image of its own."
                )
        if not self.beside:
            return np.ones(len(names), dtype=bool)
        return np.array([Member(name.as_py(), 0, 0).extension not in self.beside for name in names], dtype=bool)


def index(files: Sequence[str], said: tuple[str, ...] = ()) -> pa.Table:
    """Where every image of some tar files is, and where its label is: (N,) columns `name` and those of `COLUMNS`.

    The metadata of the schema: "notes", what earlier versions listed otherwise, separated by spaces; "apart", the name
    of the first label without an image beside it, where there is one.

    Args:
        files: paths.
        said: see `Choice`.

    Raises:
        DataError: a file is compressed, or no tar file, or a sample has several images.
    """
    names, choice, notes, apart = Names(), Choice(said), set[str](), b""
    columns: dict[str, Any] = {name: array(kind) for name, kind in COLUMNS.items()}
    for shard, file in enumerate(files):
        for _, group in itertools.groupby(members(file, notes), key=lambda member: member.sample):
            sample = list(group)
            images, label = choice.images(sample), _label(sample)
            if label[2] != NO_LABEL and not images:
                apart = apart or next(one.name for one in sample if one.at == label[0])
            names.extend([image.name for image in images])
            for image in images:
                for column, value in zip(columns.values(), (shard, image.at, image.size, *label), strict=True):
                    column.append(value)
    whole = names.finish()
    chosen = choice.chosen(whole)
    if choice.beside:
        notes.add("beside")
    table = pa.table({"name": whole} | {name: pa.array(np.asarray(values)) for name, values in columns.items()})
    table = table if chosen.all() else table.filter(pa.array(chosen)).combine_chunks()
    return table.replace_schema_metadata({"notes": " ".join(sorted(notes)), "apart": apart})


def _ending(member: Member) -> bytes:
    """All from the last dot on: `.png` of `.seg.png`."""
    dot = member.name.rfind(b".")
    return member.name[dot:].lower() if dot > member.name.rfind(b"/") else b""


def _label(sample: Sequence[Member]) -> tuple[int, int, int]:
    """Place, size and kind of a sample's label: `.cls` before `.json`, a plain extension before one of two parts."""
    best, label = 0, (0, 0, NO_LABEL)
    for member in sample:
        kind = LABELS.get(_ending(member), NO_LABEL)
        if kind == NO_LABEL or member.size < 0:
            continue
        rank = 2 * (member.extension.count(b".") == 1) + (kind == CLS) + 1
        if rank > best or (rank == best and kind == CLS):
            best, label = rank, (member.at, member.size, kind)
    return label


def label_text(content: bytes, kind: int) -> str:
    """One label as text.

    Raises:
        ValueError: there is none; with the reason.
    """
    if kind == CLS:
        if text := content.decode(errors="replace").strip():
            return text
        raise ValueError("its .cls member is empty")
    try:
        table = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("its .json member is no JSON that can be read") from None
    names = (*LABEL_COLUMNS, "cls")
    present = [name for name in names if isinstance(table, dict) and name in table]
    if not present:
        raise ValueError(f"its .json member has no key {', '.join(names[:-1])} or {names[-1]}")
    if (known := class_text(table[present[0]])) is None:
        raise ValueError(f"its .json member has {json.dumps(table[present[0]])[:80]} under '{present[0]}'")
    return known
