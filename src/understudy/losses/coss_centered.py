"""CoSS with centered columns: the default method, ours; the evidence for it is in docs/explanation/method.md."""

from understudy.losses.coss import CoSS


class CoSSCentered(CoSS):
    """CoSS whose space term correlates each dimension over the batch in place of taking its cosine.

    Differs from CoSS in the space term only: the mean of each column over the batch is taken off both matrices first.
    That is Pearson's correlation. Pooled features share a large mean, which a cosine of raw columns describes first.
    The student still reaches the teacher up to one positive number.

    Source:
        Singh and Wang, "Simple Unsupervised Knowledge Distillation With Space Similarity", ECCV 2024, arXiv 2409.13939;
        the centering is ours.
    """

    name = "coss_centered"
    summary = "the default, ours: CoSS with the batch mean taken off each column"
    authors = {}
    center = True
