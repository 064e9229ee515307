"""The weighted vote and the overlap of neighborhoods against plain loops and numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from understudy.errors import ConfigError, DataError, ShapeError
from understudy.neighbors import vote as vote_module
from understudy.neighbors.vote import neighbor_overlap, weighted_vote


def test_vote_worked_by_hand():
    labels = np.array([2, 0, 0, 1])
    indices = np.array([[0, 1, 2, 3]], np.int32)
    similarities = np.array([[0.9, 0.8, 0.8, 0.1]], np.float32)
    # T = 1: e^0.9 = 2.46 for class 2; 2 e^0.8 = 4.45 for class 0; e^0.1 = 1.11 for class 1.
    even = weighted_vote((indices, similarities), labels, 5, [1, 3, 4], temperature=1.0, top=4)
    assert even[1].tolist() == [[2, -1, -1, -1]]
    assert even[3].tolist() == [[0, 2, -1, -1]]
    assert even[4].tolist() == [[0, 2, 1, -1]]
    # T = 0.07: e^(0.1 / 0.07) = 4.17 times the weight of one of the others, so class 2 beats both.
    assert weighted_vote((indices, similarities), labels, 5, [4], top=2)[4].tolist() == [[2, 0]]


def test_vote_equals_plain_loops_in_blocks():
    draw = np.random.default_rng(0)
    queries, rows, classes, ks = 300, 500, 4000, (1, 7, 20)
    labels = draw.integers(0, classes, rows)
    labels[:400] = draw.integers(0, 6, 400)
    indices = np.stack([draw.permutation(rows)[:20] for _ in range(queries)])
    similarities = np.sort(draw.uniform(-1, 1, (queries, 20)), axis=1)[:, ::-1].astype(np.float32)
    got = weighted_vote((indices, similarities), labels, classes, ks, memory_mb=1)
    for k in ks:
        for query in range(queries):
            votes: dict[int, float] = {}
            for place in range(k):
                label = int(labels[indices[query, place]])
                votes[label] = votes.get(label, 0.0) + math.exp(float(similarities[query, place]) / 0.07)
            expected = sorted(votes, key=lambda label: (-votes[label], label))[:5]
            assert got[k][query].tolist() == expected + [-1] * (5 - len(expected))


def test_vote_survives_any_temperature():
    indices, similarities = np.array([[0, 1]]), np.array([[1.0, -1.0]], np.float32)
    cold = weighted_vote((indices, similarities), np.array([1, 0]), 2, [2], temperature=1e-4)
    assert cold[2].tolist() == [[1, 0]]


def test_equal_votes_go_to_the_lower_class():
    tied = weighted_vote((np.array([[0, 1]]), np.array([[0.5, 0.5]], np.float32)), np.array([3, 1]), 4, [2])
    assert tied[2].tolist() == [[1, 3, -1, -1]]


def test_vote_refuses_what_does_not_fit():
    indices, similarities, labels = np.zeros((2, 3), int), np.zeros((2, 3), np.float32), np.zeros(5, int)
    with pytest.raises(ConfigError, match="k = 4 of 3 neighbors"):
        weighted_vote((indices, similarities), labels, 2, [1, 4])
    with pytest.raises(ConfigError, match="positive; got 0"):
        weighted_vote((indices, similarities), labels, 2, [1], temperature=0.0)
    with pytest.raises(DataError, match=r"from -1 to 0; with 2 classes they lie in 0\.\.1"):
        weighted_vote((indices, similarities), np.array([0, -1, 0, 0, 0]), 2, [1])
    with pytest.raises(DataError, match="from 0 to 2"):
        weighted_vote((indices, similarities), np.array([0, 2, 0, 0, 0]), 2, [1])
    with pytest.raises(ShapeError, match=r"\(2, 3\) and similarities \(2, 2\)"):
        weighted_vote((indices, similarities[:, :2]), labels, 2, [1])


def test_overlap_equals_sets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vote_module, "ROWS", 64)
    draw = np.random.default_rng(0)
    first, second = (np.stack([draw.permutation(40)[:31] for _ in range(150)]).astype(np.int32) for _ in range(2))
    got = neighbor_overlap(first, second[:, :30], (1, 5, 30))
    for k, share in got.items():
        sets = [len(set(a[:k]) & set(b[:k])) / k for a, b in zip(first, second, strict=True)]
        assert share == pytest.approx(np.mean(sets), abs=1e-12)
    assert neighbor_overlap(first, first, [31]) == {31: 1.0}


def test_overlap_refuses_what_does_not_fit():
    with pytest.raises(ShapeError, match=r"\(3, 2\) and \(4, 2\)"):
        neighbor_overlap(np.zeros((3, 2), int), np.zeros((4, 2), int), [1])
    with pytest.raises(ShapeError):
        neighbor_overlap(np.zeros((0, 2), int), np.zeros((0, 2), int), [1])
    with pytest.raises(ConfigError, match="k = 3 needs that many neighbors; 2 are given"):
        neighbor_overlap(np.zeros((3, 9), int), np.zeros((3, 2), int), [1, 3])
