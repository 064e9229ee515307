"""BINGO: an image and its neighbor are drawn to the teacher's embeddings of both, against a queue of the others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.errors import ShapeError
from understudy.losses.base import QueueLoss, Requirements, Terms, check_pair, infonce, next_in_bag, unit_pair
from understudy.settings import setting


class BINGO(QueueLoss):
    """InfoNCE with teacher keys: of an image x, of its neighbor x+, and of a CutMix of the two, averaged.

    With l(q, k) the InfoNCE of the student's q against the teacher's k, and both models seeing different views:

    - anchor:    (l(s(x), t(x)) + l(s(x), t(x+))) / 2
    - neighbor: (l(s(x+), t(x)) + l(s(x+), t(x+))) / 2
    - cutmix:   share * l(s(mix), t(x)) + (1 - share) * l(s(mix), t(x+)), share = the area that is still x

    During the first passes anchor and neighbor are each drawn to their own key only. Differs from SEED by the
    neighbor and by hard targets. The authors draw one x+ among the teacher's 5 nearest for each anchor; here x+ is the
    next image of the same bag, so that every image of a bag is an anchor once and its key enters the queue: bags of
    two (`neighbors.k` 1 of `neighbors.n` 5) are theirs. An image alone in its bag is its own neighbor. The student
    reaches the teacher's directions.

    The queue starts empty, not random: at the very first step the loss is exactly 0 with no gradient. The teacher is in
    evaluation mode; in the authors' code it is in training mode, so its BatchNorm takes the statistics of each batch.

    Scope: a mean over images, the queue is the same on every process.

    Source:
        ICLR 2022, arXiv 2107.01691; details as in the authors' code, github.com/haohang96/bingo.
    """

    name = "bingo"
    summary = "contrast with the teacher's embeddings, of a neighbor and of a CutMix of the two as well"
    needs = Requirements(teacher_views=(1,), bags=True, passes=True, cutmix=True)
    paper = "xu2022bingo"
    # The released scripts/unsupervised/SR18-TR50.sh: 256 anchors a step, each with one of its 5 neighbors, so 512
    # images, and an epoch of anchors is two image passes. Their MoCo-v2 teacher keeps its projection head (D = 128), as
    # in SEED; their queue takes the anchors only.
    authors = {
        "optimizer.name": "sgd", "optimizer.lr": 0.03, "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4,
        "optimizer.schedule": "cosine", "optimizer.every": "epoch", "head": "mlp", "head_hidden": 2048,
        "views.recipe": "moco-v2", "batch_size": 512, "passes": 400.0, "neighbors.k": 1, "neighbors.n": 5,
        "method.temperature": 0.2, "method.queue": 65536, "method.warmup": 22.0,
    }  # fmt: skip

    @dataclass(frozen=True)
    class Settings:
        temperature: float = setting(0.2, "Temperature of the softmaxes, tau.", above=0)
        queue: int = setting(65536, "Q, how many past teacher embeddings are kept.", minimum=1)
        # 11 in the code, which waits for epoch > 10 counted from 0.
        warmup: float = setting(11.0, "Image passes in which each image is drawn to its own key only.", minimum=0)

    settings: Settings

    def forward(
        self, student: Tensor, teacher: Tensor, bags: Tensor, passes: float, mixed: Tensor, share: Tensor
    ) -> Terms:
        """Parts "anchor", "neighbor" and "cutmix", in nats; the teacher's embeddings enter the queue afterwards."""
        s, t = unit_pair(student, teacher)
        check_pair(student, mixed, ("student", "mixed"))
        if bags.shape != student.shape[:1] or share.shape != student.shape[:1]:
            raise ShapeError(
                f"Each of the {len(student)} images needs one bag and one share; got bags {tuple(bags.shape)}, share "
                f"{tuple(share.shape)}."
            )
        m = unit_pair(mixed, teacher)[0]
        following = next_in_bag(bags)
        t_next = t[following]
        negatives, mixed_negatives = ((self.queue.scores(q) / self.settings.temperature).logsumexp(1) for q in (s, m))

        def contrast(query: Tensor, key: Tensor, others: Tensor) -> Tensor:
            return infonce((query * key).sum(1) / self.settings.temperature, others)

        own = contrast(s, t, negatives)
        if passes < self.settings.warmup:
            anchor, neighbor = own, own[following]
        else:
            anchor = (own + contrast(s, t_next, negatives)) / 2
            neighbor = (contrast(s[following], t, negatives[following]) + own[following]) / 2
        share = share.to(s.dtype)
        cutmix = share * contrast(m, t, mixed_negatives) + (1 - share) * contrast(m, t_next, mixed_negatives)
        self.queue.push(t)
        parts = {"anchor": anchor.mean(), "neighbor": neighbor.mean(), "cutmix": cutmix.mean()}
        return Terms(torch.stack(list(parts.values())).mean(), parts)
