"""SEED: the student ranks a queue of past teacher embeddings, and the image's own, as the teacher ranks them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.losses.base import QueueLoss, Terms, unit_pair
from understudy.settings import setting


class SEED(QueueLoss):
    """Cross entropy between the teacher's and the student's softmax over [t, Q], Q the past teacher embeddings.

    Differs from CompRess by one queue for both models, by the image's own teacher embedding among the candidates, and
    by two temperatures. At the default teacher temperature the target is all but one-hot on the image itself unless
    the queue holds a near duplicate: InfoNCE with the teacher as key. Both models must end in the same width, so the
    student reaches the teacher's directions.

    The queue starts empty, not random as the authors' does: the first steps have fewer candidates rather than false
    ones, and at the very first step, with the image itself as the only one, the loss is exactly 0 with no gradient.

    Scope: a mean over images, the queue is the same on every process.

    Source:
        ICLR 2021, arXiv 2101.04731, equations 3 to 5; defaults as in the authors' code, github.com/jacobswan1/SEED.
    """

    name = "seed"
    summary = "the teacher's ranking of a queue of its past embeddings, and of the image itself"
    paper = "fang2021seed"
    # tools/opts.py and main.py of the released code, where the rate is 0.03 for 256 images and stays at its peak for 5
    # epochs; the hidden layer of the head is as wide as the backbone. Their MoCo-v2 teacher keeps its projection head
    # (D = 128). A spec with @FILE ends at the pooled feature (D = 2048 for ResNet-50); a teacher with its head is a
    # `python:` one.
    authors = {
        "optimizer.name": "sgd", "optimizer.lr": 0.03, "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4,
        "optimizer.schedule": "cosine", "optimizer.every": "epoch", "optimizer.hold": 5 / 200, "head": "mlp",
        "head_hidden": 0, "views.recipe": "moco-v2", "batch_size": 256, "passes": 200.0, "neighbors.k": 0,
        "method.tau_teacher": 1e-4, "method.tau_student": 0.2, "method.queue": 65536,
    }  # fmt: skip

    @dataclass(frozen=True)
    class Settings:
        # 1e-4 in the authors' code, 0.01 in the paper (unchecked).
        tau_teacher: float = setting(1e-4, "Temperature of the teacher's softmax.", above=0)
        tau_student: float = setting(0.2, "Temperature of the student's softmax.", above=0)
        queue: int = setting(65536, "Q, how many teacher embeddings are kept.", minimum=1)

    settings: Settings

    def forward(self, student: Tensor, teacher: Tensor) -> Terms:
        """Part "cross_entropy", in nats; the teacher's embeddings enter the queue afterwards."""
        s, t = unit_pair(student, teacher)
        student_logits, teacher_logits = (
            torch.cat([(x * t).sum(1, keepdim=True), self.queue.scores(x)], dim=1) for x in (s, t)
        )
        target = (teacher_logits / self.settings.tau_teacher).softmax(1)
        cross_entropy = -(target * (student_logits / self.settings.tau_student).log_softmax(1)).sum(1).mean()
        self.queue.push(t)
        return Terms(cross_entropy, {"cross_entropy": cross_entropy})
