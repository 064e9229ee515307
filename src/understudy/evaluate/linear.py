"""Linear probe on cached features, exactly: multinomial logistic regression by L-BFGS.

The protocol of transfer studies since Kornblith et al., "Do Better ImageNet Models Transfer Better?" (CVPR 2019,
arXiv 1805.08974), used by SimCLR, BYOL and Ericsson et al. (arXiv 2011.13377), whose harness the CoSS authors run:
no augmentation, no standardisation of features; the l2 weight is the best of 45 values log-spaced in 1e-6..1e5 on a
validation split; the classifier is then refitted on training + validation images and scored once on the test images.

The objective is theirs (scikit-learn's with C = 1/l2):  sum_i CE(W x_i + b, y_i) + l2/2 |W|^2, the bias unpenalised.

How it differs from the released harness, in ways that do not move the optimum or make it better defined:

- Features are centred and rotated to their principal axes, and each axis is scaled by the curvature there. The bias and
  the rotation absorb this exactly: the optimum is the same, and L-BFGS reaches it in far fewer steps.
- The path runs from the strongest to the weakest l2, each fit starting at the last one's solution; ties on the
  validation images go to the stronger l2 (theirs: the weaker).
- The validation split is a fifth of every class (theirs: a fifth of all images, so that a small class may vanish).
- The last fit runs to convergence, in double precision (theirs stops after 100 iterations).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.errors import DataError
from understudy.evaluate.settings import EvaluationSettings
from understudy.evaluate.subject import Figures, Subject

L2_VALUES = tuple(float(value) for value in np.logspace(5, -6, 45))
"""The grid, strongest first."""

VALIDATION_SHARE = 0.2


def linear(subject: Subject, settings: EvaluationSettings) -> Figures:
    """Score a subject by logistic regression on its features.

    Args:
        subject: features and labels of training and test images.
        settings: `seed` draws the validation split.

    Returns:
        "top1", "top5" (with more than 5 classes) and "mean_class" (mean of per-class accuracies) on the test images,
        "validation" (top-1 of the chosen l2 on the validation images), all in per cent, and "l2" itself.

    Raises:
        DataError: no labels, one class, features that are not finite, or no class with two images.

    Source:
        Kornblith et al. 2019 (arXiv 1805.08974), section A.2; Ericsson et al. 2021 (arXiv 2011.13377).
    """
    data = subject.labelled()
    known, targets = np.unique(data.train_labels, return_inverse=True)
    held_out = validation_split(targets, settings.seed)

    fitted, kept = data.train[~held_out], targets[~held_out]
    path = LogisticPath(fitted, kept, len(known), device=subject.device, dtype=torch.float32)
    validation, validation_targets = path.coordinates(data.train[held_out]), targets[held_out]
    best_score, best_l2, solution = -1.0, L2_VALUES[0], None
    for number, l2 in enumerate(L2_VALUES):
        solution = path.solve(l2, start=solution, tolerance=1e-4, iterations=100)
        guesses = (solution[:, :-1] @ validation + solution[:, -1:]).argmax(0).cpu().numpy()
        score = 100.0 * float((guesses == validation_targets).mean())
        if score > best_score:
            best_score, best_l2 = score, l2
        if subject.progress:
            subject.progress(number + 1, len(L2_VALUES) + 1, f"linear: l2 {l2:.1e}")
    del path, validation

    classifier = logistic_regression(data.train, targets, len(known), best_l2, device=subject.device)
    if subject.progress:
        subject.progress(len(L2_VALUES) + 1, len(L2_VALUES) + 1, f"linear: refitted with l2 {best_l2:.1e}")
    figures = accuracies(classifier, data.test, data.test_labels, known, data.classes)
    return {**figures, "validation": best_score, "l2": best_l2}


def validation_split(labels: Int[np.ndarray, " N"], seed: int, share: float = VALIDATION_SHARE) -> np.ndarray:
    """Draw a share of every class, at least one image where a class has two or more.

    Args:
        labels: (N,) class ids.
        seed: of the draw.
        share: in (0, 1).

    Returns:
        (N,) bool, true for validation images.

    Raises:
        DataError: no class has two images, so nothing can be held out.
    """
    generator = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    starts = np.flatnonzero(np.diff(labels[order], prepend=labels[order[0]] - 1))
    for start, size in zip(starts, np.diff(starts, append=len(labels)), strict=True):
        count = max(1, int(share * size)) if size > 1 else 0
        held_out[order[start : start + count]] = True
    if not held_out.any():
        raise DataError(
            f"No class has two training images ({len(labels)} images, {len(starts)} classes), so none can be held out "
            "to choose the l2 weight. Give more labelled images."
        )
    return held_out


@dataclass(frozen=True)
class Classifier:
    """An affine map to class scores.

    Args:
        weight: (C, F) float64.
        bias: (C,) float64.
        converged: whether the optimiser met its tolerance.
    """

    weight: Float[np.ndarray, "C F"]
    bias: Float[np.ndarray, " C"]
    converged: bool = True

    def scores(self, features: Float[np.ndarray, "M F"]) -> Float[np.ndarray, "M C"]:
        """(M, C) logits."""
        scores: np.ndarray = np.asarray(features, dtype=np.float64) @ self.weight.T + self.bias
        return scores


def logistic_regression(
    features: Float[np.ndarray, "N F"],
    labels: Int[np.ndarray, " N"],
    classes: int,
    l2: float,
    *,
    device: str | torch.device = "cpu",
) -> Classifier:
    """The optimum of multinomial logistic regression, in double precision.

    Args:
        features: (N, F), any float type.
        labels: (N,) ids in 0..C-1.
        classes: C.
        l2: weight of |W|^2 / 2 beside the sum of cross-entropies; scikit-learn's 1/C. With two classes both keep a row
            of W, which is a penalty half as strong as on scikit-learn's single row.
        device: where to compute.

    Returns:
        The classifier, on the features as given (not centred, not rotated).
    """
    path = LogisticPath(features, labels, classes, device=device, dtype=torch.float64)
    # Coarse first: the curvature at a rough solution scales the axes much better than the curvature at zero.
    solution = path.solve(l2, start=None, tolerance=1e-3, iterations=100)
    solution = path.solve(l2, start=solution, tolerance=1e-6, iterations=1000)
    return path.classifier(solution)


class LogisticPath:
    """One training set, prepared for many fits: centred, in principal axes, directions without variance dropped.

    Args:
        features: (N, F).
        labels: (N,) ids in 0..C-1.
        classes: C.
        device: where to compute.
        dtype: float32 to compare l2 values, float64 for a final fit. Memory: one float64 copy of the features while
            preparing, one (R, N) copy in `dtype` after, with R = min(N, F).
    """

    def __init__(
        self,
        features: Float[np.ndarray, "N F"],
        labels: Int[np.ndarray, " N"],
        classes: int,
        *,
        device: str | torch.device,
        dtype: torch.dtype,
    ) -> None:
        place = torch.device("cpu" if torch.device(device).type == "mps" else device)  # Apple's GPU has no float64
        x = torch.as_tensor(np.asarray(features, dtype=np.float64), device=place)
        self.count, self.classes = len(x), classes
        self.mean = x.mean(0)
        x = x - self.mean
        # By the representer theorem the optimum lies in the span of the centred rows: min(N, F) axes are enough.
        if x.shape[1] <= len(x):
            variance, axes = torch.linalg.eigh(x.T @ x)
        else:
            variance, left = torch.linalg.eigh(x @ x.T)
            axes = x.T @ (left / variance.clamp_min(torch.finfo(torch.float64).tiny).sqrt())
        alive = variance > variance.max().clamp_min(0) * 1e-13
        self.axes = axes[:, alive]
        self.variance = variance[alive].to(dtype)
        # Rows are axes and columns are images: with few classes BLAS is several times faster on this layout.
        self.rows = (self.axes.T @ x.T).to(dtype).contiguous()
        self.labels = torch.as_tensor(np.asarray(labels, dtype=np.int64), device=place)
        self.converged = True

    def coordinates(self, features: Float[np.ndarray, "M F"]) -> Float[Tensor, "R M"]:
        """(R, M) coordinates of other features on the axes of these."""
        x = torch.as_tensor(np.asarray(features, dtype=np.float64), device=self.mean.device)
        rows: Tensor = self.axes.T @ (x - self.mean).T
        return rows.to(self.rows.dtype)

    def solve(
        self, l2: float, *, start: Float[Tensor, "C R1"] | None, tolerance: float, iterations: int
    ) -> Float[Tensor, "C R1"]:
        """One fit.

        Args:
            l2: weight of |W|^2 / 2 beside the sum of cross-entropies.
            start: solution of a neighbouring fit; None starts at zero.
            tolerance: stop when no entry of the scaled gradient of the MEAN loss is larger. As the scaled curvature is
                about 1, the mean loss is then within about C * R * tolerance^2 / 2 of its minimum.
            iterations: L-BFGS iterations at most.

        Returns:
            (C, R + 1): weights on the axes, then the bias.
        """
        rows, labels, count = self.rows, self.labels, self.count
        if start is None:
            start = rows.new_zeros(self.classes, len(rows) + 1)
        chance = torch.softmax(start[:, :-1] @ rows + start[:, -1:], 0)
        curvature = (chance * (1 - chance)).mean().clamp_min(1e-6)
        scale = torch.cat([(curvature * self.variance / count + l2 / count).rsqrt(), curvature.rsqrt().reshape(1)])

        scaled = (start / scale).requires_grad_(True)
        optimiser = torch.optim.LBFGS(
            [scaled],
            max_iter=iterations,
            max_eval=2 * iterations,
            tolerance_grad=tolerance,
            tolerance_change=1e-3 * tolerance**2,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        @torch.no_grad()
        def loss() -> Tensor:
            solution = scaled * scale
            weights = solution[:, :-1]
            scores = torch.addmm(solution[:, -1:], weights, rows)
            log_chance = torch.log_softmax(scores, 0)
            entropy = -log_chance.gather(0, labels[None]).mean()
            residual = log_chance.exp_().scatter_add_(0, labels[None], -torch.ones_like(labels, dtype=rows.dtype)[None])
            gradient = torch.cat([residual @ rows.T + l2 * weights, residual.sum(1, keepdim=True)], 1)
            scaled.grad = gradient * (scale / count)
            return entropy + (0.5 * l2 / count) * weights.square().sum()

        optimiser.step(loss)
        loss()
        assert scaled.grad is not None
        self.converged = bool(scaled.grad.abs().max() <= tolerance)
        return (scaled * scale).detach()

    def classifier(self, solution: Float[Tensor, "C R1"]) -> Classifier:
        """The solution as an affine map on features as they were given."""
        weight = solution[:, :-1].double() @ self.axes.T
        bias = solution[:, -1].double() - weight @ self.mean
        return Classifier(weight.cpu().numpy(), bias.cpu().numpy(), self.converged)


def accuracies(
    classifier: Classifier,
    features: Float[np.ndarray, "M F"],
    labels: Int[np.ndarray, " M"],
    known: Int[np.ndarray, " Ck"],
    classes: int,
) -> Figures:
    """Accuracies in per cent on test images.

    Args:
        classifier: scores the classes that had training images.
        features: (M, F) of the test images.
        labels: (M,) class ids of all C classes.
        known: (Ck,) class id of each of the classifier's rows.
        classes: C.

    Returns:
        "top1", "top5" where C > 5, "mean_class" over the classes that have test images.
    """
    ranked = np.empty((len(labels), min(5, len(known))), dtype=np.int64)
    for start in range(0, len(labels), 4096):
        scores = classifier.scores(features[start : start + 4096])
        ranked[start : start + 4096] = known[np.argsort(-scores, axis=1, kind="stable")[:, : ranked.shape[1]]]
    hits = ranked == labels[:, None]
    images = np.bincount(labels, minlength=classes)
    correct = np.bincount(labels, weights=hits[:, 0], minlength=classes)
    figures: Figures = {"top1": 100.0 * float(hits[:, 0].mean())}
    if classes > 5:
        figures["top5"] = 100.0 * float(hits.any(axis=1).mean())
    figures["mean_class"] = 100.0 * float((correct[images > 0] / images[images > 0]).mean())
    if not classifier.converged:
        figures["note"] = "The last fit stopped at its iteration limit before meeting its tolerance."
    return figures
