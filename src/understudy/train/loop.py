"""THE training loop. Every method, every teacher and every number of processes goes through `train`, top to bottom.

It knows no method by name: a loss declares what it needs (`losses.Loss`), and the loop gives exactly that.
"""

from __future__ import annotations

import contextlib

from understudy.artifacts import Run
from understudy.models.malloc import keep_freed_memory
from understudy.models.teacher import Teacher
from understudy.train.checkpoint import save_checkpoint
from understudy.train.distributed import Processes
from understudy.train.finish import costs_of, finish
from understudy.train.monitor import Monitor
from understudy.train.resume import refuse_other_settings
from understudy.train.settings import TrainSettings
from understudy.train.setup import TrainingData
from understudy.train.signals import Probe
from understudy.train.state import TrainState
from understudy.train.step import compute_loss
from understudy.train.step_inputs import gather
from understudy.train.stopping import Pauses, stop_requests


def train(
    settings: TrainSettings,
    run: Run,
    data: TrainingData,
    *,
    teacher: Teacher | None,
    processes: Processes,
    probe: Probe | None = None,
    quiet: bool = False,
) -> bool:
    """Train a student, from the start or from where the run folder stands.

    The same settings and seed give the same weights on the same machine, interrupted or not.

    Args:
        settings: what to train and how.
        run: the run folder; a checkpoint in it is resumed, a finished student in it is left as it is.
        data: training images, with neighbors, store and transform where the settings need them.
        teacher: on `processes.device`, or None for methods that need none.
        processes: this process' place among all.
        probe: held-out images for the live signals.
        quiet: print nothing.

    Returns:
        True when training is finished, False when it was asked to stop (SIGTERM, SIGINT) and left a checkpoint.

    Raises:
        TrainingError: the run folder belongs to other settings, or the loss is not finite.
    """
    refuse_other_settings(run, settings)
    if run.trained:
        return True
    state = TrainState(settings, data, teacher, processes)
    state.resume(run)
    monitor = Monitor(state, run, probe, quiet)
    monitor.announce()
    state.compile(monitor.notify)
    loader = state.loader(monitor.notify)
    with monitor.logging():
        with stop_requests() as stop, contextlib.closing(loader), state.running(), keep_freed_memory(state.device):
            pauses = Pauses(stop, settings.checkpoint_minutes, processes)
            for batch in monitor.meter.waiting(loader):
                state.begin_step(batch)
                inputs = gather(state, batch, monitor.meter.in_teacher())
                terms = compute_loss(state, inputs)
                monitor.check(batch, terms)
                state.update()
                monitor.show()
                if pauses.due(state.step) and state.step < state.steps:
                    save(state, run, monitor)
                    if pauses.stopping:
                        monitor.stopped()
                        return False
        save(state, run, monitor)
        costs = costs_of(state)
        if processes.main:
            seconds = finish(state, run)
            monitor.finished(loader, seconds, costs)
    processes.barrier()
    return True


def save(state: TrainState, run: Run, monitor: Monitor) -> None:
    """Write a checkpoint, once all losses up to it are known to be finite; every process must call it."""
    monitor.flush()
    reached = state.state_dict()
    if state.processes.main:
        save_checkpoint(run, reached)
