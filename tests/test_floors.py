"""The rooms stay apart: imports go down only, no bin of odds and ends, no torch in what must start at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "understudy"

# Design section 1. `errors` is the basement under floor 0; `demo`, `compare` and `plan` stand on `pipeline`.
FLOORS = (
    {"errors"},
    {"settings", "artifacts", "hardware", "philox"},
    {"sources"},
    {"losses", "models", "views", "neighbors"},
    {"embed"},
    {"train", "evaluate", "report"},
    {"recipes"},
    {"pipeline", "doctor", "citation"},
    {"demo", "compare", "plan"},
    {"cli", "__init__"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
BINS = {"utils", "util", "common", "helpers", "helper", "misc"}
SOURCES = sorted(PACKAGE.rglob("*.py"))
TORCH_FREE = [
    name
    for name in (".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in SOURCES)
    if name
    in {"cli", "settings", "errors", "artifacts", "doctor", "citation", "pipeline", "recipes", "demo", "compare", "plan"}
    or name in {"sources.source", "sources.decode", "neighbors.search", "neighbors.graph"}
    or name.split(".")[0] in {"cli", "report"}
    or name.endswith("settings")
]


def room(path: Path) -> str:
    """The room a file stands in: the folder or module directly under the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of this package in a file, those inside functions too; `__version__` is free."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in (alias.name.split(".") for alias in node.names):
                if name[0] == "understudy":
                    yield node.lineno, name[1] if len(name) > 1 else "__init__"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively: this test could not follow it"
            module = (node.module or "").split(".")
            if module == ["understudy"]:
                for alias in node.names:
                    if alias.name != "__version__":
                        yield node.lineno, alias.name if alias.name in FLOOR else "__init__"
            elif module[0] == "understudy":
                yield node.lineno, module[1]


def test_every_room_has_a_floor():
    assert {room(path) for path in SOURCES} <= set(FLOOR)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path):
    here = room(path)
    wrong = [
        f"line {line}: {here} (floor {FLOOR[here]}) imports {there} (floor {FLOOR[there]})"
        for line, there in imported_rooms(path)
        if there != here and FLOOR[there] >= FLOOR[here]
    ]
    assert not wrong


def test_every_room_has_a_noun():
    assert not [str(path) for path in SOURCES if BINS & set(path.relative_to(PACKAGE).with_suffix("").parts)]


def test_torch_stays_out_of_what_starts_at_once():
    modules = ", ".join(f"understudy.{name.removesuffix('.__init__')}" for name in TORCH_FREE)
    heavy = ("torch", "torchvision", "timm", "onnxruntime", "faiss", "sklearn", "plotly")
    script = f"import sys, {modules}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
