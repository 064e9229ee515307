"""How a student and a teacher are built. Torch-free: the settings of a run hold both flat."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StudentSettings:
    """How a student is built.

    Args:
        spec: model spec; random weights unless it brings some (`@FILE`, `run:`).
        head: of `heads.HEADS`; "auto" is none where the widths match and there is no transform, else mlp.
        hidden: width of the hidden layer of an mlp head; 0 for the backbone's own.
        transform: of the teacher's space that it is trained in, see `embed.transform`.
        image_size: side of its input in pixels; its own unless given.
        crop: share of an image's shorter side that it sees in evaluation; its own unless given.
        interpolation: by which images are resized in evaluation; its own unless given.
    """

    spec: str
    head: str = "auto"
    hidden: int = 2048
    transform: str = "none"
    image_size: int | None = None
    crop: float | None = None
    interpolation: str | None = None


@dataclass(frozen=True)
class TeacherSettings:
    """How a teacher is built.

    Args:
        spec: model spec with weights.
        mean: three numbers on [0, 1]; the network's own unless given.
        std: three numbers on [0, 1]; the network's own unless given.
        precision: what it computes in, see `precision.resolve_precision`.
        sharded: whether each process holds a share of its weights.
    """

    spec: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    precision: str = "auto"
    sharded: bool = False
