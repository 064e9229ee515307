"""What the machine has: libraries, driver, cores."""

import importlib.metadata
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PROBE = """
import importlib, json, sys, time, warnings

def torch_facts(torch):
    facts = {"cuda": torch.version.cuda, "hip": torch.version.hip, "threads": torch.get_num_threads(), "devices": []}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    facts["complaints"] = [str(item.message) for item in caught]
    for index in range(torch.cuda.device_count() if available else 0):
        device = {"name": torch.cuda.get_device_name(index)}
        try:
            torch.ones(8, device=f"cuda:{index}").sum().item()
        except Exception as error:
            device["error"] = str(error)
        facts["devices"].append(device)
    facts["mps"] = torch.backends.mps.is_available()
    return facts

for name in sys.argv[1:]:
    start = time.perf_counter()
    try:
        module = importlib.import_module(name)
        facts = {"version": str(getattr(module, "__version__", "")), "seconds": time.perf_counter() - start}
        if name == "torch":
            facts |= torch_facts(module)
        if name == "onnxruntime":
            facts["providers"] = module.get_available_providers()
    except BaseException as error:
        facts = {"error": f"{type(error).__name__}: {error}"}
    print("understudy-probe", json.dumps([name, facts]), flush=True)
"""

GROUPS = (("torch", "torchvision", "timm"), ("onnxruntime",), ("faiss",), ("pyarrow", "sklearn"))
"""One process per group, at the same time; torchvision and timm need torch, so they share its import."""


def probe_libraries(timeout: float = 300.0) -> dict[str, dict[str, Any]]:
    """Import the compiled libraries in processes of their own; per name its facts, or {"error": sentence}."""

    def probe(names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        ended = f"the import took more than {timeout:.0f} s"
        output = b""
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", PROBE, *names],
                capture_output=True,
                timeout=timeout,
                check=False,
            )
            output = done.stdout
            how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
            ended = f"the import ended the interpreter ({how})"
        except subprocess.TimeoutExpired as error:
            output = error.stdout or b""
        answers = [
            json.loads(line.split(" ", 1)[1])
            for line in output.decode().splitlines()
            if line[:16] == "understudy-probe"
        ]
        return {name: {"error": ended} for name in names} | dict(answers)

    with ThreadPoolExecutor(len(GROUPS)) as pool:
        return {name: metadata for group in pool.map(probe, GROUPS) for name, metadata in group.items()}


def installed_version(package: str) -> str | None:
    """The version of an installed package, without importing it; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def nvidia_driver() -> str | None:
    """The NVIDIA driver's version, "present" if only its tool or device is there, None without one."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        there = shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists()
        return "present" if there else None
    match = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return match.group() if match else "present"


def usable_cores() -> int:
    """Cores this process may use: its affinity, and below it the share of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, math.ceil(int(quota) / int(period)))


def compiled(package: str) -> bool:
    """Whether the package's bytecode lies on disk (or the package is not installed, so nothing is slow)."""
    spec = importlib.util.find_spec(package)
    return spec is None or spec.origin is None or Path(importlib.util.cache_from_source(spec.origin)).exists()
