"""Linear probe on cached features, exactly: multinomial logistic regression by L-BFGS.

The protocol of transfer studies since Kornblith et al., "Do Better ImageNet Models Transfer Better?" (CVPR 2019,
arXiv 1805.08974), used by SimCLR, BYOL and Ericsson et al. (arXiv 2011.13377), whose harness the CoSS authors run:
no augmentation, no standardization of features; the l2 weight is the best of 45 values log-spaced in 1e-6..1e5 on a
validation split; the classifier is then refitted on training + validation images and scored once on the test images.

The objective is theirs (scikit-learn's with C = 1/l2):  sum_i CE(W x_i + b, y_i) + l2/2 |W|^2, the bias unpenalized.

How it differs from the released harness, in ways that do not move the optimum or make it better defined:

- Features are centered and rotated to their principal axes, and each axis is scaled by the curvature there. The bias
  and the rotation absorb this exactly: the optimum is the same, and L-BFGS reaches it in far fewer steps.
- The path runs from the strongest to the weakest l2, each fit starting at the last one's solution; ties on the
  validation images go to the stronger l2 (theirs: the weaker).
- The validation split is a fifth of every class (theirs: a fifth of all images, so that a small class may vanish).
- The last fit runs to convergence, in double precision (theirs stops after 100 iterations).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from understudy.errors import ConfigError, DataError
from understudy.evaluate.encoded_set import EncodedSet, Figures, Progress
from understudy.evaluate.protocol import Display, Protocol
from understudy.evaluate.settings import EvaluationSettings

L2_VALUES = tuple(float(value) for value in np.logspace(5, -6, 45))
"""The grid, strongest first."""

VALIDATION_SHARE = 0.2

OTHERS = 10
"""Vectors of C x R numbers that L-BFGS and its line search hold beside the history."""


def linear(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Score an encoded set by logistic regression on its features.

    Args:
        encoded_set: features and labels of training and test images.
        settings: `seed` draws the validation split.

    Returns:
        "top1", "top5" (with more than 5 classes) and "mean_class" (mean of per-class accuracies) on the test images,
        "validation" (top-1 of the chosen l2 on the validation images), all in per cent, and "l2" itself.

    Raises:
        DataError: no labels, one class, features that are not finite, or no class with two images.

    Source:
        Kornblith et al. 2019 (arXiv 1805.08974), section A.2; Ericsson et al. 2021 (arXiv 2011.13377).
    """
    data = encoded_set.labeled()
    classifier, known, l2, validation = main_classifier(encoded_set, settings)
    figures = accuracies(classifier, data.test, data.test_labels, known, data.classes, settings.memory_mb)
    return {**figures, "validation": validation, "l2": l2}


def main_classifier(
    encoded_set: EncodedSet, settings: EvaluationSettings
) -> tuple[Classifier, Int[np.ndarray, " Ck"], float, float]:
    """The classifier of an encoded set's training images; fitted once, for all protocols that ask for it.

    Args:
        encoded_set: features and labels of training images.
        settings: `seed` draws the validation split.

    Returns:
        The classifier, the class id of each of its rows, the l2 weight, and its validation accuracy in per cent.

    Raises:
        DataError: as `linear` says.
    """
    if "classifier" not in encoded_set.kept:
        data = encoded_set.labeled()
        known, targets = np.unique(data.train_labels, return_inverse=True)
        held_out = validation_split(targets, settings.seed)
        classifier, l2, validation = fit_chosen(
            data.train,
            targets,
            len(known),
            held_out,
            device=encoded_set.device,
            memory_mb=settings.memory_mb,
            progress=encoded_set.progress,
        )
        encoded_set.kept["classifier"] = classifier, known, l2, validation
    found: tuple[Classifier, np.ndarray, float, float] = encoded_set.kept["classifier"]
    return found


