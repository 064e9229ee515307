"""AttnDistill: regress the teacher's class token, and look where its class token looks."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from understudy.errors import ShapeError
from understudy.losses.base import Loss, Requirements, Terms, check_pair, exact, exact_pair
from understudy.settings import setting

LEAST, MOST = 1e-5, 0.996
"""Shares of attention are held between these before the divergence, as in the authors' code."""


class AttnDistill(Loss):
    """Mean squared difference of embeddings, plus the divergence between the class tokens' attention in the last block.

    Differs from MSE by the second term, KL(teacher || student) over the class token itself and the patches, summed over
    heads, averaged over images. Where the networks differ:

    - other grids: the teacher's shares of the patches are resized to the student's grid (bicubic), then scaled so that
      the patches have as much together as before. What the resizing made negative counts as nothing; in the authors'
      code it counts in the scale, which runs away where a coarse grid leaves out the patch that has most;
    - other numbers of heads: each network's heads become one distribution, softmax(sum over heads of log share / T).

    The embedding is the class token wherever a network pools by it, as DINO's, DINOv2's and most others do. The
    student's head is the projector: the authors' has four linear layers (`head = "gelu"`), and is thrown away like
    ours. The student reaches the teacher's embeddings themselves, norm included.

    Scope: a mean over images, so the same on any number of processes.

    Source:
        BMVC 2022, arXiv 2210.00944; details as in the authors' code, github.com/wangkai930418/attndistill.
    """

    name = "attndistill"
    summary = "the teacher's embedding and the attention of its class token (transformers on both sides)"
    needs = Requirements(attention=True)
    paper = "wang2022attndistill"
    # dino_teacher.sh and dino_transfer.py of the released code: a rate of 1.5e-4 for 256 images is 2.4e-3 for 4,096,
    # which are gathered over several passes. Its beta2 is 0.95, ours 0.999; its resize is bicubic.
    authors = {
        "optimizer.name": "adamw", "optimizer.lr": 2.4e-3, "optimizer.momentum": 0.9, "optimizer.weight_decay": 0.05,
        "optimizer.schedule": "cosine", "optimizer.warmup": 40.0, "head": "gelu", "views.recipe": "weak",
        "batch_size": 4096, "passes": 800.0, "neighbors.k": 0, "method.weight": 0.1, "method.temperature": 10.0,
    }  # fmt: skip

    @dataclass(frozen=True)
    class Settings:
        weight: float = setting(0.1, "Of the attention; 0.1 in the authors' commands.", minimum=0)
        temperature: float = setting(
            10.0, "T, used only where the numbers of heads differ; 10 in the authors' commands.", above=0
        )

    settings: Settings

    def forward(self, student: Tensor, teacher: Tensor, student_attention: Tensor, teacher_attention: Tensor) -> Terms:
        """Parts "mse", in squared units of the teacher's embedding, and "attention", in nats; 0 = perfect."""
        check_pair(student, teacher)
        _check_attention(student_attention, teacher_attention, len(student))
        s, t = exact_pair(student, teacher)
        mse = (s - t).square().mean()
        a_s, a_t = exact_pair(student_attention, teacher_attention)
        if a_s.shape[2] != a_t.shape[2]:
            a_t = resized(a_t, a_s.shape[2] - 1)
        if a_s.shape[1] != a_t.shape[1]:
            a_s, a_t = (merged(shares, self.settings.temperature) for shares in (a_s, a_t))
        a_s, a_t = (_held(shares) for shares in (a_s, a_t))
        attention = (a_t * (a_t.log() - a_s.log())).sum((1, 2)).mean()
        return Terms(mse + self.settings.weight * attention, {"mse": mse, "attention": attention})


def resized(attention: Float[Tensor, "B H T"], patches: int) -> Float[Tensor, "B H U"]:
    """Shares on another square grid of N patches; those of the class token, and of all patches together, stay.

    The class token comes first, then the grid row by row. No patch has less than `LEAST`, so the sum may exceed 1 a
    little.
    """
    own, rest = attention[:, :, :1], attention[:, :, 1:]
    side, new = math.isqrt(rest.shape[2]), math.isqrt(patches)
    grid = F.interpolate(rest.unflatten(2, (side, side)), size=(new, new), mode="bicubic", align_corners=False)
    grid = grid.flatten(2).clamp_min(0)
    together = grid.sum(2, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.cat([own, (grid * ((1 - own) / together)).clamp_min(LEAST)], 2)


def merged(attention: Float[Tensor, "B H T"], temperature: float) -> Float[Tensor, "B 1 T"]:
    """One distribution from all heads: their product, to the power of 1 / temperature, normalized."""
    logs = exact(attention).clamp_min(torch.finfo(torch.float32).tiny).log()  # a share may round to 0
    return (logs.sum(1, keepdim=True) / temperature).softmax(2)


def _held(shares: Tensor) -> Tensor:
    """Shares between the two bounds, summing to 1 again."""
    shares = shares.clamp(LEAST, MOST)
    return shares / shares.sum(2, keepdim=True)


def _check_attention(student: Tensor, teacher: Tensor, images: int) -> None:
    shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
    if student.ndim != 3 or teacher.ndim != 3 or {len(student), len(teacher)} != {images}:
        raise ShapeError(f"Attention must be (B, heads, 1 + patches) for {images} images, got {shapes}.")
    for attention in (student, teacher):
        patches = attention.shape[2] - 1
        if math.isqrt(patches) ** 2 != patches and student.shape[2] != teacher.shape[2]:
            raise ShapeError(
                f"Attention over different grids is resized between squares, got {shapes}: {patches} patches are none."
            )
