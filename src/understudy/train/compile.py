"""torch.compile of the student and of the live teacher, where a short measurement says that it pays.

Compiled and eager arithmetic differ in the last bits. On a CPU the same command gives the same bits, which a stopwatch
must not decide: there nothing is compiled unless it is asked for. On a GPU, where kernels add in no fixed order anyway,
it is measured. Either way a run keeps to what it began with: its checkpoint says what was compiled.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from understudy.embed.recorded import in_fixed_batches
from understudy.errors import TrainingError
from understudy.models.onnx_encoder import onnx_encoders
from understudy.models.sharded import ShardedTeacher
from understudy.models.teacher import Teacher
from understudy.train.distributed import Processes
from understudy.train.log import clock

Network = TypeVar("Network", bound=nn.Module)

SHORTEST = 1200.0
"""Seconds of eager work below which compiling is not even tried: it takes about a minute, and may turn out useless."""

GAIN = 1.05
"""Compiled passes must be so many times as fast: two measurements of the same thing may differ by less."""

TRIAL = 3
"""Passes that are timed."""

BACKEND = "inductor"


@dataclasses.dataclass(frozen=True)
class Networks:
    """What the loop calls; compiled or not, the weights are those of the same student and teacher.

    Args:
        student: what is trained.
        key: its average, or None.
        teacher: the live teacher; None where there is none, or its views are recorded: whoever computes a cell, it
            holds the same bits.
    """

    student: nn.Module
    key: nn.Module | None
    teacher: Teacher | None


@dataclasses.dataclass(frozen=True)
class Workload:
    """What passes through the networks in each step, and how often.

    Args:
        student: how many images the student gets at once, and their side in pixels.
        key: the same of its average.
        teacher: the same of the teacher.
        autocast: the arithmetic of the student.
        steps: how many are left.
    """

    student: tuple[int, int]
    key: tuple[int, int]
    teacher: tuple[int, int]
    autocast: torch.autocast
    steps: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Which networks of a run are compiled, as its checkpoint and its log have it.

    Args:
        student: whether the student is, and the average that makes the keys.
        teacher: whether the live teacher is.
        device: kind of device; on another one it is chosen anew.
    """

    student: bool
    teacher: bool
    device: str

    def stance(self, whole: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a step: one whose batch lost images, which has its own shape, runs eager and compiles nothing."""
        if whole or not (self.student or self.teacher):
            return contextlib.nullcontext()
        return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def choose(
    setting: str,
    networks: Networks,
    workload: Workload,
    processes: Processes,
    *,
    before: Compiled | None = None,
    notify: Callable[[str], object] | None = None,
) -> tuple[Networks, Compiled]:
    """What to call in this run, and which of it is compiled.

    Args:
        setting: "auto", "true" or "false".
        networks: eager.
        workload: of a step.
        processes: all of them compile the same.
        before: of the checkpoint; it is repeated.
        notify: called with a sentence on what was measured.

    Raises:
        TrainingError: compiling was asked for, or is what the run began with, and it fails.
    """
    device = processes.device
    if before is not None and before.device != device.type:
        before = None
    measures = device.type == "cuda" and not torch.are_deterministic_algorithms_enabled()
    if setting == "false" or (setting == "auto" and before is None and not measures):
        return networks, Compiled(student=False, teacher=False, device=device.type)
    passes = {"student": student_pass(workload, device)}
    if networks.teacher is not None and can_compile(networks.teacher):
        passes["teacher"] = teacher_pass(workload, device)
    chosen, compiled, findings = networks, {"student": False, "teacher": False}, []
    for name, run in passes.items():
        required = setting == "true" if before is None else bool(getattr(before, name))
        if before is not None and not required:
            continue
        compile_part = functools.partial(with_compiled, networks, name)
        trial, finding = measure(run, networks, compile_part, workload.steps, device, required=required)
        findings.append(f"{name} {finding}")
        if not processes.agree(trial is None) and trial is not None:
            compiled[name] = True
            parts = {"teacher": trial.teacher} if name == "teacher" else {"student": trial.student, "key": trial.key}
            chosen = dataclasses.replace(chosen, **parts)
    if notify is not None and findings:
        notify(f"torch.compile: {'; '.join(findings)}.")
    return chosen, Compiled(**compiled, device=device.type)


def student_pass(workload: Workload, device: torch.device) -> Callable[[Networks], object]:
    """One pass of student and average over noise, with gradients; it leaves no trace in them."""
    images = noise(*workload.student, device).contiguous(memory_format=torch.channels_last)
    key_images = noise(*workload.key, device)

    def run(networks: Networks) -> None:
        before = [buffer.clone() for buffer in networks.student.buffers()]
        with workload.autocast:
            embedding = networks.student(images)
            if networks.key is not None:
                with torch.no_grad():
                    networks.key(key_images)
        embedding.float().square().mean().backward()
        networks.student.zero_grad(set_to_none=True)
        for buffer, value in zip(networks.student.buffers(), before, strict=True):
            buffer.copy_(value)

    return run


def teacher_pass(workload: Workload, device: torch.device) -> Callable[[Networks], object]:
    """One pass of the teacher over noise."""
    images = noise(*workload.teacher, device)

    def run(networks: Networks) -> None:
        assert networks.teacher is not None
        in_fixed_batches(networks.teacher, images, len(images))

    return run


def measure(
    run: Callable[[Networks], object],
    networks: Networks,
    compile_networks: Callable[[], Networks],
    steps: int,
    device: torch.device,
    *,
    required: bool,
) -> tuple[Networks | None, str]:
    """Time passes eager and compiled.

    Args:
        run: one pass.
        networks: eager.
        compile_networks: gives the same, compiled.
        steps: over which compiling has to pay.
        device: where.
        required: compile however short the run and whatever it gains, and fail if that fails.

    Returns:
        The compiled networks, or None where they are not to be used; and what was found, as a sentence's end.

    Raises:
        TrainingError: compiling is required and fails.
    """
    eager = seconds_of(lambda: run(networks), device)
    if not required and steps * eager < SHORTEST:
        return None, f"not compiled, for {clock(steps * eager)} of work in all"
    try:
        trial = compile_networks()
        begun = time.perf_counter()
        run(trial)
        wait(device)
        compiling = time.perf_counter() - begun
        compiled = seconds_of(lambda: run(trial), device)
    except Exception as error:  # it runs compilers that are not ours, and fails in any way they like
        paragraph = " ".join(str(error).strip().split("\n\n")[0].split())
        reason = f"{type(error).__name__}: {paragraph[:300]}"
        if required:
            raise TrainingError(
                f"torch.compile failed ({reason}). It needs a C++ compiler on a CPU and Triton on a GPU. Install what "
                "is missing, or train with --compile false in a new --out."
            ) from error
        return None, f"not compiled, because that failed ({reason})"
    saved = steps * (eager - compiled)
    finding = (
        f"compiled in {compiling:.0f} s, {compiled:.3g} s a step in place of {eager:.3g}, so {clock(abs(saved))} "
        f"{'saved' if saved >= 0 else 'LOST'} over the run"
    )
    if required or eager >= GAIN * compiled:
        return trial, finding
    return None, f"not compiled: {compiled:.3g} s a step in place of {eager:.3g}"


def can_compile(teacher: Teacher) -> bool:
    """Whether there is a whole network in this process that torch could compile."""
    return not isinstance(teacher, ShardedTeacher) and not onnx_encoders(teacher)


def compiled_copy(network: Network) -> Network:
    """The same network, compiled: it shares weights, buffers and names with the one given, which stays eager.

    Shapes are constants of the compiled code, so that how a batch is rounded does not depend on those before it.
    """
    shallow = copy.copy(network)
    shallow.compile(dynamic=False, backend=BACKEND)
    return shallow


def compiled_teacher(teacher: Teacher) -> Teacher:
    """The same teacher with its network compiled; the input contract stays outside."""
    shallow = copy.copy(teacher)
    shallow._modules = {
        "module": compiled_copy(teacher.module)
    }  # a copy would share its table of parts with the original
    return shallow


def with_compiled(networks: Networks, part: str) -> Networks:
    """The same networks, "teacher" compiled, or "student" and its average."""
    if part == "teacher":
        assert networks.teacher is not None
        return dataclasses.replace(networks, teacher=compiled_teacher(networks.teacher))
    key = None if networks.key is None else compiled_copy(networks.key)
    return dataclasses.replace(networks, student=compiled_copy(networks.student), key=key)


def noise(count: int, size: int, device: torch.device) -> torch.Tensor:
    """(count, 3, size, size) in [0, 1], laid out as views are, from a generator of its own."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one pass, the median of a few; the first warms up and does not count."""
    run()
    seconds = []
    for _ in range(TRIAL):
        wait(device)
        begun = time.perf_counter()
        run()
        wait(device)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def wait(device: torch.device) -> None:
    """Wait until a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
