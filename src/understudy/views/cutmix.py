"""CutMix: a box of one image pasted into another, for methods that ask for a mixture."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


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
