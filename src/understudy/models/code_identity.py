"""What of the user's own code and files a `python:` network is made from, as a fingerprint; no torch.

Own are the files outside the standard library and site-packages. Found are the module, what it imports (by reading its
source: imports inside functions count, and by looking at what was imported), and files that were opened in Python while
it was imported and called. Not found is what native code opens by itself, and what is read later.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from understudy.artifacts import file_fingerprint, fingerprint
from understudy.errors import ModelError

LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
SELF = Path(__file__).resolve().parents[1]
SYSTEM = tuple(map(Path, ("/proc", "/sys", "/dev", "/etc", "/run")))

ROUNDING = {"numpy", "torch", "understudy"}
"""Packages whose versions change how numbers are rounded, and no more."""

WATCHED: list[set[str]] = []  # the sets that collect the files opened now
IMPORTED: dict[str, set[str]] = {}  # by module: what its first import brought in; a second one brings nothing
OPENED: dict[str, set[str]] = {}  # by module: the files that were opened meanwhile
SOURCES: dict[str, tuple[Any, str]] = {}  # each source's module, and its fingerprint when that was first seen


@contextlib.contextmanager
def watch(name: str) -> Iterator[None]:
    """Around the import and the call of a module: keep what is imported and opened."""
    _listen()
    before, opened = set(sys.modules), set[str]()
    WATCHED.append(opened)
    try:
        yield
    finally:
        WATCHED.remove(opened)
        IMPORTED.setdefault(name, set()).update(set(sys.modules) - before)
        OPENED.setdefault(name, set()).update(opened)


def code_identity(name: str) -> tuple[str, str]:
    """What a module that was imported inside `watch` is made from.

    Returns:
        The fingerprint of all own sources and opened files, "" if there are none; and the packages that it uses beside
        PyTorch and NumPy with their versions, "timm 1.0.31".

    Raises:
        ModelError: a source has changed since it was imported here.
    """
    sources, packages = _imports(name)
    code = {}
    for own, file in sorted(sources.items()):
        module, now = sys.modules.get(own), file_fingerprint(file)
        before = SOURCES.setdefault(str(file), (module, now))
        if before[0] is not module:
            SOURCES[str(file)] = module, now
        elif module is not None and before[1] != now:
            raise ModelError(f"{file} has changed since it was imported here. Start again to use it as it is now.")
        code[own] = now
    known = set(map(str, sources.values()))
    opened = [Path(path) for path in sorted(OPENED.get(name, set()) - known)]
    contents = sorted({file_fingerprint(path) for path in opened if path.is_file()})
    versions = (f"{package} {version}" for package in sorted(packages) if (version := _version(package)))
    return fingerprint("python", code, contents) if code or contents else "", ", ".join(versions)


def _imports(name: str) -> tuple[dict[str, Path], set[str]]:
    """The own modules that one consists of, with their files, and the packages that they import."""
    sources: dict[str, Path] = {}
    packages: set[str] = set()
    waiting, seen = {name, *IMPORTED.get(name, ())}, set[str]()
    direct = {name}
    while waiting:
        current = waiting.pop()
        seen.add(current)
        spec = locate(current)
        file = getattr(sys.modules.get(current), "__file__", None) or (spec.origin if spec is not None else None)
        if file is None or not is_own(Path(file)):
            top = current.partition(".")[0]
            if current in direct and top not in sys.stdlib_module_names | ROUNDING:
                packages.add(top)
            continue
        sources[current] = Path(file).resolve()
        found = _named_in(current, Path(file), package=spec is not None and spec.submodule_search_locations is not None)
        direct |= found
        waiting |= found - seen
    return sources, packages


def _named_in(name: str, file: Path, *, package: bool) -> set[str]:
    """The modules, and their packages, that a source imports anywhere."""
    if file.suffix != ".py":
        return set()
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):  # it was never imported
        return set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: len(name.split(".")) - node.level + package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names if locate(f"{base}.{alias.name}")}
    return {".".join(module.split(".")[:depth]) for module in found for depth in range(1, module.count(".") + 2)} - {""}


def locate(name: str) -> ModuleSpec | None:
    """Where a module is, without importing it or its package; None if it is nowhere."""
    module = sys.modules.get(name)
    if module is not None and getattr(module, "__spec__", None) is not None:
        return module.__spec__
    parent, _, _ = name.rpartition(".")
    places: Any = [os.getcwd(), *sys.path]
    if parent:
        above = locate(parent)
        places = None if above is None else above.submodule_search_locations
        if places is None:
            return None
    with contextlib.suppress(Exception):  # finders of others
        return PathFinder.find_spec(name, places)
    return None


def is_own(file: Path) -> bool:
    """Whether a file is the user's own."""
    file = file.resolve()
    if {"site-packages", "dist-packages"} & set(file.parts) or not file.is_file():
        return False
    return not any(file.is_relative_to(place) for place in (*LIBRARIES, *SYSTEM, SELF))


@functools.cache  # a hook stays for good
def _listen() -> None:
    sys.addaudithook(_audit)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not WATCHED:
        return
    path, mode, flags = arguments
    writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
    if isinstance(path, str | bytes) and not writes and not (isinstance(mode, str) and set(mode) & set("wax+")):
        text = os.path.abspath(os.fsdecode(path))
        if not text.endswith((".pyc", ".so")) and is_own(Path(text)):
            for opened in WATCHED:
                opened.add(str(Path(text).resolve()))


def _version(package: str) -> str:
    import importlib.metadata

    version = getattr(sys.modules.get(package), "__version__", None)
    if not isinstance(version, str):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return ""
    return version.partition("+")[0]
