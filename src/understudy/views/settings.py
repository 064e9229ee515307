"""Settings of the views. Torch-free: the command line reads it for `--help`."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.settings import setting


@dataclass(frozen=True)
class ViewSettings:
    """How training images are augmented."""

    recipe: str | None = setting(
        None,
        "Augmentation. Default: moco-v2; up to 64 pixels moco-v2-small, which has no blur. weak: the crop and flip "
        "of moco-v2; crop: those of classifiers (from 8 % of the area); none: the plain center square.",
        choices=("moco-v2", "moco-v2-small", "weak", "crop", "none"),
    )
    seed: int | None = setting(
        None, "Seed of the views. Default: the run's own. Runs with the same one share recorded views.", minimum=0
    )
    teacher: str = setting(
        "live",
        "live: the teacher runs on every view; recorded: it runs once on each, and the result is stored and reused.",
        choices=("live", "recorded"),
    )
    pool: int | None = setting(
        None,
        "Number of different views of an image, used in turn; 0: unlimited. Default: 0 live, 16 recorded.",
        minimum=0,
    )
    dtype: str = setting(
        "float16",
        "Precision of recorded views; float32 gives exactly the numbers of a live teacher.",
        choices=("float32", "float16", "int8"),
    )

    @property
    def pool_size(self) -> int:
        """How many different views an image has, 0 for unlimited."""
        return self.pool if self.pool is not None else {"live": 0, "recorded": 16}[self.teacher]
