"""What every loss is and returns: `Loss` declares its needs, `Terms` is its answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from understudy.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class Terms:
    """The value of a loss and what it is made of.

    Args:
        total: scalar tensor to minimize, with gradient.
        parts: named scalar tensors, before weights and scales, for logs and curves.
    """

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


class Loss(nn.Module):
    """Base of all methods. Its class attributes are the whole vocabulary between a method and the loop.

    The loop calls `forward` with exactly the keywords that are declared:

    - `student`: embeddings of the views in `student_views`, (B, D), or (len, B, D) when there are several.
    - `teacher` if `needs_teacher`: the frozen teacher's embeddings of `teacher_views`, shaped alike.
    - `key` if `needs_key`: embeddings of `key_views` from an exponential moving average of the student, no gradient.
      Its normalization layers use averaged statistics (EMAN, Cai et al. 2021, arXiv 2101.08482), so batches leak
      nothing and the result does not depend on the number of processes.
    - `bags` if `needs_bags`: (B,) integers, equal for images drawn around the same anchor, which comes first.
    - `passes` if `needs_passes`: float, image passes done so far, for methods that begin differently.
    - `mixed`, `share` if `needs_mixture`: the student's embeddings (B, D) of images into which a box of the next image
      of the same bag (`next_in_bag`) was pasted (CutMix, both in the student's view), and the share (B,) of each that
      is still its own.
    - `student_tokens`, `teacher_tokens` if `needs_tokens`: (B, N, F) and (B, M, D) patch tokens of vision transformers
      after their last block and norm, of the same views as the embeddings and stacked alike.
    - `student_attention`, `teacher_attention` if `needs_attention`: (B, H, 1 + N) and (B, G, 1 + M), the share of the
      class token's attention that each head of the last block gives to itself and to the patches.
    - `masked_tokens`, `masks`, `masked` if `needs_masking`: (M, N, F) the student's patch tokens of images of its first
      view with hidden patches, (M, N) which were hidden, and (M,) where the images stand in the batch. M is
      `mask_probability` of the batch; in each image `mask_ratio` of the patches are hidden, and the loss' parameter
      `mask_token` (F,) stands in their place.

    Parameters of a loss, built in `prepare`, are trained with the student and thrown away after training.

    A need that depends on a setting is set on the instance; the class attribute is what the default setting needs.
    """

    views: int = 1
    needs_teacher: ClassVar[bool] = True
    needs_key: bool = False
    needs_bags: ClassVar[bool] = False
    needs_passes: ClassVar[bool] = False
    needs_mixture: ClassVar[bool] = False
    needs_tokens: bool = False
    needs_attention: bool = False
    needs_masking: bool = False
    student_views: tuple[int, ...] = (0,)
    teacher_views: tuple[int, ...] = (0,)
    key_views: ClassVar[tuple[int, ...]] = (0,)
    embed_dim: ClassVar[int | None] = None
    """Width of the student's embedding; None means the teacher's."""
    words: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # settings that are numbers and may also be one of these
    in_teacher_space: bool = True
    """Whether a perfect student's embeddings can be searched against the teacher's. False where only similarities are
    asked for (a rotated student is as good) or there is no teacher."""
    citation: ClassVar[str] = ""
    """BibTeX of the paper."""
    authors: ClassVar[dict[str, object]] = {}
    """What its authors ran, as flat settings of a run (`optimizer.lr`, `method.queue`, ...): `--recipe authors`. Their
    arithmetic (fp16 in some) is left to `precision`; their BatchNorm is local to each process, like ours."""

    key_momentum: float = 0.999
    """Momentum of the average that makes the keys; used only if `needs_key`."""

    mask_probability: float = 0.5
    mask_ratio: float = 0.5
    mask_token: nn.Parameter
    """What is hidden, and what stands in its place; used only if `needs_masking`."""

    def prepare(self, student_width: int, teacher_width: int) -> None:
        """Build the loss' own parameters, if it has any, once it is known what they join; called once, by the loop.

        Args:
            student_width: F, of the student's features and tokens.
            teacher_width: D, of the teacher's; 0 where there is none.
        """


def check_pair(student: Tensor, teacher: Tensor, names: tuple[str, str] = ("student", "teacher")) -> None:
    """Refuse two embeddings that cannot be compared row by row.

    Raises:
        ShapeError: not (B, D) both, of different shapes, empty, or not floating point; the sentence carries both.
    """
    first, second = names
    shapes = f"{first} {tuple(student.shape)}, {second} {tuple(teacher.shape)}"
    if student.ndim != 2 or teacher.ndim != 2:
        raise ShapeError(f"Embeddings must be (B, D) matrices, got {shapes}. Pool or flatten the features first.")
    if student.shape[0] != teacher.shape[0]:
        raise ShapeError(f"Both embeddings must hold the same images in the same order, got {shapes}: B differs.")
    if student.shape[1] != teacher.shape[1]:
        raise ShapeError(
            f"Both embeddings must have the same width, got {shapes}: D differs. Give the student a head that ends in "
            f"{teacher.shape[1]} (models.build_head)."
        )
    if student.numel() == 0:
        raise ShapeError(f"Embeddings are empty, got {shapes}. A batch needs at least one image and one dimension.")
    if not (student.is_floating_point() and teacher.is_floating_point()):
        raise ShapeError(f"Embeddings must be floating point, got {first} {student.dtype}, {second} {teacher.dtype}.")


def check_views(embeddings: Tensor, views: int, name: str) -> None:
    """Refuse embeddings that are not those of several views of the same images.

    Raises:
        ShapeError: not (views, B, D); the sentence carries the shape.
    """
    if embeddings.ndim != 3 or len(embeddings) != views:
        raise ShapeError(
            f"This method compares {views} views: embeddings must be ({views}, B, D), got {name} "
            f"{tuple(embeddings.shape)}. Stack the embeddings of the views."
        )


def number(
    name: str, value: float, *, above: float = -math.inf, minimum: float = -math.inf, maximum: float = math.inf
) -> float:
    """A method's setting, checked.

    Args:
        name: as written after `method.`.
        value: what was given.
        above: it must be larger than this.
        minimum: it must be at least this.
        maximum: it must be at most this.

    Raises:
        ConfigError: it is not finite or out of range; the sentence carries both.
    """
    if not math.isfinite(value):
        raise ConfigError(f"'method.{name}' must be a finite number; got {value}.")
    for wrong, words in [
        (value <= above, f"above {above:g}"),
        (value < minimum, f"at least {minimum:g}"),
        (value > maximum, f"at most {maximum:g}"),
    ]:
        if wrong:
            raise ConfigError(f"'method.{name}' must be {words}; got {value}.")
    return float(value)


def next_in_bag(bags: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """For each image the next one of its bag, the first one after the last; itself in a bag of one.

    Args:
        bags: (B,) integers, equal within a bag; the images of a bag stand together.

    Returns:
        (B,) positions in the batch, a permutation of it.
    """
    index = torch.arange(len(bags), device=bags.device)
    first, last = torch.ones_like(index, dtype=torch.bool), torch.ones_like(index, dtype=torch.bool)
    first[1:] = bags[1:] != bags[:-1]
    last[:-1] = first[1:]
    start = torch.where(first, index, 0).cummax(0).values
    return torch.where(last, start, index + 1)
