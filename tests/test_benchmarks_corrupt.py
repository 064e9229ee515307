"""A real store and run: 40 changed bytes, one after the other, are all found; files of another kind are sentences."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import UnderstudyError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("corrupt", BENCHMARKS / "corrupt.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_changed_byte_is_found(capsys):
    benchmark().main(["--flips", "40", "--seed", "1"])
    printed = capsys.readouterr().out
    assert printed.endswith("40 of 40 found\n")
    rows = [line.split("|")[2:6] for line in printed.splitlines()[2:-2]]
    assert sum(int(row[0]) for row in rows) == 40
    assert all(int(doctor) == int(flips) == int(found) for flips, _, doctor, found in rows)


HOSTILE = [
    b"", b"{", b"[]", b"null", b"1", b'{"a": 1}', b"[" * 100_000, b'{"format": 1' + b"0" * 5000 + b"}", b"\xff\xfe\x00",
    b'{"format": 1}', b'{"about": {"format": 3}}', b'{"about": []}',
]  # fmt: skip
"""Contents of files that are truncated, foreign, too large or nested too deep."""

VALUES = [None, 10**400]
"""In the place of each entry of a JSON table."""


def variants(content: bytes) -> Iterator[bytes]:
    """A JSON table with one of its entries missing or of another kind."""
    table = json.loads(content)
    for name in table:
        yield json.dumps({key: value for key, value in table.items() if key != name}).encode()
        yield from (json.dumps({**table, name: value}).encode() for value in VALUES)


def test_files_that_are_something_else_are_sentences(tmp_path: Path):
    corrupt = benchmark()
    run = corrupt.make(tmp_path)
    (store,) = (corrupt.Store(path.parent) for path in tmp_path.glob("store/*/graph.npy"))
    content = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    by_kind = {corrupt.kind_of(path, tmp_path): path for path in content if path.name[0] != "."}
    logging.getLogger("understudy").setLevel(logging.CRITICAL)
    said = 0

    def look() -> int:
        corrupt.checksums._verified.clear()
        sentences = [check.found for check in corrupt.stores_and_runs(tmp_path) if check.status == "fail"]
        for opened in corrupt.openers(tmp_path, store, run):
            try:
                opened()
            except UnderstudyError as error:
                sentences.append(str(error))
            except IsADirectoryError:  # which the command line answers in a sentence
                sentences.append("a folder is in the way")
        corrupt.put_back(content)
        return len(sentences)

    try:
        for path in by_kind.values():
            said += look()
            assert said == 0, "all is whole again"
            forms = list(variants(content[path])) if path.suffix == ".json" else []
            for form in [*HOSTILE, content[path][: len(content[path]) // 2], *forms]:
                path.write_bytes(form)
                look()
            path.unlink()
            os.mkfifo(path)
            assert look() > 0
    finally:
        logging.getLogger("understudy").setLevel(logging.NOTSET)
