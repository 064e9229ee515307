"""Asymmetric kNN: can the student ask a bank that the teacher has made?

The bank are the teacher's embeddings of the labeled training images, the queries the student's embeddings of the test
images: the student stands in for the teacher in front of an index that nobody embeds again. Otherwise the protocol of
`knn`. The kNN accuracy of the teacher itself is the bound to read it against.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from understudy.errors import DataError, ShapeError
from understudy.evaluate.protocol import Display, Protocol, Requirements
from understudy.evaluate.protocols.knn import VOTE_TITLES, Knn

if TYPE_CHECKING:
    from understudy.evaluate.encoded_set import EncodedSet, Figures
    from understudy.evaluate.settings import EvaluationSettings


class AsymmetricKnn(Protocol):
    """Vote of the teacher's nearest training images for the student's test images."""

    name = "asymmetric_knn"
    summary = "kNN vote of the teacher's training images, asked with the student's embeddings"
    paper = ("wu2018instance",)
    requirements = Requirements(kinds=frozenset({"labeled"}), reference=True, space=True)
    display = Display(
        title="Asymmetric k nearest neighbors",
        short="kNN, asymmetric",
        sentence="The same vote, where a bank of the teacher's training images is asked with the student's embeddings: "
        "the teacher's own vote is the bound.",
        source="the vote of Wu et al., CVPR 2018 (arXiv 1805.01978), across two encoders",
        compared=(r"top1@10",),
        quoted=(r"top1@\d+",),
        headline=(r"top1@10",),
        figures=VOTE_TITLES,
        labels={r"top\d@(\d+).*": r"\1-NN, asymmetric"},
    )

    @staticmethod
    def evaluate(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
        """Score an encoded set's test rows by the vote of the nearest training rows of its reference.

        Returns:
            The figures of `knn`; only a "note" where the student's rows are not meant to lie in the teacher's space.

        Raises:
            DataError: no reference, no labels, one class, or features that are not finite.
            ShapeError: the two widths differ.
        """
        if encoded_set.reference is None:
            raise DataError(f"Asymmetric kNN asks a teacher's bank, and {encoded_set.name} has no teacher.")
        if not encoded_set.aligned:
            return {"note": "this method's embeddings are not meant to lie in the teacher's space"}
        bank = encoded_set.reference.train
        if bank is not None and bank.shape[1] != encoded_set.test.shape[1]:
            raise ShapeError(
                f"{encoded_set.name} has width {encoded_set.test.shape[1]}, {encoded_set.reference.name} "
                f"{bank.shape[1]}: one cannot be searched with the other."
            )
        return Knn.evaluate(dataclasses.replace(encoded_set, train=bank), settings)
