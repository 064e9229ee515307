"""The shape of a space, and of two spaces against each other, over at most a few thousand images.

Measures that follow from one matrix of inner products or distances take that matrix, so that an interval can ask for
them on many subsets of the images without going back to the features.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int

from understudy.neighbors.search import search

LEVEL = 95
"""Share of the resamples, in per cent, that an interval holds."""

DEAD = 1e-3
"""A dimension is dead whose spread over the images is below this share of the root mean square over dimensions."""

BLOCK = 4096
"""Rows of the sums of CKA taken at once."""


def unit(rows: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N F"]:
    """The rows in float64 at length 1; rows of zero stay zero."""
    rows = np.asarray(rows, dtype=np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(length > 1e-12, rows / np.maximum(length, 1e-300), 0.0)


def gram(rows: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N N"]:
    """Inner products of rows about their mean, in float64."""
    centered = np.asarray(rows, dtype=np.float64)
    centered = centered - centered.mean(axis=0)
    return np.asarray(centered @ centered.T)


def distances(rows: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N N"]:
    """Euclidean distances between rows, in float64; exactly 0 on the diagonal."""
    rows = np.asarray(rows, dtype=np.float64)
    rows = rows - rows.mean(axis=0)  # smaller numbers cancel less
    squares = (rows**2).sum(axis=1)
    lengths: np.ndarray = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * rows @ rows.T, 0.0))
    np.fill_diagonal(lengths, 0.0)
    return lengths


def linear_cka(first: Float[np.ndarray, "N F1"], second: Float[np.ndarray, "N F2"]) -> float:
    """Linear centered kernel alignment in [0, 1] of two sets of rows over the same images; 0 if either is constant.

    |Y'X|_F^2 / (|X'X|_F |Y'Y|_F) with centered columns, the biased estimator, in float64, taken from sums over blocks
    of rows: no N x N kernel is built.

    Source:
        Kornblith et al. 2019 (arXiv 1905.00414), section 3.
    """
    means = [rows.mean(axis=0, dtype=np.float64) for rows in (first, second)]
    widths = first.shape[1], second.shape[1]
    cross, one, two = (np.zeros((i, j)) for i, j in (widths, (widths[0], widths[0]), (widths[1], widths[1])))
    for start in range(0, len(first), BLOCK):
        x, y = (rows[start : start + BLOCK] - mean for rows, mean in zip((first, second), means, strict=True))
        cross += x.T @ y
        one += x.T @ x
        two += y.T @ y
    scale = np.linalg.norm(one) * np.linalg.norm(two)
    return float(np.linalg.norm(cross) ** 2 / scale) if scale > 0 else 0.0


def debiased_cka(first: Float[np.ndarray, "N N"], second: Float[np.ndarray, "N N"]) -> float:
    """Linear CKA from the unbiased estimator of HSIC: about 0 for unrelated spaces, however few the images.

    Of the inner products, centered or not, of the same N >= 4 images in two spaces. A number up to 1, below 0 at times;
    0 if either space is constant.

    Source:
        Song et al., JMLR 2012, equation 4; Nguyen et al., ICLR 2021 (arXiv 2010.15327), section 2.2.
    """

    def hsic(one: np.ndarray, two: np.ndarray) -> float:
        count = len(one)
        sums, others = one.sum(axis=1), two.sum(axis=1)
        total = (one * two).sum() + sums.sum() * others.sum() / ((count - 1) * (count - 2))
        return float(total - 2 * (sums @ others) / (count - 2)) / (count * (count - 3))

    one, two = (matrix - np.diag(np.diag(matrix)) for matrix in (first, second))
    scale = hsic(one, one) * hsic(two, two)
    return hsic(one, two) / float(np.sqrt(scale)) if scale > 0 else 0.0


def distance_correlation(first: Float[np.ndarray, "N N"], second: Float[np.ndarray, "N N"]) -> float:
    """Székely's distance correlation of the Euclidean distances of the same N images in two spaces.

    A number in [0, 1]; 0 only for independence, with many images, or if either space is constant.

    Source:
        Székely, Rizzo & Bakirov, "Measuring and testing dependence by correlation of distances", Annals of Statistics
        2007, definition 4.
    """
    one, two = (_centered(matrix) for matrix in (first, second))
    scale = float(np.sqrt((one * one).mean() * (two * two).mean()))
    return float(np.sqrt(max((one * two).mean(), 0.0) / scale)) if scale > 0 else 0.0


def _centered(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(matrix - matrix.mean(axis=0) - matrix.mean(axis=1, keepdims=True) + matrix.mean())


def two_nn(matrix: Float[np.ndarray, "N N"]) -> float:
    """Intrinsic dimension from the ratio of the Euclidean distances to the second and the first neighbor.

    The maximum-likelihood estimate of the ratios' Pareto law, without bias in its inverse: (n - 1) / sum log(r2 / r1).
    Images with an exact duplicate say nothing and are left out; 0 where fewer than 3 are left, or all ratios are 1.

    Source:
        Facco, d'Errico, Rodriguez & Laio, Scientific Reports 2017, equation 2.
    """
    if len(matrix) < 3:
        return 0.0
    others = matrix + np.diag(np.full(len(matrix), np.inf))
    near = np.partition(others, 1, axis=1)[:, :2]
    near = near[near[:, 0] > 0]
    spread = float(np.log(near[:, 1] / near[:, 0]).sum())
    return (len(near) - 1) / spread if len(near) > 2 and spread > 0 else 0.0


def effective_rank(rows: Float[np.ndarray, "N F"]) -> float:
    """Exp of the entropy of the singular values: how many dimensions the centered rows use.

    Between 1 and the rank; 0 for a constant space.

    Source:
        Roy & Vetterli, "The effective rank", EUSIPCO 2007.
    """
    centered = np.asarray(rows, dtype=np.float64)
    centered = centered - centered.mean(axis=0)
    products = centered.T @ centered if centered.shape[1] <= len(centered) else centered @ centered.T
    strengths = np.sqrt(np.maximum(np.linalg.eigvalsh(products), 0.0))
    # What rounding leaves in the other directions is the root of the machine's precision: many of them would count.
    strengths = strengths[strengths > strengths.max(initial=0.0) * 1e-6]
    if not len(strengths):
        return 0.0
    shares = strengths / strengths.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def dead_dimensions(rows: Float[np.ndarray, "N F"]) -> int:
    """How many columns hardly vary over the images."""
    spread = np.asarray(rows, dtype=np.float64).std(axis=0)
    size = float(np.sqrt((spread**2).mean()))
    return int((spread <= DEAD * size).sum())


def interval_of_mean(values: Float[np.ndarray, " N"], seed: int, draws: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of one value an image, from `draws` resamples, at least 1."""
    rng = np.random.default_rng(seed)
    # Counts of a resample are multinomial: no N x draws matrix of positions.
    shares = np.full(len(values), 1 / len(values))
    means = [float(rng.multinomial(len(values), shares) @ values) / len(values) for _ in range(draws)]
    return _ends(np.array(means))


