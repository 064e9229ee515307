"""What every method is and returns: `Loss` declares it, `Terms` is its answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from understudy.losses.base.requirements import Requirements
from understudy.papers import bibtex


@dataclass(frozen=True)
class Terms:
    """The value of a loss and what it is made of.

    Args:
        total: scalar tensor to minimize, with gradient.
        parts: named scalar tensors, before weights and scales, for logs and curves.
    """

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class NoSettings:
    """Of a method without settings of its own."""


class Loss(nn.Module):
    """Base of all methods: a subclass in a file of its own, named as the file, is a method; nothing else is needed.

    Its class attributes declare it, and everything that lists, checks, plans, trains or cites methods reads them. What
    follows from a setting (`needs`, `in_teacher_space`, `key_momentum`, ...) is set again on the instance; the class
    attribute is what the default setting needs. Queues and pointers are buffers, so a checkpoint holds them. Parameters
    of a loss, built in `prepare`, are trained with the student and thrown away after training.

    `forward` is called with what `needs` asks for, as `Requirements` says: raw embeddings of one process, the student's
    with gradient, all others without. It gives `Terms`, and refuses shapes that do not fit by a `ShapeError` that has
    them. A method says of its `forward` what its parts are, and what it takes beyond `student` and `teacher`.

    Args:
        settings: the method's own, checked: `losses.build` makes them from a table.
    """

    name: ClassVar[str] = ""
    """As written after `--method`, and as the file is called."""
    summary: ClassVar[str] = ""
    """One line for lists of methods."""
    paper: ClassVar[str] = ""
    """BibTeX: declared by the key of an entry of `papers.bib`, or in full."""
    authors: ClassVar[Mapping[str, object]] = {}
    """What its authors ran, as flat settings of a run (`optimizer.lr`, `method.queue`, ...): `--recipe authors`. Their
    arithmetic (fp16 in some) is left to `precision`; their BatchNorm is local to each process, like ours. Their teacher
    is frozen and in evaluation mode here, whatever theirs was."""
    Settings: ClassVar[type[Any]] = NoSettings
    """Frozen dataclass of the method's own settings (`method.KEY`), fields made by `settings.setting`."""
    needs: Requirements = Requirements()
    """What `forward` is called with."""
    in_teacher_space: bool = True
    """Whether a perfect student's embeddings can be searched against the teacher's. False where only similarities are
    asked for (a rotated student is as good) or there is no teacher."""
    embed_dim: ClassVar[int | None] = None
    """Width of the student's embedding; None means the teacher's."""

    key_momentum: float = 0.999
    """Of the average that makes the keys."""
    mask_probability: float = 0.5
    """Share of the images of a batch that are also shown with hidden patches."""
    mask_ratio: float = 0.5
    """Share of their patches that is hidden."""
    mask_token: nn.Parameter
    """(F,) What stands in the place of a hidden patch."""

    settings: Any

    def __init_subclass__(cls) -> None:
        if cls.paper:
            cls.paper = bibtex(cls.paper)

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def prepare(self, student_width: int, teacher_width: int) -> None:
        """Build the loss' own parameters, if it has any, once it is known what they join; called once, by the loop.

        Args:
            student_width: F, of the student's features and tokens.
            teacher_width: D, of the teacher's; 0 where there is none.
        """

    def __call__(self, *args: Any, **inputs: Any) -> Terms:
        """`forward` without autocast: sums over a batch need fp32, and products in bf16 are off by 1e-2."""
        device = next((x.device.type for x in (*args, *inputs.values()) if isinstance(x, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            terms: Terms = super().__call__(*args, **inputs)
        return terms
