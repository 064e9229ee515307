"""The script for machines with a GPU runs, tiny, on one without."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import launch

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.sh"


def gpu_script(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=280,
        env={**os.environ, "PYTHON": str(launch.program(folder)), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


def test_the_gpu_script_runs_tiny_on_a_cpu(tmp_path: Path):
    rng = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "photographs" / f"class-{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (240, 240, 3), dtype=np.uint8)).save(path)
    done = gpu_script(tmp_path, "--tiny", tmp_path / "photographs")
    assert done.returncode == 0, done.stderr
    assert "nothing of any GPU" in done.stdout
    for side in ("plain", "live", "recorded"):
        assert re.search(rf"^{side}: [\d.]+ images/s, [\d.]+ a processor second$", done.stdout, re.MULTILINE)
    assert "500 x 32 float16" in done.stdout and re.search(r"\| exact \| [\d.]+ \|", done.stdout)
    apart = re.search(
        r"weights of one process and of two: (\S+) apart at most, the largest weight is (\S+)$", done.stdout
    )
    assert apart and float(apart[1]) < 1e-3 * float(apart[2])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, even if the script may not see it")
def test_the_gpu_script_does_not_pretend_that_there_is_one(tmp_path: Path):
    done = gpu_script(tmp_path, tmp_path)
    assert done.returncode == 1 and "no CUDA GPU here" in done.stderr and "==" not in done.stdout
