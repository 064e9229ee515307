"""torch.compile of the student and of the live teacher, where a short measurement says that it pays.

Compiled and eager arithmetic differ in the last bits. On a CPU the same command gives the same bits, which a stopwatch
must not decide: there nothing is compiled unless it is asked for. On a GPU, where kernels add in no fixed order anyway,
it is measured. Either way a run keeps to what it began with: its checkpoint says what was compiled.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from understudy.embed.recorded import in_fixed_batches
from understudy.errors import TrainingError
from understudy.models.onnx_encoder import OnnxEncoder
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
class Compiled:
    """What of a run is compiled, as its checkpoint and its log have it.

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
    wanted: str,
    networks: Networks,
    *,
    student_images: tuple[int, int],
    key_images: tuple[int, int],
    teacher_images: tuple[int, int],
    half: torch.autocast,
    steps: int,
    processes: Processes,
    before: Compiled | None = None,
    notify: Callable[[str], object] | None = None,
) -> tuple[Networks, Compiled]:
    """What to call in this run, and what of it is compiled.

    Args:
        wanted: "auto", "true" or "false".
        networks: as they are.
        student_images: how many the student sees at once, and their side in pixels.
        key_images: the same of the average.
        teacher_images: the same of the teacher.
        half: the arithmetic of the student.
        steps: how many are left.
        processes: all of them compile the same.
        before: of the checkpoint; it is repeated.
        notify: called with a sentence on what was found.

    Raises:
        TrainingError: compiling was asked for, or is what the run began with, and it fails.
    """
    device = processes.device
    if before is not None and before.device != device.type:
        before = None
    measures = device.type == "cuda" and not torch.are_deterministic_algorithms_enabled()
    if wanted == "false" or (wanted == "auto" and before is None and not measures):
        return networks, Compiled(student=False, teacher=False, device=device.type)
    pixels = pictures(*student_images, device).contiguous(memory_format=torch.channels_last)
    seen_by_key = pictures(*key_images, device)

    def student_pass(called: Networks) -> None:
        kept = [buffer.clone() for buffer in called.student.buffers()]
        with half:
            embedding = called.student(pixels)
            if called.key is not None:
                with torch.no_grad():
                    called.key(seen_by_key)
        embedding.float().square().mean().backward()
        called.student.zero_grad(set_to_none=True)
        for buffer, value in zip(called.student.buffers(), kept, strict=True):
            buffer.copy_(value)  # a trial leaves no trace

    def quick_student() -> Networks:
        key = None if networks.key is None else twin(networks.key)
        return dataclasses.replace(networks, student=twin(networks.student), key=key)

    trials: dict[str, tuple[Callable[[Networks], object], Callable[[], Networks]]] = {
        "student": (student_pass, quick_student)
    }
    teacher = networks.teacher
    if teacher is not None and can_compile(teacher):
        views = pictures(*teacher_images, device)

        def teacher_pass(called: Networks) -> None:
            assert called.teacher is not None
            in_fixed_batches(called.teacher, views, len(views))

        trials["teacher"] = teacher_pass, lambda: dataclasses.replace(networks, teacher=twin_of(teacher))
    chosen, made, said = networks, dict.fromkeys(("student", "teacher"), False), []
    for name, (run, quick) in trials.items():
        must = wanted == "true" if before is None else bool(getattr(before, name))
        if before is not None and not must:
            continue
        tried, words = measure(run, networks, quick, steps, device, must=must)
        said.append(f"{name} {words}")
        if not processes.agree(tried is None) and tried is not None:
            made[name] = True
            taken = {"teacher": tried.teacher} if name == "teacher" else {"student": tried.student, "key": tried.key}
            chosen = dataclasses.replace(chosen, **taken)
    if notify is not None and said:
        notify(f"torch.compile: {'; '.join(said)}.")
    return chosen, Compiled(**made, device=device.type)


def measure(
    run: Callable[[Networks], object],
    networks: Networks,
    quick: Callable[[], Networks],
    steps: int,
    device: torch.device,
    *,
    must: bool,
) -> tuple[Networks | None, str]:
    """Time passes eager and compiled.

    Args:
        run: one pass.
        networks: eager.
        quick: the same, compiled.
        steps: over which compiling has to pay.
        device: where.
        must: compile however short the run and whatever it gains, and fail if that fails.

    Returns:
        The compiled networks, or None where they are not to be used; and what was found, in words.

    Raises:
        TrainingError: compiling fails, and it must not.
    """
    eager = seconds_of(lambda: run(networks), device)
    if not must and steps * eager < SHORTEST:
        return None, f"not compiled, for {clock(steps * eager)} of work in all"
    try:
        tried = quick()
        begun = time.perf_counter()
        run(tried)
        wait(device)
        compiling = time.perf_counter() - begun
        compiled = seconds_of(lambda: run(tried), device)
    except Exception as error:  # it runs compilers that are not ours, and fails in any way they like
        paragraph = " ".join(str(error).strip().split("\n\n")[0].split())
        reason = f"{type(error).__name__}: {paragraph[:300]}"
        if must:
            raise TrainingError(
                f"torch.compile failed ({reason}). It needs a C++ compiler on a CPU and Triton on a GPU. Install what "
                "is missing, or train with --compile false in a new --out."
            ) from error
        return None, f"not compiled, because that failed ({reason})"
    saved = steps * (eager - compiled)
    words = (
        f"compiled in {compiling:.0f} s, {compiled:.3g} s a step in place of {eager:.3g}, so {clock(abs(saved))} "
        f"{'saved' if saved >= 0 else 'LOST'} over the run"
    )
    if must or eager >= GAIN * compiled:
        return tried, words
    return None, f"not compiled: {compiled:.3g} s a step in place of {eager:.3g}"


def can_compile(teacher: Teacher) -> bool:
    """Whether there is a whole network in this process that torch could compile."""
    return not isinstance(teacher, ShardedTeacher) and not any(
        isinstance(part, OnnxEncoder) for part in teacher.modules()
    )


def twin(network: Network) -> Network:
    """The same network, compiled: it shares weights, buffers and names with the one given, which stays eager.

    Shapes are constants of the compiled code, so that how a batch is rounded does not depend on those before it.
    """
    shallow = copy.copy(network)
    shallow.compile(dynamic=False, backend=BACKEND)
    return shallow


def twin_of(teacher: Teacher) -> Teacher:
    """The same teacher with its network compiled; the input contract stays outside."""
    shallow = copy.copy(teacher)
    shallow._modules = {"module": twin(teacher.module)}  # a copy would share its table of parts with the original
    return shallow


def pictures(count: int, size: int, device: torch.device) -> torch.Tensor:
    """(count, 3, size, size) noise in [0, 1], laid out as views are, from a generator of its own."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one pass, the median of a few; the first warms up and does not count."""
    run()
    compute_cost = []
    for _ in range(TRIAL):
        wait(device)
        begun = time.perf_counter()
        run()
        wait(device)
        compute_cost.append(time.perf_counter() - begun)
    return statistics.median(compute_cost)


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
