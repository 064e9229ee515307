"""Settings of a comparison. Torch-free: the command line reads them for `--help`."""

import dataclasses
import math
from dataclasses import dataclass

from understudy.errors import ConfigError
from understudy.evaluate.protocols.fidelity import FidelitySettings
from understudy.evaluate.settings import EvaluationSettings
from understudy.pipeline import RunSettings
from understudy.settings import setting
from understudy.views.settings import ViewSettings

FREE = frozenset({"out", "store", "device", "workers", "checkpoint_minutes", "tensorboard"})
"""Settings that do not change a cell's figures."""


@dataclass(frozen=True)
class ComparedFidelity(FidelitySettings):
    """Fidelity of every cell: the comparison's own intervals are over seeds."""

    draws: int = setting(0, "resamples of the images behind each interval of a single run; 0: none", minimum=0)


@dataclass(frozen=True)
class ComparedEvaluation(EvaluationSettings):
    """Evaluation of every cell; asymmetric kNN is among the defaults."""

    protocols: tuple[str, ...] = setting(("knn", "linear", "asymmetric_knn", "fidelity"), "Protocols of every cell.")
    fidelity: ComparedFidelity = setting(ComparedFidelity)


@dataclass(frozen=True)
class ComparedViews(ViewSettings):
    """Views of every cell; the teacher sees each of them once for the whole comparison."""

    seed: int | None = setting(
        None, "Seed of the views of all runs, whatever their own; --seed unless given.", minimum=0
    )
    teacher: str = setting(
        "recorded",
        "recorded: the teacher runs once on each view, for all runs together; live: in every run on every view.",
        choices=("live", "recorded"),
    )


@dataclass(frozen=True)
class ComparisonSettings(RunSettings):
    """What all runs of a comparison share, and how they are compared."""

    methods: tuple[str, ...] = setting(
        (),
        "Methods of `compare`, each NAME or NAME:KEY=VALUE:... with its own settings; KEY may be any setting of a run.",
    )
    vary: tuple[str, ...] = setting((), "Grid of `ablate`: KEY=V1,V2 of any setting, e.g. method.weight=0,0.5,1.")
    seeds: int = setting(3, "Runs of each variant, with the seeds --seed, --seed + 1, ...", minimum=1)
    budget: str | None = setting(
        None, "passes=N or minutes=N of training for each run; --passes unless given. Minutes become image passes once."
    )
    trials: int = setting(
        3, "Learning rates tried for each variant, spaced by --factor around the default; a given rate tries none.",
        minimum=1,
    )  # fmt: skip
    factor: float = setting(3.0, "Ratio of one learning rate to the next.", minimum=1.01)
    search_share: float = setting(0.5, "Length of a trial as a share of the budget.", minimum=0.001, maximum=1)
    jobs: int = setting(1, "Runs at a time, each a process with its share of the cores.", minimum=1)
    holdout: int = setting(
        2000, "Training images, a tenth at most, that no run is trained on: the rates are judged by them.", minimum=0
    )
    probes: int = setting(0, "How often in a run the student is compared with the teacher.", minimum=0)
    views: ComparedViews = setting(ComparedViews)
    evaluation: ComparedEvaluation = setting(ComparedEvaluation)


RUN = frozenset(f.name for f in dataclasses.fields(RunSettings))
OWN = frozenset(f.name for f in dataclasses.fields(ComparisonSettings)) - RUN


def budget_of(settings: ComparisonSettings) -> tuple[str, float]:
    """The unit and the amount of `--budget`.

    Raises:
        ConfigError: it cannot be read.
    """
    if settings.budget is None:
        return "passes", settings.passes
    unit, _, amount = settings.budget.partition("=")
    try:
        number = float(amount)
    except ValueError:
        number = math.nan
    if unit not in ("passes", "minutes") or not (math.isfinite(number) and number > 0):
        raise ConfigError(f"--budget {settings.budget} cannot be read. Write passes=10 or minutes=5.")
    return unit, number
