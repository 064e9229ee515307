"""What a protocol is given: frozen features of labeled images, and the encoder behind them where pixels are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from understudy.errors import DataError, ShapeError
from understudy.evaluate.protocol import Figures as Figures
from understudy.models.student import Student
from understudy.models.teacher import Teacher
from understudy.neighbors.search import search

if TYPE_CHECKING:
    from understudy.evaluate.dataset import EvaluationSet
    from understudy.models.contract import Contract
    from understudy.sources.source import Source

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, note)."""

Notify = Callable[[str], None]
"""Called with one sentence for the user."""


@runtime_checkable
class EvaluatedEncoder(Protocol):
    """A frozen network: a teacher, a student's backbone, or a student's embedding."""

    @property
    def contract(self) -> Contract:
        """The input it expects."""

    def features(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B F"]:
        """(B, F) features of prepared (resized, normalized) images, in eval mode and without gradient."""


@dataclass(frozen=True)
class Embedding:
    """A student seen as an encoder into the teacher's space."""

    student: Student

    @property
    def contract(self) -> Contract:
        """Its input contract."""
        return self.student.contract

    def features(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        """Prepared images to embeddings."""
        return self.student.embed(images)


@dataclass(frozen=True, eq=False)
class Labeled:
    """Checked features and labels of one encoder; see `EncodedSet.labeled`.

    `classes` is C, one more than the largest class id there is a name or an image for.
    """

    train: Float[np.ndarray, "N F"]
    train_labels: Int[np.ndarray, " N"]
    test: Float[np.ndarray, "M F"]
    test_labels: Int[np.ndarray, " M"]
    classes: int


@dataclass(frozen=True, eq=False)
class EncodedSet:
    """One encoder under evaluation, as its features; with the network and images for protocols that need pixels."""

    # How rows, labels and widths fit is for `labeled` to check: a user can get it wrong.
    name: str  # "teacher", "student" or "student_embed", for messages
    test: Float[np.ndarray, "_ _"]  # (M, F) of the test images, perhaps a memory map; (0, 0) where a set has none
    train: Float[np.ndarray, "_ _"] | None = None  # (N, F) of the training images; None without evaluation data
    test_labels: Int[np.ndarray, " _"] | None = None  # (M,) class ids, None without labels
    train_labels: Int[np.ndarray, " _"] | None = None  # (N,) class ids, None without labels
    class_names: tuple[str, ...] = ()  # of each class id; may be empty
    reference: EncodedSet | None = None  # the teacher on the same test images, row by row; None for the teacher itself
    aligned: bool = False  # whether rows are meant to be the reference's up to one factor: cosines have a meaning
    encoder: EvaluatedEncoder | None = None
    train_source: Source | None = None  # the images behind the rows, in row order
    test_source: Source | None = None
    dataset: EvaluationSet | None = None  # the `--on` set; None for the main evaluation images
    queries: Float[np.ndarray, "_ _"] | None = None  # (Q, F) of the set's queries
    base: EncodedSet | None = None  # of test images alone: the same encoder on the main evaluation images
    folder: Path | None = None  # where protocols that train for long keep their state until they are done
    device: str | torch.device = "cpu"  # where protocols compute
    workers: int | None = None  # processes that read images; None lets the loader choose
    progress: Progress | None = None  # called by long protocols
    cache: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    """What several protocols derive from the same rows: filled by the first that needs it."""
    _neighbors: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def neighbors(self, k: int, memory_mb: int) -> Int[np.ndarray, "M K"]:
        """The (M, k) nearest other test images of each, by cosine; kept, as several students ask the same teacher.

        Raises:
            ConfigError: k is not below the number of test images.
        """
        if k not in self._neighbors:
            self._neighbors[k] = search(
                self.test, self.test, k, exclude=np.arange(len(self.test)), memory_mb=memory_mb, device=self.device,
                progress=self.progress,
            )[0]  # fmt: skip
        return self._neighbors[k]

    def network(self) -> tuple[nn.Module, Contract]:
        """The headless network behind the features and its input, for protocols that look into it or train a copy.

        Raises:
            DataError: there are only features, or embeddings.
        """
        if isinstance(self.encoder, Student):
            return self.encoder.backbone, self.encoder.contract
        if isinstance(self.encoder, Teacher):
            return self.encoder.module, self.encoder.contract
        raise DataError(f"This protocol looks into the network, and of {self.name} there is no network to look into.")

    def labeled(self) -> Labeled:
        """The features with their labels, for protocols that learn or vote.

        Raises:
            DataError: no labels, no images, a single class, or features that are not finite; with the counts.
            ShapeError: rows and labels, or the two widths, do not fit.
        """
        if self.train is None or self.train_labels is None or self.test_labels is None:
            raise DataError("This protocol needs labeled images and there are none. Give --eval-data.")
        for split, rows, labels in (("training", self.train, self.train_labels), ("test", self.test, self.test_labels)):
            if len(rows) != len(labels):
                raise ShapeError(f"{self.name}: {len(rows)} {split} rows but {len(labels)} labels.")
            if len(rows) == 0:
                raise DataError(f"{self.name}: there are no {split} images. Check --eval-data.")
            if int(labels.min()) < 0:
                missing = int((labels < 0).sum())
                raise DataError(f"{missing} of {len(labels)} {split} images have no label. Check --eval-data.")
            check_finite(rows, f"{self.name} features of the {split} images")
        width, test_width = self.train.shape[1], self.test.shape[1]
        if width != test_width:
            raise ShapeError(f"{self.name}: training features have width {width}, test {test_width}.")
        present = np.unique(self.train_labels)
        if len(present) < 2:
            raise DataError(
                f"All {len(self.train_labels)} training images are of one class ({self._class(int(present[0]))}); "
                "classification needs at least two. Check --eval-data."
            )
        classes = max(len(self.class_names), int(present[-1]) + 1, int(self.test_labels.max()) + 1)
        return Labeled(self.train, self.train_labels, self.test, self.test_labels, classes)

    def _class(self, index: int) -> str:
        return f"'{self.class_names[index]}'" if index < len(self.class_names) else str(index)


def check_finite(rows: Float[np.ndarray, "N F"], what: str) -> None:
    """Refuse (N, F) rows with NaN or inf; `what` names them in the message.

    Raises:
        DataError: with the count of bad rows.
    """
    # In float64 a sum of fp16 or fp32 values is finite exactly if all of them are; no (N, F) mask is built.
    bad = int((~np.isfinite(rows.sum(axis=1, dtype=np.float64))).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(rows)} rows of the {what} are NaN or infinite. The encoder diverged, or its weights are "
            "damaged."
        )
