"""The documentation tells the truth: links lead somewhere, commands parse, code runs, pictures are current."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from test_models_teacher import onnx_file, structured
from understudy.cli import VERBS, main
from understudy.losses import LOSSES
from understudy.pipeline import RunSettings
from understudy.settings import resolve

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "dev").glob("*.md"), *DOCS.rglob("*.md")]
    if not {"generated", "build"} & set(path.relative_to(ROOT).parts)
)
TINY = {
    "teacher": "onnx:teacher.onnx", "student": "small:resnet8x0.25", "image_size": 32, "passes": 0.5, "batch_size": 8,
    "head_hidden": 16, "workers": 0, "probes": 1, "neighbors.k": 0, "evaluation.protocols": "knn,fidelity",
    "evaluation.fidelity.draws": 0,
}  # fmt: skip
"""A run of a second: what documents are run with, in the place of their own models and lengths."""


def script(name: str) -> ModuleType:
    """A script of docs/, imported by its path."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """Anchors of a page: its headings as GitHub names them, and the labels written before them."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def blocks(path: Path, language: str) -> Iterator[tuple[str, str]]:
    """(mark, code) of the blocks of a language; a mark is the `run` or `not run: WHY` of a comment before the block."""
    pattern = rf"(?:<!-- ((?:not )?run[^>]*?) -->\n)?```{language}\n(.*?)```"
    yield from re.findall(pattern, path.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(code: str) -> list[list[str]]:
    """The `understudy` commands of a shell block, torchrun's among them, without those that stand for others (...)."""
    lines = [shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines()]
    words = [
        line[line.index("understudy") :]
        for line in lines
        if "understudy" in line and (line[0] in ("understudy", "torchrun") or line[:2] == ["docker", "run"])
    ]
    return [line for line in words if "..." not in line and len(line) > 1]


COMMANDS = {" ".join(words): words for path in PAGES for _, code in blocks(path, "sh") for words in commands(code)}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{name_of(path)}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{name_of(path)}: {target}#{anchor}"


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_the_commands_exist(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    words = words[1 : words.index(">") if ">" in words else None]
    if words[0] in VERBS:
        monkeypatch.setattr(VERBS[words[0]], "run", lambda verb, options: 0)  # flags and values are read, not run
    assert main(words) == 0, capsys.readouterr().err


def test_the_settings_files_resolve():
    tables = [code for path in PAGES for _, code in blocks(path, "toml")]
    assert [resolve(RunSettings, tomllib.loads(table)).neighbors.n for table in tables] == [31]


def test_the_verbs_and_specs_are_listed():
    from understudy.models.families import FAMILIES

    listed = script("generate").verbs()
    assert set(re.findall(r"`understudy (\w+)`", listed)) == set(VERBS)
    assert set(re.findall(r"^\| `(\w+):", script("generate").models(), flags=re.MULTILINE)) == set(FAMILIES)


def test_the_export_targets_are_listed():
    from understudy.export.targets import TARGETS

    rows = dict(
        re.findall(r"^\| `([\w-]+)(?::ORG/NAME)?` \| (.+) \|$", script("generate").exports(), flags=re.MULTILINE)
    )
    assert set(rows) == set(TARGETS)
    assert rows["folder"].split(" | ")[1:] == ["embedding, features", "`folder`", "understudy", "", "1e-09"]
    assert rows["timm"].split(" | ")[1] == "features"
    assert rows["onnx-int8"].split(" | ")[1:] == [
        "`--output`", "`student.int8.onnx`", "onnxruntime", "`understudy[export]`", "0.02"
    ]  # fmt: skip


def test_every_set_s_files_are_described():
    from understudy.evaluate.datasets import DATASETS

    described = (DOCS / "reference" / "sets.md").read_text(encoding="utf-8").split("## How their files lie")[1]
    first = "".join(re.findall(r"^\|(.*?)\|", described, flags=re.MULTILINE))
    assert set(re.findall(r"`([\w-]+)`", first)) == set(DATASETS)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the documents speak of: photos/, teacher.onnx, and runs that a reader would have by then."""
    folder = tmp_path_factory.mktemp("workplace")
    generator = np.random.default_rng(0)
    for half in ("train", "val"):
        for label, kind in enumerate(("cat", "dog")):
            (folder / "photos" / half / kind).mkdir(parents=True)
            for number in range(8):
                pixels = generator.integers(0, 128, (40, 48, 3), dtype=np.uint8) + np.uint8(100 * label)
                Image.fromarray(pixels).save(folder / "photos" / half / kind / f"{number:03}.jpg")
    onnx_file(folder / "teacher.onnx", structured())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["embed", "--data", "photos/train", "--teacher", "onnx:teacher.onnx", "--workers", "0"]) == 0
        tiny(data="photos/train", eval_data="photos", out="runs/first")
        tiny(data="digits:train", eval_data="digits", out="runs/demo/teacher")
        shutil.copytree("runs/first", "runs/control")
        assert main(["export", "runs/first", "--to", "onnx,torch", "--images", "16"]) == 0
    return folder


def tiny(**given: Any) -> Any:
    """`understudy.distill` at the size of a test, without the page at its end."""
    from understudy import pipeline

    digits = {"limit": 64, "evaluation.limit": 64} if str(given["data"]).startswith("digits") else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "report_stage", lambda *runs, **options: None)
        return pipeline.distill(**{**given, **digits, **TINY}, quiet=True)


WITH_PYTHON = [path for path in PAGES if any(blocks(path, "python")) and path.name != "CONTRIBUTING.md"]
"""The recipes of CONTRIBUTING.md have a test of their own."""


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_PYTHON, ids=name_of)
def test_the_python_runs(path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch):
    import understudy

    monkeypatch.chdir(workplace)
    monkeypatch.setattr(understudy, "distill", tiny, raising=False)
    space: dict[str, Any] = {"image": Image.open("photos/val/cat/000.jpg").convert("RGB")}
    for mark, code in blocks(path, "python"):
        compiled = compile(code, str(path), "exec")
        if not mark.startswith("not run: "):
            exec(compiled, space)


MARKED = [(path, code) for path in PAGES for mark, code in blocks(path, "sh") if mark == "run"]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "code"), MARKED, ids=[name_of(path) for path, _ in MARKED])
def test_the_marked_commands_run(path: Path, code: str, workplace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(workplace)
    small = [word for key, value in TINY.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    for _, verb, *rest in commands(code):
        if verb == "demo":  # it takes minutes
            continue
        if verb == "run":
            shutil.rmtree(rest[rest.index("--out") + 1], ignore_errors=True)
            rest += small
        assert main([verb, *rest]) == 0, (verb, rest)


def test_the_readme_is_a_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert "docs/images/report.png" in text
    assert (DOCS / "images" / "report.png").stat().st_size < 300_000
    assert f"**{len(LOSSES) - 2} other methods in one loop**" in text


def test_the_picture_of_the_rooms_is_current():
    architecture = script("architecture")
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.svg(), "run: python docs/architecture.py"


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path):
    from sphinx.cmd.build import main as sphinx

    modules = set(sys.modules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Sphinx' own
        status = sphinx(
            # Kept defaults are written into the signatures of our own functions, for all tests that follow.
            ["-q", "-W", "-n", "--keep-going", "-D", "autodoc_preserve_defaults=0", "-d", str(tmp_path / "trees"),
             str(DOCS), str(tmp_path / "html")]
        )  # fmt: skip
    for name in set(sys.modules) - modules:
        if name.startswith(("sphinx", "docutils", "generate")):
            sys.modules.pop(name)
    assert status == 0
    assert (tmp_path / "html" / "index.html").is_file()
