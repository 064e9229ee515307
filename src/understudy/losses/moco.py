"""MoCo-v2: contrastive learning with a momentum encoder and a queue; no teacher.

In this project it is how a teacher is trained when the user has none, and the control "the same student without a
teacher": the same loop, the same checkpoints.
"""

from dataclasses import dataclass

from torch import Tensor

from understudy.losses.base import QueueLoss, Requirements, Terms, infonce, unit_pair
from understudy.settings import setting


class MoCo(QueueLoss):
    """InfoNCE of a view against the key of another view of the same image, among a queue of past keys.

    Differs from the authors' in two ways, both needed for one result on any number of processes: the key encoder
    normalizes with averaged statistics (EMAN) instead of shuffling batches between GPUs; and the queue starts empty
    instead of random, so the first steps have fewer negatives rather than false ones. At the very first step, with no
    negative at all, the loss is exactly 0.

    Source:
        arXiv 2003.04297; equation 1 of MoCo, arXiv 1911.05722. Defaults as in the authors' code.
    """

    name = "moco"
    summary = "no teacher: a view of an image against another of the same, among past ones"
    needs = Requirements(teacher_views=(), key_views=(1,))
    in_teacher_space = False
    embed_dim = 128
    paper = "chen2020mocov2"
    # main_moco.py of the released code with --mlp --moco-t 0.2 --aug-plus --cos; the hidden layer of the head is as
    # wide as the backbone.
    authors = {
        "optimizer.name": "sgd", "optimizer.lr": 0.03, "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4,
        "optimizer.schedule": "cosine", "optimizer.every": "epoch", "head": "mlp", "head_hidden": 0,
        "views.recipe": "moco-v2", "batch_size": 256, "passes": 200.0, "method.temperature": 0.2, "method.queue": 65536,
        "method.momentum": 0.999,
    }  # fmt: skip

    @dataclass(frozen=True)
    class Settings:
        temperature: float = setting(0.2, "Temperature of the softmax, tau.", above=0)
        queue: int = setting(65536, "Q, how many past keys are kept.", minimum=1)
        momentum: float = setting(0.999, "Of the key encoder's average.", minimum=0, maximum=1)

    settings: Settings

    def forward(self, student: Tensor, key: Tensor) -> Terms:
        """Part "infonce", in nats; the keys enter the queue afterwards."""
        s, k = unit_pair(student, key, ("student", "key"))
        negatives = (self.queue.scores(s) / self.settings.temperature).logsumexp(1)
        contrast = infonce((s * k).sum(1) / self.settings.temperature, negatives).mean()
        self.queue.push(k)
        return Terms(contrast, {"infonce": contrast})
