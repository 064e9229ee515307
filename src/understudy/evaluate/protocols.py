"""The protocols by name. Each is one file; a new one is one more file and one more line here."""

from __future__ import annotations

from collections.abc import Callable

from understudy.evaluate.fidelity import fidelity
from understudy.evaluate.knn import knn
from understudy.evaluate.linear import linear
from understudy.evaluate.linear_sgd import linear_sgd
from understudy.evaluate.settings import EvaluationSettings
from understudy.evaluate.subject import Figures, Subject

EVALUATIONS: dict[str, Callable[[Subject, EvaluationSettings], Figures]] = {
    "knn": knn,
    "linear": linear,
    "linear_sgd": linear_sgd,
    "fidelity": fidelity,
}
"""Protocol name -> function of a subject and the settings. `settings.PROTOCOLS` says in words what each does."""

LABEL_FREE = frozenset({"fidelity"})
"""What can be measured on images without labels."""

COMPARES = frozenset({"fidelity"})
"""What compares a subject with its reference, and so does not apply to the teacher itself."""