def fit_chosen(
    features: Float[np.ndarray, "N F"],
    labels: Int[np.ndarray, "N ..."],
    classes: int,
    held_out: Bool[np.ndarray, " N"],
    *,
    metric: str = "top1",
    device: str | torch.device = "cpu",
    memory_mb: int = 1024,
    progress: Progress | None = None,
) -> tuple[Classifier, float, float]:
    """The l2 weight that is best on the validation images, then the classifier refitted on all images.

    Args:
        features: (N, F), perhaps a memory map.
        labels: (N,) ids in 0..C-1; or (N, C) marks of several labels an image: 1 yes, -1 no, 0 not counted.
        classes: C.
        held_out: (N,) the validation images.
        metric: "top1", "mean_class", or with marks "map11" (`average_precision_11`).
        device: where to compute.
        memory_mb: budget of the fit.
        progress: called after each l2 value.

    Returns:
        The classifier, the l2 weight, and its score on the validation images in per cent.
    """
    inside, outside = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    path = LogisticPath(
        features, labels, classes, index=inside, device=device, dtype=torch.float32, memory_mb=memory_mb
    )
    best_score, best_l2, solution = -1.0, L2_VALUES[0], None
    for number, l2 in enumerate(L2_VALUES):
        solution = path.solve(l2, start=solution, tolerance=1e-4, iterations=100)
        score = path.score(solution, outside, metric)
        if score > best_score:
            best_score, best_l2 = score, l2
        if progress:
            progress(number + 1, len(L2_VALUES) + 1, f"l2 {l2:.1e}")
    del path
    classifier = logistic_regression(features, labels, classes, best_l2, device=device, memory_mb=memory_mb)
    if progress:
        progress(len(L2_VALUES) + 1, len(L2_VALUES) + 1, f"refitted with l2 {best_l2:.1e}")
    return classifier, best_l2, best_score


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
            "to choose the l2 weight. Give more labeled images."
        )
    return held_out


