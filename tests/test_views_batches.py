"""Neighbor batches: what each promises, counted by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from understudy.errors import ConfigError
from understudy.views.batches import NeighborBatches


def ring(images: int, width: int) -> np.ndarray:
    """A graph in which image i's neighbors are i + 1, i + 2, ..., nearest first."""
    return ((np.arange(images)[:, None] + 1 + np.arange(width)) % images).astype(np.int32)


def bags_of(batches: NeighborBatches, step: int) -> np.ndarray:
    return batches.at(step)[0].reshape(batches.bags, batches.k + 1)


def test_layout_and_sizes():
    batches = NeighborBatches(100, 70, k=5, n=9, seed=0, graph=ring(100, 31))
    assert (batches.bags, batches.batch_size, batches.steps_per_epoch) == (11, 66, 9)
    index, anchor = batches.at(3)
    assert index.dtype == anchor.dtype == np.int64
    assert anchor.tolist() == [bag for bag in range(11) for _ in range(6)]
    for bag in index.reshape(11, 6):
        ahead = (bag[1:] - bag[0]) % 100
        assert ((ahead >= 1) & (ahead <= 9)).all()  # of the nearest 9, not of all 31
        assert len(set(ahead.tolist())) == 5  # without replacement


def test_anchors_are_a_new_permutation_each_epoch():
    batches = NeighborBatches(100, 33, k=2, n=4, seed=1, graph=ring(100, 4))
    epochs = [np.concatenate([bags_of(batches, e * 9 + s)[:, 0] for s in range(9)]) for e in range(20)]
    for anchors in epochs:
        assert len(set(anchors.tolist())) == 99  # one is left over and dropped
    assert len({anchors.tobytes() for anchors in epochs}) == 20
    left_over = [set(range(100)) - set(anchors.tolist()) for anchors in epochs]
    assert len(set.union(*left_over)) > 10  # never the same one for long


@pytest.mark.parametrize("k", [0, 3])
def test_a_step_needs_no_history(k: int):
    graph = ring(50, 6)
    forward = NeighborBatches(50, 16, k=k, n=6, seed=2, graph=graph)
    wanted = [forward.at(step)[0].tolist() for step in range(40)]
    backward = NeighborBatches(50, 16, k=k, n=6, seed=2, graph=graph)
    assert [backward.at(step)[0].tolist() for step in reversed(range(40))] == wanted[::-1]
    assert NeighborBatches(50, 16, k=k, n=6, seed=2, graph=graph).at(37)[0].tolist() == wanted[37]
    assert NeighborBatches(50, 16, k=k, n=6, seed=3, graph=graph).at(37)[0].tolist() != wanted[37]


def test_neighbors_are_drawn_evenly_and_in_no_order():
    batches = NeighborBatches(40, 40, k=3, n=8, seed=0, graph=ring(40, 8))
    drawn = np.stack([bags_of(batches, step) for step in range(400)]).reshape(-1, 4)
    ahead = (drawn[:, 1:] - drawn[:, :1]) % 40 - 1
    for place in range(3):
        assert stats.chisquare(np.bincount(ahead[:, place], minlength=8)).pvalue > 1e-4
    # Every set of 3 of 8 is as likely as any other.
    sets = Counter(tuple(sorted(row)) for row in ahead.tolist())
    assert len(sets) == 56
    assert stats.chisquare(list(sets.values())).pvalue > 1e-4


def test_drawing_all_neighbors_takes_each_once():
    batches = NeighborBatches(40, 36, k=8, n=8, seed=0, graph=ring(40, 8))
    for bag in bags_of(batches, 5):
        assert sorted(((bag[1:] - bag[0]) % 40).tolist()) == list(range(1, 9))


def test_plain_batches_hold_no_image_twice():
    batches = NeighborBatches(100, 30, seed=4)
    for step in range(30):
        index, anchor = batches.at(step)
        assert len(set(index.tolist())) == 30
        assert anchor.tolist() == list(range(30))


@pytest.mark.parametrize("k", [0, 3])
def test_views_count_how_often_an_image_was_seen(k: int):
    batches = NeighborBatches(30, 24, k=k, n=5, seed=5, graph=ring(30, 5), steps=25)
    seen: Counter[int] = Counter()
    twice = 0
    for step, batch in enumerate(batches.iterate()):
        assert batch.step == step
        assert batch.index.tolist() == batches.at(step)[0].tolist()
        twice += len(batch.index) - len(set(batch.index.tolist()))
        for image, view in zip(batch.index.tolist(), batch.view.tolist(), strict=True):
            assert view == seen[image]
            seen[image] += 1
    assert step == 24
    assert (twice > 0) == (k > 0)
    assert batches.visits(25).tolist() == [seen[image] for image in range(30)]


@pytest.mark.parametrize("start", [0, 1, 7, 19])
def test_resuming_gives_the_same_views(start: int):
    batches = NeighborBatches(30, 24, k=3, n=5, seed=5, graph=ring(30, 5))
    wanted = list(batches.iterate(0, 20))[start:]
    found = list(NeighborBatches(30, 24, k=3, n=5, seed=5, graph=ring(30, 5)).iterate(start, 20))
    assert [batch.step for batch in found] == list(range(start, 20))
    for one, other in zip(found, wanted, strict=True):
        assert (one.index == other.index).all()
        assert (one.view == other.view).all()


def test_no_end_unless_given():
    stream = NeighborBatches(10, 5).iterate(1000)
    assert [next(stream).step for _ in range(3)] == [1000, 1001, 1002]


def test_length_is_given_in_image_passes():
    batches = NeighborBatches(1000, 260, k=15, n=31, graph=ring(1000, 31))
    assert batches.batch_size == 256
    assert batches.steps_for(1) == 4  # 1,024 images: rounded up
    assert batches.steps_for(10) == 40
    assert batches.steps_for(0.1) == 1
    line = batches.describe(10)
    for part in ("10 image passes", "40 steps", "16 anchors x (1 + 15 of the nearest 31)", "256"):
        assert part in line
    assert "plain random" in NeighborBatches(1000, 100).describe(1)


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ({"images": 100, "batch_size": 15, "k": 15, "n": 31}, ("15", "16")),
        ({"images": 100, "batch_size": 64, "k": 15, "n": 10}, ("15", "10")),
        ({"images": 100, "batch_size": 64, "k": 15, "n": 32}, ("31", "32")),
        ({"images": 99, "batch_size": 64, "k": 15, "n": 31}, ("99", "100")),
        ({"images": 100, "batch_size": 101, "k": 0, "n": 0}, ("101", "100")),
        ({"images": 3, "batch_size": 64, "k": 15, "n": 31}, ("4", "3")),
        ({"images": 100, "batch_size": 0, "k": 0, "n": 0}, ("0",)),
        ({"images": 100, "batch_size": 8, "k": -1, "n": 0}, ("-1",)),
    ],
)
def test_what_does_not_fit_is_said_with_both_numbers(arguments: dict[str, int], numbers: tuple[str, ...]):
    with pytest.raises(ConfigError) as error:
        NeighborBatches(**arguments, graph=ring(100, 31))
    assert all(number in str(error.value) for number in numbers)


def test_neighbors_need_a_graph():
    with pytest.raises(ConfigError, match="graph"):
        NeighborBatches(100, 64, k=15, n=31)
