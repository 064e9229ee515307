"""The set-up itself: what is declared, pinned, shipped and promised agrees."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from understudy.cli import main

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGE_OF = {"open_clip": "open-clip-torch", "PIL": "pillow", "sklearn": "scikit-learn", "faiss": "faiss-cpu"}


def bounds(requirements: list[str]) -> dict[str, tuple[int, ...]]:
    """{"torch": (2, 11)} of ["torch>=2.11"]; a requirement without a lower bound fails."""
    matches = [re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement) for requirement in requirements]
    assert all(matches), requirements
    return {match[1]: tuple(map(int, match[2].split("."))) for match in matches if match}


def imported(folder: Path) -> set[str]:
    """Packages that the files of a folder import, inside functions too."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return {
        PACKAGE_OF.get(name, name.replace("_", "-")) for name in names - set(sys.stdlib_module_names) - {"understudy"}
    }


def pins(lock: str = "requirements.lock") -> dict[str, set[str]]:
    """{package: versions} of a lock, each with a hash; one package may have a version per Python."""
    pinned: dict[str, set[str]] = {}
    text = (ROOT / lock).read_text().replace("\\\n", "")
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.]+)( ; [^:]+?)?((\s+--hash=sha256:[0-9a-f]{64})+)", line.rstrip())
            assert match, f"not a plain pin with hashes: {line[:80]!r}"  # no address, no index, no other option
            pinned.setdefault(match[1], set()).add(match[2])
    return pinned


def test_every_archive_that_is_installed_has_a_hash():
    """Also the tool that installs; and nothing else is installed, by `make setup` or in the container."""
    whole = pins()
    assert all(versions <= whole[name] for name, versions in pins("requirements-run.lock").items())
    assert set(bounds(PROJECT["dependencies"])) <= set(pins("requirements-run.lock"))
    assert list(pins("requirements-uv.lock")) == ["uv"]
    (version,) = pins("requirements-uv.lock")["uv"]
    assert f"UV_VERSION := {version}" in (ROOT / "Makefile").read_text()
    for name in ("Makefile", "Dockerfile"):
        text = (ROOT / name).read_text().replace("\\\n", "")
        installs = re.findall(r"pip install [^&\n]*", text)
        assert len(installs) >= 3
        for command in installs:
            own = command.rstrip().endswith(" .") and "--no-deps" in command and "--no-build-isolation" in command
            cpu = "--torch-backend" in command  # of PyTorch's own index, said in SECURITY.md
            assert own or cpu or "--require-hashes" in command, command


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    declared = set(bounds(PROJECT["dependencies"]))
    optional = {
        name
        for extra in PROJECT["optional-dependencies"].keys() - {"dev"}
        for name in bounds(PROJECT["optional-dependencies"][extra])
    }
    used = imported(ROOT / "src" / "understudy")
    assert used - declared - optional == set(), "imported, not declared"
    assert declared - used == set(), "declared, not imported"
    own = [*(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    tests = {path.stem.replace("_", "-") for path in own}
    development = {re.split(r"[>\[]", requirement)[0] for requirement in PROJECT["optional-dependencies"]["dev"]}
    assert imported(ROOT / "tests") - tests - declared - optional - development == set(), (
        "imported by a test, not declared"
    )


def test_the_lock_pins_everything_above_its_bound():
    pinned = pins()
    extras = PROJECT["optional-dependencies"]
    development = [name for name in extras["dev"] if not name.startswith("understudy[")]
    # executorch brings a plugin for pytest and a package that is built from its source: it is tried by hand.
    optional = [name for extra in extras.keys() - {"dev", "executorch"} for name in extras[extra]]
    for name, least in bounds(PROJECT["dependencies"] + optional + development).items():
        assert name in pinned, f"{name} is not in requirements.lock: run `make lock`"
        for version in pinned[name]:
            assert tuple(map(int, re.findall(r"\d+", version)[: len(least)])) >= least, f"{name} {version}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make setup` reads, and a .venv that looks finished."""
    for name in ("Makefile", "requirements.lock", "requirements-uv.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "understudy.stamp").touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, "LC_ALL": "C"},
    )


def test_a_second_set_up_does_nothing(checkout: Path):
    done = make(checkout, "setup")
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" in done.stdout


def test_an_old_python_is_refused_in_a_sentence(checkout: Path):
    (checkout / ".venv" / "understudy.stamp").unlink()
    done = make(checkout, "setup", "PYTHON=false")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer, and 'false' is not" in done.stdout
    assert not (checkout / ".venv" / "understudy.stamp").exists()


def test_a_path_that_cannot_be_used_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "taken").write_text("a file")
    out = str(tmp_path / "taken" / "run")
    asked = ["train", "--data", "digits", "--limit", "64", "--method", "moco", "--student", "small:resnet8x0.25"]
    assert main([*asked, "--out", out]) == 1
    said = capsys.readouterr().err
    assert f"understudy train: Not a directory: '{out}'. Name another file or folder" in said
    with pytest.raises(NotADirectoryError):
        main(["--traceback", *asked, "--out", out])


def test_ci_runs_what_the_readme_tells():
    script = ROOT / ".ci" / "run"
    assert script.read_text().splitlines()[-1] == "CI=true make test"
    assert "set -euo pipefail" in script.read_text()
    assert script.stat().st_mode & 0o111


def test_the_container_is_made_of_what_there_is():
    text = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", text, flags=re.MULTILINE) for word in line.split()]
    assert copied
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert all((ROOT / word).exists() and f"!{word}" in ignored for word in copied)
    assert 'ENTRYPOINT ["understudy"]' in text
    assert 'CMD ["demo"]' in text
    for page in ("README.md", "docs/howto/install.md"):
        assert set(re.findall(r"--build-arg (\w+)", (ROOT / page).read_text())) == set(
            re.findall(r"^ARG (\w+)", text, flags=re.MULTILINE)
        )


def test_the_workflows_call_what_there_is():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for path in (ROOT / ".github" / "workflows").iterdir():
        text = path.read_text()
        assert set(re.findall(r"run: make (\w+)", text)) <= targets
        assert all((ROOT / script).exists() for script in re.findall(r"run: (\.ci/\w+)", text))
        assert "://" not in text


def test_the_security_policy_names_tests_that_there_are():
    text = (ROOT / "SECURITY.md").read_text()
    file, named = "", re.findall(r"`(test_\w+\.py)?(?:::(\w+))?`", text)
    assert len(named) > 15
    for path, function in named:
        file = path or file
        source = (ROOT / "tests" / file).read_text()
        assert not function or f"def {function}(" in source, f"{file}::{function}"
