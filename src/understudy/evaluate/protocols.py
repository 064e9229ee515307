"""The protocols by name, and what each of them takes. Each is one file; a new one is one more file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from understudy.evaluate.asymmetric_knn import asymmetric_knn
from understudy.evaluate.davis import davis
from understudy.evaluate.detection import detection
from understudy.evaluate.fidelity import fidelity
from understudy.evaluate.knn import knn
from understudy.evaluate.linear import linear
from understudy.evaluate.linear_sgd import linear_sgd
from understudy.evaluate.segmentation import segmentation
from understudy.evaluate.settings import EvaluationSettings
from understudy.evaluate.subject import Figures, Subject

EVALUATIONS: dict[str, Callable[[Subject, EvaluationSettings], Figures]] = {
    "knn": knn,
    "linear": linear,
    "linear_sgd": linear_sgd,
    "asymmetric_knn": asymmetric_knn,
    "fidelity": fidelity,
    "detection": detection,
    "segmentation": segmentation,
    "davis": davis,
}
"""Protocol name -> function of a subject and the settings. `settings.PROTOCOLS` says in words what each does."""


@dataclass(frozen=True)
class Takes:
    """What a protocol is applied to.

    Args:
        main: the main evaluation images.
        kinds: kinds of `--on` sets.
        images: whether it looks at images at all.
        labels: whether the main images need labels.
        reference: whether it compares with the teacher, and so does not apply to the teacher itself.
        head: whether it applies to the student's embedding too, beside the backbone's features.
        space: whether it needs rows in the teacher's space, so of the student's embedding and not of its backbone.
        passes: image passes it needs beside the shared features, (settings, training images, test images) -> number.
    """

    main: bool = True
    kinds: frozenset[str] = frozenset()
    images: bool = True
    labels: bool = True
    reference: bool = False
    head: bool = True
    space: bool = False
    passes: Callable[[EvaluationSettings, int, int], float] = lambda *_: 0.0


TAKES: dict[str, Takes] = {
    "knn": Takes(kinds=frozenset({"labelled"})),
    "linear": Takes(),
    "linear_sgd": Takes(passes=lambda settings, train, _: settings.sgd_epochs * train),
    "asymmetric_knn": Takes(kinds=frozenset({"labelled"}), reference=True, space=True),
    "fidelity": Takes(labels=False, reference=True),
    "detection": Takes(main=False, kinds=frozenset({"objects"}), labels=False, head=False),
    "segmentation": Takes(main=False, kinds=frozenset({"masks"}), labels=False, head=False),
    "davis": Takes(main=False, kinds=frozenset({"videos"}), labels=False, head=False),
}
"""Protocol name -> what it is applied to. Where there are no main images, labelled `--on` sets stand in for them."""
