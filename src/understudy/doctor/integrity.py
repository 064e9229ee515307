"""Whether stores and runs are what was written: every block of every file, and checksums for those that have none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from understudy.artifacts import (
    Checksums,
    Run,
    Store,
    atomic,
    blocks_of,
    read_json,
    read_regular,
    read_table,
    sealed_row,
    verdict_on,
    write_json,
    write_text,
)
from understudy.artifacts.seals import SEALED
from understudy.artifacts.store import ARRAYS, REMEDIES
from understudy.doctor.check import Check
from understudy.embed.view_file import OLD_MARK, ViewFile, marks_of
from understudy.errors import StoreError, UnderstudyError

RUN = ("metrics.jsonl", "student.json", "checkpoint")
"""What a run folder holds one of, beside its configuration."""

SHARED = ("evaluations", "listings", "pixels", "checkpoint")
"""Folders beside stores and in runs that hold nothing but files of ours."""

ROWS = 65536  # of recorded views that are compared at a time
BLOCKS = 256  # of an array whose checksums are added later, at most

WHOLE, WITHOUT = "whole", "without checksum"

ADD = "`understudy doctor --store FOLDER --add-checksums` gives them checksums as they are now"
FIX = "run the command that made it again, or take the file from a copy"


def stores_and_runs(place: Path, *, add_checksums: bool = False) -> list[Check]:
    """Look at all stores and runs at or below a folder.

    Args:
        place: a store, a run, or a folder that holds some.
        add_checksums: give files that have no checksum one, as they are now.

    Returns:
        A finding for each damaged file, and one on all others.
    """
    if not place.is_dir():
        return [Check("files", "fail", f"{place} is no folder", "name a store, a run, or a folder of such")]
    found: list[Check] = []
    whole, without, size = 0, [], 0
    for path in files_of(place):
        try:
            state = examine(path)
            if state == WITHOUT and add_checksums:
                add_checksum(path)
                state = examine(path)
        except UnderstudyError as error:
            found.append(Check("files", "fail", str(error), FIX))
            continue
        except OSError as error:
            found.append(Check("files", "fail", f"{path} cannot be read ({error.strerror})", FIX))
            continue
        whole, size = whole + (state == WHOLE), size + path.stat().st_size
        if state == WITHOUT:
            without.append(path)
    if without:
        shown = ", ".join(map(str, without[:3])) + (", ..." if len(without) > 3 else "")
        found.append(Check("files", "warn", f"{len(without)} files have no checksum: {shown}", ADD))
    shown = f"{whole} files below {place} are what was written, {size / 2**30:.2f} GiB read"
    return [*found, Check("files", "ok", shown if whole or found else f"{place} holds no store and no run")]


def files_of(place: Path) -> Iterator[Path]:
    """The files of ours at or below a folder, but for locks and what is being written."""
    for folder, _, names in os.walk(place):
        path = Path(folder)
        ours = "manifest.json" in names or path.name in SHARED
        if ours or ("config.toml" in names and any((path / name).exists() for name in RUN)):
            there = {name for name in names if name[0] != "." and _has_checksum(name)}
            if "manifest.json" in names and path.parent.name != "views":
                there |= {"embeddings.npy", "listing.parquet"}  # a store without them is not whole
            yield from (path / name for name in sorted(there))


def _has_checksum(name: str) -> bool:
    return name in (*REMEDIES, "student.safetensors", "metrics.jsonl") or os.path.splitext(name)[1] in SEALED


def examine(path: Path) -> str:
    """`WHOLE`, or `WITHOUT` a checksum.

    Raises:
        UnderstudyError: the file is damaged; the sentence says where.
        OSError: it cannot be read.
    """
    if path.name in REMEDIES:
        store = Store(path.parent)
        store.require_whole(path.name, everything=True)
        return WHOLE if path.name in store.checksums() else WITHOUT
    if path.parent.parent.name == "views" and path.suffix == ".npy":
        return _examine_view(path)
    if path.name == "student.safetensors":
        run = Run(path.parent)
        run.require_whole()
        return WHOLE if "weights_checksums" in run.student else WITHOUT
    if path.name == "metrics.jsonl":
        content = Run(path.parent).metrics()
        return WHOLE if path.read_bytes() == "".join(map(sealed_row, content)).encode() else WITHOUT
    if path.suffix == ".json":
        read_json(path)
    verdict = verdict_on(path)
    if verdict == "damaged":
        raise StoreError(f"{path} is damaged: it is not what was written, as its checksum shows.")
    return WHOLE if verdict == "whole" else WITHOUT


def _examine_view(path: Path) -> str:
    """The rows of a recorded view, or their marks: both are compared when it is the turn of the rows."""
    if path.name.endswith(".done.npy"):
        return WHOLE
    file = ViewFile.there(path.parent, int(path.stem))
    if (damaged := file.damaged_header()) is not None:
        raise StoreError(f"{damaged} is damaged in its header. Train with these views again: it is written anew.")
    if file.marks.dtype == OLD_MARK:
        return WITHOUT
    for start in range(0, len(file.marks), ROWS):
        index = np.arange(start, min(start + ROWS, len(file.marks)))
        recorded = np.asarray(file.marks[index]) != 0
        if (lost := index[recorded & ~file.whole(index)]).size:
            shown = ", ".join(map(str, lost[:5].tolist())) + (", ..." if len(lost) > 5 else "")
            raise StoreError(
                f"{path} or {file.marks_path.name} is damaged in {len(lost):,} rows ({shown}). Train with these views "
                "again: only those are recorded anew."
            )
    return WHOLE


def add_checksum(path: Path) -> None:
    """Give a file that has none a checksum, as it is now.

    Raises:
        UnderstudyError: it cannot be read.
    """
    if path.name in REMEDIES:
        store = Store(path.parent)
        sums = Checksums.of(path, _ends(path, int(store.manifest["rows"])))
        store.amend(checksums={**store.manifest.get("checksums", {}), path.name: str(sums)})
    elif path.parent.parent.name == "views" and path.suffix == ".npy":
        file = ViewFile.there(path.parent, int(path.stem))
        marks = np.concatenate([
            marks_of(file.cells[low : low + ROWS]) * (file.marks[low : low + ROWS] == 1)
            for low in range(0, len(file.marks), ROWS)
        ])  # fmt: skip
        with atomic(file.marks_path) as temporary, open(temporary, "wb") as out:
            np.save(out, marks)
    elif path.name == "student.safetensors":
        run = Run(path.parent)
        write_json(run.student_path, {**read_table(run.student_path), "weights_checksums": str(Checksums.of(path))})
    elif path.name == "metrics.jsonl":
        write_text(path, "".join(map(sealed_row, Run(path.parent).metrics())))
    elif path.suffix in (".json", ".toml", ".html"):
        write_text(path, read_regular(path).decode())
    else:
        with atomic(path, sealed=True) as temporary:
            shutil.copyfile(path, temporary)


def _ends(path: Path, rows: int) -> list[int] | None:
    """Where the blocks of a store's array end; None for a file that holds no rows."""
    if path.name not in ARRAYS:
        return None
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    header, width = path.stat().st_size - array.nbytes, array.nbytes // rows
    return [header, *(header + block.stop * width for block in blocks_of(rows, smallest=512, most=BLOCKS))]
