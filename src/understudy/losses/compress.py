"""CompRess: the student ranks a queue of past images as the teacher ranks them, each in its own space if wanted."""

from dataclasses import dataclass

from torch import Tensor

from understudy.errors import ShapeError
from understudy.losses.base import Loss, Queue, Requirements, Terms, relative_entropy, unit_pair
from understudy.settings import setting


class CompRess(Loss):
    """Divergence between the teacher's and the student's softmax over the past images, one temperature for both.

    With two queues the student compares itself with its own past, kept by its moving average, so only similarities
    are asked for: the student does not end in the teacher's space, and the two cannot be searched against each
    other. With one queue both compare with the teacher's past, and the student reaches its directions. Differs from
    SEED by leaving the image itself out of the candidates.

    The queues start empty, not random as the authors' do. At the very first step, with nothing to compare with, the
    loss is exactly 0 with no gradient. The key network normalizes with averaged statistics (EMAN); in the authors' code
    its BatchNorm is in training mode and takes those of each batch.

    Scope: a mean over images, the queues are the same on every process.

    Source:
        NeurIPS 2020, arXiv 2010.14713, equations 1 to 3; defaults as in the authors' code,
        github.com/UMBCvision/CompRess.
    """

    name = "compress"
    summary = "the teacher's similarities to a queue of past images, each model in its own space"
    needs = Requirements(key_views=(0,))
    in_teacher_space = False
    paper = "koohpayegani2020compress"
    # train_student.py of the released code. Its student has no head with two queues and a linear one with one queue;
    # here both models must end in the same width, so it is linear with either.
    authors = {
        "optimizer.name": "sgd", "optimizer.lr": 0.01, "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4,
        "optimizer.schedule": "step", "optimizer.every": "epoch", "optimizer.milestones": (90 / 130, 120 / 130),
        "optimizer.decay": 0.2, "head": "linear", "views.recipe": "crop", "batch_size": 256, "passes": 130.0,
        "neighbors.k": 0, "method.queues": 2, "method.temperature": 0.04, "method.queue": 128000,
        "method.momentum": 0.999,
    }  # fmt: skip

    @dataclass(frozen=True)
    class Settings:
        queues: int = setting(
            2, "2: the student compares with its own past (needs a key network); 1: with the teacher's.", choices=(1, 2)
        )
        temperature: float = setting(0.04, "Temperature of both softmaxes, tau.", above=0)
        queue: int = setting(128000, "Q, how many embeddings of each model are kept.", minimum=1)
        momentum: float = setting(
            0.999, "Of the average that fills the student's queue; unused with one queue.", minimum=0, maximum=1
        )

    settings: Settings

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        if settings.queues == 1:
            self.needs, self.in_teacher_space = Requirements(), True
        self.key_momentum = settings.momentum
        self.teacher_queue = Queue(settings.queue)
        self.student_queue = Queue(settings.queue) if self.needs.key else None

    def forward(self, student: Tensor, teacher: Tensor, key: Tensor | None = None) -> Terms:
        """Part "divergence", in nats, 0 = perfect; the embeddings enter the queues afterwards.

        Raises:
            ShapeError: also where a key is missing (two queues) or not asked for (one).
        """
        s, t = unit_pair(student, teacher)
        if (key is not None) != self.needs.key:
            raise ShapeError(
                "CompRess with 2 queues needs `key`, the averaged student's embeddings (set queues to 1 to do without)."
                if self.needs.key
                else "CompRess with 1 queue takes no `key`. Leave it out, or set queues to 2."
            )
        scores_t, scores_s = self.teacher_queue.scores(t), (self.student_queue or self.teacher_queue).scores(s)
        divergence = relative_entropy(scores_t / self.settings.temperature, scores_s / self.settings.temperature).mean()
        self.teacher_queue.push(t)
        if key is not None and self.student_queue is not None:
            self.student_queue.push(unit_pair(student, key, ("student", "key"))[1])
        return Terms(divergence, {"divergence": divergence})