def interval_by_halves(
    measure: Callable[[Int[np.ndarray, " n"]], float], count: int, value: float, seed: int, draws: int,
    images: int | None = None,
) -> tuple[float, float]:  # fmt: skip
    """Interval of a measure that does not bear an image twice (neighbors, distances): from random halves.

    Over halves drawn without replacement a measure varies about as much as it would over fresh sets of all the images:
    the variance of the half less the share that both have in common. The interval is the value with the halves'
    deviations from their own mean, which a bias of small sets does not move. Where the value was taken on more `images`
    than the N = `count` that are halved, deviations shrink with the root.

    Source:
        Shao & Wu, "A general theory for jackknife variance estimation", Annals of Statistics 1989 (delete-half).
    """
    rng = np.random.default_rng(seed)
    values = np.array([measure(np.sort(rng.permutation(count)[: count // 2])) for _ in range(draws)])
    low, high = _ends((values - values.mean()) * np.sqrt(count / (images or count)))
    return value + low, value + high


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


RANKS = 1 << 22
"""Ranks held at once."""


def trustworthiness(
    original: Float[np.ndarray, "N F1"], mapped: Float[np.ndarray, "N F2"], k: int, memory_mb: int = 1024,
    device: str | torch.device = "cpu",
) -> float:  # fmt: skip
    """1 - 2 / (N k (2N - 3k - 1)) * the sum of max(0, rank in `original` - k) over all k-neighbors in `mapped`.

    In [0, 1]; 1 if every neighborhood of k < N / 2 images is kept. scikit-learn's `trustworthiness` takes Euclidean
    neighbors in the mapped space; here both spaces are under cosine. Continuity is the same with the roles exchanged.
    Beside the memory of the search 4 million ranks (48 MiB) are held.

    Source:
        Venna & Kaski, "Neighborhood preservation in nonlinear projection methods", ICANN 2001.
    """
    count = len(original)
    assert len(mapped) == count, (len(mapped), count)
    assert 0 < 2 * k < count, (k, count)
    everyone = np.arange(count)
    neighbors = search(mapped, mapped, k, exclude=everyone, memory_mb=memory_mb, device=device)[0]
    block = max(1, RANKS // count)
    penalty = 0
    for start in range(0, count, block):
        rows = everyone[start : start + block]
        order, _ = search(original[rows], original, count - 1, exclude=rows, memory_mb=memory_mb, device=device)
        ranks = np.zeros((len(rows), count), dtype=np.int32)
        np.put_along_axis(ranks, order, np.arange(1, count, dtype=np.int32)[None], axis=1)
        penalty += int(np.maximum(np.take_along_axis(ranks, neighbors[rows], axis=1) - k, 0).sum(dtype=np.int64))
    return 1.0 - penalty * 2.0 / (count * k * (2 * count - 3 * k - 1))


def neighbor_order(unit: Float[np.ndarray, "N F"]) -> Int[np.ndarray, "N M"]:
    """(N, N - 1) the other images by falling cosine, equal ones by row."""
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :-1].astype(np.int32)


def trust_and_continuity(
    original: Int[np.ndarray, "N M"], mapped: Int[np.ndarray, "N M"], part: Int[np.ndarray, " n"], k: int
) -> tuple[float, float]:
    """Both among the images at `part`, from `neighbor_order` of all: nothing is sorted again."""
    count = len(part)
    place = np.full(len(original), -1, dtype=np.int32)
    place[part] = np.arange(count)
    places = (place[order[part]] for order in (original, mapped))
    orders = [order[order >= 0].reshape(count, count - 1) for order in places]
    scores = []
    for here, there in (orders, orders[::-1]):
        ranks = np.empty((count, count), dtype=np.int32)
        np.put_along_axis(ranks, here, np.arange(1, count, dtype=np.int32)[None], axis=1)
        penalty = np.maximum(np.take_along_axis(ranks, there[:, :k], axis=1) - k, 0).sum(dtype=np.int64)
        scores.append(float(1.0 - penalty * 2.0 / (count * k * (2 * count - 3 * k - 1))))
    return scores[0], scores[1]
