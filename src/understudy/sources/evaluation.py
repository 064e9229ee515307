"""Labeled images to evaluate on: a training half and a test half whose class numbers mean the same."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from understudy.errors import DataError
from understudy.sources.formats import FORMATS, holders, split_image
from understudy.sources.formats.folder import scan
from understudy.sources.labels import WHOLE, Labels
from understudy.sources.source import Source, open_source
from understudy.sources.splits import HELD_OUT_SPLITS, split_of


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
    parts = [spec] if os.path.exists(split_image(spec)[0]) else [part.strip() for part in spec.split(",")]
    if len(parts) == 2:
        first, second = parts
    elif len(parts) != 1:
        raise DataError(f"Evaluation data is one labeled root or two specs 'TRAIN,TEST'; got {len(parts)} in '{spec}'.")
    else:
        halves = next((kind.halves(spec) for kind in FORMATS.values() if kind.accepts(spec)), None)
        if halves is None:
            return _with_same_classes(*_halves_of_root(spec, None if listings is None else Path(listings)), spec)
        first, second = halves
    train, test = (open_source(half, listings=listings) for half in (first, second))
    return _with_same_classes(train, test, spec)


def _halves_of_root(spec: str, listings: Path | None) -> tuple[Source, Source]:
    (place, image), kinds = split_image(spec), holders()
    root, behind = Path(place), f"#{image}" if image else ""
    if not os.path.isdir(root):  # of a path that is too long, pathlib raises
        raise DataError(
            f"The evaluation data {spec} is not a folder. Give a labeled root with train and val or test, or two "
            "specs separated by a comma."
        )
    held_out = next((name for name in HELD_OUT_SPLITS if (root / name).is_dir()), None)
    if (root / "train").is_dir() and held_out is not None:
        train, test = (open_source(f"{root / name}{behind}", listings=listings) for name in ("train", held_out))
        return train, test
    for ending, names in scan(root).holders.items():
        by_split: dict[str, list[Path]] = {}
        for name in names:
            by_split.setdefault(split_of(name), []).append(root / name)
        held_out = next((name for name in HELD_OUT_SPLITS if name in by_split), None)
        if "train" in by_split and held_out is not None:
            first, second = (kinds[ending].open_files(by_split[name], listings, image) for name in ("train", held_out))
            return Source(f"{spec}/train", first), Source(f"{spec}/{held_out}", second)
    inside = ", ".join(sorted(os.listdir(root))[:8]) or "nothing"
    raise DataError(
        f"{spec} is not a labeled root: it needs train and one of {', '.join(HELD_OUT_SPLITS)} (folders of class "
        f"folders, or parquet, tar or Arrow files so named), and holds {inside}. Give such a root, or two specs "
        "separated by a comma."
    )


def _with_same_classes(train: Source, test: Source, spec: str) -> tuple[Source, Source]:
    """Both halves with the class numbers of the training half."""
    for title, half in (("training", train), ("test", test)):
        if half.labels is None:
            raise DataError(f"The {title} half {half.spec} of the evaluation data {spec} {half.unlabeled}")
    train_names, test_names = train.class_names or [], test.class_names or []
    if train_names == test_names:
        return train, test
    assert test.labels is not None
    used = {test_names[number] for number in np.unique(test.labels).tolist()}
    unknown = sorted(used - set(train_names))
    if unknown and all(map(WHOLE.fullmatch, train_names)) and all(map(WHOLE.fullmatch, unknown)):
        # Class numbers have gaps where a small training half lacks a class; beyond its largest they are other classes.
        inside = [name for name in unknown if 0 <= int(name) <= max(map(int, train_names))]
        if len(inside) == len(unknown):
            train_names, unknown = sorted({*train_names, *unknown}, key=int), []
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(used)} test classes are not among the {len(train_names)} training classes of "
            f"{spec}, e.g. '{unknown[0]}'. Training classes: {', '.join(train_names[:8])}, ..."
        )
    return train.relabeled(_renumbered(train, train_names)), test.relabeled(_renumbered(test, train_names))


def _renumbered(half: Source, names: list[str]) -> Labels:
    """The labels of a half by the places of its classes among these names; a class that it has none of may lack one."""
    assert half.labels is not None
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers.get(name, -1) for name in half.class_names or []], dtype=np.int64)[half.labels], names
