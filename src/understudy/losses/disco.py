"""DisCo: MoCo-v2 training of the student, and its embedding held to the teacher's on both views."""

from dataclasses import dataclass

from torch import Tensor

from understudy.losses.base import (
    QueueLoss,
    Requirements,
    Terms,
    check_pair,
    check_views,
    exact_pair,
    infonce,
    unit_rows,
)
from understudy.settings import setting


class DisCo(QueueLoss):
    """InfoNCE of the student against keys from its own average, plus squared distances to the teacher on both views.

    One embedding serves both terms: the output of the student's head, row-normalized, in the teacher's width. The
    teacher's counterpart is its last embedding (the authors' MoCo-v2 teachers keep their projection head; a teacher
    without one gives its pooled feature). Differs from MoCo by the teacher, from SimReg by the contrastive term and
    two views. The student reaches the teacher's directions.

    The queue starts empty, not random: at the very first step the contrastive term is exactly 0. The key encoder
    normalizes with averaged statistics (EMAN) instead of shuffling batches between GPUs. The teacher is in evaluation
    mode; in the authors' code it is in training mode, so its BatchNorm takes the statistics of each batch.

    Scope: a mean over images, the queue is the same on every process.

    Source:
        ECCV 2022, arXiv 2104.09124; details as in the authors' code, github.com/Yuting-Gao/DisCo-pytorch.
    """

    name = "disco"
    summary = "MoCo-v2 of the student, and its embedding held to the teacher's on both views"
    needs = Requirements(student_views=(0, 1), teacher_views=(0, 1), key_views=(1,))
    paper = "gao2022disco"
    # The released commands and their defaults. Their MoCo-v2 teacher keeps its projection head (D = 128), as in SEED.
    authors = {
        "optimizer.name": "sgd", "optimizer.lr": 0.03, "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4,
        "optimizer.schedule": "cosine", "optimizer.every": "epoch", "head": "mlp", "head_hidden": 2048,
        "views.recipe": "moco-v2", "batch_size": 256, "passes": 200.0, "neighbors.k": 0, "method.temperature": 0.2,
        "method.queue": 65536, "method.momentum": 0.999, "method.weight": 32.0,
    }  # fmt: skip

    @dataclass(frozen=True)
    class Settings:
        # 0.2 in the authors' commands.
        temperature: float = setting(0.2, "Temperature of the InfoNCE softmax, tau.", above=0)
        queue: int = setting(65536, "Q, how many past keys are kept.", minimum=1)
        momentum: float = setting(0.999, "Of the key encoder's average.", minimum=0, maximum=1)
        # Paper and code write 1, but the code also SUMS over the images of each process: its batch of 256 on the 8 GPUs
        # it asks for makes 32 per image. 1 is the paper's reading.
        weight: float = setting(32.0, "Of the distances to the teacher.", minimum=0)

    settings: Settings

    def forward(self, student: Tensor, teacher: Tensor, key: Tensor) -> Terms:
        """Parts "infonce", in nats, and "distance"; the keys enter the queue afterwards.

        "distance" is squared, summed over dimensions and the two views, averaged over images: in [0, 8], 0 = perfect.
        """
        check_views(student, 2, "student")
        check_views(teacher, 2, "teacher")
        for one_student, one_teacher in zip(student, teacher, strict=True):
            check_pair(one_student, one_teacher)
        check_pair(student[0], key, ("student", "key"))
        s, t = (unit_rows(x) for x in exact_pair(student, teacher))
        k = unit_rows(exact_pair(student, key)[1])
        negatives = (self.queue.scores(s[0]) / self.settings.temperature).logsumexp(1)
        contrast = infonce((s[0] * k).sum(1) / self.settings.temperature, negatives).mean()
        distance = (s - t).square().sum(2).mean(1).sum()
        self.queue.push(k)
        return Terms(contrast + self.settings.weight * distance, {"infonce": contrast, "distance": distance})
