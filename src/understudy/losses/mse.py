"""MSE: regress the teacher's embedding itself, the oldest feature distillation (FitNets)."""

from torch import Tensor

from understudy.losses.base import Loss, Terms, check_pair, exact_pair


class MSE(Loss):
    """Mean squared difference of raw embeddings.

    Differs from SimReg by keeping each image's norm: long embeddings weigh more, and the student reaches the teacher
    exactly, not only on its directions. FitNets compares a hidden layer through a regressor and halves the squared
    norm; here it is the last embedding, the student's head is the regressor, and the mean is over images and
    dimensions, as public implementations do.

    Scope: a mean over images, so the same on any number of processes.

    Source:
        ICLR 2015, arXiv 1412.6550, equation 3.
    """

    name = "mse"
    summary = "the teacher's embedding itself"
    paper = "romero2015fitnets"
    # Not FitNets' own run, which is of two stages, but the benchmark of Tian et al. (2020), as in SP.
    authors = {
        "optimizer.name": "sgd", "optimizer.lr": 0.05, "optimizer.momentum": 0.9, "optimizer.weight_decay": 5e-4,
        "optimizer.schedule": "step", "optimizer.every": "epoch",
        "optimizer.milestones": (150 / 240, 180 / 240, 210 / 240), "optimizer.decay": 0.1, "head": "linear",
        "views.recipe": "weak", "batch_size": 64, "passes": 240.0, "neighbors.k": 0,
    }  # fmt: skip

    def forward(self, student: Tensor, teacher: Tensor) -> Terms:
        """Part "mse", in squared units of the teacher's embedding, 0 = perfect."""
        check_pair(student, teacher)
        s, t = exact_pair(student, teacher)
        mse = (s - t).square().mean()
        return Terms(mse, {"mse": mse})
