"""The protocols: one class a file. A file that declares a `Protocol` is an entry of the registry."""

from collections.abc import Mapping
from typing import Any

from understudy.evaluate.protocol import Protocol
from understudy.registry import Registry

PROTOCOLS: Registry[Protocol] = Registry(
    "understudy.evaluate.protocols", "Protocol", "protocol", first=(
        "knn", "linear", "linear_sgd", "asymmetric_knn", "semi", "transfer", "retrieval", "robustness", "fidelity",
        "drop_in", "zeroshot", "cost", "detection", "segmentation", "davis",
    ),
)  # fmt: skip
"""The protocols by name, in the order of the report."""


def display_tables(evaluation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How the protocols of an evaluation, as evaluation.json holds it, are shown: plain JSON by name."""
    names: dict[str, dict[str, None]] = {}
    for model, figures in evaluation.items():
        for key, measured in figures.items() if model != "about" else ():
            names.setdefault(key.partition("@")[0], {}).update(dict.fromkeys(measured))
    return {name: PROTOCOLS[name].display_table(names[name]) for name in PROTOCOLS if name in names}
