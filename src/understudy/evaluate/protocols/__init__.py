"""The protocols by name, and what each of them takes. Each is one file; a new one is one more file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from understudy.evaluate.encoded_set import EncodedSet, Figures
from understudy.evaluate.protocol import Protocol
from understudy.evaluate.protocols.asymmetric_knn import asymmetric_knn
from understudy.evaluate.protocols.cost import cost
from understudy.evaluate.protocols.davis import davis
from understudy.evaluate.protocols.detection import detection
from understudy.evaluate.protocols.fidelity import fidelity
from understudy.evaluate.protocols.knn import knn
from understudy.evaluate.protocols.linear import linear
from understudy.evaluate.protocols.linear_sgd import linear_sgd
from understudy.evaluate.protocols.retrieval import retrieval
from understudy.evaluate.protocols.robustness import robustness
from understudy.evaluate.protocols.segmentation import segmentation
from understudy.evaluate.protocols.semi import semi
from understudy.evaluate.protocols.transfer import transfer
from understudy.evaluate.settings import EvaluationSettings
from understudy.registry import Registry

PROTOCOLS: Registry[Protocol] = Registry(
    "understudy.evaluate.protocols",
    "Protocol",
    "protocol",
    first=(
        "knn", "linear", "linear_sgd", "asymmetric_knn", "semi", "transfer", "retrieval", "robustness", "fidelity",
        "cost", "detection", "segmentation", "davis",
    ),
)  # fmt: skip
"""The protocols by name, in the order of the report: a file of this package that declares one is an entry."""


def display_tables(evaluation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How the protocols of an evaluation are shown, by name, as plain JSON.

    Args:
        evaluation: what evaluation.json holds: figures by model and "PROTOCOL" or "PROTOCOL@SET".
    """
    names: dict[str, dict[str, None]] = {}
    for model, figures in evaluation.items():
        for key, found in figures.items() if model != "about" else ():
            names.setdefault(key.partition("@")[0], {}).update(dict.fromkeys(found))
    return {name: PROTOCOLS[name].display_table(names[name]) for name in PROTOCOLS if name in names}


EVALUATIONS: dict[str, Callable[[EncodedSet, EvaluationSettings], Figures]] = {
    "knn": knn,
    "linear": linear,
    "linear_sgd": linear_sgd,
    "asymmetric_knn": asymmetric_knn,
    "semi": semi,
    "transfer": transfer,
    "retrieval": retrieval,
    "robustness": robustness,
    "fidelity": fidelity,
    "cost": cost,
    "detection": detection,
    "segmentation": segmentation,
    "davis": davis,
}
"""Protocol name -> function of an encoded set and the settings. `settings.PROTOCOLS` says in words what each does."""


@dataclass(frozen=True)
class Requirements:
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


TRAINING = 3
"""A step of training costs about as much as so many forward passes."""


def _semi_passes(settings: EvaluationSettings, train: int, test: int) -> float:
    if not settings.finetune.epochs:
        return 0.0
    shares = [float(share.strip("% ")) / 100 for share in settings.semi.shares if share.strip().endswith("%")]
    draws = settings.semi.draws
    return draws * (TRAINING * settings.finetune.epochs * sum(shares) * train + len(settings.semi.shares) * test)


def _transfer_passes(settings: EvaluationSettings, train: int, test: int) -> float:
    return TRAINING * settings.finetune.epochs * train + test if settings.finetune.epochs else 0.0


def _robustness_passes(settings: EvaluationSettings, train: int, test: int) -> float:  # noqa: ARG001
    wanted = settings.robustness
    return (15 if wanted.frost else 14) * len(wanted.severities) * min(test, wanted.images)


REQUIREMENTS: dict[str, Requirements] = {
    "knn": Requirements(kinds=frozenset({"labeled"})),
    "linear": Requirements(),
    "linear_sgd": Requirements(passes=lambda settings, train, _: settings.sgd_epochs * train),
    "asymmetric_knn": Requirements(kinds=frozenset({"labeled"}), reference=True, space=True),
    "semi": Requirements(head=False, passes=_semi_passes),
    "transfer": Requirements(main=False, kinds=frozenset({"labeled"}), head=False, passes=_transfer_passes),
    "retrieval": Requirements(kinds=frozenset({"labeled", "landmarks"})),
    "robustness": Requirements(kinds=frozenset({"shift"}), head=False, passes=_robustness_passes),
    "fidelity": Requirements(labels=False, reference=True),
    "cost": Requirements(images=False, labels=False),
    "detection": Requirements(main=False, kinds=frozenset({"objects"}), labels=False, head=False),
    "segmentation": Requirements(main=False, kinds=frozenset({"masks"}), labels=False, head=False),
    "davis": Requirements(main=False, kinds=frozenset({"videos"}), labels=False, head=False),
}
"""Protocol name -> what it is applied to. Where there are no main images, labeled `--on` sets stand in for them."""
