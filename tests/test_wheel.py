"""The wheel, installed in an environment of its own: it is small, it is found, it runs without the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from understudy import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as a release builds it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel unpacked in it; what it depends on is not installed again.

    The path file names the packages' folder and no more: the link to the checkout in there is not followed.
    """
    folder = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def python(environment: Path, folder: Path, *words: str) -> str:
    """What the environment's Python prints."""
    own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(environment / "bin" / "python"), *words],
        cwd=folder, env=own, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_is_typed_licensed_and_pure(wheel: Path):
    assert wheel.name == f"understudy-{__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert "understudy/py.typed" in names
    assert {f"understudy/recipes/{path.name}" for path in (ROOT / "recipes").iterdir()} <= set(names)
    assert f"understudy-{__version__}.dist-info/licenses/LICENSE" in names
    assert {name.split("/")[0] for name in names} == {"understudy", f"understudy-{__version__}.dist-info"}
    assert not [name for name in names if "__pycache__" in name]
    entry = zipfile.ZipFile(wheel).read(f"understudy-{__version__}.dist-info/entry_points.txt").decode()
    assert "understudy = understudy.cli:main" in entry
    for kind in ("*.py", "*.css", "*.js", "*.html", "*.j2"):  # what the program reads beside its code
        assert {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob(kind)} <= set(names)


def test_the_wheel_is_small_and_asks_for_no_cuda(wheel: Path):
    assert wheel.stat().st_size < 1_000_000
    archive = zipfile.ZipFile(wheel)
    assert sum(entry.file_size for entry in archive.infolist()) < 3_000_000
    metadata = archive.read(f"understudy-{__version__}.dist-info/METADATA").decode()
    needs = re.findall(r"^Requires-Dist: (.+)$", metadata, flags=re.MULTILINE)
    assert [need for need in needs if need.startswith("torch>=")], "the CPU build of torch must satisfy it"
    assert not [need for need in needs if re.search(r"nvidia|cuda|triton|@|[^=]==", need.partition(";")[0])]


def test_the_installed_package_runs_a_recipe_without_the_checkout(environment: Path, tmp_path: Path):
    where = python(
        environment, tmp_path, "-c", "import understudy, sys; print(understudy.__file__, 'torch' in sys.modules)"
    )
    assert where.startswith(str(environment))
    assert where.split()[-1] == "False"
    python(
        environment, tmp_path, "-m", "understudy", "run", "--recipe", "coss-resnet18", "--preset", "tiny", "--student",
        "small:resnet8x0.25", "--evaluation.protocols", "knn", "--head-hidden", "16", "--workers", "0", "--out", "run",
    )  # fmt: skip
    assert (tmp_path / "run" / "report.html").is_file()
