"""Settings of the views. Torch-free: the command line reads it for `--help`."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.settings import setting


@dataclass(frozen=True)
class ViewSettings:
    """How training images are augmented."""

    recipe: str | None = setting(
        None,
        "Augmentation: the one of MoCo-v2 (its form without blur at or below 64 pixels) unless given; weak is its crop "
        "and flip, crop those of classifiers (from 8 % of the area), none the plain centered square.",
        choices=("moco-v2", "moco-v2-small", "weak", "crop", "none"),
    )
    seed: int | None = setting(
        None, "Seed of the views; the run's own unless given. Runs of one view seed share recorded views.", minimum=0
    )
    teacher: str = setting(
        "live",
        "live: the teacher runs on every view; recorded: once on each, beside its store, and is read from then on.",
        choices=("live", "recorded"),
    )
    pool: int | None = setting(
        None, "Different views of an image, seen in turn; 0 for no end. 16 if recorded, no end if live.", minimum=0
    )
    dtype: str = setting(
        "float16",
        "How recorded views are stored; float32 trains on exactly the live numbers.",
        choices=("float32", "float16", "int8"),
    )

    @property
    def different(self) -> int:
        """How many different views an image has in fact, 0 for no end."""
        return self.pool if self.pool is not None else {"live": 0, "recorded": 16}[self.teacher]
