"""The kernel's own count of page faults tells whether freed memory was kept."""

from __future__ import annotations

import resource

import pytest
import torch

from understudy.models.heap import _glibc, kept_heap


def faults(times: int = 6) -> int:
    """Page faults of making a tensor of 64 MiB and dropping it, over and over."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.zeros(2**24).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(_glibc() is None, reason="needs the GNU C library")
def test_freed_memory_is_kept_inside_and_given_back_outside():
    faults(1)
    outside = faults()
    with kept_heap("cpu"):
        faults(1)
        with kept_heap(torch.device("cpu")):
            faults(1)
        inside = faults()  # the inner block has not given it back
    again = faults()
    assert inside < outside / 4
    assert again > outside / 2


def test_other_devices_are_left_alone():
    before = faults()
    with kept_heap("meta"):
        assert faults() > before / 2
