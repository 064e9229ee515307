"""Queue-KL: a queue of teacher embeddings as the weights of a classifier whose outputs the student imitates."""

from dataclasses import dataclass

from torch import Tensor

from understudy.losses.base import QueueLoss, Terms, relative_entropy, unit_pair
from understudy.settings import setting


class QueueKL(QueueLoss):
    """Divergence between the teacher's and the student's softmax over the latest teacher embeddings.

    Differs from CompRess with one queue by a queue that already holds the batch itself, so each image is also compared
    with its batch and with itself, and by its temperature. The student reaches the teacher's directions. Mixup of the
    input images, which the original always applies, is left out: here it would be an augmentation, not a loss.

    The queue starts empty, where the original scores zero rows; it is never empty, because the batch enters first. Of a
    batch that is larger than the queue the last rows stay, in the original the first.

    Scope: a mean over images; the queue is the same on every process (the original keeps one per process).

    Source:
        LightlyTrain, method "distillationv1", as in its documentation and public code,
        github.com/lightly-ai/lightly-train; after Beyer et al., "Knowledge Distillation: A Good Teacher is Patient and
        Consistent", CVPR 2022, arXiv 2106.05237.
    """

    name = "queue_kl"
    summary = "the teacher's similarities to a queue of its latest embeddings, the batch among them"
    paper = "lightlytrain"
    # Not their first release, which is trained by LARS with a rate of 0.3 for 256 images (1.8 for 1,536 in later ones,
    # by the square root of the batch) and a weight decay of 1e-6: LARS is not among our optimizers. These are the
    # library's defaults of AdamW for a batch of 128 (unchecked). Their views are crops of at least 14 % of the area, a
    # jitter of (0.4, 0.4, 0.2, 0.1), gray in 20 %, a blur too small to see, a flip, and mixup; ours are the nearest.
    authors = {
        "optimizer.name": "adamw", "optimizer.lr": 5e-4, "optimizer.momentum": 0.9, "optimizer.weight_decay": 0.01,
        "optimizer.schedule": "cosine", "optimizer.clip": 1.0, "head": "linear", "views.recipe": "moco-v2",
        "batch_size": 128, "passes": 100.0, "neighbors.k": 0, "method.temperature": 0.07, "method.queue": 8192,
    }  # fmt: skip

    @dataclass(frozen=True)
    class Settings:
        temperature: float = setting(0.07, "Temperature of both softmaxes, tau.", above=0)
        # 8192 in the original from 20,000 images on; about a third of the images below.
        queue: int = setting(8192, "Q, how many teacher embeddings are kept.", minimum=1)

    settings: Settings

    def forward(self, student: Tensor, teacher: Tensor) -> Terms:
        """Part "divergence", in nats, 0 = perfect; the teacher's embeddings enter the queue before."""
        s, t = unit_pair(student, teacher)
        self.queue.push(t)
        scores_t, scores_s = self.queue.scores(t), self.queue.scores(s)
        divergence = relative_entropy(scores_t / self.settings.temperature, scores_s / self.settings.temperature).mean()
        return Terms(divergence, {"divergence": divergence})
