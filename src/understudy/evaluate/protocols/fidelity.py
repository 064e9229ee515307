"""How far the student's space is the teacher's: neighborhoods, cosines, CKA, trustworthiness and continuity.

Everything compares two sets of rows over the same images, without labels:

- "overlap@k": mean share, in per cent, of the k nearest images that both spaces have in common (the CoSS paper's
  k = 1, 5, 11, 21, 31); cosine neighbors over all test images, the image itself removed.
- "row_cosine", "column_cosine": mean cosine per image and per dimension between raw embeddings, the two terms of CoSS;
  only where the subject is meant to land in the reference's space.
- "cka": linear centered kernel alignment (Kornblith et al., ICML 2019, arXiv 1905.00414), the biased estimator: 1 for
  spaces equal up to rotation, shift and one scale. It needs many more images than dimensions to be small for unrelated
  spaces.
- "trustworthiness", "continuity" (Venna & Kaski, ICANN 2001): how few strangers enter a student neighborhood, and how
  few teacher neighbors leave it, weighted by how far they rank; at k = 10, both spaces under cosine distance, over at
  most 2,000 test images (the measure ranks all pairs, so it depends on the number of images).

And over the same at most 2,000 images, of `geometry` and `topology`:

- "cka_debiased": from the unbiased estimator, about 0 for unrelated spaces however few the images.
- "distance_correlation": Székely's, of Euclidean distances between rows of unit length.
- "intrinsic_dimension" (TwoNN, rows of unit length), "effective_rank", "dead_dimensions": of the student's space alone,
  and with "_teacher" of the teacher's.
- "topology_h0", "topology_h1": distance of the persistence diagrams of components and of loops, 0 for the same shape,
  over at most 200 images.

NAME_low and NAME_high hold 95 % of `fidelity.draws` resamples ("interval_level", "interval_draws"): the bootstrap over
images for means of one number an image, random halves for all others (`geometry.interval_by_halves` says why).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from understudy.errors import DataError, MissingDependency, ShapeError
from understudy.evaluate import geometry
from understudy.evaluate.encoded_set import EncodedSet, Figures, check_finite
from understudy.evaluate.protocol import Display, Protocol, Requirements
from understudy.evaluate.settings import EvaluationSettings, FidelitySettings
from understudy.evaluate.topology import IMAGES as TOPOLOGY_IMAGES
from understudy.evaluate.topology import topology_distance
from understudy.losses.base.similarity import column_cosine, row_cosine
from understudy.neighbors.overlap import shared_by_image
from understudy.neighbors.search import search

KS = (1, 5, 11, 21, 31)
TRUST_K = 10
TRUST_IMAGES = 2000
BLOCK = 4096  # rows of CKA's sums taken at once
RANKS = 1 << 22  # ranks held at once


def fidelity(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Compare an encoded set with its reference on the test images.

    Args:
        encoded_set: its `test` rows and those of its `reference`, of the same images in the same order.
        settings: `memory_mb` bounds the search, `seed` draws the images of trustworthiness, `fidelity.draws` the
            resamples.

    Returns:
        The figures above: overlaps in per cent, cosines in [-1, 1], the others in [0, 1]. A k that needs more images
        than there are is left out, and "note" says so.

    Raises:
        DataError: no reference, fewer than 3 images, or rows that are not finite.
        ShapeError: subject and reference have different numbers of rows.
    """
    if encoded_set.reference is None:
        raise DataError(f"Fidelity compares with a teacher, and {encoded_set.name} has none.")
    own, reference = encoded_set.test, encoded_set.reference.test
    if len(own) != len(reference):
        raise ShapeError(
            f"{encoded_set.name} has {len(own)} test rows, {encoded_set.reference.name} has {len(reference)}."
        )
    if len(own) < 3:
        raise DataError(f"Fidelity needs at least 3 test images, there are {len(own)}. Check --eval-data.")
    check_finite(own, f"{encoded_set.name} features of the test images")
    check_finite(reference, f"{encoded_set.reference.name} features of the test images")

    figures: Figures = {}
    draws = settings.fidelity.draws
    mean = _Mean(figures, settings.seed, draws)
    ks = [k for k in KS if k < len(own)]
    ours, theirs = (side.neighbors(max(ks), settings.memory_mb) for side in (encoded_set, encoded_set.reference))
    for k in ks:
        mean(f"overlap@{k}", 100.0 * shared_by_image(ours, theirs, k))
    chosen = np.random.default_rng(settings.seed).permutation(len(own))[:TRUST_IMAGES]
    chosen.sort()
    some, others = (np.asarray(rows[chosen], dtype=np.float64) for rows in (own, reference))
    halves = _Halves(figures, len(chosen), settings.seed, draws)
    if encoded_set.aligned:
        if own.shape[1] != reference.shape[1]:
            raise ShapeError(
                f"{encoded_set.name} has width {own.shape[1]}, {encoded_set.reference.name} {reference.shape[1]}."
            )
        student, teacher = (torch.as_tensor(np.asarray(rows, dtype=np.float64)) for rows in (own, reference))
        mean("row_cosine", row_cosine(student, teacher).numpy())

        def columns(part: np.ndarray) -> float:
            return float(column_cosine(torch.from_numpy(some[part]), torch.from_numpy(others[part])).mean())

        halves("column_cosine", columns, float(column_cosine(student, teacher).mean()), images=len(own))
    halves("cka", lambda part: linear_cka(some[part], others[part]), linear_cka(own, reference), images=len(own))

    left_out = [f"overlap@{k}" for k in KS if k not in ks]
    if len(chosen) > 2 * TRUST_K:
        figures["trustworthiness"] = trustworthiness(others, some, TRUST_K, settings.memory_mb, encoded_set.device)
        figures["continuity"] = trustworthiness(some, others, TRUST_K, settings.memory_mb, encoded_set.device)
        unit, unit_reference = geometry.unit(some), geometry.unit(others)
        nearest = functools.cache(lambda: (_nearest(unit_reference), _nearest(unit)))  # of use to the halves only
        trust = _once(lambda part: _trust(*nearest(), part))
        halves("trustworthiness", lambda part: trust(part)[0], least=4 * TRUST_K + 2)
        halves("continuity", lambda part: trust(part)[1], least=4 * TRUST_K + 2)
        _geometry(figures, halves, (some, others), (unit, unit_reference))
        try:
            _topology(figures, unit, unit_reference, settings.seed, draws)
        except MissingDependency as error:
            figures["note"] = str(error)
    else:
        left_out += ["trustworthiness", "continuity", "and the shape of the spaces"]
    if draws:
        figures |= {"interval_level": geometry.LEVEL, "interval_draws": draws}
    figures["images"] = len(own)
    if left_out:
        figures["note"] = f"{', '.join(left_out)} left out: there are only {len(chosen)} test images."
    return figures


