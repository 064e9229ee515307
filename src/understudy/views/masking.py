"""Parts of images that methods ask to be replaced: CutMix pastes a box of another image, masks hide patches."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from understudy.philox import PATCH_MASKS, random_words


def cutmix(
    images: Float[Tensor, "B 3 S S"], partner: Int[Tensor, " B"], seed: int, step: int
) -> tuple[Float[Tensor, "B 3 S S"], Float[Tensor, " B"]]:
    """Paste a box of each image's partner into it, one box for the whole batch, as BINGO's authors do.

    A function of (seed, step): a resumed run mixes as the undisturbed one.

    Args:
        images: views, any value range.
        partner: position in the batch of the image that each box is cut from.
        seed: of the run.
        step: of the run.

    Returns:
        The mixtures, and for each the share of its area that is still its own. The box covers 1 - lambda of the area,
        lambda from Beta(2, 2), less what sticks out of the image, which the share accounts for.

    Source:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019,
        arXiv 1905.04899; Beta(2, 2) as in the authors' code of BINGO.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, 0xC07]).jumped(step))
    size = images.shape[-1]
    side = round(size * float(np.sqrt(1 - generator.beta(2, 2))))
    top, left = (int(generator.integers(size)) - side // 2 for _ in range(2))
    rows, columns = (slice(max(0, low), min(size, low + side)) for low in (top, left))
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[partner][:, :, rows, columns]
    share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / size**2
    return mixed, torch.full((len(images),), share, dtype=images.dtype, device=images.device)


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
