"""PKT: for each image a probability over the batch that says which images are its neighbors."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from understudy.losses.base import Loss, Terms, all_rows, check_pair, exact_pair, gather_rows, unit_rows
from understudy.settings import setting

EPS = 1e-7
"""Added inside the logarithm, as in the authors' code."""


class PKT(Loss):
    """Divergence between the two models' neighbor probabilities, from cosines mapped to [0, 1].

    Differs from SEED and CompRess by its kernel, (cos + 1) / 2 without a temperature, and by comparing within the
    batch instead of with a queue. A rotated student is as good: it does not end in the teacher's space, so the two
    cannot be searched against each other. The authors' code is followed where it differs from the paper: an image
    counts among its own neighbors, and the divergences are averaged over all B^2 pairs, not summed.

    Scope: the batch of all processes, exactly, if they hold equally many images: each compares its own rows with all.

    Source:
        ECCV 2018, arXiv 1803.10837, equations 3 to 6; details as in the authors' code,
        github.com/passalis/probabilistic_kt.
    """

    name = "pkt"
    summary = "the teacher's neighbor probabilities in the batch"
    in_teacher_space = False
    paper = "passalis2018pkt"
    # exp_cifar of the released code, CIFAR-10, from a student trained on labels: Adam without decay. Its student has no
    # head; its views are crops of the image padded by 4 pixels, which are not among ours.
    authors = {
        "optimizer.name": "adamw", "optimizer.lr": 1e-4, "optimizer.momentum": 0.9, "optimizer.weight_decay": 0.0,
        "optimizer.schedule": "constant", "head": "linear", "views.recipe": "weak", "batch_size": 128, "passes": 20.0,
        "neighbors.k": 0, "method.weight": 1.0,
    }  # fmt: skip

    @dataclass(frozen=True)
    class Settings:
        # What the benchmark of Tian et al. (2020) runs beside a cross entropy, and it keeps the gradient away from the
        # epsilon of Adam; the authors run 1.
        weight: float = setting(30000.0, "Factor on the total.", above=0)

    settings: Settings

    def forward(self, student: Tensor, teacher: Tensor) -> Terms:
        """Part "divergence", in nats per pair of images, 0 = perfect."""
        check_pair(student, teacher)
        s, t = exact_pair(student, teacher)
        q, p = _neighbors(s, all_rows(s)), _neighbors(t, gather_rows(t))
        divergence = (p * ((p + EPS) / (q + EPS)).log()).mean()
        return Terms(self.settings.weight * divergence, {"divergence": divergence})


def _neighbors(x: Float[Tensor, "B D"], others: Float[Tensor, "G D"]) -> Float[Tensor, "B G"]:
    kernel = ((unit_rows(x) @ unit_rows(others).T + 1) / 2).clamp(min=0)  # rounding may leave a cosine below -1
    return kernel / kernel.sum(1, keepdim=True)
