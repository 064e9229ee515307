"""DIST: Pearson's correlation along both axes, the nearest kin of CoSS."""

from dataclasses import dataclass

from torch import Tensor

from understudy.losses.base import Loss, Terms, column_correlation, row_correlation, smaller_pair
from understudy.settings import setting


class DIST(Loss):
    """One minus the correlation of each image's numbers, and one minus that of each dimension over the batch.

    Differs from CoSS by centering both axes: what all dimensions of an image, or all images of a dimension, have in
    common does not count. Differs from the original, which compares softmax outputs of classifiers (rows = relations
    between classes, columns = relations between images), by comparing raw embeddings: an embedding has no classes, and
    a correlation is blind to the scale and offset that a softmax would need. The student reaches the teacher up to
    an offset and one positive scale.

    Scope: columns are taken over the batch of all processes, exactly; rows are a mean over images.

    Source:
        NeurIPS 2022, arXiv 2205.10536, equations 7 to 9; defaults as in the authors' code, github.com/hunto/DIST_KD.
    """

    name = "dist"
    summary = "correlations of each image's numbers and of each dimension"
    paper = "huang2022dist"
    # The paper's baseline strategy on ImageNet (unchecked against a log), where labels are learned beside it.
    authors = {
        "optimizer.name": "sgd", "optimizer.lr": 0.1, "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4,
        "optimizer.schedule": "step", "optimizer.every": "epoch", "optimizer.milestones": (0.3, 0.6, 0.9),
        "optimizer.decay": 0.1, "head": "linear", "views.recipe": "crop", "batch_size": 256, "passes": 100.0,
        "neighbors.k": 0, "method.beta": 1.0, "method.gamma": 1.0,
    }  # fmt: skip

    @dataclass(frozen=True)
    class Settings:
        beta: float = setting(1.0, "Weight of the rows; 1 in the authors' loss.", minimum=0)
        gamma: float = setting(1.0, "Weight of the columns; 1 in the authors' loss.", minimum=0)

    settings: Settings

    def forward(self, student: Tensor, teacher: Tensor) -> Terms:
        """Parts "rows" and "columns", each in [0, 2], 0 = perfect.

        A constant row or column counts as correlation 0; with B = 1 all columns are constant.
        """
        s, t = smaller_pair(student, teacher)
        rows = 1 - row_correlation(s, t).mean()
        columns = 1 - column_correlation(s, t).mean()
        return Terms(self.settings.beta * rows + self.settings.gamma * columns, {"rows": rows, "columns": columns})
