"""The search for a learning rate: which are tried, and which is chosen, without labels."""

from collections.abc import Sequence

from understudy.artifacts import Run
from understudy.compare.cell import Cell

CRITERION = "overlap@11"
"""What the rates are judged by: per cent of the teacher's 11 nearest held-out images kept by the student's backbone."""

FEWEST_HELD_OUT = 50
"""Images without which a rate is not judged."""


def rates(default: float, trials: int, factor: float) -> list[float]:
    """The learning rates that are tried, smallest first: more trials hold those of fewer."""
    return [float(f"{default * factor**power:.4g}") for power in range(-(trials // 2), (trials + 1) // 2)]


def judged(trial: Cell) -> float | None:
    """The figure that a trial is judged by, if it was finished."""
    return float(Run(trial.folder).evaluation["student"]["fidelity"][CRITERION]) if trial.done else None


def chosen(trials: Sequence[Cell]) -> tuple[float | None, str]:
    """The best rate, and "low" or "high" where it is the smallest or the largest of those tried.

    A trial that failed (a rate so large that the loss overflowed) is not chosen. Of equals the one nearest to the
    default, which stands in the middle, is taken.
    """
    finished = [(judged(trial), -abs(i - len(trials) // 2), trial.settings.optimizer.peak, i)
                for i, trial in enumerate(trials)]  # fmt: skip
    known = [row for row in finished if row[0] is not None]
    if not known:
        return None, ""
    _, _, rate, place = max(known)
    return rate, "low" if place == 0 else "high" if place == len(trials) - 1 else ""
