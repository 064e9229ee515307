"""CoSS: feature similarity and space similarity, as published; the default, `coss_centered`, differs in one step.

Two cosines of the same raw matrices along different axes: one per image, one per dimension. The first leaves one free
radius per image, the second one free scale per dimension; together, if the bipartite graph of the teacher's non-zeros
is connected, they pin the student to the teacher up to ONE positive number.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.losses.base import (
    FLOOR,
    Loss,
    Terms,
    column_correlation,
    cosine_from_sums,
    cosine_of_rows,
    smaller_pair,
    sum_over_processes,
)
from understudy.settings import setting

SCALES = {"unit": 1.0, "paper": 70.0, "code": 1 / (0.1 * 0.07)}
BOUND = 100.0
"""The balanced weight lies between 1 / BOUND and BOUND."""


def coss(
    student: Tensor,
    teacher: Tensor,
    weight: float | str = 1.0,
    *,
    scale: float = 1.0,
    scope: str = "global",
    center: bool = False,
) -> Terms:
    """CoSS loss of a batch: `scale * (feature + weight * space)`.

    Differs from cosine regression (SimReg) by the space term, which compares each dimension over the batch; differs
    from correlation losses (Barlow Twins, DIST) by not centering and by comparing raw embeddings.

    Args:
        student: (B, D) embeddings, raw (not normalized); receives the gradient.
        teacher: (B, D) embeddings, raw; detached.
        weight: lambda, the weight of the space term. "balanced" (not the paper's) takes, in each batch, the weight at
            which both terms pull on the student's embeddings with gradients of one norm.
        scale: constant factor on the total. The authors' code uses 1 / (0.1 * 0.07), their text 70; with SGD it acts
            as a factor on the learning rate.
        scope: "global" takes both terms over the batch of all processes, exactly; "process" over this process' rows
            only, as the authors' code does.
        center: take the batch mean off each column of both matrices first, in the space term only: Pearson's
            correlation in place of the cosine. Not the paper's: method `coss_centered`.

    Returns:
        Terms with parts "feature" = -(1/B) sum_i cos(s[i, :], t[i, :]) and "space" = -(1/D) sum_j cos(s[:, j],
        t[:, j]), each in [-1, 1], -1 = perfect; if balanced, also the "weight" taken. A row or column that is all zero
        (centered: constant) in either matrix counts as cosine 0 and receives no gradient from that term. With B = 1 a
        column cosine is the product of two signs (centered: 0), so the space term is defined but has no gradient.

    Raises:
        ShapeError: shapes that do not fit; both are in the sentence.

    Source:
        Singh and Wang, "Simple Unsupervised Knowledge Distillation With Space Similarity", ECCV 2024, arXiv
        2409.13939, section 3; constants as in the authors' code, github.com/paganpasta/coss-pytorch.
    """
    return _coss(*smaller_pair(student, teacher), weight, scale, scope == "global", center)


def _coss(
    s: Float[Tensor, "B D"],
    t: Float[Tensor, "B D"],
    weight: float | str,
    scale: float,
    everywhere: bool,
    center: bool,
) -> Terms:
    rows, width = s.shape
    # All that other processes need to know of this one: 3 D + 2 numbers, in one message (centered: in three).
    columns = [] if center else [(s * t).sum(0), s.square().sum(0), t.square().sum(0)]
    by_row = cosine_of_rows(s, t)
    sums = torch.cat([*columns, by_row.sum().reshape(1), s.new_full((1,), float(rows))])
    if everywhere:
        sums = sum_over_processes(sums)
    feature = -sums[-2] / sums[-1]
    if center:
        by_column = column_correlation(s, t, everywhere=everywhere)
    else:
        by_column = cosine_from_sums(*sums[:-2].reshape(3, width))
    space = -by_column.mean()
    parts = {"feature": feature, "space": space}
    if isinstance(weight, str):
        parts["weight"] = _balanced(s.detach(), by_row.detach(), by_column.detach(), everywhere, center)
        return Terms(scale * (feature + parts["weight"] * space), parts)
    return Terms(scale * (feature + weight * space), parts)


def _balanced(
    s: Float[Tensor, "B D"],
    by_row: Float[Tensor, " B"],
    by_column: Float[Tensor, " D"],
    everywhere: bool,
    center: bool,
) -> Tensor:
    """The norm of the feature term's gradient over that of the space term's, both with respect to the student, s.

    The gradient of a cosine c with respect to a vector of norm r has norm sqrt(1 - c^2) / r; those of different rows,
    or of different columns, are orthogonal. For independent entries r is sqrt(D) and sqrt(B) times their size: the
    ratio depends on the angles alone, and not on B / D.
    """
    own = torch.cat([s.sum(0), s.square().sum(0), pulls(by_row, s.square().sum(1)), s.new_full((1,), float(len(s)))])
    if everywhere:
        own = sum_over_processes(own)
    total, square, feature, count = own.split([s.shape[1], s.shape[1], 1, 1])
    if center:
        square = square - total.square() / count
    space = pulls(by_column, square)
    ratio: Tensor = (feature.sqrt() / count) / (space.sqrt() / s.shape[1])
    # Where one term is at its optimum the ratio is nought by nought; the bounds keep the other from running away.
    return ratio.nan_to_num(1.0).clamp(1 / BOUND, BOUND).squeeze()


def pulls(cosines: Float[Tensor, " n"], squares: Float[Tensor, " n"]) -> Float[Tensor, " 1"]:
    """Sum of the squared gradient norms of n cosines, of vectors whose squared norms are given; dead ones have none."""
    alive = squares > FLOOR
    each = (1 - cosines.square()).clamp(min=0) / torch.where(alive, squares, torch.ones_like(squares))
    return torch.where(alive, each, torch.zeros_like(each)).sum().reshape(1)


class CoSS(Loss):
    """CoSS as a module; see `coss` for the mathematics.

    Source:
        Singh and Wang, ECCV 2024, arXiv 2409.13939, as in `coss`.
    """

    name = "coss"
    summary = "feature and space similarity, as published"
    paper = "singh2024coss"
    # The released script, scripts/cf_train.sh: 25 epochs of anchors of 16 image passes, 64 anchors x 16 images a step
    # on 4 GPUs; the loss is each GPU's own, so it takes 4 processes to repeat it. The rate stays at its peak for 5
    # epochs.
    authors = {
        "optimizer.name": "sgd", "optimizer.lr": 0.03, "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4,
        "optimizer.schedule": "cosine", "optimizer.every": "epoch", "optimizer.hold": 5 / 25, "head": "auto",
        "head_hidden": 2048, "views.recipe": "moco-v2", "batch_size": 1024, "passes": 400.0, "neighbors.k": 15,
        "neighbors.n": 31, "method.weight": 1.0, "method.scale": "code", "method.scope": "process",
    }  # fmt: skip
    center: ClassVar[bool] = False
    """Whether the columns are correlated in place of their cosines: `coss_centered`."""

    @dataclass(frozen=True)
    class Settings:
        weight: float | Literal["balanced"] = setting(
            1.0,
            "lambda, the weight of the space term; 0 is cosine regression, balanced follows the gradients.",
            minimum=0,
        )
        scale: float | Literal["unit", "paper", "code"] = setting(
            "unit", "Factor on the total, a number or one of unit (1), paper (70), code (142.86).", above=0
        )
        scope: str = setting(
            "global",
            "Rows that are compared: of all processes, exact for any number of them, or of each, as the authors ran.",
            choices=("global", "process"),
        )

    settings: Settings

    def forward(self, student: Tensor, teacher: Tensor) -> Terms:
        """As `coss` says of the settings."""
        own = self.settings
        scale = SCALES[own.scale] if isinstance(own.scale, str) else own.scale
        return coss(student, teacher, own.weight, scale=scale, scope=own.scope, center=self.center)
