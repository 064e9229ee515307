"""How a student and a teacher are built. Torch-free: the settings of a run hold both flat."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StudentSettings:
    """How a student is built."""

    spec: str  # model spec; random weights unless it brings some (`@FILE`, `run:`)
    head: str = "auto"  # of `heads.HEADS`; "auto" is none where the widths match and there is no transform, else mlp
    hidden: int = 2048  # width of the hidden layer of an mlp head; 0 for the backbone's own
    transform: str = "none"  # of the teacher's space that it is trained in, see `embed.transform`
    image_size: int | None = None  # side of its input in pixels; its own unless given
    crop: float | None = None  # share of an image's shorter side that it sees in evaluation; its own unless given
    interpolation: str | None = None  # by which images are resized in evaluation; its own unless given


@dataclass(frozen=True)
class TeacherSettings:
    """How a teacher is built."""

    spec: str  # model spec with weights
    mean: tuple[float, ...] | None = None  # three numbers on [0, 1]; the network's own unless given
    std: tuple[float, ...] | None = None  # three numbers on [0, 1]; the network's own unless given
    precision: str = "auto"  # what it computes in, see `precision.resolve_precision`
    sharded: bool = False  # whether each process holds a share of its weights
    image_size: int | None = None  # side of its input in pixels; its own unless given
    output: str = "pooled"  # what of it is the embedding, see `outputs.read_out`
