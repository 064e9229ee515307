"""What is wrong with this installation, device or data, and the fix.

Libraries are imported in other processes, so one that is broken, or that ends the interpreter, becomes a line of the
answer instead of the end of it. Nothing here imports torch unless a teacher is asked about.
"""

from __future__ import annotations

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
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from understudy.errors import UnderstudyError

if TYPE_CHECKING:
    from rich.console import Console

Status = Literal["ok", "warn", "fail"]
SAMPLE = 64
"""Images read to judge a data source; half of them go through the teacher."""
GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """One finding.

    Args:
        name: what was looked at.
        status: "ok"; "warn" (works, but slower or less than it could); "fail" (something will not run).
        found: what was found, with the values.
        fix: what to do; empty if nothing is to be done.
    """

    name: str
    status: Status
    found: str
    fix: str = ""


def checks(data: str | None = None, teacher: str | None = None, store: str | None = None) -> list[Check]:
    """Look at the installation, the machine and, where named, the data and the teacher.

    Args:
        data: a data spec to open; up to 64 of its images are read.
        teacher: a teacher spec to build; it is run on those images.
        store: the folder that embeddings will be written to; "store" unless given.

    Returns:
        The findings in the order in which they should be mended.
    """
    probes = probe_libraries()
    torch = probes["torch"]
    found = [
        python(sys.version_info[:3], sys.maxsize > 2**32),
        packages(importlib.metadata.requires("understudy") or [], installed_version),
        torch_import(torch),
        torchvision_import(probes["torchvision"], torch),
        *(library(name, probes[name]) for name in ("timm", "onnxruntime", "faiss", "pyarrow", "sklearn")),
        device(torch, nvidia_driver()),
        onnx_device(probes["onnxruntime"], torch),
        threads(torch.get("threads"), usable_cores()),
        bytecode(os.environ.get("PYTHONDONTWRITEBYTECODE", ""), compiled("torch")),
        *shared_memory(Path("/dev/shm")),
        *open_files(),
    ]
    images: list[Any] = []
    rows = width = None
    if data is not None:
        check, images, rows = data_source(data)
        found.append(check)
    if teacher is not None:
        if "error" in torch:
            found.append(Check("teacher", "fail", f"{teacher} was not tried, because torch cannot be imported"))
        else:
            check, width = teacher_model(teacher, images)
            found.append(check)
    need = rows * width * 2 if rows and width else None
    return [*found, disk(Path(store or "store"), need)]


def render(found: Iterable[Check], console: Console | None = None) -> None:
    """Print the findings as a table, with a closing sentence; to standard output unless given a console."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = list(found)
    colors = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in found:
        text = Text(check.found)
        if check.fix:
            text.append(f"\nfix: {check.fix}", style=colors[check.status])
        table.add_row(Text(check.status, style=colors[check.status]), Text(check.name), text)
    failed = sum(check.status == "fail" for check in found)
    warned = sum(check.status == "warn" for check in found)
    if failed:
        closing = f"{failed} of {len(found)} checks failed; mend them from the top."
    elif warned:
        closing = f"Everything runs; {warned} of {len(found)} checks could be better."
    else:
        closing = f"All {len(found)} checks passed."
    (console or Console()).print(table, Text("\n" + closing), sep="")


# What the machine has. ------------------------------------------------------------------------------------------------

_PROBE = """
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

# One process per group, at the same time; torchvision and timm need torch, so they share its import.
_GROUPS = (("torch", "torchvision", "timm"), ("onnxruntime",), ("faiss",), ("pyarrow", "sklearn"))


