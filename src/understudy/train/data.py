"""The images that a student is trained on, and what its teacher's store holds of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from understudy.artifacts import Store
from understudy.embed.transform import Transform
from understudy.sources.source import Source


@dataclass(frozen=True)
class TrainingData:
    """The images of a training with everything that belongs to them row by row.

    Args:
        source: training images; row i of `graph` belongs to image i.
        graph: (N, K) int32 neighbors, or None when `neighbors.k` is 0.
        store: the teacher's embeddings of these images; None when no setting needs them.
        transform: of the teacher's space, fitted on that store; None when the settings name none.
        listing: fingerprint of all images that were listed; that of `source` unless given. They differ where unreadable
            images were left out.
    """

    source: Source
    graph: np.ndarray | None = None
    store: Store | None = None
    transform: Transform | None = None
    listing: str = ""
