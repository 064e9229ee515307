"""`understudy plan`: what a run would cost on this machine, live and recorded, before anything starts.

Reading, the teacher and a training step are each timed for a few seconds on the user's own images; the rest is
arithmetic: how many views the teacher must see, what recording them takes in room, and which way is the shorter.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from understudy.errors import ConfigError
from understudy.pipeline import RunSettings, resolve_method, teacher_of, training_images

if TYPE_CHECKING:
    import torch

    from understudy.models.student import Student
    from understudy.models.teacher import Teacher
    from understudy.sources.source import Source
    from understudy.views.augmentation import Recipe
    from understudy.views.batches import NeighborBatches
    from understudy.views.reader import ImageBatch, Views

SECONDS = 3.0
"""How long each part is timed."""

SAMPLE = 1024
"""Images that are timed, in the form in which a run would read them; at most so many are copied for it."""

POOLS = (1, 2, 4, 8, 16, 32)
GAIN = 1.1
"""Recording must make a run this many times shorter to be worth its room."""

ROOM = 0.5
"""Share of the free disk that recorded views may take."""

BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class Measured:
    """What was timed on this machine."""

    read: float  # images/s decoded and cut into views of the student's size, by one process
    workers: int  # processes that read beside the training
    teacher: float  # views/s through the teacher; infinite for a method without one
    student: float  # images/s through a training step, the teacher left out
    free: int  # bytes free where the store lies
    cut: float = 0.0  # seconds of one process to cut a view again, at the teacher's size; 0 where sizes are the same


@dataclass(frozen=True)
class Way:
    """One way to run: live, or recorded with a pool of V views."""

    teacher: str  # "live" or "recorded"
    pool: int  # V, or 0 for live
    hours: float  # of training, the embedding pass included
    teacher_views: float  # views that the teacher is run on
    gigabytes: float  # of recorded views on the disk
    bandwidth: float  # megabytes of recorded embeddings read in a second once the pool is full
    fits: bool  # whether they fit into the free disk


@dataclass(frozen=True)
class Plan:
    """The ways to run and the one to take."""

    images: int  # N
    width: int  # D
    steps: int  # of training
    measured: Measured  # the timings behind it
    ways: tuple[Way, ...]  # live first, then recorded by growing pool
    chosen: Way  # one of them


def plan(settings: RunSettings, *, seconds: float = SECONDS) -> Plan:
    """Time the parts of a run and say what each way of having the teacher would cost.

    Args:
        settings: the run as it would be started; nothing of it is written.
        seconds: how long each part is timed.

    Raises:
        UnderstudyError: what the run itself would refuse.
    """
    import numpy as np

    from understudy.losses import LOSSES
    from understudy.sources.pixels import decoded
    from understudy.train.distributed import choose_device
    from understudy.views.batches import NeighborBatches

    settings = resolve_method(settings)
    method = LOSSES[settings.method["name"]]
    if not method.needs.teacher or settings.teacher is None:
        raise ConfigError(
            f"Method '{settings.method['name']}' has no teacher, so there is nothing to record; `understudy train` "
            "shows the time that is left."
        )
    if settings.teacher_sharding != "none":
        raise ConfigError(
            "A plan times the teacher in one process, where it cannot be sharded: leave out --teacher-sharding. "
            "Sharded, it takes longer: its weights cross the network once a pass."
        )
    source, _ = training_images(settings)
    teacher = teacher_of(settings.teacher_settings, choose_device(settings.device))
    with tempfile.TemporaryDirectory(prefix="understudy-plan-") as folder:
        some = source.subset(np.arange(min(len(source), SAMPLE)))
        measured = measure(settings, decoded(some, folder), teacher, seconds)
    batches = NeighborBatches(len(source), settings.batch_size)
    steps = batches.steps_for(settings.passes, whole_epochs=settings.optimizer.whole_epochs)
    views = len(method.needs.teacher_views)
    ways = tuple(
        way(
            pool, measured, images=len(source), width=teacher.width, passes=settings.passes, shown=views,
            cell=BYTES[settings.views.dtype],
        )
        for pool in (0, *(pool for pool in POOLS if pool >= method.needs.views))
    )  # fmt: skip
    return Plan(len(source), teacher.width, steps, measured, ways, choose(ways))


def way(pool: int, measured: Measured, *, images: int, width: int, passes: float, shown: int, cell: int) -> Way:
    """The cost of one way, from what was measured.

    Args:
        pool: V; 0 for live.
        measured: the timings.
        images: N.
        width: D.
        passes: length in image passes.
        shown: views of an image that the teacher gets in a batch.
        cell: bytes of a stored number.
    """
    trained = images * passes
    # A neighbor batch does not visit all images evenly; evenly is the mean, and what the pool's end converges to.
    teacher_views = trained * shown if pool == 0 else min(trained * shown, images * pool)
    parallel, readers = measured.workers > 0, max(1, measured.workers)
    reading, step = 1 / (measured.read * readers), 1 / measured.student
    computing_s = trained * step + teacher_views / measured.teacher
    reading_s = trained * reading + teacher_views * measured.cut / readers
    training_s = max(computing_s, reading_s) if parallel else computing_s + reading_s
    embedding_s = images / measured.teacher
    recorded_step = max(step, reading) if parallel else step + reading
    size = 0 if pool == 0 else images * min(pool, math.ceil(passes * shown)) * width * cell
    return Way(
        teacher="live" if pool == 0 else "recorded",
        pool=pool,
        hours=(training_s + embedding_s) / 3600,
        teacher_views=teacher_views,
        gigabytes=size / 1e9,
        bandwidth=0.0 if pool == 0 else width * cell * shown / recorded_step / 1e6,
        fits=size <= ROOM * measured.free,
    )


def choose(ways: tuple[Way, ...]) -> Way:
    """The largest pool that fits and makes the run a tenth shorter; live where none does: fresh views cost nothing."""
    live = ways[0]
    worth = [way for way in ways[1:] if way.fits and live.hours >= GAIN * way.hours]
    # Beyond the length of the run a larger pool changes nothing but the room it may take later.
    return max(worth, key=lambda way: way.pool) if worth else live


def measure(settings: RunSettings, source: Source, teacher: Teacher, seconds: float) -> Measured:
    """Time reading, the teacher and a training step on some of the user's images, so many seconds each."""
    from understudy.losses import build
    from understudy.train import setup
    from understudy.train.distributed import choose_device
    from understudy.views.batches import NeighborBatches
    from understudy.views.tuning import max_workers

    device = choose_device(settings.device)
    teacher, loss = teacher.to(device), build(**settings.method)
    student = setup.build_trained_student(settings.student_settings, loss, teacher, device)
    views = setup.build_views(settings.views, settings.seed, loss, student, teacher)
    batches = NeighborBatches(len(source), min(settings.batch_size, len(source)), seed=settings.seed)
    read, batch = reading_rate(source, batches, dataclasses.replace(views, teacher=None), seconds)
    cut = 0.0
    if views.teacher is not None:
        both, batch = reading_rate(source, batches, views, seconds)
        cut = max(0.0, (1 / both - 1 / read) / len(loss.needs.teacher_views))
    workers = max_workers(source) if settings.workers is None else settings.workers
    student_views = loss.needs.student_views
    rates = network_rates(teacher, student, batch, views.recipe, student_views, device, seconds)
    return Measured(read, workers, *rates, free_bytes(Path(settings.store)), cut)