def probe_libraries(timeout: float = 300.0) -> dict[str, dict[str, Any]]:
    """Import the compiled libraries in processes of their own; per name its facts, or {"error": sentence}."""

    def probe(names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        ended = f"the import took more than {timeout:.0f} s"
        output = b""
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", _PROBE, *names],
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

    with ThreadPoolExecutor(len(_GROUPS)) as pool:
        return {name: metadata for group in pool.map(probe, _GROUPS) for name, metadata in group.items()}


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


# What follows from it: each check is a function of facts. -------------------------------------------------------------


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version: (2, 15, 0) of "2.15.0+cpu"."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def python(version: tuple[int, int, int], is_64_bit: bool) -> Check:
    """Python 3.11 or newer, 64 bit."""
    found = ".".join(map(str, version)) + ("" if is_64_bit else ", 32 bit")
    if version < (3, 11) or not is_64_bit:
        return Check("python", "fail", found, "install a 64-bit Python 3.11 or newer, then `make setup`")
    return Check("python", "ok", found)


def packages(requirements: Iterable[str], version_of: Callable[[str], str | None]) -> Check:
    """Every requirement is installed and new enough.

    Args:
        requirements: as in the package's metadata, e.g. `torch>=2.11`, `tomli-w; extra == "x"`.
        version_of: the installed version of a package, or None.
    """
    wrong, count = {}, 0
    for requirement in requirements:
        match = re.match(r"([\w.-]+)\s*>=\s*([\w.]+)\s*$", requirement)
        if match is None:  # belongs to an extra
            continue
        count += 1
        name, least = match.groups()
        have = version_of(name)
        if have is None or _release(have) < _release(least):
            wrong[f"'{name}>={least}'"] = f"{name} {have} is older than {least}" if have else f"{name} is missing"
    if not count:
        return Check("packages", "fail", "understudy is not installed here", "run `make setup`, or `pip install -e .`")
    if wrong:
        return Check("packages", "fail", ", ".join(wrong.values()), f"uv pip install {' '.join(wrong)}")
    return Check("packages", "ok", f"all {count} requirements are met")


def torch_import(torch: Mapping[str, Any]) -> Check:
    """Torch can be imported, and is 2.11 or newer."""
    check = library("torch", torch)
    if check.status == "ok" and _release(torch["version"]) < (2, 11):
        return Check("torch", "fail", check.found, "uv pip install 'torch>=2.11' torchvision")
    return check


def torchvision_import(torchvision: Mapping[str, Any], torch: Mapping[str, Any]) -> Check:
    """Torchvision was built for this very torch; if not, it dies of "operator torchvision::nms does not exist"."""
    if "error" in torch:
        return Check("torchvision", "fail", "not tried, because torch cannot be imported", "mend torch first")
    have = installed_version("torchvision")
    needs = importlib.metadata.requires("torchvision") or [] if have else []
    return torchvision_pair(torchvision, torch["version"], have, needs)


def torchvision_pair(
    torchvision: Mapping[str, Any], torch: str, have: str | None, requirements: Iterable[str]
) -> Check:
    """The verdict on a pair.

    Args:
        torchvision: facts of its import.
        torch: torch's version.
        have: torchvision's version in its metadata.
        requirements: torchvision's own, among them `torch (>=2.14.0)` or `torch==2.9.0`.
    """
    named = "torch torchvision"
    for requirement in requirements:
        if match := re.match(r"torch\s*\(?([=>]=)\s*([\d.]+)", requirement):
            relation, wanted = match.groups()
            named = f"'torch{relation}{wanted}' torchvision=={have}"
            fits = _release(torch) == _release(wanted) if relation == "==" else _release(torch) >= _release(wanted)
            if not fits:
                found = f"torchvision {have} needs torch {relation} {wanted}, found torch {torch}"
                found += f" ({torchvision['error']})" if "error" in torchvision else ""
                return Check("torchvision", "fail", found, _together(named))
    if "error" in torchvision:
        reason = torchvision["error"]
        if "torchvision::" in reason:
            reason += f": torchvision {have} and torch {torch} come from different builds"
        return Check("torchvision", "fail", reason, _together(named))
    return library("torchvision", torchvision)


def _together(named: str) -> str:
    return f"install the two together: `uv pip install --reinstall {named}`"


def library(name: str, metadata: Mapping[str, Any]) -> Check:
    """A library can be imported."""
    if "torchvision::" in metadata.get("error", ""):
        return Check(name, "fail", "not tried, because torchvision cannot be imported", "mend torchvision first")
    if "error" in metadata:
        package = {"torch": "torch torchvision", "faiss": "faiss-cpu", "sklearn": "scikit-learn"}.get(name, name)
        return Check(name, "fail", metadata["error"], f"uv pip install --reinstall {package}")
    return Check(name, "ok", f"{metadata['version']}, imported in {metadata['seconds']:.1f} s".lstrip(", "))


def device(torch: Mapping[str, Any], driver: str | None) -> Check:
    """What training will run on, and whether a GPU is there that torch cannot use.

    Args:
        torch: facts of its import.
        driver: the NVIDIA driver's version, None without one.
    """
    if "error" in torch:
        return Check("device", "fail", "unknown, because torch cannot be imported", "mend torch first")
    broken = [item for item in torch["devices"] if "error" in item]
    if broken:
        found = f"{broken[0]['name']} is there but cannot compute: {broken[0]['error'].splitlines()[0]}"
        return Check("device", "fail", found, "install a torch built for this GPU, or use `--device cpu`")
    if torch["devices"]:
        names = ", ".join(item["name"] for item in torch["devices"])
        platform = f"CUDA {torch['cuda']}" if torch["cuda"] else f"ROCm {torch['hip']}"
        return Check("device", "ok", f"{names} ({platform})")
    if torch["mps"]:
        return Check("device", "ok", "Apple GPU (mps)")
    if driver and not (torch["cuda"] or torch["hip"]):
        found = f"an NVIDIA driver ({driver}) is there, but torch {torch['version']} is built without CUDA"
        return Check(
            "device", "warn", found, "`uv pip install --reinstall torch torchvision` gets the CUDA build on Linux"
        )
    if driver:
        said = f": {torch['complaints'][0].splitlines()[0]}" if torch["complaints"] else ""
        found = f"an NVIDIA driver ({driver}) is there, but torch (CUDA {torch['cuda']}) sees no GPU{said}"
        return Check("device", "warn", found, "update the driver, or install a torch built for an older CUDA")
    return Check("device", "ok", "CPU only")


def onnx_device(onnxruntime: Mapping[str, Any], torch: Mapping[str, Any]) -> Check:
    """Where ONNX teachers will run."""
    if "error" in onnxruntime:
        return Check("onnx teachers", "fail", "onnxruntime cannot be imported", "mend onnxruntime first")
    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime["providers"] if "Azure" not in name]
    found = f"run on {', '.join(providers)}"
    if torch.get("devices") and "CUDA" not in providers:
        fix = "`uv pip uninstall onnxruntime && uv pip install onnxruntime-gpu`"
        return Check("onnx teachers", "warn", f"{found}; the GPU would stay idle", fix)
    return Check("onnx teachers", "ok", found)


