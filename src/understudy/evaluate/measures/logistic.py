"""Multinomial logistic regression on frozen features, to its optimum, by L-BFGS; `protocols.linear` says how."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.errors import ConfigError
from understudy.evaluate.measures.accuracy import average_precision_11, mean_class

SEARCH_VECTORS = 10
"""Vectors of C x R numbers that L-BFGS and its line search hold beside the history."""


@dataclass(frozen=True)
class Classifier:
    """An affine map to class scores, and whether the optimizer met its tolerance."""

    weight: Float[np.ndarray, "C F"]
    bias: Float[np.ndarray, " C"]
    converged: bool = True

    def scores(self, features: Float[np.ndarray, "M F"]) -> Float[np.ndarray, "M C"]:
        """(M, C) logits."""
        return np.asarray(np.asarray(features, dtype=np.float64) @ self.weight.T + self.bias)


def logistic_regression(
    features: Float[np.ndarray, "N F"],
    labels: Int[np.ndarray, "N ..."],
    classes: int,
    l2: float,
    *,
    device: str | torch.device = "cpu",
    memory_mb: int = 1024,
) -> Classifier:
    """The optimum of multinomial logistic regression, in double precision, on features as given; see `LogisticPath`.

    `l2` is the weight of |W|^2 / 2 beside the sum of cross-entropies, scikit-learn's 1/C. With two classes both keep a
    row of W, which is a penalty half as strong as on scikit-learn's single row.
    """
    path = LogisticPath(features, labels, classes, device=device, dtype=torch.float64, memory_mb=memory_mb)
    # Coarse first: the curvature at a rough solution scales the axes much better than the curvature at zero.
    solution = path.solve(l2, start=None, tolerance=1e-3, iterations=100)
    solution = path.solve(l2, start=solution, tolerance=1e-6, iterations=1000)
    return path.classifier(solution)


class LogisticPath:
    """One training set, prepared for many fits: centered, in principal axes, directions without variance dropped.

    Images that fit the memory budget are kept on their axes; more of them are read again, a block at a time, for every
    step of the optimizer: memory does not grow with N, time does.

    Args:
        features: (N, F), any float type, perhaps a memory map.
        labels: (N,) ids in 0..C-1; or (N, C) marks, which make C independent two-class regressions (1 yes, -1 no, 0
            not counted).
        classes: C.
        index: which images; all unless given.
        device: where to compute.
        dtype: float32 to compare l2 values, float64 for a final fit.
        memory_mb: MiB for images, scores and the optimizer's history, beside F x F numbers for the axes.

    Raises:
        ConfigError: the optimizer alone, C x F numbers many times over, is beyond the budget.
    """

    def __init__(
        self,
        features: Float[np.ndarray, "N F"],
        labels: Int[np.ndarray, "N ..."],
        classes: int,
        *,
        index: Int[np.ndarray, " n"] | None = None,
        device: str | torch.device,
        dtype: torch.dtype,
        memory_mb: int = 1024,
    ) -> None:
        self.place = torch.device("cpu" if torch.device(device).type == "mps" else device)  # Apple's has no float64
        self.features, self.dtype = features, dtype
        self.targets = np.asarray(labels)
        self.index = np.arange(len(features)) if index is None else index
        self.count, self.classes = len(self.index), classes
        width = features.shape[1]
        budget, number = memory_mb << 20, dtype.itemsize
        # In float64: the blocks of the first two passes are of this size too.
        self.block = max(64, min(self.count, budget // 4 // (8 * (4 * classes + 3 * width))))
        self.mean = torch.zeros(width, dtype=torch.float64, device=self.place)
        for some in self._blocks():
            self.mean += self._raw(some).sum(0)
        self.mean /= self.count
        # By the representer theorem the optimum lies in the span of the centered rows: min(N, F) axes are enough.
        if width <= self.count:
            gram = torch.zeros(width, width, dtype=torch.float64, device=self.place)
            for some in self._blocks():
                x = self._raw(some) - self.mean
                gram += x.T @ x
            variance, axes = torch.linalg.eigh(gram)
        else:
            x = self._raw(self.index) - self.mean
            variance, left = torch.linalg.eigh(x @ x.T)
            axes = x.T @ (left / variance.clamp_min(torch.finfo(torch.float64).tiny).sqrt())
        alive = variance > variance.max().clamp_min(0) * 1e-13
        self.axes = axes[:, alive]
        self.variance = variance[alive].to(dtype)
        vector = classes * (len(self.variance) + 1) * number
        self.history = int(min(20, (budget // 2 // vector - SEARCH_VECTORS) // 2)) if vector else 20
        if self.history < 3:
            need = (2 * (2 * 3 + SEARCH_VECTORS) * vector >> 20) + 1
            raise ConfigError(
                f"Logistic regression of {classes:,} classes on {width:,} dimensions needs at least {need:,} MiB; the "
                f"budget is {memory_mb:,}. Raise --memory-mb."
            )
        # Rows are axes and columns are images: with few classes BLAS is several times faster on this layout.
        self.rows: Tensor | None = None
        if self.count * len(self.variance) * number <= budget // 4:
            self.rows = torch.empty(len(self.variance), self.count, dtype=dtype, device=self.place)
            for start, some in zip(range(0, self.count, self.block), self._blocks(), strict=True):
                x = self._raw(some) - self.mean
                self.rows[:, start : start + self.block] = (self.axes.T @ x.T).to(dtype)
        self.converged = True

    def _blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, self.count, self.block):
            yield self.index[start : start + self.block]

    def _raw(self, some: np.ndarray) -> Float[Tensor, "n F"]:
        """These images in float64."""
        return torch.from_numpy(np.asarray(self.features[some], dtype=np.float64)).to(self.place)

    def _targets(self, some: np.ndarray) -> Tensor:
        """(n,) ids, or (C, n) marks."""
        return torch.from_numpy(np.ascontiguousarray(self.targets[some].T.astype(np.int64))).to(self.place)

    def solve(
        self, l2: float, *, start: Float[Tensor, "C R1"] | None, tolerance: float, iterations: int
    ) -> Float[Tensor, "C R1"]:
        """One fit, by at most so many L-BFGS iterations from `start`, the solution of a neighboring fit, or from zero.

        It stops when no entry of the scaled gradient of the MEAN loss is larger than the tolerance. As the scaled
        curvature is about 1, the mean loss is then within about C * R * tolerance^2 / 2 of its minimum.

        Returns:
            (C, R + 1): weights on the axes, then the bias.
        """
        count = self.count
        if start is None:
            start = torch.zeros(self.classes, len(self.variance) + 1, dtype=self.dtype, device=self.place)
        _, _, spread = self._sums(start, derivative=False)
        curvature = (spread / (count * self.classes)).clamp_min(1e-6)
        scale = torch.cat([(curvature * self.variance / count + l2 / count).rsqrt(), curvature.rsqrt().reshape(1)])

        scaled = (start / scale).requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            [scaled], max_iter=iterations, max_eval=2 * iterations, tolerance_grad=tolerance,
            tolerance_change=1e-3 * tolerance**2, history_size=self.history, line_search_fn="strong_wolfe",
        )  # fmt: skip

        @torch.no_grad()
        def loss() -> Tensor:
            solution = scaled * scale
            entropy, gradient, _ = self._sums(solution)
            gradient[:, :-1] += l2 * solution[:, :-1]
            scaled.grad = gradient * (scale / count)
            return entropy / count + (0.5 * l2 / count) * solution[:, :-1].square().sum()

        optimizer.step(loss)
        loss()
        assert scaled.grad is not None
        self.converged = bool(scaled.grad.abs().max() <= tolerance)
        return (scaled * scale).detach()

    @torch.no_grad()
    def _sums(
        self, solution: Float[Tensor, "C R1"], derivative: bool = True
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "C R1"], Float[Tensor, ""]]:
        """Over all images: the cross-entropies, their gradient, and p (1 - p) over all classes too."""
        entropy, spread = solution.new_zeros(()), solution.new_zeros(())
        gradient = torch.zeros_like(solution)
        weights, bias = solution[:, :-1], solution[:, -1:]
        if self.rows is None:  # on the features' own axes: rotating the solution is cheaper than rotating the images
            weights = weights @ self.axes.T.to(self.dtype)
            outer = torch.zeros_like(weights)
        for start, some in zip(range(0, self.count, self.block), self._blocks(), strict=True):
            if self.rows is None:
                x = (self._raw(some) - self.mean).to(self.dtype).T
            else:
                x = self.rows[:, start : start + self.block]
            scores, targets = torch.addmm(bias, weights, x), self._targets(some)
            if targets.ndim == 1:
                log_chance = torch.log_softmax(scores, 0)
                entropy -= log_chance.gather(0, targets[None]).sum()
                residual = log_chance.exp_()
            else:
                counted = (targets != 0).to(self.dtype)
                entropy += (torch.nn.functional.softplus(-scores * targets) * counted).sum()
                residual = torch.sigmoid(scores) * counted
            if not derivative:
                spread += (residual * (1 - residual)).sum()
                continue
            if targets.ndim == 1:
                residual.scatter_add_(0, targets[None], -torch.ones_like(residual[:1]))
            else:
                residual -= (targets > 0).to(self.dtype)
            if self.rows is None:
                outer += residual @ x.T
            else:
                gradient[:, :-1] += residual @ x.T
            gradient[:, -1] += residual.sum(1)
        if self.rows is None and derivative:
            gradient[:, :-1] = outer @ self.axes.to(self.dtype)
        return entropy, gradient, spread

    @torch.no_grad()
    def score(self, solution: Float[Tensor, "C R1"], index: Int[np.ndarray, " m"], metric: str) -> float:
        """A solution's score in per cent on other images of the same features, as `fit_chosen` says."""
        weights = solution[:, :-1] @ self.axes.T.to(self.dtype)
        parts = []
        for start in range(0, len(index), self.block):
            x = (self._raw(index[start : start + self.block]) - self.mean).to(self.dtype)
            scores = torch.addmm(solution[:, -1:], weights, x.T)
            parts.append((scores.T if metric == "map11" else scores.argmax(0)).cpu().numpy())
        guesses, truth = np.concatenate(parts), self.targets[index]
        if metric == "map11":
            return 100.0 * float(np.mean(average_precision_11(guesses.astype(np.float64), truth)))
        hits = guesses == truth
        if metric == "mean_class":
            return mean_class(hits, truth, self.classes)
        return 100.0 * float(hits.mean())

    def classifier(self, solution: Float[Tensor, "C R1"]) -> Classifier:
        """The solution as an affine map on features as they were given."""
        weight = solution[:, :-1].double() @ self.axes.T
        bias = solution[:, -1].double() - weight @ self.mean
        return Classifier(weight.cpu().numpy(), bias.cpu().numpy(), self.converged)
