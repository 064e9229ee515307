"""All that a training consists of, and what of it a checkpoint holds."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from understudy.artifacts import Run, write_text
from understudy.errors import ConfigError, DataError, TrainingError, first_line
from understudy.losses import build
from understudy.models.student import Student
from understudy.models.teacher import Teacher
from understudy.settings import write_toml
from understudy.train import setup
from understudy.train.checkpoint import load_checkpoint
from understudy.train.compile import Compiled, Networks, Workload, choose
from understudy.train.distributed import Processes
from understudy.train.resume import resolved
from understudy.train.schedule import build_optimizer, learning_rate
from understudy.train.settings import TrainSettings
from understudy.train.setup import TrainingData
from understudy.views.batches import NeighborBatches
from understudy.views.loader import Loader, Reading, Share
from understudy.views.reader import ImageBatch


class TrainState:
    """A training between two steps: all that it consists of.

    Args:
        settings: what is trained and how.
        data: the images.
        teacher: on the device, or None for methods that need none.
        processes: this process' place among all.

    Raises:
        ConfigError: settings that exclude each other, or a teacher that is missing.
        ModelError: a network that the method cannot be used with.
    """

    def __init__(
        self, settings: TrainSettings, data: TrainingData, teacher: Teacher | None, processes: Processes
    ) -> None:
        self.settings, self.data, self.teacher, self.processes = settings, data, teacher, processes
        self.device = device = processes.device
        # The method says what it needs, the teacher how wide the space is, the student adapts to both.
        loss = build(**settings.method)
        if loss.needs.teacher and teacher is None:
            raise ConfigError(f"Method '{settings.method['name']}' needs a teacher. Give one with --teacher.")
        torch.manual_seed(settings.seed)
        self.student = student = setup.build_trained_student(settings.student_settings, loss, teacher, device)
        setup.require_requested_outputs(settings, loss, student, teacher)
        loss.prepare(student.width, teacher.width if teacher is not None else 0)
        self.loss = loss.to(device)
        self.requested = setup.requested_outputs(loss)
        self.average: Student | None = None
        """The moving average of the student that makes the keys."""
        if loss.needs.key:
            self.average = copy.deepcopy(student).eval().requires_grad_(False)

        k, n = settings.neighbors.k, settings.neighbors.n
        self.batches = batches = NeighborBatches(
            len(data.source), settings.batch_size, k=k, n=n, seed=settings.seed, graph=data.graph
        )
        self.share = batches.batch_size // processes.world
        """Images of a batch on this process."""
        self.teacher_batch = len(loss.needs.teacher_views) * batches.batch_size // processes.world
        """Views of a batch that the teacher gets on this process."""
        views = setup.build_views(settings.views, settings.seed, loss, student, teacher)
        needed = teacher if loss.needs.teacher else None
        self.recorded, self.views = setup.build_recorded(settings.views, views, data.store, needed, self.teacher_batch)
        self.transform = None if data.transform is None else [
            torch.from_numpy(part).float().to(device) for part in (data.transform.mean, data.transform.matrix)
        ]  # fmt: skip

        self.optimizer = build_optimizer([student, loss], settings.optimizer, device)
        self.precision, self.autocast, self.scaler = setup.choose_arithmetic(settings.precision, device)
        self.steps, self.warmup_steps = (
            batches.steps_for(passes, whole_epochs=settings.optimizer.whole_epochs)
            for passes in (settings.passes, settings.optimizer.warmup)
        )
        self.networks = Networks(student, self.average, needed if self.recorded is None else None)
        """What the loop calls, compiled or not; `trained` is the student in it, in DDP where there are processes."""
        self.trained: nn.Module = student
        self.compiled: Compiled | None = None
        self.step, self.seconds_before, self.started = 0, 0.0, time.monotonic()
        self.skipped: dict[str, str] = {}

    @property
    def teacher_size(self) -> int:
        """Side of the teacher's views in pixels."""
        return self.views.size if self.views.teacher is None else self.views.teacher.size

    @property
    def passes(self) -> float:
        """How often an image was in a batch so far, on average."""
        return self.batches.passes_of(self.step)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before it was resumed included."""
        return self.seconds_before + time.monotonic() - self.started

    @property
    def step_seed(self) -> int:
        """Seed of whatever is random inside the student in this step (dropout, stochastic depth) on this process.

        As a function of seed, step and rank it needs no random state in a checkpoint.
        """
        return self.settings.seed * 1_000_003 + self.step * self.processes.world + self.processes.rank

    def resume(self, run: Run) -> None:
        """Take the place of the run's checkpoint; without one the run folder gets the settings and starts.

        Raises:
            TrainingError: the checkpoints are damaged, or not those of this training.
        """
        checkpoint = load_checkpoint(run, self.device, self.steps)
        if checkpoint is not None:
            try:
                self.load_state_dict(checkpoint)
            except Exception as error:  # torch says in many ways that tensors or tables are those of something else
                raise TrainingError(
                    f"The checkpoint in {run.checkpoint_path.parent} is not of this training ({first_line(error)}). "
                    "Delete that folder to train from the start."
                ) from None
        elif self.processes.main:
            write_text(run.config_path, write_toml(resolved(self.settings)))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds; every process must call it."""
        if self.recorded is not None:
            self.recorded.flush()  # a resumed run begins behind these steps, and may never ask for their views again
        return {
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "compiled": None if self.compiled is None else dataclasses.asdict(self.compiled),
            "teacher_views": self.processes.total(self.recorded.computed) if self.recorded is not None else 0,
            "student": self.student.state_dict(),
            "key": self.average.state_dict() if self.average is not None else None,
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.student.load_state_dict(state["student"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["key"])
        if self.recorded is not None:
            self.recorded.computed = state["teacher_views"] if self.processes.main else 0  # it counts those of all
        self.step, self.seconds_before, self.skipped = state["step"], state["seconds"], dict(state["skipped"])
        self.compiled = Compiled(**state["compiled"])

    def compile(self, notify: Callable[[str], object] | None = None) -> None:
        """Choose which networks are compiled; a resumed run repeats what it began with.

        Raises:
            TrainingError: it was asked for, or the run began with it, and it fails.
        """
        chunks, loss, size = self.settings.chunks, self.loss, self.student.contract.size
        # In training mode, as it will run: what is measured now is what is called in the loop.
        self.student.train()
        workload = Workload(
            student=(math.ceil(self.share / chunks) * (len(loss.needs.student_views) + loss.needs.cutmix), size),
            key=(math.ceil(self.share * len(loss.needs.key_views) / chunks), size),
            teacher=(self.teacher_batch, self.teacher_size),
            autocast=self.autocast,
            steps=self.steps - self.step,
        )
        self.networks, self.compiled = choose(
            "false" if self.requested else self.settings.compile, self.networks, workload, self.processes,
            before=self.compiled, notify=notify,
        )  # fmt: skip
        self.trained = self.processes.wrap(self.networks.student)

    def loader(self, notify: Callable[[str], object] | None = None) -> Loader:
        """The batches that are still to come."""
        return Loader(
            self.data.source, self.batches, self.views,
            reading=Reading(self.settings.workers, self.device, notify),
            share=Share(self.processes.rank, self.processes.world), steps=range(self.step, self.steps),
        )  # fmt: skip

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The block of the steps: its seconds count, and whatever ends it, the views recorded in it are kept."""
        self.started = time.monotonic()
        try:
            yield
        finally:
            if self.recorded is not None:
                self.recorded.flush()

    def begin_step(self, batch: ImageBatch) -> None:
        """Seed this step and set its learning rate.

        Raises:
            DataError: none of its images can be read.
        """
        self.skipped.update(batch.skipped)
        if len(batch.index) == 0:
            raise DataError(
                f"No image of step {self.step} can be read, e.g. {next(iter(batch.skipped))}. Check the data."
            )
        torch.manual_seed(self.step_seed)
        rate = learning_rate(
            self.step, self.steps, self.warmup_steps, self.settings.optimizer, self.batches.steps_per_epoch
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def update(self) -> None:
        """Step student and loss along their gradients, and let the average follow."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            follow(self.average, self.student, self.loss.key_momentum)
        self.step += 1

    def stance(self, batch: ImageBatch) -> contextlib.AbstractContextManager[Any]:
        """Around a forward pass: a batch that lost images has a shape of its own, and nothing is compiled for it."""
        assert self.compiled is not None
        return self.compiled.stance(whole=len(batch.index) == self.share)


@torch.no_grad()
def follow(average: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the average towards the student: parameters and float buffers (running statistics) alike."""
    old = [*average.parameters(), *(b for b in average.buffers() if b.is_floating_point())]
    new = [*student.parameters(), *(b for b in student.buffers() if b.is_floating_point())]
    torch._foreach_lerp_(old, new, 1 - momentum)
