"""CoSS with centered columns: the default method, ours; the evidence for it is in docs/method.md."""

from __future__ import annotations

from typing import ClassVar

from understudy.losses.coss import CoSS


class CoSSCentered(CoSS):
    """CoSS whose space term correlates each dimension over the batch in place of taking its cosine.

    Differs from CoSS in the space term only: the mean of each column over the batch is taken off both matrices first.
    That is Pearson's correlation. Pooled features share a large mean, which a cosine of raw columns describes first.
    The student still lands on the teacher up to one positive number.

    Args:
        weight: lambda, the weight of the space term, as of CoSS.
        scale: factor on the total, as of CoSS.
        scope: "global" or "process", as of CoSS.

    Source:
        Singh and Wang, "Simple Unsupervised Knowledge Distillation With Space Similarity", ECCV 2024, arXiv 2409.13939;
        the centering is ours.
    """

    center = True
    authors: ClassVar[dict[str, object]] = {}
