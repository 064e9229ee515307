"""Region and contour scores of masks: J and F of the DAVIS challenge."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool
from torch.nn import functional as F

TOLERANCE = 0.008
"""How far two outlines may lie apart and still agree, as a share of the image's diagonal."""


def jaccard(
    predicted: Bool[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"], void: Bool[np.ndarray, "H W"] | None = None
) -> float:
    """J: intersection over union of two masks, 1 where both are empty; `void` pixels do not count."""
    scored = np.ones_like(truth) if void is None else ~void
    union = ((predicted | truth) & scored).sum()
    return 1.0 if union == 0 else float((predicted & truth & scored).sum() / union)


def boundary_measure(
    predicted: Bool[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"], void: Bool[np.ndarray, "H W"] | None = None
) -> float:
    """F: harmonic mean of precision and recall of outlines; `void` pixels do not count.

    A pixel of one outline agrees where the other one passes within 0.008 of the image's diagonal, rounded up to whole
    pixels. An empty mask against one that is not scores 0, two empty ones 1.

    Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016,
    section 4; the outlines are those of the Berkeley segmentation benchmark that the official evaluation uses.
    """
    scored = np.ones_like(truth) if void is None else ~void
    reach = int(np.ceil(TOLERANCE * np.hypot(*truth.shape)))
    own, real = outline(predicted & scored), outline(truth & scored)
    if not own.any() or not real.any():
        return float(own.any() == real.any())
    precision = (own & _widened(real, reach)).sum() / own.sum()
    recall = (real & _widened(own, reach)).sum() / real.sum()
    return 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def outline(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Pixels that differ from their neighbor to the right, below, or to the lower right."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def _widened(edge: Bool[np.ndarray, "H W"], reach: int) -> Bool[np.ndarray, "H W"]:
    """All pixels within `reach` of one of the edge."""
    axis = torch.arange(-reach, reach + 1)
    disk = (axis[:, None] ** 2 + axis**2 <= reach**2).float()
    near = F.conv2d(torch.from_numpy(edge).float()[None, None], disk[None, None], padding=reach)[0, 0] > 0.5
    return near.numpy()
