"""Processes: torch.distributed under torchrun, or just this one."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from understudy.errors import ConfigError


@dataclass(frozen=True)
class Processes:
    """This process' place among all that train together.

    Args:
        rank: 0 ... world - 1; only rank 0 writes files and prints.
        world: how many processes there are.
        device: where this process computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def wrap(self, student: nn.Module) -> nn.Module:
        """The student as DDP when there are several processes. BatchNorm stays local, as the authors ran."""
        if self.world == 1:
            return student
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(student, device_ids=ids, broadcast_buffers=True)

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
        if self.world == 1:
            return flag
        votes = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item() > 0)

    def total(self, count: int) -> int:
        """The sum of every process' count; every process must call it."""
        if self.world == 1:
            return count
        summed = torch.tensor([count], dtype=torch.int64, device=self.device)
        dist.all_reduce(summed)
        return int(summed.item())

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()


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
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Processes(dist.get_rank(), dist.get_world_size(), chosen)