@dataclass(frozen=True)
class Classifier:
    """An affine map to class scores.

    Args:
        weight: (C, F) float64.
        bias: (C,) float64.
        converged: whether the optimizer met its tolerance.
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
    labels: Int[np.ndarray, "N ..."],
    classes: int,
    l2: float,
    *,
    device: str | torch.device = "cpu",
    memory_mb: int = 1024,
) -> Classifier:
    """The optimum of multinomial logistic regression, in double precision.

    Args:
        features: (N, F), any float type, perhaps a memory map.
        labels: (N,) ids in 0..C-1; or (N, C) marks, which make C independent two-class regressions (1 yes, -1 no, 0
            not counted).
        classes: C.
        l2: weight of |W|^2 / 2 beside the sum of cross-entropies; scikit-learn's 1/C. With two classes both keep a row
            of W, which is a penalty half as strong as on scikit-learn's single row.
        device: where to compute.
        memory_mb: see `LogisticPath`.

    Returns:
        The classifier, on the features as given (not centered, not rotated).
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
        features: (N, F), perhaps a memory map.
        labels: (N,) ids in 0..C-1, or (N, C) marks.
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
        self.history = int(min(20, (budget // 2 // vector - OTHERS) // 2)) if vector else 20
        if self.history < 3:
            need = (2 * (2 * 3 + OTHERS) * vector >> 20) + 1
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
        """One fit.

        Args:
            l2: weight of |W|^2 / 2 beside the sum of cross-entropies.
            start: solution of a neighboring fit; None starts at zero.
            tolerance: stop when no entry of the scaled gradient of the MEAN loss is larger. As the scaled curvature is
                about 1, the mean loss is then within about C * R * tolerance^2 / 2 of its minimum.
            iterations: L-BFGS iterations at most.

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
            [scaled],
            max_iter=iterations,
            max_eval=2 * iterations,
            tolerance_grad=tolerance,
            tolerance_change=1e-3 * tolerance**2,
            history_size=self.history,
            line_search_fn="strong_wolfe",
        )

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
        found = []
        for start in range(0, len(index), self.block):
            x = (self._raw(index[start : start + self.block]) - self.mean).to(self.dtype)
            scores = torch.addmm(solution[:, -1:], weights, x.T)
            found.append((scores.T if metric == "map11" else scores.argmax(0)).cpu().numpy())
        guesses, truth = np.concatenate(found), self.targets[index]
        if metric == "map11":
            return 100.0 * float(np.mean(average_precision_11(guesses.astype(np.float64), truth)))
        hits = guesses == truth
        if metric == "mean_class":
            images = np.bincount(truth, minlength=self.classes)
            correct = np.bincount(truth, weights=hits, minlength=self.classes)
            return 100.0 * float((correct[images > 0] / images[images > 0]).mean())
        return 100.0 * float(hits.mean())

    def classifier(self, solution: Float[Tensor, "C R1"]) -> Classifier:
        """The solution as an affine map on features as they were given."""
        weight = solution[:, :-1].double() @ self.axes.T
        bias = solution[:, -1].double() - weight @ self.mean
        return Classifier(weight.cpu().numpy(), bias.cpu().numpy(), self.converged)


def average_precision_11(scores: Float[np.ndarray, "M C"], marks: Int[np.ndarray, "M C"]) -> Float[np.ndarray, " Cp"]:
    """PASCAL VOC 2007's average precision of each class that has a positive image.

    The mean, over the recalls 0, 0.1, ..., 1, of the largest precision at that recall or beyond.

    Args:
        scores: (M, C).
        marks: (M, C) 1 yes, -1 no, 0 ("difficult") left out of the ranking.

    Returns:
        In [0, 1], for the classes with a positive image, in order.

    Source:
        Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2.
    """
    found = []
    for score, mark in zip(scores.T, marks.T, strict=True):
        score, mark = score[mark != 0], mark[mark != 0]
        if not (mark > 0).any():
            continue
        hits = mark[np.argsort(-score, kind="stable")] > 0
        recall = np.cumsum(hits) / hits.sum()
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        # 11 thresholds as whole numbers of hits would have it: 0.1 * 3 in floating point is above 0.3.
        reached = [precision[recall >= step / 10 - 1e-12].max(initial=0.0) for step in range(11)]
        found.append(float(np.mean(reached)))
    return np.array(found)


def accuracies(
    classifier: Classifier,
    features: Float[np.ndarray, "M F"],
    labels: Int[np.ndarray, " M"],
    known: Int[np.ndarray, " Ck"],
    classes: int,
    memory_mb: int = 1024,
) -> Figures:
    """Accuracies in per cent on test images.

    Args:
        classifier: scores the classes that had training images.
        features: (M, F) of the test images.
        labels: (M,) class ids of all C classes.
        known: (Ck,) class id of each of the classifier's rows.
        classes: C.
        memory_mb: MiB for a block of scores.

    Returns:
        "top1", "top5" where C > 5, "mean_class" over the classes that have test images.
    """
    ranked = np.empty((len(labels), min(5, len(known))), dtype=np.int64)
    block = max(1, min(4096, (memory_mb << 20) // (32 * len(known))))
    for start in range(0, len(labels), block):
        scores = classifier.scores(features[start : start + block])
        ranked[start : start + block] = known[np.argsort(-scores, axis=1, kind="stable")[:, : ranked.shape[1]]]
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


KORNBLITH = """@inproceedings{kornblith2019transfer,
  title     = {Do Better {ImageNet} Models Transfer Better?},
  author    = {Kornblith, Simon and Shlens, Jonathon and Le, Quoc V.},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2019}
}"""


class Linear(Protocol):
    """Multinomial logistic regression on frozen features."""

    name = "linear"
    summary = "multinomial logistic regression on frozen features, l2 chosen on a validation split"
    paper = (KORNBLITH,)
    display = Display(
        title="Linear probe",
        short="Linear probe",
        sentence="Logistic regression on frozen features to its optimum, l2 chosen on a fifth of the training images.",
        source="Kornblith et al., CVPR 2019 (arXiv 1805.08974), section A.2",
        compared=(r"top1",),
        quoted=(r"top5", r"mean_class"),
        plain=(r"l2",),
    )
    evaluate = staticmethod(linear)
