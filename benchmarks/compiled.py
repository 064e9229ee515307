"""What torch.compile gains over eager networks, and folding BatchNorm into convolutions, in turn in one process.

    python benchmarks/compiled.py
    python benchmarks/compiled.py --device cuda --passes 100
    python benchmarks/compiled.py --networks small:resnet56 --passes 3

What is timed is what the training loop calls, on noise and with random weights, because only time is measured: a
student's forward pass, CoSS and backward pass (`student`; in bf16 on a GPU, as the loop does by itself), or a live
teacher's forward pass in passes of one size (`teacher`; in TF32 on a GPU that has it). Folded:
`torch.fx.experimental.optimization.fuse`, which needs a network in eval mode, so of teachers only. Milliseconds an
image are mean and standard deviation over the passes, of processor time on a CPU (other work beside it counts for
little) and of the wall on a GPU; ratios are medians over passes of the same turn. Compiling is on the wall, into an
empty cache, the C++ compiler and its wait for a core included. Apart: the largest difference between compiled and eager
embeddings over the largest embedding.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from understudy.hardware import hardware
from understudy.losses.coss import coss
from understudy.models.encoder import build_encoder
from understudy.models.precision import resolve_precision
from understudy.models.settings import StudentSettings
from understudy.models.student import build_student
from understudy.models.teacher import Teacher
from understudy.train.compile import compiled_copy, compiled_teacher, noise, wait

CASES = (
    ("small:resnet8", "student", 32, 256),
    ("small:resnet56", "teacher", 32, 32),
    ("timm:resnet18", "teacher", 224, 16),
)
"""Spec, role, side in pixels, images in a pass."""

WIDTH = 64
"""D of the teacher whose embeddings the student is compared with: that of `small:resnet56`."""

Pass = Callable[[], torch.Tensor]
"""One pass; returns the embeddings."""


def sides(spec: str, role: str, size: int, batch: int, device: torch.device) -> dict[str, Pass]:
    """The passes of a case by name: eager, compiled and, of a teacher, folded; all with the same weights."""
    torch.manual_seed(0)
    images = noise(batch, size, device)
    if role == "teacher":
        backbone = build_encoder(spec, pretrained=False, image_size=size)
        teacher = Teacher(backbone, resolve_precision("auto", device)).to(device)
        folded = copy.copy(teacher)
        folded._modules = {"module": fuse(teacher.module)}
        teachers = {"eager": teacher, "compiled": compiled_teacher(teacher), "folded": folded}
        return {name: lambda called=called: called(images) for name, called in teachers.items()}
    student = build_student(StudentSettings(spec, image_size=size), WIDTH)
    student = student.to(device, memory_format=torch.channels_last).train()
    target = torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(0)).to(device)
    pixels = images.contiguous(memory_format=torch.channels_last)
    half = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    def step(called: nn.Module) -> torch.Tensor:
        student.zero_grad(set_to_none=True)
        with half:
            embeddings = called(pixels)
        coss(embeddings, target).total.backward()
        return embeddings.detach().float()

    networks = {"eager": student, "compiled": compiled_copy(student)}
    return {name: lambda called=called: step(called) for name, called in networks.items()}


def seconds(run: Pass, device: torch.device) -> float:
    """Of one pass: processor time on a CPU, the wall on a GPU."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    wait(device)
    begun = clock()
    run()
    wait(device)
    return clock() - begun


def row(spec: str, role: str, size: int, batch: int, device: torch.device, passes: int) -> str:
    """One case, measured, as a row of the table."""
    runs = sides(spec, role, size, batch, device)
    expected = runs["eager"]()
    begun = time.perf_counter()
    found = runs["compiled"]()
    wait(device)
    compiling = time.perf_counter() - begun
    apart = float((found - expected).abs().max() / expected.abs().max())
    for run in runs.values():
        run()
    compute_cost: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(passes):
        for name, run in runs.items():
            compute_cost[name].append(seconds(run, device))
    cells = [f"`{spec}`, {role}, {size} px, batch {batch}"]
    for name in ("eager", "compiled", "folded"):
        each = [1000 * value / batch for value in compute_cost.get(name, [])]
        cells.append(f"{statistics.mean(each):.3g} ({statistics.pstdev(each):.2g})" if each else "")
    for name in ("compiled", "folded"):
        ratios = [
            eager / other for eager, other in zip(compute_cost["eager"], compute_cost.get(name, []), strict=False)
        ]
        cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
    return f"| {' | '.join([*cells, f'{compiling:.0f} s', f'{apart:.1e}'])} |"


def main() -> None:
    """Every case in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--passes", type=int, default=10)
    specs = [case[0] for case in CASES]
    parser.add_argument("--networks", nargs="+", default=specs, choices=specs)
    options = parser.parse_args()
    device = torch.device(options.device)
    print(hardware(device))
    print("| ms an image | eager | compiled | folded | eager / compiled | eager / folded | compiling | apart |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for case in CASES:
            if case[0] in options.networks:
                print(row(*case, device, options.passes), flush=True)


if __name__ == "__main__":
    main()