def threads(used: int | None, cores: int) -> Check:
    """Torch starts no more threads than it may use: in a container it sees the cores of the whole machine."""
    if used is not None and used > cores:
        found = f"torch starts {used} threads on {cores} usable cores: they will get in each other's way"
        return Check("cores", "warn", found, f"export OMP_NUM_THREADS={cores}")
    return Check("cores", "ok", f"{cores} usable" + (f", {used} threads" if used else ""))


def bytecode(variable: str, torch_compiled: bool) -> Check:
    """Python may keep compiled bytecode; without it every start compiles torch again.

    Args:
        variable: the value of PYTHONDONTWRITEBYTECODE.
        torch_compiled: whether torch's bytecode is on disk already.
    """
    if torch_compiled:
        return Check("bytecode", "ok", "libraries are compiled")
    if variable:
        found = f"PYTHONDONTWRITEBYTECODE={variable} and no bytecode for torch: every start takes about twice as long"
        return Check("bytecode", "warn", found, "unset PYTHONDONTWRITEBYTECODE, or run `make setup` again")
    return Check("bytecode", "ok", "will be written at the first start")


def shared_memory(folder: Path) -> list[Check]:
    """Room for the images that reader processes hand over; containers get 64 MiB unless told otherwise."""
    if not folder.is_dir():  # only Linux has it
        return []
    size = shutil.disk_usage(folder).total
    if size < GIB:
        found = f"{size / GIB:.2f} GiB of shared memory: room for few reader processes"
        return [Check("shared memory", "warn", found, "start the container with --shm-size=8g")]
    return [Check("shared memory", "ok", f"{size / GIB:.0f} GiB")]


