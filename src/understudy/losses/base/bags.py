"""Bags: images of a batch that were drawn around the same anchor."""

import torch
from jaxtyping import Int
from torch import Tensor


def next_in_bag(bags: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """For each image the next one of its bag, the first one after the last; itself in a bag of one.

    Args:
        bags: (B,) integers, equal within a bag; the images of a bag stand together.

    Returns:
        (B,) positions in the batch, a permutation of it.
    """
    index = torch.arange(len(bags), device=bags.device)
    first, last = torch.ones_like(index, dtype=torch.bool), torch.ones_like(index, dtype=torch.bool)
    first[1:] = bags[1:] != bags[:-1]
    last[:-1] = first[1:]
    start = torch.where(first, index, 0).cummax(0).values
    return torch.where(last, start, index + 1)
