"""The short form of `benchmarks/corrupt.py`: 40 bytes of a store and a run, one after the other, all are found."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_changed_byte_is_found(capsys):
    spec = importlib.util.spec_from_file_location("corrupt", BENCHMARKS / "corrupt.py")
    assert spec is not None and spec.loader is not None
    corrupt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(corrupt)
    corrupt.main(["--flips", "40", "--seed", "1"])
    printed = capsys.readouterr().out
    assert printed.endswith("40 of 40 found\n")
    rows = [line.split("|")[2:6] for line in printed.splitlines()[2:-2]]
    assert sum(int(row[0]) for row in rows) == 40
    assert all(int(doctor) == int(flips) == int(found) for flips, _, doctor, found in rows)
