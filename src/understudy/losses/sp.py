"""SP: images that are alike to the teacher shall be alike to the student; nothing is said of the space itself."""

from dataclasses import dataclass

from torch import Tensor

from understudy.losses.base import Loss, Terms, all_rows, gather_rows, scaled_pair, unit_rows
from understudy.settings import setting


class SP(Loss):
    """Squared difference of the two B x B matrices of inner products, their rows normalized.

    Differs from PKT by comparing similarities as they are, of raw embeddings, not as probabilities. A rotated or
    uniformly scaled student is as good: it does not end in the teacher's space, so the two cannot be searched
    against each other. The paper compares flattened maps of hidden layers; here it is the last embedding.

    Scope: the batch of all processes, exactly, if they hold equally many images: each compares its own rows with all.

    Source:
        ICCV 2019, arXiv 1907.09682, equations 2 to 4; the normalization as in the implementation its author checked,
        github.com/HobbitLong/RepDistiller.
    """

    name = "sp"
    summary = "the teacher's similarities in the batch"
    in_teacher_space = False
    paper = "tung2019sp"
    # Not the paper's own run but the benchmark of Tian et al. (2020), github.com/HobbitLong/RepDistiller, CIFAR-100,
    # where labels are learned beside it; its views are crops of the image padded by 4 pixels, which are not among ours.
    authors = {
        "optimizer.name": "sgd", "optimizer.lr": 0.05, "optimizer.momentum": 0.9, "optimizer.weight_decay": 5e-4,
        "optimizer.schedule": "step", "optimizer.every": "epoch",
        "optimizer.milestones": (150 / 240, 180 / 240, 210 / 240), "optimizer.decay": 0.1, "head": "linear",
        "views.recipe": "weak", "batch_size": 64, "passes": 240.0, "neighbors.k": 0, "method.weight": 3000.0,
    }  # fmt: skip

    @dataclass(frozen=True)
    class Settings:
        # What the benchmark of Tian et al. (2020) runs beside a cross entropy; alone it only acts on the learning rate.
        weight: float = setting(3000.0, "Factor on the total, gamma in the paper.", above=0)

    settings: Settings

    def forward(self, student: Tensor, teacher: Tensor) -> Terms:
        """Part "similarity", the squared Frobenius norm over B^2, in [0, 4 / B], 0 = perfect."""
        s, t = scaled_pair(student, teacher)  # fourth powers are summed, and only their ratios count
        alike_s, alike_t = unit_rows(s @ all_rows(s).T), unit_rows(t @ gather_rows(t).T)
        similarity = (alike_s - alike_t).square().mean()
        return Terms(self.settings.weight * similarity, {"similarity": similarity})
