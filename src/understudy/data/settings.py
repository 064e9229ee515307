"""Settings of the views. Torch-free: the command line reads it for `--help`."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.config import setting


@dataclass(frozen=True)
class ViewSettings:
    """How training images are augmented."""

    recipe: str | None = setting(
        None,
        "Augmentation: the one of MoCo-v2 (its form without blur at or below 64 pixels) unless given; weak is crop and "
        "flip, none the plain centred square.",
        choices=("moco-v2", "moco-v2-small", "weak", "none"),
    )
