"""ISD: CompRess without a teacher, the student's own moving average in its place."""

from dataclasses import dataclass

from torch import Tensor

from understudy.losses.base import QueueLoss, Requirements, Terms, relative_entropy, unit_pair
from understudy.settings import setting


class ISD(QueueLoss):
    """Divergence between the averaged student's softmax over past keys, on one view, and the student's on another.

    Differs from MoCo by soft targets: past images that are alike to the key are not pushed away. Differs from the
    authors' in that the student has no predictor of its own after the encoder: student and average are the same
    network, head included; and the averaged network normalizes with averaged statistics (EMAN) instead of shuffling
    batches between GPUs.

    The queue starts empty, not random. At the very first step, with nothing to compare with, the loss is exactly 0
    with no gradient.

    Scope: a mean over images, the queue is the same on every process.

    Source:
        ICCV 2021, arXiv 2012.09259; defaults as in the authors' code, github.com/UMBCvision/ISD.
    """

    name = "isd"
    summary = "no teacher: CompRess with the student's own average in its place"
    needs = Requirements(teacher_views=(), key_views=(1,))
    in_teacher_space = False
    embed_dim = 512
    """The width of the authors' ResNet-18, which has no head: a student as wide has none here either."""
    paper = "tejankar2021isd"
    # The released run_isd.sh for ResNet-18.
    authors = {
        "optimizer.name": "sgd", "optimizer.lr": 0.01, "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4,
        "optimizer.schedule": "step", "optimizer.every": "epoch", "optimizer.milestones": (140 / 200, 180 / 200),
        "optimizer.decay": 0.2, "head": "auto", "views.recipe": "moco-v2", "batch_size": 256, "passes": 200.0,
        "method.temperature": 0.02, "method.queue": 128000, "method.momentum": 0.999,
    }  # fmt: skip

    @dataclass(frozen=True)
    class Settings:
        temperature: float = setting(0.02, "Temperature of both softmaxes, tau.", above=0)
        queue: int = setting(128000, "Q, how many past keys are kept.", minimum=1)
        # 0.999 in the released script; 0.99 in some of the paper's runs (unchecked).
        momentum: float = setting(0.999, "Of the average.", minimum=0, maximum=1)

    settings: Settings

    def forward(self, student: Tensor, key: Tensor) -> Terms:
        """Part "divergence", in nats, 0 = perfect; the keys enter the queue afterwards."""
        s, k = unit_pair(student, key, ("student", "key"))
        scores_k, scores_s = self.queue.scores(k), self.queue.scores(s)
        divergence = relative_entropy(scores_k / self.settings.temperature, scores_s / self.settings.temperature).mean()
        self.queue.push(k)
        return Terms(divergence, {"divergence": divergence})
