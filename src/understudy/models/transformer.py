"""A student as a transformer of scikit-learn: images in, embeddings out."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from jaxtyping import Float32
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from understudy.errors import ShapeError
from understudy.models.encoding import encode, is_single
from understudy.models.student import Student, load_student


class StudentTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Images to a trained student's embeddings, as a step of a scikit-learn pipeline.

    Nothing is learned: `fit` loads the student. A fitted transformer is pickled with its weights, one that is not with
    the path alone.

    Args:
        student: a run folder, one written by `save_pretrained`, or a `Student`.
        batch_size: images per forward pass.
        normalize: whether rows have length one.
    """

    def __init__(self, student: str | os.PathLike[str] | Student, *, batch_size: int = 64, normalize: bool = False):
        self.student = student
        self.batch_size = batch_size
        self.normalize = normalize

    def fit(self, X: Any, y: Any = None) -> StudentTransformer:  # noqa: ARG002
        """Load the student; images and labels are not looked at.

        Raises:
            StoreError: there is no finished student.
        """
        self.student_ = self.student if isinstance(self.student, Student) else load_student(self.student)
        return self

    def transform(self, X: Any) -> Float32[np.ndarray, "N D"]:
        """Images (N) to embeddings (N, D).

        Args:
            X: what `Student.encode` takes, but for a single image; also a column of paths, as tables have them.

        Raises:
            ShapeError: a single image, or a table of several columns.
            UnreadableImage: an image cannot be read.
        """
        check_is_fitted(self)
        return encode(self.student_, _images(X), batch_size=self.batch_size, normalize=self.normalize)

    @property
    def _n_features_out(self) -> int:
        return self.student_.embed_dim

    def __sklearn_tags__(self) -> Tags:
        """Images are no table of numbers, and a student may be fitted without any."""
        tags: Tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        if tags.transformer_tags is not None:
            tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _images(given: Any) -> Any:
    """Images in a form that `encode` takes: a column of a table becomes a list."""
    if hasattr(given, "to_numpy"):  # of pandas and polars
        given = given.to_numpy()
    if isinstance(given, np.ndarray) and given.dtype.kind in "OUT":
        if given.ndim > 1 and given.size != len(given):
            raise ShapeError(f"A student takes one column, of images or their paths; got an array {given.shape}.")
        given = given.ravel().tolist()
    if is_single(given):
        raise ShapeError("A transformer takes several images: put this one into a list.")
    return given