def open_files() -> list[Check]:
    """How many files a process may hold open; reader processes pass tensors as files."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < 1024:
        most = "65536" if hard < 0 else str(hard)
        return [Check("open files", "warn", f"at most {soft} for one process", f"ulimit -n {most}")]
    return [Check("open files", "ok", f"at most {soft:,} for one process" if soft >= 0 else "no limit")]


def disk(store: Path, need: int | None) -> Check:
    """Room and permission to write embeddings.

    Args:
        store: the folder they go to; it need not exist.
        need: bytes that the embeddings will take, None if unknown.
    """
    there = store.absolute()
    while not there.exists():
        there = there.parent
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return Check("disk", "fail", f"{there} cannot be written to", "name another folder with --store")
    free = shutil.disk_usage(there).free
    found = f"{free / GIB:.1f} GiB free for {store}"
    if need is not None:
        found += f", its embeddings take {max(need / GIB, 0.01):.2f} GiB"
    if free < (need or 0) + GIB:
        return Check("disk", "fail", found, "free some space, or name another folder with --store")
    if free < (need or 0) + 5 * GIB:
        return Check("disk", "warn", found, "checkpoints and reports need room too: free some space")
    return Check("disk", "ok", found)


def data_source(spec: str) -> tuple[Check, list[Any], int | None]:
    """Open a data source and read images all over it.

    Args:
        spec: a data spec.

    Returns:
        The finding, the images that could be read (at most 64), and how many images there are, None if unknown.
    """
    from understudy.sources.source import open_source

    try:
        start = time.perf_counter()
        source = open_source(spec)
        listed = time.perf_counter() - start
    except UnderstudyError as error:
        return Check("data", "fail", str(error)), [], None
    count = len(source)
    images, unreadable = [], []
    start = time.perf_counter()
    for index in np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(int)).tolist():
        try:
            images.append(source.read(index))
        except UnderstudyError as error:
            unreadable.append(str(error))
    tried = len(images) + len(unreadable)
    speed = tried / max(time.perf_counter() - start, 1e-9)
    labels = "with labels" if source.labels is not None else "without labels"
    found = f"{count:,} images {labels}, listed in {listed:.1f} s; {tried} read at {speed:,.0f} a second"
    if not images:
        return Check("data", "fail", f"{found}, none of them readable. {unreadable[0]}", "check the files"), [], count
    if unreadable:
        found += f", {len(unreadable)} of them unreadable, e.g.: {unreadable[0]}"
        return (
            Check("data", "warn", found, "nothing to do if you know of it: they are skipped and listed"),
            images,
            count,
        )
    return Check("data", "ok", found), images, count


def teacher_model(spec: str, images: list[Any]) -> tuple[Check, int | None]:
    """Build a teacher and look at its embeddings of real images.

    Args:
        spec: a teacher spec.
        images: PIL images, perhaps none.

    Returns:
        The finding, and the width D of the embeddings, None if unknown.
    """
    try:
        import torch

        from understudy.models.teacher import build_teacher, check_embeddings

        teacher = build_teacher(spec)
        found = f"{teacher.width} wide; {teacher.weights}"
        if images:
            pixels = torch.stack([teacher.contract.preprocess(image) for image in images[::2]])
            start = time.perf_counter()
            embeddings = teacher.features(pixels)
            speed = len(pixels) / max(time.perf_counter() - start, 1e-9)
            check_embeddings(embeddings, spec)
            found += f"; sound embeddings of {len(pixels)} images, {speed:,.0f} a second on the CPU"
    except UnderstudyError as error:
        return Check("teacher", "fail", str(error)), None
    except Exception as error:  # a model is foreign code: whatever it raises is a finding
        return Check("teacher", "fail", f"{spec} cannot be used: {type(error).__name__}: {error}"), None
    return Check("teacher", "ok", found), teacher.width
