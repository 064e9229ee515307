"""A student's space compared with its teacher's, with intervals."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from understudy.errors import DataError, MissingDependency, ShapeError
from understudy.evaluate.encoded_set import EncodedSet, Figures, check_finite
from understudy.evaluate.measures import geometry
from understudy.evaluate.measures.geometry import neighbor_order, trust_and_continuity, trustworthiness
from understudy.evaluate.measures.topology import TOPOLOGY_IMAGES, topology_distance
from understudy.evaluate.protocols.fidelity import FidelitySettings
from understudy.evaluate.settings import EvaluationSettings
from understudy.losses.base.similarity import column_cosine, row_cosine
from understudy.neighbors.vote import shared_by_image

KS = (1, 5, 11, 21, 31)
TRUST_K = 10
TRUST_IMAGES = 2000


def compare_spaces(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Compare an encoded set with its reference on the same test images, in the same order.

    Returns:
        The figures above: overlaps in per cent, cosines in [-1, 1], the others in [0, 1]. A k that needs more
        images than there are is left out, and "note" says so.

    Raises:
        DataError: no reference, fewer than 3 images, or rows that are not finite.
        ShapeError: student and teacher have different numbers of rows.
    """
    own, reference = _rows(encoded_set)
    draws = settings.group(FidelitySettings).draws
    figures: Figures = {}
    mean = _Mean(figures, settings.seed, draws)
    assert encoded_set.reference is not None
    ks = [k for k in KS if k < len(own)]
    ours, theirs = (side.neighbors(max(ks), settings.memory_mb) for side in (encoded_set, encoded_set.reference))
    for k in ks:
        mean(f"overlap@{k}", 100.0 * shared_by_image(ours, theirs, k))
    chosen = np.random.default_rng(settings.seed).permutation(len(own))[:TRUST_IMAGES]
    chosen.sort()
    some, others = (np.asarray(rows[chosen], dtype=np.float64) for rows in (own, reference))
    halves = _Halves(figures, len(chosen), settings.seed, draws)
    if encoded_set.aligned:
        _cosines(encoded_set, (some, others), mean, halves)
    halves(
        "cka", lambda part: geometry.linear_cka(some[part], others[part]), geometry.linear_cka(own, reference),
        images=len(own),
    )  # fmt: skip

    left_out = [f"overlap@{k}" for k in KS if k not in ks]
    if len(chosen) > 2 * TRUST_K:
        units = geometry.unit(some), geometry.unit(others)
        for name, pair in (("trustworthiness", (others, some)), ("continuity", (some, others))):
            figures[name] = trustworthiness(*pair, TRUST_K, settings.memory_mb, encoded_set.device)
        _neighborhoods(units, halves)
        _geometry(figures, halves, (some, others), units)
        try:
            _topology(figures, units, settings.seed, draws)
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


def _rows(encoded_set: EncodedSet) -> tuple[np.ndarray, np.ndarray]:
    """The test rows of both spaces, checked."""
    if encoded_set.reference is None:
        raise DataError(f"Fidelity compares with a teacher, and {encoded_set.name} has none.")
    own, reference = encoded_set.test, encoded_set.reference.test
    name, other = encoded_set.name, encoded_set.reference.name
    if len(own) != len(reference):
        raise ShapeError(f"{name} has {len(own)} test rows, {other} has {len(reference)}.")
    if len(own) < 3:
        raise DataError(f"Fidelity needs at least 3 test images, there are {len(own)}. Check --eval-data.")
    check_finite(own, f"{name} features of the test images")
    check_finite(reference, f"{other} features of the test images")
    return own, reference


def _cosines(encoded_set: EncodedSet, sample: tuple[np.ndarray, np.ndarray], mean: _Mean, halves: _Halves) -> None:
    """The two terms of CoSS, over all test images."""
    assert encoded_set.reference is not None
    own, reference = encoded_set.test, encoded_set.reference.test
    width, other_width = own.shape[1], reference.shape[1]
    if width != other_width:
        raise ShapeError(f"{encoded_set.name} has width {width}, {encoded_set.reference.name} {other_width}.")
    student, teacher = (torch.as_tensor(np.asarray(rows, dtype=np.float64)) for rows in (own, reference))
    mean("row_cosine", row_cosine(student, teacher).numpy())

    def columns(part: np.ndarray) -> float:
        return float(column_cosine(*(torch.from_numpy(rows[part]) for rows in sample)).mean())

    halves("column_cosine", columns, float(column_cosine(student, teacher).mean()), images=len(own))


def _neighborhoods(units: tuple[np.ndarray, np.ndarray], halves: _Halves) -> None:
    """Intervals of trustworthiness and continuity."""
    orders = functools.cache(lambda: (neighbor_order(units[1]), neighbor_order(units[0])))  # of use to the halves only
    both = _once(lambda part: trust_and_continuity(*orders(), part, TRUST_K))
    halves("trustworthiness", lambda part: both(part)[0], least=4 * TRUST_K + 2)
    halves("continuity", lambda part: both(part)[1], least=4 * TRUST_K + 2)


def _geometry(
    figures: Figures, halves: _Halves, rows: tuple[np.ndarray, np.ndarray], units: tuple[np.ndarray, np.ndarray]
) -> None:
    """What `geometry` says of the two spaces."""
    spaces = tuple(geometry.distances(one) for one in units)
    halves("cka_debiased", _of(geometry.debiased_cka, *(geometry.gram(one) for one in rows)))
    halves("distance_correlation", _of(geometry.distance_correlation, *spaces))
    for end, of_space, space in zip(("", "_teacher"), rows, spaces, strict=True):
        halves(f"intrinsic_dimension{end}", _of(geometry.two_nn, space))
        halves(f"effective_rank{end}", _of_rows(geometry.effective_rank, of_space))
        figures[f"dead_dimensions{end}"] = geometry.dead_dimensions(of_space)


def _topology(figures: Figures, units: tuple[np.ndarray, np.ndarray], seed: int, draws: int) -> None:
    """What `topology` says of the two spaces, over its own sample."""
    drawn = np.sort(np.random.default_rng(seed).permutation(len(units[0]))[:TOPOLOGY_IMAGES])
    spaces = tuple(geometry.distances(one[drawn]) for one in units)
    halves = _Halves(figures, len(drawn), seed, draws)
    both = _once(lambda part: topology_distance(*_parts(part, *spaces)))
    halves("topology_h0", lambda part: both(part)[0])
    halves("topology_h1", lambda part: both(part)[1])


@dataclass(frozen=True)
class _Mean:
    """Adds the mean of one number an image to the figures, with its interval unless there are no draws."""

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
    """Adds a measure of the sample to the figures, with its interval from random halves unless there are no draws."""

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
    """The same of rows."""
    return lambda part: measure(rows[part])


def _once(measure: Callable[[np.ndarray], tuple[float, float]]) -> Callable[[np.ndarray], tuple[float, float]]:
    """Two measures that come of one computation: the interval of the second asks for the halves of the first."""
    cache: dict[bytes, tuple[float, float]] = {}

    def both(part: np.ndarray) -> tuple[float, float]:
        key = part.tobytes()
        if key not in cache:
            cache[key] = measure(part)
        return cache[key]

    return both
