"""The verbs of the command line: one class a file, found by its name."""

from understudy.cli.verb import Verb
from understudy.registry import Registry

VERBS: Registry[Verb] = Registry(
    "understudy.cli.verbs", "Verb", "verb", one_per_file=True,
    first=("demo", "run", "plan", "pretrain", "embed", "graph", "train", "evaluate", "compare", "ablate", "export",
           "report", "cite", "doctor"),
)  # fmt: skip
"""In the order in which a newcomer meets them."""
