"""Do the tests notice? Lines of the package drawn by a seed are changed one at a time, and their room's tests run.

    python tests/mutants.py --count 30 --seed 0     # prints each change, the tests that ran, and whether they failed

A change turns a comparison or a sum round, moves a number, negates a condition, or returns None, in a copy of the tree.
Some changes cannot be noticed, because they mean the same (a bound of a buffer): the list is to be read.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def places(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(number of the node in `ast.walk`, kind of change) of all that can be changed inside functions."""
    inside = {
        id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    for number, node in enumerate(ast.walk(tree)):
        if id(node) not in inside:
            continue
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield number, "compare"
        elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            yield number, "operator"
        elif isinstance(node, ast.If):
            yield number, "condition"
        elif isinstance(node, ast.Return) and node.value is not None:
            yield number, "return"
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield number, "number"


def changed(tree: ast.Module, number: int, kind: str) -> tuple[str, int, str, str]:
    """The file with that one change, its line, and the place before and after."""
    tree = copy.deepcopy(tree)
    node = list(ast.walk(tree))[number]
    before = ast.unparse(node).split("\n")[0]
    if isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])]()  # type: ignore[call-overload]
    elif isinstance(node, ast.BinOp | ast.BoolOp):
        node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.If):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Return):
        node.value = ast.Constant(None)
    elif isinstance(node, ast.Constant):
        node.value += 1
    after = ast.unparse(ast.fix_missing_locations(node)).split("\n")[0]
    return ast.unparse(tree), node.lineno, before, after  # type: ignore[attr-defined]


def tests_of(source: Path) -> list[str]:
    """The test files of a source file: those named after it, else those of its room."""
    parts = source.relative_to(ROOT / "src" / "understudy").with_suffix("").parts
    room, name = parts[0], parts[-1]
    names = sorted(path.name for path in (ROOT / "tests").glob("test_*.py"))
    own = [test for test in names if f"_{name}.py" in test or f"_{name}_" in test]
    return own or [test for test in names if test.startswith(f"test_{room}")] or ["test_train_runs.py"]


def passes(tree: Path, tests: list[str]) -> bool:
    """Whether these test files of a tree pass, within 400 seconds."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"tests/{test}" for test in tests),
    ]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    try:
        return not subprocess.run(command, cwd=tree, capture_output=True, timeout=400, env=environment).returncode
    except subprocess.TimeoutExpired:
        return False


def main() -> None:
    """Draw, change, run, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sources = sorted((ROOT / "src" / "understudy").rglob("*.py"))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sources}
    everything = [(path, *place) for path in sources for place in places(trees[path])]
    caught, sound = 0, dict[str, bool]()
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "tree"
        subprocess.run(["git", "clone", "--quiet", ROOT, copied], check=True)
        os.symlink((ROOT / ".." / "shared").resolve(), Path(folder) / "shared")
        for path, number, kind in random.Random(options.seed).sample(everything, options.count):
            text, line, before, after = changed(trees[path], number, kind)
            place, tests = copied / path.relative_to(ROOT), tests_of(path)
            named = ", ".join(tests)
            if named not in sound:
                sound[named] = passes(copied, tests)
            if not sound[named]:
                raise SystemExit(f"{named} fails without any change: mend it first.")
            kept = place.read_text(encoding="utf-8")
            place.write_text(text, encoding="utf-8")
            missed = passes(copied, tests)
            place.write_text(kept, encoding="utf-8")
            caught += not missed
            verdict = "MISSED" if missed else "caught"
            print(f"{verdict} {path.relative_to(ROOT)}:{line}: {before} -> {after} [{named}]", flush=True)
    print(f"{caught} of {options.count} caught")


if __name__ == "__main__":
    main()
