"""Hidden patches: their number, their chance, and that nothing but seed, step and image decides them."""

import numpy as np
import pytest

from understudy.views.masking import hidden_patches, spread_evenly


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [
        (6, 0.5, [1, 3, 5]), (5, 0.5, [1, 3]), (4, 1.0, [0, 1, 2, 3]), (4, 0.0, []), (8, 0.25, [3, 7]), (1, 0.5, []),
        (10, 0.3, [3, 6, 9]),
    ],
)  # fmt: skip
def test_a_share_is_spread_over_the_batch(count, share, expected):
    assert spread_evenly(count, share).tolist() == expected


@pytest.mark.parametrize(("patches", "ratio", "count"), [(16, 0.5, 8), (9, 0.5, 4), (10, 0.3, 3), (4, 0, 0), (4, 1, 4)])
def test_every_image_has_the_same_number_hidden(patches, ratio, count):
    masks = hidden_patches(np.arange(200), patches, ratio, 0, 7)
    assert masks.shape == (200, patches) and (masks.sum(1) == count).all()


def test_every_patch_is_hidden_as_often():
    masks = hidden_patches(np.arange(4000), 16, 0.5, 3, 1)
    deviation = np.sqrt(4000 * 0.25)
    assert np.abs(masks.sum(0) - 2000).max() < 4 * deviation
    both = masks.astype(int).T @ masks - np.diag(masks.sum(0))
    assert np.abs(both[~np.eye(16, dtype=bool)] / 4000 - 0.5 * 7 / 15).max() < 0.04


def test_seed_step_and_image_decide():
    whole = hidden_patches(np.array([5, 9, 5, 2]), 16, 0.5, 1, 3)
    assert (whole[0] == whole[2]).all() and (whole[0] != whole[1]).any()
    assert (hidden_patches(np.array([2, 9]), 16, 0.5, 1, 3) == whole[[3, 1]]).all()
    for seed, step in [(1, 4), (2, 3)]:
        assert (hidden_patches(np.array([5]), 16, 0.5, seed, step) != whole[0]).any()
