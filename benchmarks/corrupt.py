"""One byte changed, somewhere in the files of a store and a run: is it found, and by its name?

    python benchmarks/corrupt.py [--flips 200] [--seed 0]

Makes a store and a run on the digits at tiny size: embeddings, graph, transform, recorded views, checkpoints, a student
with a head, its features, an evaluation and a report. Then changes one byte at a time: a file drawn from all of them, a
place in it, other bits. After each flip everything is opened as the next command would open it, and `understudy doctor`
looks at everything; the byte is found if a sentence names its file. Then the files are put back. Prints what was found
by kind of file, and ends with an error if a flip was not. Locks and cells of recorded views that were not recorded yet
are left out: what they hold means nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from understudy import pipeline
from understudy.artifacts import Run, Store, checksums, is_whole, read_table
from understudy.doctor.integrity import stores_and_runs
from understudy.embed.transform import transform_of
from understudy.embed.view_file import ViewFile, marks_path
from understudy.errors import UnderstudyError
from understudy.models.student import load_student
from understudy.report.provenance import is_fresh, read_records
from understudy.train.checkpoint import load_checkpoint

HEADER = 128
"""Bytes that numpy writes before an array."""

SETTINGS = {
    "data": "digits:train", "limit": 192, "eval_data": "digits", "evaluation.limit": 160, "workers": 0,
    "teacher": "python:understudy.models.toy_encoder:ToyEncoder", "student": "small:resnet8x0.25", "head_hidden": 32,
    "passes": 2, "batch_size": 32, "device": "cpu", "probes": 1, "checkpoint_minutes": 0, "image_size": 32,
    "evaluation.protocols": "knn,fidelity", "neighbors": {"k": 7, "n": 15}, "transform": "standardize",
    "views": {"teacher": "recorded", "pool": 2},
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Make, flip, look, print.

    Raises:
        SystemExit: a flip was not found.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run = make(root)
        files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock")
        content = {path: path.read_bytes() for path in files}
        (store,) = (Store(path.parent) for path in root.glob("store/*/graph.npy"))
        assert not sentences(root, store, run), sentences(root, store, run)
        draw, drawn = random.Random(options.seed), Counter[str]()
        found: Counter[tuple[str, str]] = Counter()
        drawable = [path for path in content if content[path]]
        print("| file | flips | found when opened | found by the doctor | found |\n|---|---|---|---|---|", flush=True)
        missed = []
        for _ in range(options.flips):
            path = draw.choice(drawable)
            kind, bits = kind_of(path, root), draw.randrange(1, 256)
            place = draw.choice(places(path, len(content[path])))
            changed = bytearray(content[path])
            changed[place] ^= bits
            path.write_bytes(changed)
            how = sentences(root, store, run)
            named = {who for who, sentence in how if is_named(path, sentence)}
            drawn[kind] += 1
            found.update((kind, who) for who in named)
            found[kind, "either"] += bool(named)
            if not named:
                missed.append(f"{path.relative_to(root)}, byte {place:,} of {len(changed):,}, bits {bits:08b}")
            put_back(content)
        for kind, count in sorted(drawn.items()):
            counts = " | ".join(str(found[kind, who]) for who in ("opened", "doctor", "either"))
            print(f"| {kind} | {count} | {counts} |")
        print(f"\n{options.flips - len(missed)} of {options.flips} found")
        if missed:
            sys.exit("not found:\n" + "\n".join(missed))


def make(root: Path) -> Run:
    """A store, a run, its evaluation and its report."""
    settings = pipeline.resolve_run({**SETTINGS, "store": str(root / "store"), "out": str(root / "run")})
    run = pipeline.run(settings, quiet=True)
    # A finished run keeps one checkpoint; one that was killed has the one before too.
    run.previous_path.write_bytes(run.checkpoint_path.read_bytes())
    return run


def sentences(root: Path, store: Store, run: Run) -> list[tuple[str, str]]:
    """What is said of the files by whoever opens them, and by the doctor."""
    checksums._verified.clear()  # as in a process that has just begun
    said: list[tuple[str, str]] = []
    with listening(lambda sentence: said.append(("opened", sentence))):
        doctor = [("doctor", check.found) for check in stores_and_runs(root) if check.status != "ok"]
        said.clear()
        for opened in openers(root, store, run):
            try:
                opened()
            except UnderstudyError as error:
                said.append(("opened", str(error)))
    return said + doctor


def openers(root: Path, store: Store, run: Run) -> list[Callable[[], Any]]:
    """How the next command opens each file."""
    opened: list[Callable[[], Any]] = [
        store.graph, partial(transform_of, store, "standardize"), partial(load_student, run.path), run.metrics,
        lambda: run.evaluation, partial(read_records, [run]), partial(is_fresh, run),
        partial(load_checkpoint, run, torch.device("cpu"), 10**6),
    ]  # fmt: skip
    for one in map(Store, {path.parent for path in [*root.glob("*/*/embeddings.npy"), *root.glob("*/*/*/head.npy")]}):
        opened += [one.embeddings, *(partial(one.require_whole, name) for name in ("listing.parquet", "images.npy"))]
    for path in [*root.glob("run/features/*/head.npy"), *root.glob("store/evaluations/*.json")]:
        opened.append(partial(is_whole, path))
    opened += [partial(read_table, path) for path in store.folder.glob("views/*/manifest.json")]
    return opened + [
        partial(read_view, path, store) for path in store.folder.glob("views/*/*.npy") if path.stem.isdigit()
    ]


def read_view(path: Path, store: Store) -> None:
    """All rows of a recorded view, as a training reads them."""
    rows, width = store.embeddings().shape
    index = np.arange(rows)
    file = ViewFile(path.parent, int(path.stem), (rows, width), np.dtype("float16"))
    file.strike_out_damaged(index, file.whole(index))


def places(path: Path, size: int) -> range | list[int]:
    """The bytes of a file that mean something: of a recorded view the header, and the rows that are recorded."""
    if path.parent.parent.name != "views" or not path.stem.isdigit():
        return range(size)
    marks = np.load(marks_path(path.parent, int(path.stem)))
    width = (size - HEADER) // len(marks)
    return [*range(HEADER), *(HEADER + row * width + i for row in np.flatnonzero(marks).tolist() for i in range(width))]


def is_named(path: Path, sentence: str) -> bool:
    """Whether a sentence has the path of the file; the marks of recorded views are named with the rows beside them."""
    return str(path) in sentence or (str(path.parent) in sentence and path.name in sentence)


def kind_of(path: Path, root: Path) -> str:
    """The file's place with fingerprints and numbers as stars."""
    return re.sub(r"[0-9a-f]{16}|\d{4}", "*", str(path.relative_to(root)))


def put_back(content: dict[Path, bytes]) -> None:
    """All files as they were: some are mended when they are opened."""
    for path, before in content.items():
        if path.exists() and not path.is_file():
            path.unlink()
        if not path.is_file() or path.read_bytes() != before:
            path.write_bytes(before)


@contextlib.contextmanager
def listening(hear: Callable[[str], None]) -> Iterator[None]:
    """Every warning that is logged in this block."""

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            hear(record.getMessage())

    log, ear = logging.getLogger("understudy"), Ear()
    before, log.propagate = log.propagate, False
    log.addHandler(ear)
    try:
        yield
    finally:
        log.removeHandler(ear)
        log.propagate = before


if __name__ == "__main__":
    main()
