"""Random numbers by address: the published known answers, and what addresses promise."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.errors import ConfigError
from understudy.philox import ANCHORS, VIEWS, permutation, philox4x32, random_words, uniforms

# Random123, tests/kat_vectors, "philox4x32 10": counter, key, result.
KNOWN = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter: str, key: str, result: str):
    c0, c1, c2, c3 = (np.array(word) for word in words(counter))
    k0, k1 = words(key)
    assert philox4x32((c0, c1, c2, c3), (k0, k1)).tolist() == words(result)


def test_known_answers_in_one_call():
    counters = np.array([words(counter) for counter, _, _ in KNOWN[:1]] * 5).T
    found = philox4x32((counters[0], counters[1], counters[2], counters[3]), (0, 0))
    assert (found == np.array(words(KNOWN[0][2]))).all()
    assert found.shape == (5, 4)


def test_an_address_alone_decides():
    ids = np.array([5, 0, 4_000_000_000, 5])
    many = random_words(7, VIEWS, ids, np.array([2, 0, 1, 3]), 30)
    for i, (image, view) in enumerate(zip(ids.tolist(), (2, 0, 1, 3), strict=True)):
        assert (random_words(7, VIEWS, np.array([image]), view, 30)[0] == many[i]).all()
    # More words of an address begin with fewer words of it; another seed, use or view shares nothing.
    assert (random_words(7, VIEWS, ids, np.array([2, 0, 1, 3]), 5) == many[:, :5]).all()
    for other in (random_words(8, VIEWS, ids, 2, 30), random_words(7, ANCHORS, ids, 2, 30)):
        assert not (other == random_words(7, VIEWS, ids, 2, 30)).any()
    # The upper half of the seed counts.
    assert not (random_words(7 + 2**32, VIEWS, ids, 2, 30) == random_words(7, VIEWS, ids, 2, 30)).any()


def test_uniforms_are_uniform():
    u = np.sort(uniforms(random_words(1, VIEWS, np.arange(25_000), 0, 4)).ravel())
    assert u[0] >= 0
    assert u[-1] < 1
    distance = np.abs(u - (np.arange(len(u)) + 0.5) / len(u)).max()
    assert distance < 1.95 / np.sqrt(len(u))  # Kolmogorov's bound at 0.1 %


@pytest.mark.parametrize("length", [1, 2, 7, 1000])
def test_permutation_orders_everything(length: int):
    found = permutation(3, ANCHORS, 0, length)
    assert found.dtype == np.int64
    assert sorted(found.tolist()) == list(range(length))


def test_permutations_differ_and_place_things_evenly():
    orders = np.stack([permutation(3, ANCHORS, epoch, 20) for epoch in range(2000)])
    assert len({order.tobytes() for order in orders}) == 2000
    # Where thing 0 lands: chi-square with 19 degrees of freedom, 43.8 at 0.1 %.
    places = np.bincount(np.argwhere(orders == 0)[:, 1], minlength=20)
    assert ((places - 100.0) ** 2 / 100).sum() < 43.8


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed: int):
    with pytest.raises(ConfigError, match=str(seed)):
        random_words(seed, VIEWS, np.arange(2), 0, 4)
