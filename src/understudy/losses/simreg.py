"""SimReg: regress the teacher's direction. The plainest rival, and what CoSS is without its space term."""

from torch import Tensor

from understudy.losses.base import Loss, Terms, check_pair, row_cosine


class SimReg(Loss):
    """Squared distance between row-normalized embeddings, mean(2 - 2 cos).

    Differs from CoSS with weight 0 by an affine map only (2 + 2 * its feature part): the gradient is twice as large.
    What the paper adds is a deeper head (four linear layers, BatchNorm and ReLU after the first and the third; thrown
    away like ours) and weak views; both are settings of the student and the data, not of the loss. The student
    reaches the teacher up to one free radius per image.

    Scope: a mean over images, so the same on any number of processes.

    Source:
        BMVC 2021, arXiv 2201.05131; the loss as in the authors' code, github.com/UCDvision/simreg.
    """

    name = "simreg"
    summary = "the teacher's direction"
    paper = "navaneet2021simreg"
    # The released run.sh: the deep head, weak views, the same one to both models.
    authors = {
        "optimizer.name": "sgd", "optimizer.lr": 0.05, "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4,
        "optimizer.schedule": "cosine", "optimizer.every": "epoch", "head": "deep", "views.recipe": "weak",
        "batch_size": 256, "passes": 130.0, "neighbors.k": 0,
    }  # fmt: skip

    def forward(self, student: Tensor, teacher: Tensor) -> Terms:
        """Part "distance", in [0, 4], 0 = perfect. A row that is all zero counts as cosine 0."""
        check_pair(student, teacher)
        distance = (2 - 2 * row_cosine(student, teacher.detach())).mean()
        return Terms(distance, {"distance": distance})
