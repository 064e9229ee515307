"""The recipes of CONTRIBUTING.md work as they stand: a file in the right folder, and its test."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from understudy.registry import Registry

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", TEXT, flags=re.DOTALL))
REGISTRIES = {
    "losses": ("understudy.losses", "LOSSES"),
    "evaluate/protocols": ("understudy.evaluate.protocols", "PROTOCOLS"),
    "evaluate/datasets": ("understudy.evaluate.datasets", "DATASETS"),
    "sources/formats": ("understudy.sources.formats", "FORMATS"),
    "models/families": ("understudy.models.families", "FAMILIES"),
    "export/targets": ("understudy.export.targets", "TARGETS"),
}
"""Where the entries of each folder are found."""


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[dict[str, Registry[Any]]]:
    """Every file of the recipes in the path of its package, and the registry that must find it, by the entry's name."""
    found, added = {}, []
    for path, code in FILES.items():
        if not path.startswith("src/understudy/"):
            continue
        folder, _, file = path.removeprefix("src/understudy/").rpartition("/")
        package, attribute = REGISTRIES[folder]
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(code)
        module = importlib.import_module(package)
        registry = getattr(module, attribute)
        module.__path__.append(str(place))
        added.append((module, registry, dict(registry._found), file.removesuffix(".py")))
        registry._found.clear()
        found[file.removesuffix(".py")] = registry
    importlib.invalidate_caches()
    yield found
    for module, registry, before, name in added:
        module.__path__.pop()
        registry._found.clear()
        registry._found.update(before)
        sys.modules.pop(f"{module.__name__}.{name}", None)
        vars(module).pop(name, None)


def test_each_recipe_is_a_file_that_its_registry_finds(installed: dict[str, Registry[Any]], tmp_path: Path):
    assert set(installed) == {"manhattan", "class_mean", "idx", "beans", "linear", "pth"}
    for name, registry in installed.items():
        assert name in registry
        assert getattr(registry[name], "summary", "") or registry[name].__doc__

    pixels = np.arange(2 * 3 * 4, dtype=np.uint8)
    (tmp_path / "two.idx").write_bytes(bytes(4) + np.array([2, 3, 4], ">i4").tobytes() + pixels.tobytes())
    images = installed["idx"]["idx"].open(str(tmp_path / "two.idx"), None)
    assert len(images) == 2 and np.asarray(images.read(1))[2, 3, 0] == 23

    from understudy.models.encoder import build_encoder

    assert build_encoder("linear:8", pretrained=False).width == 8


@pytest.mark.parametrize("path", [path for path in FILES if path.startswith("tests/")])
def test_the_recipes_tests_pass(path: str, installed: dict[str, Registry[Any]]):
    space: dict[str, Any] = {}
    exec(compile(FILES[path], path, "exec"), space)
    (test,) = [value for name, value in space.items() if name.startswith("test_")]
    test()


@pytest.mark.parametrize("name", ["manhattan", "class_mean"])
def test_a_method_and_a_protocol_take_less_than_sixty_lines(name: str):
    assert sum(len(code.splitlines()) for path, code in FILES.items() if name in path) < 60
