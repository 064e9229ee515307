"""Teacher-side transforms: an invertible affine map of the teacher's space, fitted on its store, for any method.

Pooled features after a ReLU are non-negative and share a large mean, so that cosines describe the mean more than the
images; and a few dimensions may carry most of the variance. A transform takes either away before the loss, and is
undone behind the student's head, so that `embed` still lands in the teacher's own space.
"""

from __future__ import annotations

import logging
import math
import zipfile
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from understudy.artifacts import Store, atomic, is_whole, open_regular
from understudy.embed.settings import TRANSFORMS
from understudy.errors import ConfigError, DataError, first_line

log = logging.getLogger("understudy")

FLOOR = 1e-6
"""Variances below this share of the largest count as this much: the inverse must exist, and noise stay small."""

BLOCK = 65536


@dataclass(frozen=True)
class Transform:
    """One of `TRANSFORMS`: y = (x - mean) @ matrix and back, x = y @ inverse + mean."""

    name: str
    mean: Float64[np.ndarray, " D"]
    matrix: Float64[np.ndarray, "D D"]
    inverse: Float64[np.ndarray, "D D"]

    def apply(self, rows: Float[np.ndarray, "N D"]) -> Float64[np.ndarray, "N D"]:
        """(N, D) embeddings -> the space that the student is trained in."""
        moved: np.ndarray = (rows - self.mean) @ self.matrix
        return moved


def fit(rows: Float[np.ndarray, "N D"], name: str) -> Transform:
    """A transform from the mean and covariance of the teacher's embeddings.

    Args:
        rows: (N, D), any precision, may be memory-mapped: read in blocks, summed in float64.
        name: "center" subtracts the mean; "standardize" also divides each dimension by its standard deviation; "whiten"
            makes the covariance the identity, staying as near to the axes as that allows (ZCA); "phi-s" rotates so that
            every dimension has the same variance, then scales all by one number to variance 1, which keeps distances.

    Raises:
        ConfigError: an unknown name, or "phi-s" at a D for which no Hadamard matrix is made here.
        DataError: fewer than two rows.

    Source: PHI-S, Ranzinger et al. 2024, arXiv 2410.01680; ZCA, Kessy et al., The American Statistician 2018.
    """
    if name not in TRANSFORMS[1:]:
        raise ConfigError(f"Unknown transform '{name}'. Known: {', '.join(TRANSFORMS)}.")
    count, width = rows.shape
    if count < 2:
        raise DataError(f"A transform needs at least two embeddings; there are {count}.")
    mean = sum(rows[i : i + BLOCK].sum(0, dtype=np.float64) for i in range(0, count, BLOCK)) / count
    if name == "center":
        return Transform(name, mean, np.eye(width), np.eye(width))
    covariance = np.zeros((width, width))
    for i in range(0, count, BLOCK):
        block = rows[i : i + BLOCK].astype(np.float64) - mean
        covariance += block.T @ block / count
    if name == "standardize":
        variance = np.diag(covariance)
        deviation = np.sqrt(np.maximum(variance, FLOOR * variance.max()))
        return Transform(name, mean, np.diag(1 / deviation), np.diag(deviation))
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, FLOOR * values[-1])
    if name == "whiten":
        return Transform(name, mean, vectors / np.sqrt(values) @ vectors.T, vectors * np.sqrt(values) @ vectors.T)
    scale, rotation = math.sqrt(values.mean()), vectors @ hadamard(width)
    return Transform(name, mean, rotation / scale, scale * rotation.T)


def hadamard(order: int) -> Float64[np.ndarray, "D D"]:
    """An orthogonal matrix whose entries all have the same size: Sylvester's doubling of one by Paley's construction.

    Args:
        order: D = 2^a, or 2^a (q + 1) for a prime q = 3 mod 4: 384, 768, 1280, 1408, 1536, 2048 and their like.

    Raises:
        ConfigError: another order.
    """
    core = order
    while core > 1 and not (core % 4 == 0 and all((core - 1) % d for d in range(2, math.isqrt(core - 1) + 1))):
        if core % 2:
            raise ConfigError(
                f"phi-s needs a Hadamard matrix, and none of order D = {order} is made here. Use another transform, "
                "e.g. standardize."
            )
        core //= 2
    matrix = np.ones((1, 1))
    if core > 1:
        q = core - 1
        residues = {x * x % q for x in range(1, q)}
        symbol = np.array([0] + [1 if x in residues else -1 for x in range(1, q)])
        matrix = np.eye(core)
        matrix[0, 1:] += 1
        matrix[1:, 0] -= 1
        matrix[1:, 1:] += symbol[(np.arange(q)[:, None] - np.arange(q)) % q]
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / math.sqrt(order)


def transform_of(store: Store, name: str) -> Transform:
    """The transform of a complete store, of `TRANSFORMS` but "none": fitted once, then `transform-NAME.npz` in it.

    A file that is damaged, or holds something else, is written anew.
    """
    path, width = store.folder / f"transform-{name}.npz", store.embeddings().shape[1]
    if path.exists() and is_whole(path):
        try:
            with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
                kept = Transform(name, arrays["mean"], arrays["matrix"], arrays["inverse"])
            if kept.mean.shape == (width,) and kept.matrix.shape == kept.inverse.shape == (width, width):
                return kept
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            log.warning(f"{path} cannot be read ({first_line(error)}): it is made anew.")
    fitted = fit(store.embeddings(), name)
    with atomic(path, sealed=True) as temporary, open(temporary, "wb") as file:
        np.savez(file, mean=fitted.mean, matrix=fitted.matrix, inverse=fitted.inverse)
    return fitted
