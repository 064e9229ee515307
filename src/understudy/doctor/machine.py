"""What devices, cores, memory and disk mean: each check is a function of facts."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy.doctor.check import Check

GIB = 1 << 30


def device(torch: Mapping[str, Any], driver: str | None) -> Check:
    """What training will run on, and whether a GPU (there is an NVIDIA driver) is there that torch cannot use."""
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
    """Python may keep compiled bytecode: with PYTHONDONTWRITEBYTECODE (`variable`) every start compiles torch again."""
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
    """Room and permission to write embeddings, of `need` bytes if known, to a folder that need not exist."""
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
