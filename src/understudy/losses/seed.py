"""SEED: the student ranks a queue of past teacher embeddings, and the image's own, as the teacher ranks them."""

from __future__ import annotations

import torch
from torch import Tensor

from understudy.losses.queue import Queue
from understudy.losses.similarity import exact_pair, unit_rows
from understudy.losses.terms import Loss, Terms, check_pair, number


class SEED(Loss):
    """Cross entropy between the teacher's and the student's softmax over [t, Q], Q the past teacher embeddings.

    Differs from CompRess by one queue for both models, by the image's own teacher embedding among the candidates, and
    by two temperatures. At the default teacher temperature the target is all but one-hot on the image itself unless
    the queue holds a near duplicate: InfoNCE with the teacher as key. Both models must end in the same width, so the
    student lands on the teacher's directions.

    The queue starts empty, not random as the authors' does: the first steps have fewer candidates rather than false
    ones, and at the very first step, with the image itself as the only one, the loss is exactly 0 with no gradient.

    Scope: a mean over images, the queue is the same on every process.

    Args:
        tau_teacher: temperature of the teacher's softmax. 1e-4 in the authors' code, 0.01 in the paper (unchecked).
        tau_student: temperature of the student's softmax.
        queue: Q, how many teacher embeddings are kept.

    Source:
        Fang, Wang, Wang, Zhang, Yang, Liu, "SEED: Self-supervised Distillation for Visual Representation", ICLR 2021,
        arXiv 2101.04731, equations 3 to 5; defaults as in the authors' code, github.com/jacobswan1/SEED.
    """

    citation = """@inproceedings{fang2021seed,
  title     = {{SEED}: Self-supervised Distillation for Visual Representation},
  author    = {Fang, Zhiyuan and Wang, Jianfeng and Wang, Lijuan and Zhang, Lei and Yang, Yezhou and Liu, Zicheng},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2021},
  eprint    = {2101.04731},
  archivePrefix = {arXiv}
}"""

    def __init__(self, tau_teacher: float = 1e-4, tau_student: float = 0.2, queue: int = 65536) -> None:
        super().__init__()
        self.tau_teacher = number("tau_teacher", tau_teacher, above=0)
        self.tau_student = number("tau_student", tau_student, above=0)
        self.queue = Queue(queue)

    def forward(self, student: Tensor, teacher: Tensor) -> Terms:
        """Loss of a batch; the teacher's embeddings enter the queue afterwards.

        Args:
            student: (B, D) embeddings; receives the gradient.
            teacher: (B, D) embeddings; detached.

        Returns:
            Terms with part "cross_entropy", in nats.

        Raises:
            ShapeError: shapes that do not fit; both are in the sentence.
        """
        check_pair(student, teacher)
        s, t = (unit_rows(x) for x in exact_pair(student, teacher))
        student_logits, teacher_logits = (
            torch.cat([(x * t).sum(1, keepdim=True), self.queue.scores(x)], dim=1) for x in (s, t)
        )
        target = (teacher_logits / self.tau_teacher).softmax(1)
        cross_entropy = -(target * (student_logits / self.tau_student).log_softmax(1)).sum(1).mean()
        self.queue.push(t)
        return Terms(cross_entropy, {"cross_entropy": cross_entropy})
