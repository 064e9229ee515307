"""Mutants of every kind of file, few and always the same; `benchmarks/fuzz.py` opens ten thousand."""

from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import fuzz

    return fuzz


def test_mutants_are_decoded_or_refused(fuzz: ModuleType):
    counts: Counter[str] = sum(fuzz.run(280, 7).values(), Counter())
    assert counts.keys() == {"decoded", "refused"}, counts
    assert counts["decoded"] > 50 and counts["refused"] > 50 and counts.total() == 280


def test_faults_are_told_from_refusals(fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cases = {
        "pass": "decoded",
        "from understudy.errors import DataError; raise DataError('no')": "refused",
        "int('x')": "ValueError at",
        "import os; os.kill(os.getpid(), 9)": "ended with -9",
        "bytearray(b'x') * 500_000_000": "0.",
        "while True: pass": "more than 1 s",
    }

    def work(number: int) -> str:
        return fuzz.outcome(fuzz.Kind({"a": b""}, lambda _: exec(list(cases)[number])), {"a": b""}, tmp_path / "files")

    monkeypatch.setattr(fuzz, "NBYTES", 4 * 10**8)
    child = fuzz.Child(work)
    for number, expected in enumerate(cases.values()):
        monkeypatch.setattr(fuzz, "SECONDS", 1.0 if "more" in expected else 20.0)
        answer, alive = child.ask(number)
        assert answer.startswith(expected) and (expected != "0." or answer.endswith("GB of memory"))
        child = child if alive else fuzz.Child(work)
    child.close()


def test_a_mutant_has_a_number(fuzz: ModuleType):
    everything = {name: fuzz.Kind({"a": bytes(range(200))}, len) for name in ("one", "two")}
    files = [fuzz.mutant(number, 5, ["one", "two"], everything) for number in range(40)]
    assert files == [fuzz.mutant(number, 5, ["one", "two"], everything) for number in range(40)]
    assert [kind for kind, _ in files[:3]] == ["one", "two", "one"]
    assert sum(file["a"] != bytes(range(200)) for _, file in files) > 30


def test_checksums_are_repaired(fuzz: ModuleType):
    kinds = fuzz.kinds()
    for name, place in (("png", 40), ("tar", 3)):
        (path, whole), *_ = kinds[name].files.items()
        assert fuzz.repaired(whole) == whole
        changed = whole[:place] + bytes((whole[place] ^ 1,)) + whole[place + 1 :]
        assert fuzz.repaired(changed) != changed, path
