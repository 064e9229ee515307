"""Which patches of which images are hidden, for methods that ask for masks."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from understudy.philox import PATCH_MASKS, random_words


def spread_evenly(count: int, share: float) -> Int[np.ndarray, " M"]:
    """Positions of a share, in [0, 1], of a batch of `count` images, spread over it: every second one for 0.5.

    Differs from a draw by its fixed number: M is share * count rounded down, on every process that holds equally many.
    """
    return np.flatnonzero(np.diff(np.floor(share * np.arange(count + 1) + 1e-9)))


def hidden_patches(
    images: Int[np.ndarray, " M"], patches: int, ratio: float, seed: int, step: int
) -> Bool[np.ndarray, "M N"]:
    """Equally many hidden patches in each image, at random places: DINOv2's and Proteus' uniform masks.

    A function of (seed, step, image): a resumed run hides what the undisturbed one hides, and so does any number of
    processes. An image that is twice in a batch has the same patches hidden twice.

    Args:
        images: image ids.
        patches: N.
        ratio: share of an image's patches to hide, in [0, 1]; the count is rounded down.
        seed: of the run.
        step: of the run.

    Returns:
        (M, N) True where a patch is hidden.
    """
    words = random_words(seed, PATCH_MASKS, images, step, patches)
    ranks = np.argsort(np.argsort(words, axis=1, kind="stable"), axis=1)
    return ranks < int(patches * ratio + 1e-9)
