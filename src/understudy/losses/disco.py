"""DisCo: MoCo-v2 training of the student, and its embedding held to the teacher's on both views."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from understudy.losses.queue import Queue
from understudy.losses.similarity import exact_pair, infonce, unit_rows
from understudy.losses.terms import Loss, Terms, check_pair, check_views, number


class DisCo(Loss):
    """InfoNCE of the student against keys from its own average, plus squared distances to the teacher on both views.

    One embedding serves both terms: the output of the student's head, row-normalized, in the teacher's width. The
    teacher's counterpart is its last embedding (the authors' MoCo-v2 teachers keep their projection head; a teacher
    without one gives its pooled feature). Differs from MoCo by the teacher, from SimReg by the contrastive term and
    two views. The student lands on the teacher's directions.

    The queue starts empty, not random: at the very first step the contrastive term is exactly 0. The key encoder
    normalizes with averaged statistics (EMAN) instead of shuffling batches between GPUs.

    Scope: a mean over images, the queue is the same on every process.

    Args:
        temperature: of the InfoNCE softmax, tau. 0.2 in the authors' commands.
        queue: Q, how many past keys are kept.
        momentum: of the key encoder's average.
        weight: of the distances. Paper and code write 1, but the code also SUMS over the images of each process: its
            batch of 256 on the 8 GPUs it asks for makes 32 per image. 1 is the paper's reading.

    Source:
        Gao, Zhuang, Lin, Cheng, Sun, Li, Shen, "DisCo: Remedy Self-supervised Learning on Lightweight Models with
        Distilled Contrastive Learning", ECCV 2022, arXiv 2104.09124; details as in the authors' code,
        github.com/Yuting-Gao/DisCo-pytorch.
    """

    views = 2
    student_views = (0, 1)
    teacher_views = (0, 1)
    needs_key = True
    key_views = (1,)
    citation = """@inproceedings{gao2022disco,
  title     = {{DisCo}: Remedy Self-supervised Learning on Lightweight Models with Distilled Contrastive Learning},
  author    = {Gao, Yuting and Zhuang, Jia-Xin and Lin, Shaohui and Cheng, Hao and Sun, Xing and Li, Ke and
               Shen, Chunhua},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2022},
  eprint    = {2104.09124},
  archivePrefix = {arXiv}
}"""
    # The released commands and their defaults. Their MoCo-v2 teacher keeps its projection head (D = 128), as in SEED.
    authors: ClassVar[dict[str, object]] = {
        "optimizer.name": "sgd", "optimizer.lr": 0.03, "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4,
        "optimizer.schedule": "cosine", "optimizer.every": "epoch", "head": "mlp", "head_hidden": 2048,
        "views.recipe": "moco-v2", "batch_size": 256, "passes": 200.0, "neighbors.k": 0, "method.temperature": 0.2,
        "method.queue": 65536, "method.momentum": 0.999, "method.weight": 32.0,
    }  # fmt: skip

    def __init__(
        self, temperature: float = 0.2, queue: int = 65536, momentum: float = 0.999, weight: float = 32.0
    ) -> None:
        super().__init__()
        self.temperature = number("temperature", temperature, above=0)
        self.key_momentum = number("momentum", momentum, minimum=0, maximum=1)
        self.weight = number("weight", weight, minimum=0)
        self.queue = Queue(queue)

    def forward(self, student: Tensor, teacher: Tensor, key: Tensor) -> Terms:
        """Loss of a batch; the keys enter the queue afterwards.

        Args:
            student: (2, B, D) embeddings of both views; receives the gradient.
            teacher: (2, B, D) embeddings of both views; detached.
            key: (B, D) embeddings of the second view by the averaged student; detached.

        Returns:
            Terms with parts "infonce", in nats, and "distance", squared, summed over dimensions and the two views,
            averaged over images, in [0, 8], 0 = perfect.

        Raises:
            ShapeError: shapes that do not fit; both are in the sentence.
        """
        check_views(student, 2, "student")
        check_views(teacher, 2, "teacher")
        for one_student, one_teacher in zip(student, teacher, strict=True):
            check_pair(one_student, one_teacher)
        check_pair(student[0], key, ("student", "key"))
        s, t = (unit_rows(x) for x in exact_pair(student, teacher))
        k = unit_rows(exact_pair(student, key)[1])
        negatives = (self.queue.scores(s[0]) / self.temperature).logsumexp(1)
        contrast = infonce((s[0] * k).sum(1) / self.temperature, negatives).mean()
        distance = (s - t).square().sum(2).mean(1).sum()
        self.queue.push(k)
        return Terms(contrast + self.weight * distance, {"infonce": contrast, "distance": distance})
