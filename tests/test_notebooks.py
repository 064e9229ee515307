"""The notebooks run from top to bottom, at the size of a test, and are committed without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import launch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "first_student": 'MODEL, PASSES, LIMIT = "small:resnet8x0.25", 6, 96',
    "your_teacher": "PASSES = 0.5",
    "compare_methods": "SEEDS, PASSES, TRIALS, LIMIT = 2, 0.5, 1, 96",
}
"""What each notebook is run with, in the place of the values of its cell of parameters."""

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_every_notebook_has_a_size():
    assert {path.stem for path in NOTEBOOKS} == set(SIZES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path: Path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in book.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT / "src"), str(tmp_path))))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setattr("jupyter_client.launcher.Popen", launch.Popen)
    book = nbformat.read(path, as_version=4)
    place = next(i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ()))
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(SIZES[path.stem]))
    NotebookClient(book, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert list((tmp_path / "runs").rglob("report.html"))