def _geometry(
    figures: Figures,
    halves: _Halves,
    rows: tuple[np.ndarray, np.ndarray],
    units: tuple[np.ndarray, np.ndarray],
) -> None:
    """What `geometry` says of the two spaces."""
    spaces = tuple(geometry.distances(one) for one in units)
    halves("cka_debiased", _of(geometry.debiased_cka, *(geometry.gram(one) for one in rows)))
    halves("distance_correlation", _of(geometry.distance_correlation, *spaces))
    for number, end in enumerate(("", "_teacher")):
        halves(f"intrinsic_dimension{end}", _of(geometry.two_nn, spaces[number]))
        halves(f"effective_rank{end}", _of_rows(geometry.effective_rank, rows[number]))
        figures[f"dead_dimensions{end}"] = geometry.dead_dimensions(rows[number])


def _topology(figures: Figures, unit: np.ndarray, unit_reference: np.ndarray, seed: int, draws: int) -> None:
    """What `topology` says of the two spaces, over its own sample."""
    drawn = np.sort(np.random.default_rng(seed).permutation(len(unit))[:TOPOLOGY_IMAGES])
    spaces = tuple(geometry.distances(one[drawn]) for one in (unit, unit_reference))
    halves = _Halves(figures, len(drawn), seed, draws)
    both = _once(lambda part: topology_distance(*_parts(part, *spaces)))
    halves("topology_h0", lambda part: both(part)[0])
    halves("topology_h1", lambda part: both(part)[1])


@dataclass(frozen=True)
class _Mean:
    """Adds the mean of one number an image, with its interval.

    Args:
        figures: what is added to.
        seed: of the resamples.
        draws: resamples; 0 adds no interval.
    """

    figures: Figures
    seed: int
    draws: int

    def __call__(self, name: str, values: np.ndarray) -> None:
        self.figures[name] = float(values.mean())
        if self.draws:
            ends = geometry.interval_of_mean(values, self.seed, self.draws)
            self.figures[f"{name}_low"], self.figures[f"{name}_high"] = ends


