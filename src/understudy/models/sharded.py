"""The teacher's weights shared out over the processes, for one that does not fit on each of their devices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from understudy.artifacts import Writers
from understudy.errors import ConfigError, ModelError, first_line
from understudy.models.cost import flops
from understudy.models.onnx_encoder import onnx_encoders
from understudy.models.outputs import EncoderOutput
from understudy.models.precision import arithmetic
from understudy.models.teacher import Teacher

GROUPS = 8  # a part of a network with at most this share of its weights is gathered as one; a larger one, part by part


class ShardedTeacher(Teacher):
    """A frozen encoder of which each process holds a share of every weight (FSDP2, `fully_shard`).

    Differs from `Teacher` in that a pass needs all processes: the weights of one part of the network after the other
    are gathered, used and dropped. Processes need not have equally many images: in the block of `collective`, one that
    has none left takes part with a blank one until nobody has any.

    Its embeddings are those of the whole teacher: bit for bit, but for convolutional networks on CPUs, which are not
    laid out channels last here and so differ by rounding.

    All processes make this from the same teacher, whole and on the CPU; its weights are taken out of it.

    Raises:
        ConfigError: there is one process only, or the device cannot gather.
        ModelError: an ONNX file; or a network whose parts use each other's weights.
    """

    def __init__(self, teacher: Teacher, writers: Writers, device: torch.device) -> None:
        nn.Module.__init__(self)
        require_processes(writers)
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(f"A teacher is sharded on CPUs or CUDA devices, not on {device.type}.")
        if onnx_encoders(teacher):
            raise ModelError(
                f"{teacher.spec} is an ONNX file, whose weights its runtime keeps: it cannot be sharded. Leave out "
                "--teacher-sharding, or give the network as timm:, torchvision: or python: with its weights."
            )
        self.contract, self.spec, self.width = teacher.contract, teacher.spec, teacher.width
        self.weights, self.fingerprint, self.library = teacher.weights, teacher.fingerprint, teacher.library
        self.output = teacher.output
        self.probe = teacher.probe
        self.parameters_count, self.precision = teacher.parameters_count, teacher.precision
        self.convolves = False  # channels last is no layout of a shard
        self.flops = flops(teacher)  # asked for by one process at the end, when it can no longer be counted
        self.writers, self.device = writers, device
        self.module: Any = teacher.module
        for parameter in self.module.parameters():
            parameter.data = parameter.data.contiguous()  # as shards are laid out
        self.eval()
        mesh = init_device_mesh(device.type, (writers.world,))
        for part in [*gather_groups(self.module), self.module]:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        try:
            self._pass(self._blank())
        except (RuntimeError, TypeError) as error:
            if "DTensor" not in str(error):
                raise
            raise ModelError(
                f"{self.spec} cannot be sharded: a part of it uses weights of another without calling it "
                f"({first_line(error)}). Leave out --teacher-sharding."
            ) from None

    def to(self, *args: Any, **kwargs: Any) -> ShardedTeacher:  # noqa: ARG002
        """Stay where it is: the shards lie on the devices of their processes."""
        return self

    @torch.no_grad()
    def features(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """(B, 3, S, S) prepared -> (B, D) float32; inside of `collective` only."""
        self.writers.agree(True)  # somebody has images: the others join in
        return self._pass(x)

    def forward_outputs(self, images: Tensor, *, attention: bool = False) -> EncoderOutput:  # noqa: ARG002
        """Refused: tokens are read from parts of the network, whose weights are not there when it is their turn."""
        raise ConfigError(f"{self.spec} is sharded, and shows its embedding only: leave out --teacher-sharding.")

    @contextlib.contextmanager
    def collective(self) -> Iterator[None]:
        """A block that all processes enter, and leave when nobody has images for the teacher any more."""
        yield
        while self.writers.agree(False):
            self._pass(self._blank())

    def _pass(self, x: Tensor) -> Tensor:
        # FSDP keeps tensors from one pass to the next, so they must not be those of inference mode.
        with torch.inference_mode(False), torch.no_grad(), arithmetic(self.precision, self.device):
            features: Tensor = self.module(x.clone() if x.is_inference() else x)
            return features.float()

    def _blank(self) -> Tensor:
        return torch.zeros(1, 3, self.contract.size, self.contract.size, device=self.device)


def collective_calls(teacher: object) -> contextlib.AbstractContextManager[None]:
    """A block in which a teacher is called; all processes enter and leave it together where the teacher is sharded."""
    return teacher.collective() if isinstance(teacher, ShardedTeacher) else contextlib.nullcontext()


def require_processes(writers: Writers) -> None:
    """Refuse (ConfigError) to shard what one process has to hold whole."""
    if writers.world == 1:
        raise ConfigError(
            "teacher_sharding fsdp shares the teacher's weights out over several processes, and there is one. Start "
            "it with torchrun --nproc-per-node N -m understudy ..., or leave out --teacher-sharding."
        )


def gather_groups(module: nn.Module) -> list[nn.Module]:
    """The parts of a network that are gathered one after the other, in an order that has inner ones first.

    A part with more than 1 / `GROUPS` of all weights is taken apart, as long as it has parts; weights that are left
    over, outside of any part, belong to the network itself.
    """
    limit = sum(parameter.numel() for parameter in module.parameters()) / GROUPS

    def parts(whole: nn.Module) -> list[nn.Module]:
        chosen: list[nn.Module] = []
        for child in whole.children():
            count = sum(parameter.numel() for parameter in child.parameters())
            # It uses the weights of its projection without calling it.
            if count > limit and any(True for _ in child.children()) and not isinstance(child, nn.MultiheadAttention):
                chosen += parts(child)
            elif count > limit / GROUPS:  # less is not worth a gathering of its own
                chosen.append(child)
        return chosen

    return parts(module)
