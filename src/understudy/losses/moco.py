"""MoCo-v2: contrastive learning with a momentum encoder and a queue; no teacher.

In this project it is how a teacher is trained when the user has none, and the control "the same student without a
teacher": the same loop, the same checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.errors import ConfigError
from understudy.losses.queue import Queue
from understudy.losses.similarity import exact
from understudy.losses.terms import Loss, Terms, check_pair


class MoCo(Loss):
    """InfoNCE of a view against the key of another view of the same image, among a queue of past keys.

    Differs from the authors' in two ways, both needed for one result on any number of processes: the key encoder
    normalises with averaged statistics (EMAN) instead of shuffling batches between GPUs; and the queue starts empty
    instead of random, so the first steps have fewer negatives rather than false ones. At the very first step, with no
    negative at all, the loss is exactly 0.

    Args:
        temperature: of the softmax, tau.
        queue: Q, how many past keys are kept.
        momentum: of the key encoder's average.

    Source:
        Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive Learning", 2020, arXiv 2003.04297;
        equation 1 of MoCo, arXiv 1911.05722. Defaults as in the authors' code.
    """

    views = 2
    needs_teacher = False
    needs_key = True
    student_views = (0,)
    key_views = (1,)
    embed_dim = 128
    citation = """@article{chen2020mocov2,
  title   = {Improved Baselines with Momentum Contrastive Learning},
  author  = {Chen, Xinlei and Fan, Haoqi and Girshick, Ross and He, Kaiming},
  journal = {arXiv preprint arXiv:2003.04297},
  year    = {2020}
}"""

    def __init__(self, temperature: float = 0.2, queue: int = 65536, momentum: float = 0.999) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigError(f"'method.temperature' must be above 0; got {temperature}.")
        if not 0 <= momentum <= 1:
            raise ConfigError(f"'method.momentum' must be between 0 and 1; got {momentum}.")
        self.temperature = float(temperature)
        self.key_momentum = float(momentum)
        self.queue = Queue(queue)

    def forward(self, student: Tensor, key: Tensor) -> Terms:
        """Loss of a batch; the keys enter the queue afterwards.

        Args:
            student: (B, D) embeddings of the first view; receives the gradient.
            key: (B, D) embeddings of the second view from the averaged encoder; detached.

        Returns:
            Terms with part "infonce", in nats.

        Raises:
            ShapeError: shapes that do not fit; both are in the sentence.
        """
        check_pair(student, key, ("student", "key"))
        query = F.normalize(exact(student), dim=1)
        positive_key = F.normalize(exact(key.detach()), dim=1)
        logits = (query * positive_key).sum(1, keepdim=True)
        negatives = self.queue.rows()
        if len(negatives):
            # A copy, because the push below writes into the rows that the backward pass reads.
            logits = torch.cat([logits, query @ negatives.to(query.dtype).clone().T], dim=1)
        infonce = -F.log_softmax(logits / self.temperature, dim=1)[:, 0].mean()
        self.queue.push(positive_key)
        return Terms(infonce, {"infonce": infonce})