@dataclass(frozen=True)
class _Halves:
    """Adds a measure of the sample with its interval from random halves.

    Args:
        figures: what is added to.
        count: images of the sample.
        seed: of the halves.
        draws: halves; 0 adds no interval.
    """

    figures: Figures
    count: int
    seed: int
    draws: int

    def __call__(
        self,
        name: str,
        measure: Callable[[np.ndarray], float],
        value: float | None = None,
        *,
        images: int | None = None,
        least: int = 10,
    ) -> None:
        """Add `name`, where it is not there yet, and its ends where the sample has at least so many images."""
        if value is None:
            known = self.figures.get(name)
            value = float(known) if known is not None else measure(np.arange(self.count))
        self.figures[name] = value
        if self.draws and self.count >= least:
            ends = geometry.interval_by_halves(measure, self.count, value, self.seed, self.draws, images)
            self.figures[f"{name}_low"], self.figures[f"{name}_high"] = ends


def _parts(part: np.ndarray, *matrices: np.ndarray) -> tuple[np.ndarray, ...]:
    """The matrices of some images."""
    return tuple(matrix[np.ix_(part, part)] for matrix in matrices)


def _of(measure: Callable[..., float], *matrices: np.ndarray) -> Callable[[np.ndarray], float]:
    """A measure of whole matrices as one of the images at some positions."""
    return lambda part: measure(*_parts(part, *matrices))


def _of_rows(measure: Callable[[np.ndarray], float], rows: np.ndarray) -> Callable[[np.ndarray], float]:
    """A measure of rows as one of the images at some positions."""
    return lambda part: measure(rows[part])


def _once(measure: Callable[[np.ndarray], tuple[float, float]]) -> Callable[[np.ndarray], tuple[float, float]]:
    """Two measures that come of one computation: the interval of the second asks for the halves of the first."""
    found: dict[bytes, tuple[float, float]] = {}

    def both(part: np.ndarray) -> tuple[float, float]:
        key = part.tobytes()
        if key not in found:
            found[key] = measure(part)
        return found[key]

    return both


def _nearest(unit: np.ndarray) -> np.ndarray:
    """(N, N - 1) the other images by falling cosine, equal ones by row."""
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    found: np.ndarray = np.argsort(-cosines, axis=1, kind="stable")[:, :-1].astype(np.int32)
    return found


def _trust(original: np.ndarray, mapped: np.ndarray, part: np.ndarray) -> tuple[float, float]:
    """Trustworthiness and continuity at k = 10 among some images, from the orders of all: nothing is sorted again."""
    count, k = len(part), TRUST_K
    place = np.full(len(original), -1, dtype=np.int32)
    place[part] = np.arange(count)
    orders = [
        kept[kept >= 0].reshape(count, count - 1) for kept in (place[order[part]] for order in (original, mapped))
    ]
    found = []
    for here, there in (orders, orders[::-1]):
        ranks = np.empty((count, count), dtype=np.int32)
        np.put_along_axis(ranks, here, np.arange(1, count, dtype=np.int32)[None], axis=1)
        penalty = np.maximum(np.take_along_axis(ranks, there[:, :k], axis=1) - k, 0).sum(dtype=np.int64)
        found.append(float(1.0 - penalty * 2.0 / (count * k * (2 * count - 3 * k - 1))))
    return found[0], found[1]


def linear_cka(first: Float[np.ndarray, "N F1"], second: Float[np.ndarray, "N F2"]) -> float:
    """Linear centered kernel alignment of two sets of rows over the same images, biased estimator, in float64.

    |Y'X|_F^2 / (|X'X|_F |Y'Y|_F) with centered columns, taken from sums over blocks of rows: no N x N kernel is built.

    Args:
        first: (N, F1).
        second: (N, F2).

    Returns:
        A number in [0, 1]; 0 if either is constant.

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


def trustworthiness(
    original: Float[np.ndarray, "N F1"],
    mapped: Float[np.ndarray, "N F2"],
    k: int,
    memory_mb: int = 1024,
    device: str | torch.device = "cpu",
) -> float:
    """1 - 2 / (N k (2N - 3k - 1)) * the sum of max(0, rank in `original` - k) over all k-neighbors in `mapped`.

    scikit-learn's `trustworthiness` takes Euclidean neighbors in the mapped space; here both spaces are under cosine.
    Continuity is the same with the roles exchanged.

    Args:
        original: (N, F1) rows whose ranks count.
        mapped: (N, F2) rows whose neighborhoods are judged.
        k: neighbors; must be less than N / 2.
        memory_mb: bounds the search; 4 million ranks (48 MiB) are held beside it.
        device: where to search.

    Returns:
        A number in [0, 1]; 1 if every neighborhood is kept.

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


