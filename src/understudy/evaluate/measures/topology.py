"""Whether two spaces have the same shape of holes: the distance of their persistence diagrams over a sample.

The Vietoris-Rips complex of the sample grows with a radius; components (H0) merge and loops (H1) open and close at
radii that the diagrams list. Distances are divided by their mean, so that a factor between spaces is not seen. The
distance of two diagrams is 1-Wasserstein's with the largest coordinate as ground distance, divided by the number of
images: 0 for the same space up to rotation and one factor.

gudhi (MIT) computes the diagrams: `pip install 'understudy[topology]'`.
"""

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from understudy.errors import MissingDependency

TOPOLOGY_IMAGES = 200
"""Images of the sample: loops cost the cube of them."""

Diagram = Float[np.ndarray, "_ 2"]


def topology_distance(first: Float[np.ndarray, "N N"], second: Float[np.ndarray, "N N"]) -> tuple[float, float]:
    """Distance of the persistence diagrams of two spaces, by the Euclidean distances of the same N images in each.

    Returns:
        (H0, H1), for components and for loops, each 0 or more.

    Raises:
        MissingDependency: gudhi is not installed.
    """
    one, two = (diagrams(matrix / max(float(matrix.mean()), 1e-300)) for matrix in (first, second))
    return wasserstein(one[0], two[0]) / len(first), wasserstein(one[1], two[1]) / len(first)


def diagrams(matrix: Float[np.ndarray, "N N"]) -> tuple[Diagram, Diagram]:
    """Persistence diagrams of the Rips complex, (birth, death) of components and of loops; what never dies is left out.

    Raises:
        MissingDependency: gudhi is not installed.
    """
    try:
        from gudhi.sklearn.rips_persistence import RipsPersistence
    except ImportError:
        raise MissingDependency(
            "The topology distance needs gudhi: pip install 'understudy[topology]'. The other figures are there."
        ) from None
    # Of the lower triangle alone: where both differ by a rounding, reducing the complex may not end.
    rips = RipsPersistence(homology_dimensions=[0, 1], input_type="lower distance matrix")
    both = [np.asarray(pairs, dtype=np.float64).reshape(-1, 2) for pairs in rips.fit_transform([matrix])[0]]
    components, loops = (pairs[np.isfinite(pairs[:, 1])] for pairs in both)
    return components, loops


def wasserstein(first: Diagram, second: Diagram) -> float:
    """1-Wasserstein distance of two diagrams: each point goes to one of the other or to the diagonal."""
    here, there = len(first), len(second)
    if here + there == 0:
        return 0.0
    cost = np.zeros((here + there, here + there))
    cost[:here, :there] = np.abs(first[:, None] - second[None]).max(axis=2) if here and there else 0.0
    cost[:here, there:] = ((first[:, 1] - first[:, 0]) / 2)[:, None]
    cost[here:, :there] = ((second[:, 1] - second[:, 0]) / 2)[None]
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].sum())
