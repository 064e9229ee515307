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
    {"errors", "parent"},
    {"settings", "artifacts", "hardware", "papers", "philox"},
    {"registry"},
    {"sources"},
    {"losses", "models", "views", "neighbors"},
    {"embed"},
    {"train", "evaluate", "report", "export"},
    {"recipes"},
    {"pipeline", "doctor", "citation"},
    {"demo", "compare", "plan"},
    {"cli", "__init__"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
BINS = {"utils", "util", "common", "helpers", "helper", "misc"}
SOURCES = sorted(PACKAGE.rglob("*.py"))
LIGHT_ROOMS = {
    "cli", "compare", "settings", "registry", "errors", "artifacts", "doctor", "citation", "pipeline", "recipes",
    "demo", "plan", "report", "sources",
}  # fmt: skip
LIGHT_FILES = {"neighbors.search", "neighbors.graph", "models.heads", "losses.__init__"}
LIGHT_PACKAGES = (
    "models.families.",
    "evaluate.protocols.",
    "evaluate.datasets.",
)  # declarations: what they build is imported when they build it
TORCH_FREE = [
    name
    for name in (".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in SOURCES)
    if name.split(".")[0] in LIGHT_ROOMS
    or name in LIGHT_FILES
    or name.endswith("settings")
    or name.startswith(LIGHT_PACKAGES)
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


def imports_of(path: Path) -> set[str]:
    """Modules of this package that a file imports when it is itself imported: those of functions come later."""
    found: set[str] = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("understudy"):
                found.update({str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)})
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                visit(node.orelse)
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for field in ("body", "orelse", "finalbody"):
                    visit(getattr(node, field, []))
                for handler in getattr(node, "handlers", []):
                    visit(handler.body)

    visit(ast.parse(path.read_text(encoding="utf-8")).body)
    return found


def module_name(path: Path) -> str:
    """The dotted name of a file, without `__init__`."""
    return ".".join(("understudy", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def test_no_file_imports_itself_in_a_circle():
    names = {module_name(path) for path in SOURCES}
    graph = {module_name(path): (imports_of(path) & names) - {module_name(path)} for path in SOURCES}
    done: set[str] = set()

    def circle(name: str, above: tuple[str, ...]) -> tuple[str, ...] | None:
        if name in above:
            return (*above[above.index(name) :], name)
        if name in done:
            return None
        found = next((found for other in sorted(graph[name]) if (found := circle(other, (*above, name)))), None)
        done.add(name)
        return found

    circles = [found for name in sorted(graph) if (found := circle(name, ()))]
    assert not circles, " and ".join(" -> ".join(names) for names in circles)


def test_every_room_has_a_noun():
    assert not [str(path) for path in SOURCES if BINS & set(path.relative_to(PACKAGE).with_suffix("").parts)]


def test_torch_stays_out_of_what_starts_at_once():
    modules = ", ".join(f"understudy.{name.removesuffix('.__init__')}" for name in TORCH_FREE)
    heavy = ("torch", "torchvision", "timm", "onnxruntime", "faiss", "sklearn", "plotly")
    script = f"import sys, {modules}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_files_functions_and_signatures_fit_a_screen():
    """Design section 1: no file over 400 lines, no function over 60, no signature over 7 parameters."""
    wrong = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(PACKAGE)
        if (lines := text.count("\n")) > 400:
            wrong.append(f"{name} has {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len(taken) - (bool(taken) and taken[0].arg in ("self", "cls"))
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 60 or count > 7:
                    wrong.append(f"{name}:{node.lineno} {node.name} has {length} lines and {count} parameters")
    assert not wrong
