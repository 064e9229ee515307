"""Asymmetric kNN against a vote counted in float64 numpy: the bank is the teacher's, the queries the student's."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.errors import DataError, ShapeError
from understudy.evaluate import PROTOCOLS
from understudy.evaluate.encoded_set import EncodedSet
from understudy.evaluate.settings import EvaluationSettings

SETTINGS = EvaluationSettings()
LABELS = np.arange(40) % 4


def pair(width=6, aligned=True, **teacher):
    """A student that is the teacher with noise on the test images, and looks elsewhere on the training images."""
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(4, 6))
    bank = (centers[LABELS] + generator.normal(size=(40, 6))).astype(np.float32)
    queries = (centers[LABELS[:30]] + generator.normal(size=(30, 6))).astype(np.float32)[:, :width]
    common = {"test_labels": LABELS[:30], "train_labels": LABELS}
    reference = EncodedSet(name="teacher", **{"test": queries, "train": bank, **common, **teacher})
    elsewhere = generator.normal(size=(40, width)).astype(np.float32)
    return EncodedSet(
        name="student_embed", test=queries, train=elsewhere, reference=reference, aligned=aligned, **common
    )  # fmt: skip


def test_the_vote_is_the_teacher_s_bank_asked_by_the_student():
    encoded_set = pair()
    both = (encoded_set.test.astype(np.float64), encoded_set.reference.train.astype(np.float64))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in both]
    cosines = unit[0] @ unit[1].T
    hits = []
    for row, label in zip(cosines, encoded_set.test_labels, strict=True):
        nearest = np.argsort(-row)[:10]
        votes = np.bincount(LABELS[nearest], np.exp(row[nearest] / 0.07), 4)
        hits.append(votes.argmax() == label)
    found = PROTOCOLS["asymmetric_knn"].evaluate(encoded_set, SETTINGS)
    assert found["top1@10"] == pytest.approx(100 * np.mean(hits))
    assert (
        found["top1@10"] > PROTOCOLS["knn"].evaluate(encoded_set, SETTINGS)["top1@10"] + 20
    )  # of its own, unlike, bank


def test_rows_outside_the_teacher_s_space_are_not_asked():
    found = PROTOCOLS["asymmetric_knn"].evaluate(pair(aligned=False), SETTINGS)
    assert list(found) == ["note"] and "not meant to lie in the teacher's space" in found["note"]


def test_what_cannot_be_asked_is_told():
    with pytest.raises(ShapeError, match="has width 5, teacher 6"):
        PROTOCOLS["asymmetric_knn"].evaluate(pair(width=5), SETTINGS)
    with pytest.raises(DataError, match="has no teacher"):
        PROTOCOLS["asymmetric_knn"].evaluate(pair().reference, SETTINGS)
    with pytest.raises(DataError, match="needs labeled images"):
        PROTOCOLS["asymmetric_knn"].evaluate(pair(train=None), SETTINGS)
