"""Processes: torch.distributed under torchrun, or just this one."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from understudy.artifacts import Writers
from understudy.errors import ConfigError, TrainingError
from understudy.parent import PARENT

# Public since torch 2.15.
_set_timeout: Any = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout

CONNECT = timedelta(minutes=5)
"""How long processes have to find each other; then they fail, and torchrun starts them again."""

WATCH_SECONDS, GRACE_SECONDS = 0.5, 3.0
"""How often a process looks for its torchrun, and how long it may take to save and end when that is gone."""

PATIENCE = timedelta(days=7)
"""How long a process waits for the others to agree. One of them may be listing images, building a graph or decoding for
hours, while torch by itself gives up after 10 or 30 minutes. A process that died is noticed without it: its connections
break, and torchrun stops the others."""


@dataclass(frozen=True)
class Processes(Writers):
    """This process' place among all that embed, graph and train together.

    Args:
        rank: 0 ... world - 1; only rank 0 writes results and prints.
        world: how many there are.
        device: where this process computes.
        hosts: the group in which their hosts talk; None where that is the only one there is.
    """

    device: torch.device
    hosts: Any = None

    def wrap(self, student: nn.Module) -> nn.Module:
        """The student as DDP when there are several processes.

        BatchNorm stays local, as the authors ran: in training it sees each process' own images, and the running
        statistics that are kept are those of rank 0. So with it the number of processes changes the weights.
        """
        if self.world == 1:
            return student
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(student, device_ids=ids)

    def average_gradients(self, module: nn.Module) -> None:
        """For parameters outside the student, such as a loss' own, what DDP does for those inside."""
        if self.world == 1:
            return
        for parameter in module.parameters():
            if parameter.grad is None:  # every process must take part
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= self.world

    def agree(self, flag: bool) -> bool:
        """Whether any process raised the flag; every process must call it."""
        return self.total(int(flag)) > 0

    def total(self, count: int) -> int:
        """The sum of every process' count; every process must call it."""
        if self.world == 1:
            return count
        summed = torch.tensor([count], dtype=torch.int64)  # on the host: nobody waits for a GPU
        dist.all_reduce(summed, group=self.hosts)
        return int(summed.item())

    def barrier(self) -> None:
        """Wait for all processes, however long they take."""
        self.total(0)


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is the first of cuda, mps, cpu that exists.

    Raises:
        ConfigError: the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name!r} is not a device. Use cpu, cuda, cuda:N, mps or auto.") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"--device {name} was asked for, but torch sees no CUDA GPU. `understudy doctor` says why."
            )
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise ConfigError(
                f"--device {name} was asked for, but there are {torch.cuda.device_count()} GPUs (from 0)."
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps was asked for, but this machine has no Metal GPU that torch can use.")
    return device


def join(device: str) -> Processes:
    """Join the processes that torchrun started, or be alone. Calling it again changes nothing."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    chosen = choose_device(device)
    if world == 1:
        return Processes(0, 1, chosen)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        if "TORCHELASTIC_RUN_ID" in os.environ:
            _end_with_parent()
        store, rank, world = next(rendezvous("env://", timeout=CONNECT))
        store.set_timeout(CONNECT)
        store = PrefixStore(_common_prefix(store, rank, world), store)
        if chosen.type == "cuda":  # with its own time limit: there, only gradients and keys are waited for
            dist.init_process_group("nccl", store=store, rank=rank, world_size=world)
        else:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=CONNECT)
            _set_timeout(PATIENCE, dist.group.WORLD)
    return Processes(dist.get_rank(), dist.get_world_size(), chosen, _host_group() if chosen.type == "cuda" else None)


def _end_with_parent() -> None:
    """End this process soon after torchrun is gone: killed, it can no longer stop its workers.

    They would go on, or wait for each other, and keep the run folder locked. A process watches its parent itself, as
    the kernel's signal for this (PR_SET_PDEATHSIG) is Linux only and comes when a thread of the parent ends. SIGTERM
    leaves time for a checkpoint. One that was killed before we came here, while torch was imported, is gone too: else
    its store would be looked for as long as `CONNECT`.
    """

    def watch() -> None:
        while os.getppid() == PARENT:
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="torchrun-watch", daemon=True).start()


def _common_prefix(store: Store, rank: int, world: int) -> str:
    """A name that those who are there now agree on, and nobody before them had.

    torchrun keeps one store for all restarts, with all that the killed processes wrote into it (torch 2.11 to 2.15). A
    process that reads the address of a dead one there waits for it for ever. Restarts are counted by each node for
    itself, so their number is no common name.

    Args:
        store: that of torchrun, or of the process 0 where something else launched us.
        rank: of this process.
        world: how many there are.

    Returns:
        The prefix under which these processes alone have written.

    Raises:
        TrainingError: not all came within `CONNECT`.
    """
    mine, begun = uuid.uuid4().hex, time.monotonic()
    if rank == 0:
        store.set("understudy", mine)
        try:
            others = [store.get(f"{mine}/{other}").decode() for other in range(1, world)]
        except dist.DistStoreError:
            raise _not_all_came(rank, world) from None
        store.set(f"{mine}/all", " ".join(others))
        return mine
    while time.monotonic() - begun < CONNECT.total_seconds():
        if store.check(["understudy"]):
            name = store.get("understudy").decode()  # perhaps that of a process 0 that is dead
            store.set(f"{name}/{rank}", mine)
            if store.check([f"{name}/all"]) and mine in store.get(f"{name}/all").decode().split():
                return str(name)
        time.sleep(0.05)
    raise _not_all_came(rank, world)


def _not_all_came(rank: int, world: int) -> TrainingError:
    return TrainingError(
        f"Process {rank} waited {CONNECT.total_seconds():g} s, and not all {world} processes came. Look for the "
        "error of another one above; over several machines check that all reach MASTER_ADDR and MASTER_PORT."
    )


@functools.cache
def _host_group() -> Any:
    """A group of all, made once, in which nobody waits on a GPU."""
    group = dist.new_group(backend="gloo", timeout=CONNECT)
    _set_timeout(PATIENCE, group)
    return group
