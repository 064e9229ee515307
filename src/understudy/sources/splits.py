"""Which split a file belongs to, by its name: data sets of several files say it there."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence

HELD_OUT_SPLITS = ("val", "valid", "validation", "test")
"""Names of the held-out half of a labeled set, in order of preference (ImageNet's public test half has no labels)."""


def split_of(name: str) -> str:
    """The split that a file's path names, "" if none.

    `train-00000-of-00005.parquet`, `train/0000.parquet`, `imagenet-train-0042.tar`, `cifar10-test.arrow`.
    """
    for part in name.split("/"):
        if match := re.search(r"(?:^|[-_])(train|validation|valid|val|test)(?=[-_.]|$)", part):
            return match[1]
    return ""


def several_splits(names: Sequence[str]) -> str:
    """How many files belong to each split, for messages; "" where all belong to one."""
    counts = Counter(map(split_of, names))
    return ", ".join(f"{split or 'other'}: {counts[split]}" for split in sorted(counts)) if len(counts) > 1 else ""


def example_of(names: Sequence[str]) -> str:
    """How one of the splits of these files is named, for messages: its folder, or a pattern of its files."""
    splits = {split_of(name) for name in names} - {""}
    split = "train" if "train" in splits else min(splits)
    name = min(name for name in names if split_of(name) == split)
    parts = name.split("/")
    place = next(place for place, part in enumerate(parts) if split_of(part))
    if place < len(parts) - 1:
        return "/".join(parts[: place + 1])
    end = parts[-1].index(split) + len(split)
    return "/".join([*parts[:-1], f"{parts[-1][:end]}*{os.path.splitext(name)[1]}"])
