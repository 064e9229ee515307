"""Algebra that the losses share: cosines, correlations, divergences, and the refusal of what cannot be compared.

Everything is taken in at least fp32: a sum of squares over a batch overflows fp16 at 65,504, and fp32 where numbers
reach 1e19. What depends on directions only is computed from smaller numbers, by a power of two, which changes no bit.
So it is right up to 1e20, and far beyond not a number: nothing is ever counted as 0 because it is large.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.errors import ShapeError
from understudy.losses.base.processes import max_over_processes, sum_over_processes

EPS = 1e-12
"""A row or column whose norm is at most this has no direction: its cosine is 0 and so is its gradient."""
SMALLER = 2.0**-16
"""Factor on what is squared and summed."""
FLOOR = (EPS * SMALLER) ** 2
"""`EPS` as the sum of squares of numbers that have the factor."""


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


def exact(x: Tensor) -> Tensor:
    """The tensor in at least fp32 (float64 stays)."""
    return x if x.dtype == torch.float64 else x.float()


def exact_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype of at least fp32, the teacher without gradient."""
    s, t = exact(student), exact(teacher.detach())
    dtype = torch.promote_types(s.dtype, t.dtype)
    return s.to(dtype), t.to(dtype)


def smaller_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two (B, D) embeddings as `exact_pair`, times `SMALLER`, for what does not depend on length.

    Raises:
        ShapeError: as `check_pair`.
    """
    check_pair(student, teacher)
    s, t = exact_pair(student, teacher)
    return s * SMALLER, t * SMALLER


@torch.no_grad()
def power_below(largest: Tensor) -> Tensor:
    """The power of two next below each number, 1 for 0: a division by it changes no bit."""
    power = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1)
    return torch.where(largest > 0, power, torch.ones_like(power))


def scaled_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two (B, D) embeddings as `exact_pair`, each in a power of two near its largest number of all processes.

    Raises:
        ShapeError: as `check_pair`.
    """
    check_pair(student, teacher)
    s, t = (x / power_below(max_over_processes(x.detach().abs().amax())) for x in exact_pair(student, teacher))
    return s, t


def unit_rows(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """Rows of norm 1; a row whose norm is at most `EPS` becomes 0 and receives no gradient."""
    size = power_below(x.detach().abs().amax(-1, keepdim=True))
    square = (x / size).square().sum(-1, keepdim=True)
    # NaN counts as alive and goes through: a broken batch must not look like a dead row.
    alive = ~(square <= (EPS / size).square())
    norm = torch.where(alive, square, torch.ones_like(square)).sqrt() * size
    return torch.where(alive, x / norm, torch.zeros_like(x))


def unit_pair(
    student: Tensor, teacher: Tensor, names: tuple[str, str] = ("student", "teacher")
) -> tuple[Tensor, Tensor]:
    """`unit_rows` of two (B, D) embeddings, the second without gradient.

    Raises:
        ShapeError: as `check_pair`.
    """
    check_pair(student, teacher, names)
    s, t = exact_pair(student, teacher)
    return unit_rows(s), unit_rows(t)


def cosine_from_sums(
    dot: Tensor,
    student_square: Tensor,
    teacher_square: Tensor,
    student_floor: float | Tensor = FLOOR,
    teacher_floor: float | Tensor = FLOOR,
) -> Tensor:
    """Cosines from sums of products, elementwise; 0 with zero gradient where either square is at most its floor.

    `F.normalize` would divide by eps there: a student column that died would receive a gradient of 1e12. Where a sum is
    infinite the cosine is not a number, so training stops and says so. All sums are of numbers times `SMALLER`.
    """
    # NaN counts as alive and goes through: a broken batch must not look like a dead column.
    alive = ~((student_square <= student_floor) | (teacher_square <= teacher_floor))
    ones = torch.ones_like(dot)
    # The inner `where` keeps the unused branch finite: a NaN there would survive the outer one as 0 * NaN.
    norms = torch.where(alive, student_square, ones).sqrt() * torch.where(alive, teacher_square, ones).sqrt()
    cosines = torch.where(norms.isinf(), torch.full_like(dot, torch.nan), dot / norms)
    return torch.where(alive, cosines, torch.zeros_like(dot))


def cosine_of_rows(s: Float[Tensor, "B D"], t: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """One cosine per image, of a `smaller_pair`."""
    return cosine_from_sums((s * t).sum(1), s.square().sum(1), t.square().sum(1))


def row_cosine(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """One cosine per image of raw embeddings, in [-1, 1]."""
    return cosine_of_rows(exact(student) * SMALLER, exact(teacher) * SMALLER)


def column_cosine(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"]) -> Float[Tensor, " D"]:
    """One cosine per dimension of raw embeddings, taken over the batch, in [-1, 1]; no centering."""
    return row_cosine(student.T, teacher.T)


def row_correlation(s: Float[Tensor, "B D"], t: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """Pearson's correlation of each image's D numbers, of a `smaller_pair`; see `column_correlation`."""
    return column_correlation(s.T, t.T, everywhere=False)


def column_correlation(
    s: Float[Tensor, "B D"], t: Float[Tensor, "B D"], *, everywhere: bool = True
) -> Float[Tensor, " D"]:
    """Pearson's correlation of each dimension over the batch; 0 with zero gradient where either column is constant.

    Of a `smaller_pair`; the batch is that of all processes (`everywhere`) or this process' rows. In two messages, the
    means first: products summed before the means are taken off would lose, in fp32, all digits of a column whose mean
    is large beside its spread.
    """

    def total(x: Tensor) -> Tensor:
        return sum_over_processes(x) if everywhere else x

    with torch.no_grad():  # centered products sum to zero, so nothing flows through the means
        sums = total(torch.cat([s.sum(0), t.sum(0), s.new_full((1,), float(len(s)))]))
        count = sums[-1]
        s_mean, t_mean = sums[:-1].reshape(2, -1) / count
    u, v = s - s_mean, t - t_mean
    products = total(torch.cat([(u * v).sum(0), u.square().sum(0), v.square().sum(0)]))
    dot, student_square, teacher_square = products.reshape(3, -1)
    floors = _rounding(s_mean, count), _rounding(t_mean, count)
    return cosine_from_sums(dot, student_square, teacher_square, *floors)


def _rounding(mean: Tensor, count: Tensor) -> Tensor:
    """The sum of squares of `count` equal numbers less their computed mean: no more than rounding."""
    return FLOOR + count * (16 * torch.finfo(mean.dtype).eps * mean) ** 2


def infonce(positive: Float[Tensor, " B"], negatives: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """-log softmax of the positive among the negatives, per image, in nats; exactly 0 where there are no negatives.

    Of the right answers' logits, and of the logsumexp of those of the wrong ones: several positives may share it.
    """
    return torch.logaddexp(positive, negatives) - positive


def relative_entropy(target: Float[Tensor, "B Q"], logits: Float[Tensor, "B Q"]) -> Float[Tensor, " B"]:
    """KL(softmax(target) || softmax(logits)) per image, in nats; 0 where Q is 0."""
    log_p, log_q = target.log_softmax(1), logits.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)
