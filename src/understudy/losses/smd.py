"""SMD: of each batch an image sees only its hardest positive and hardest negative, as the two models find them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.losses.base import Loss, Requirements, Terms, all_rows, check_views, gather_rows, unit_pair
from understudy.settings import setting


class SMD(Loss):
    """A soft margin between the hardest positive and the hardest negative distance from teacher to student.

    With row-normalized embeddings, D_ij = |t_i - s_j| and T_ij = |t_i - t_j|. Images farther from i than its own
    student embedding, T_ij > D_ii, are negatives, the others (i itself among them) positives. Of the positives the
    farthest by D and of the negatives the nearest by D are compared, each weighted by how wrong it is: w_p =
    [D_ip - T_ip]+, w_n = [T_in - D_in]+, both without gradient. Differs from the other relational methods by comparing
    across the models (student images with teacher anchors), so the student reaches the teacher's directions.

    With no negative the negative side is 0; at equality all weights vanish and the loss is log 2.

    Scope: the batch of all processes, exactly, if they hold equally many images; the authors' is per process.

    Source:
        ECCV 2022; details as in the authors' code, github.com/liuhao-lh/SMD.
    """

    name = "smd"
    summary = "hardest positive and hardest negative of the batch, as the two models find them"
    needs = Requirements(student_views=(0, 1), teacher_views=(0, 1), passes=True)
    paper = "liu2022smd"
    # main_distill.py of the released code: a rate of 0.05 for 256 images is 0.1 for its batch of 512. Its BatchNorm is
    # synchronized over GPUs; ours is local to each process, so it takes one process to repeat it.
    authors = {
        "optimizer.name": "sgd", "optimizer.lr": 0.1, "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4,
        "optimizer.schedule": "cosine", "optimizer.every": "epoch", "head": "linear", "views.recipe": "moco-v2",
        "batch_size": 512, "passes": 100.0, "neighbors.k": 0, "method.tau": 0.04, "method.warmup": 2.0,
        "method.views": 2,
    }  # fmt: skip

    @dataclass(frozen=True)
    class Settings:
        # 0.04 in paper and code; their code takes 0.004 for MobileNet-v3 and EfficientNet.
        tau: float = setting(0.04, "Divides the margin.", above=0)
        warmup: float = setting(2.0, "Image passes during which the mean of -cos is added.", minimum=0)
        views: int = setting(
            2, "Views of each image, the loss of each compared within itself; 1 halves the cost.", choices=(1, 2)
        )

    settings: Settings

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        if settings.views == 1:
            self.needs = Requirements(passes=True)

    def forward(self, student: Tensor, teacher: Tensor, passes: float) -> Terms:
        """Parts "metric", at least 0, and "cosine", the mean of -cos, -1 = perfect.

        With the setting `views` 2 embeddings are those of both views, (2, B, D), with 1 of one, (B, D).
        """
        if self.settings.views == 1:
            student, teacher = student[None], teacher[None]
        check_views(student, self.settings.views, "student")
        check_views(teacher, self.settings.views, "teacher")
        metrics, cosines = [], []
        for one_student, one_teacher in zip(student, teacher, strict=True):
            s, t = unit_pair(one_student, one_teacher)
            metrics.append(self._metric(s, t))
            cosines.append(-(s * t).sum(1).mean())
        metric, cosine = torch.stack(metrics).mean(), torch.stack(cosines).mean()
        total = metric + cosine if passes < self.settings.warmup else metric
        return Terms(total, {"metric": metric, "cosine": cosine})

    def _metric(self, s: Tensor, t: Tensor) -> Tensor:
        all_s, all_t = all_rows(s), gather_rows(t)
        with torch.no_grad():
            # Exact distances: rounding must not make an image its own negative.
            across = torch.cdist(t, all_s, compute_mode="donot_use_mm_for_euclid_dist")
            within = torch.cdist(t, all_t, compute_mode="donot_use_mm_for_euclid_dist")
            negative = within > (t - s).norm(dim=1, keepdim=True)
            farthest = across.masked_fill(negative, -torch.inf).argmax(1)
            nearest = across.masked_fill(~negative, torch.inf).argmin(1)
            target_p, target_n = (within.gather(1, j[:, None])[:, 0] for j in (farthest, nearest))
        positive, foreign = ((t - all_s[j]).norm(dim=1) for j in (farthest, nearest))
        weight_p = (positive.detach() - target_p).clamp(min=0)
        weight_n = (target_n - foreign.detach()).clamp(min=0) * negative.any(1)
        margin = (weight_p * positive - weight_n * foreign) / self.settings.tau
        return torch.logaddexp(margin, torch.zeros_like(margin)).mean()