def reading_rate(source: Source, batches: NeighborBatches, views: Views, seconds: float) -> tuple[float, ImageBatch]:
    """Images/s that one process reads, and a batch of them."""
    from understudy.views.loader import Loader, Reading

    loader = Loader(source, batches, views, reading=Reading(workers=0))
    stream = iter(loader)
    batch = next(stream)
    images_per_s = rate(lambda: len(next(stream).index), seconds)
    loader.close()
    return images_per_s, batch


def network_rates(
    teacher: Teacher, student: Student, batch: ImageBatch, recipe: Recipe, student_views: tuple[int, ...],
    device: torch.device, seconds: float,
) -> tuple[float, float]:  # fmt: skip
    """Views/s through the teacher, and images/s through a training step without it.

    The step of the simplest loss stands for that of any: beside the networks, losses of embeddings cost little.
    """
    import torch

    from understudy.losses import build
    from understudy.train.compile import wait
    from understudy.views.augmentation import photometry

    images = [
        photometry(pixels.to(device), rows, recipe) for pixels, rows in zip(batch.pixels, batch.rows, strict=True)
    ]
    own, loss, pixels = batch.teacher, build("mse"), torch.cat([images[view] for view in student_views])
    targets = teacher(images[0]).repeat(len(student_views), 1)
    student.train()

    def teacher_pass() -> int:
        shown = images[0] if own is None else photometry(own.pixels.to(device), own.rows, recipe)
        teacher(shown)
        wait(device)
        return len(shown)

    def step() -> int:
        for view, rows in zip(batch.pixels, batch.rows, strict=True):
            photometry(view.to(device), rows, recipe)
        prepared = student.contract.prepare(pixels).contiguous(memory_format=torch.channels_last)
        loss(student(prepared), targets).total.backward()
        student.zero_grad(set_to_none=True)
        wait(device)
        return len(batch.index)

    return rate(teacher_pass, seconds), rate(step, seconds)


def free_bytes(folder: Path) -> int:
    """Free room on the disk where a folder is or will be."""
    while not folder.exists():
        folder = folder.parent if folder.parent != folder else Path.cwd()
    return shutil.disk_usage(os.fspath(folder)).free


def rate(work: Callable[[], int], seconds: float) -> float:
    """How many things a second are done: the first call warms up and does not count."""
    work()
    begun, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begun) < seconds:
        done += work()
    return done / elapsed


def table(plan: Plan) -> dict[str, object]:
    """The plan as plain JSON."""
    return dataclasses.asdict(plan)


def show(plan: Plan) -> None:
    """Print the plan: what was measured, every way, and the flags of the one to take."""
    from rich.console import Console
    from rich.table import Table

    measured = plan.measured
    console = Console()
    console.print(
        f"{plan.images:,} images, {plan.steps:,} steps. Measured here: reading {measured.read:,.0f} images/s a "
        f"process ({measured.workers} beside the training), teacher {measured.teacher:,.0f} views/s, student "
        f"{measured.student:,.0f} images/s; {measured.free / 1e9:,.0f} GB free.",
        highlight=False,
    )
    rows = Table()
    for title in ("teacher", "pool", "hours", "teacher views", "GB", "MB/s read", ""):
        rows.add_column(title, justify="left" if title in ("teacher", "") else "right")
    for one in plan.ways:
        remark = "<- take this" if one is plan.chosen else ("does not fit" if not one.fits else "")
        rows.add_row(
            one.teacher, str(one.pool or "no end"), f"{one.hours:.2f}", f"{one.teacher_views:,.0f}",
            f"{one.gigabytes:.2f}", f"{one.bandwidth:.1f}", remark,
        )  # fmt: skip
    console.print(rows)
    flags = "--views.teacher live"
    if plan.chosen.pool:
        flags = f"--views.teacher recorded --views.pool {plan.chosen.pool}"
    console.print(
        f"{flags}\nEstimates: the parts were timed one after another, and the evaluation is not in them. A smaller "
        "pool is faster and shows the student fewer views.",
        highlight=False,
    )