CKA = """@inproceedings{kornblith2019cka,
  title     = {Similarity of Neural Network Representations Revisited},
  author    = {Kornblith, Simon and Norouzi, Mohammad and Lee, Honglak and Hinton, Geoffrey},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2019}
}"""

TRUSTWORTHINESS = """@inproceedings{venna2001neighborhood,
  title     = {Neighborhood Preservation in Nonlinear Projection Methods: An Experimental Study},
  author    = {Venna, Jarkko and Kaski, Samuel},
  booktitle = {International Conference on Artificial Neural Networks (ICANN)},
  year      = {2001}
}"""

DISTANCE_CORRELATION = """@article{szekely2007measuring,
  title   = {Measuring and Testing Dependence by Correlation of Distances},
  author  = {Sz{\\'e}kely, G{\\'a}bor J. and Rizzo, Maria L. and Bakirov, Nail K.},
  journal = {The Annals of Statistics},
  year    = {2007}
}"""

TWO_NN = """@article{facco2017estimating,
  title   = {Estimating the Intrinsic Dimension of Datasets by a Minimal Neighborhood Information},
  author  = {Facco, Elena and d'Errico, Maria and Rodriguez, Alex and Laio, Alessandro},
  journal = {Scientific Reports},
  year    = {2017}
}"""

EFFECTIVE_RANK = """@inproceedings{roy2007effective,
  title     = {The Effective Rank: A Measure of Effective Dimensionality},
  author    = {Roy, Olivier and Vetterli, Martin},
  booktitle = {European Signal Processing Conference (EUSIPCO)},
  year      = {2007}
}"""

GUDHI = """@inproceedings{maria2014gudhi,
  title     = {The {Gudhi} Library: Simplicial Complexes and Persistent Homology},
  author    = {Maria, Cl{\\'e}ment and Boissonnat, Jean-Daniel and Glisse, Marc and Yvinec, Mariette},
  booktitle = {International Congress on Mathematical Software (ICMS)},
  year      = {2014}
}"""

FIDELITY_TITLES = {
    r"overlap@(\d+)": r"\1-NN shared", "row_cosine": "Row cosine", "column_cosine": "Column cosine", "cka": "CKA",
    "cka_debiased": "CKA, debiased", "trustworthiness": "Trustworthiness", "continuity": "Continuity",
    "distance_correlation": "Distance correlation", "intrinsic_dimension": "Intrinsic dimension (TwoNN)",
    "effective_rank": "Effective rank", "dead_dimensions": "Dead dimensions",
    "topology_h0": "Topology distance, components", "topology_h1": "Topology distance, loops",
}  # fmt: skip


class Fidelity(Protocol):
    """The student's neighborhoods and space compared with the teacher's."""

    name = "fidelity"
    summary = "how far the student's neighborhoods and space are the teacher's"
    paper = (CKA, TRUSTWORTHINESS, DISTANCE_CORRELATION, TWO_NN, EFFECTIVE_RANK, GUDHI)
    Settings = FidelitySettings
    requirements = Requirements(labels=False, reference=True)
    display = Display(
        title="Fidelity",
        short="Fidelity",
        sentence="How far the student's neighborhoods and the shape of its space are the teacher's, on the same images "
        "and without labels. Intervals hold 95 % of resamples of the images.",
        source="Kornblith et al., ICML 2019 (arXiv 1905.00414), for CKA; Venna and Kaski, ICANN 2001, for "
        "trustworthiness; Facco et al., 2017 (arXiv 1803.06992), for TwoNN",
        compared=(r"overlap@11",),
        quoted=(
            "row_cosine", "column_cosine", "cka", "cka_debiased", "trustworthiness", "continuity",
            "distance_correlation", "intrinsic_dimension", "effective_rank", "dead_dimensions", r"topology_h[01]",
        ),
        figures=FIDELITY_TITLES,
        labels=FIDELITY_TITLES,
        plain=(r"(?!overlap@).+",),
        less=(r"topology_h[01]|dead_dimensions",),
        whole=(r"dead_dimensions(_teacher)?",),
    )  # fmt: skip
    evaluate = staticmethod(fidelity)
