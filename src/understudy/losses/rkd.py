"""RKD: the shape that the images of a batch form, their mutual distances and angles, wherever it lies."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from understudy.losses.base import Loss, Terms, all_rows, gather_rows, scaled_pair, sum_over_processes
from understudy.settings import setting

CHUNK = 2**24
"""Most angles held at once, 64 MB in fp32; more are taken in blocks of vertices."""
NEAR = 1e-3
"""An image nearer to a vertex than this, in mean distances, has no direction from it: rounding would choose one."""


class RKD(Loss):
    """Huber losses on all pairwise distances, in units of their mean, and on all angles of three images.

    Differs from SP and PKT by distances, which know no origin, in place of inner products and cosines. A student that
    is moved, rotated or uniformly scaled is as good: it does not end in the teacher's space, so the two cannot be
    searched against each other. The authors' code is followed: degenerate pairs and triples (i, i) count as zeros in
    the means. Their metric-learning teachers end in a row normalization; here both embeddings are raw.

    The B^3 angles come from inner products, so their cost does not grow with D (the authors hold B^2 D differences);
    beyond 2^24 of them they are taken in blocks of vertices, computed again in the backward pass.

    Scope: the batch of all processes, exactly, if they hold equally many images: each compares its own rows with all.

    Source:
        CVPR 2019, arXiv 1904.05068, equations 5 to 9; details as in the authors' code, github.com/lenscloth/RKD.
    """

    name = "rkd"
    summary = "the mutual distances and angles of the batch"
    in_teacher_space = False
    paper = "park2019rkd"
    # run_distill_classification.py of the released code, CIFAR-100, where labels and soft labels are learned beside it;
    # its views are crops of the image padded by 4 pixels, which are not among ours.
    authors = {
        "optimizer.name": "sgd", "optimizer.lr": 0.1, "optimizer.momentum": 0.9, "optimizer.weight_decay": 5e-4,
        "optimizer.schedule": "step", "optimizer.every": "epoch",
        "optimizer.milestones": (60 / 200, 120 / 200, 160 / 200), "optimizer.decay": 0.2, "head": "linear",
        "views.recipe": "weak", "batch_size": 128, "passes": 200.0, "neighbors.k": 0, "method.distance": 25.0,
        "method.angle": 50.0,
    }  # fmt: skip

    @dataclass(frozen=True)
    class Settings:
        # 25 and 50 are the paper's weights for classifiers (unchecked here) and those of the benchmark of Tian et al.
        # (2020); for metric learning the authors' scripts run 1 and 2.
        distance: float = setting(25.0, "Weight of the distances.", minimum=0)
        angle: float = setting(50.0, "Weight of the angles.", minimum=0)

    settings: Settings

    def forward(self, student: Tensor, teacher: Tensor) -> Terms:
        """Parts "distance", in units of the mean distance, and "angle", of cosines; 0 = perfect.

        With B = 1 both are 0.
        """
        s, t = scaled_pair(student, teacher)  # only ratios of distances count
        s_own, s_all, s_distances = _in_mean_distances(s, all_rows(s))
        t_own, t_all, t_distances = _in_mean_distances(t, gather_rows(t))
        distance = F.smooth_l1_loss(s_distances, t_distances)
        vertices = max(1, CHUNK // len(s_all) ** 2)
        blocks = list(zip(*(x.split(vertices) for x in (s_own, s_distances, t_own, t_distances)), strict=True))
        if len(blocks) == 1:
            totals = [_angle_loss(s_own, s_distances, t_own, t_distances, s_all, t_all)]
        else:
            totals = [
                checkpoint(_angle_loss, *block, s_all, t_all, use_reentrant=False, preserve_rng_state=False)
                for block in blocks
            ]
        angle = torch.stack(totals).sum() / (len(s) * len(s_all) ** 2)
        return Terms(
            self.settings.distance * distance + self.settings.angle * angle, {"distance": distance, "angle": angle}
        )


def _in_mean_distances(
    x: Float[Tensor, "B D"], others: Float[Tensor, "G D"]
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "G D"], Float[Tensor, "B G"]]:
    """The points moved to their center, where rounding is least, and all distances, in units of the mean distance."""
    # Not from inner products, whose rounding would give equal images a distance and that distance a gradient.
    distances = torch.cdist(x, others, compute_mode="donot_use_mm_for_euclid_dist")
    total, count = sum_over_processes(torch.stack([distances.sum(), (distances > 0).sum().to(x.dtype)]))
    unit = torch.where(count > 0, total / count.clamp(min=1), torch.ones_like(total))
    center = others.detach().mean(0)  # no shape depends on where it lies, so nothing flows through it
    return (x - center) / unit, (others - center) / unit, distances / unit


def _angle_loss(s: Tensor, s_distances: Tensor, t: Tensor, t_distances: Tensor, s_all: Tensor, t_all: Tensor) -> Tensor:
    return F.smooth_l1_loss(_angles(s, s_all, s_distances), _angles(t, t_all, t_distances), reduction="sum")


def _angles(
    vertices: Float[Tensor, "V D"], others: Float[Tensor, "G D"], distances: Float[Tensor, "V G"]
) -> Float[Tensor, "V G G"]:
    """Cosine of the angle at each vertex between each two others; 0 where one of them lies on the vertex."""
    apart = distances > NEAR
    inverse = torch.where(
        apart, 1 / torch.where(apart, distances, torch.ones_like(distances)), torch.zeros_like(distances)
    )
    # <x_j - x_i, x_k - x_i> / (d_ij d_ik) in products of x: one term for each pair (j, k), and a rest of rank two.
    onto = (vertices @ others.T) * inverse
    left = torch.stack([vertices.square().sum(1, keepdim=True) * inverse - onto, -inverse], dim=2)
    right = torch.stack([inverse, onto], dim=1)
    return torch.baddbmm((others @ others.T) * inverse[:, :, None] * inverse[:, None, :], left, right)
