"""BINGO: both phases in float64 loops over pairs of a bag, the queue as a plain list, and numbers worked by hand."""

import math

import numpy as np
import pytest
import torch

from understudy.errors import ShapeError
from understudy.losses import build


def batches(count, rows=6, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        s, t, m = torch.randn(3, rows, width, generator=generator, dtype=torch.float64)
        yield s, t, m, torch.rand(rows, generator=generator, dtype=torch.float64)


def oracle(stream, bags, size, tau, together):
    """The paper's three terms, image by image; `together` once each query is drawn to both keys."""
    queue, found = [], []
    groups = {bag: [i for i, other in enumerate(bags) if other == bag] for bag in bags}

    def contrast(q, k):
        negatives = sum(math.exp(q @ row / tau) for row in queue)
        return -math.log(math.exp(q @ k / tau) / (math.exp(q @ k / tau) + negatives))

    for batch, both in zip(stream, together, strict=True):
        s, t, m = (x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in batch[:3])
        share = batch[3].numpy()
        terms = []
        for i, bag in enumerate(bags):
            group = groups[bag]
            j = group[(group.index(i) + 1) % len(group)]
            own = 0.5 if both else 1.0
            anchor = own * contrast(s[i], t[i]) + (1 - own) * contrast(s[i], t[j])
            neighbor = own * contrast(s[j], t[j]) + (1 - own) * contrast(s[j], t[i])
            mixture = share[i] * contrast(m[i], t[i]) + (1 - share[i]) * contrast(m[i], t[j])
            terms.append((anchor, neighbor, mixture))
        found.append(np.mean(terms, axis=0))
        queue = (queue + list(t))[-size:]
    return found


@pytest.mark.parametrize("bags", [[0, 0, 1, 1, 2, 2], [4, 4, 4, 7, 7, 1], [3, 2, 1, 0, 5, 4]], ids=str)
@pytest.mark.parametrize("size", [8, 100])
def test_against_numpy(bags, size):
    stream = list(batches(6))
    passes = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    loss = build("bingo", queue=size, warmup=3)
    expected = oracle(stream, bags, size, 0.2, [p >= 3 for p in passes])
    for (s, t, m, share), now, (anchor, neighbor, mixture) in zip(stream, passes, expected, strict=True):
        terms = loss(s, t, torch.tensor(bags), now, m, share)
        assert terms.parts["anchor"].item() == pytest.approx(anchor, abs=1e-12)
        assert terms.parts["neighbor"].item() == pytest.approx(neighbor, abs=1e-12)
        assert terms.parts["cutmix"].item() == pytest.approx(mixture, abs=1e-12)
        assert terms.total.item() == pytest.approx((anchor + neighbor + mixture) / 3, abs=1e-12)


def test_by_hand():
    loss = build("bingo", temperature=1.0, queue=2, warmup=1)
    bag, share = torch.tensor([7, 7]), torch.tensor([0.25, 1.0])
    plane = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    first = loss(plane, plane, bag, 0.0, plane, share)
    assert first.total.item() == 0  # no negative yet
    # The queue holds e1 and e2, so a query that scores 1 with one scores 0 with the other: right and wrong keys cost
    # log(1 + 2 e) - 1 + ... = ln((e + e + 1) / e) and ln((1 + e + 1) / 1).
    right, wrong = math.log(2 + 1 / math.e), math.log(2 + math.e)
    early = loss(plane, plane, bag, 0.5, plane, share)
    assert early.parts["anchor"].item() == pytest.approx(right, abs=1e-6)
    assert early.parts["neighbor"].item() == pytest.approx(right, abs=1e-6)
    mixture = (0.25 * right + 0.75 * wrong + right) / 2
    assert early.parts["cutmix"].item() == pytest.approx(mixture, abs=1e-6)
    late = loss(plane, plane, bag, 1.0, plane, share)
    assert late.parts["anchor"].item() == pytest.approx((right + wrong) / 2, abs=1e-6)
    assert late.total.item() == pytest.approx((right + wrong + mixture) / 3, abs=1e-6)


def test_an_image_alone_in_its_bag_is_its_own_neighbor():
    (s, t, m, _), *_ = batches(1)
    loss = build("bingo", queue=10, warmup=0)
    alone, whole = torch.arange(6), torch.ones(6, dtype=torch.float64)
    loss(s, t, alone, 0.0, m, whole)
    terms = loss(s, t, alone, 0.0, s, whole)
    torch.testing.assert_close(terms.parts["anchor"], terms.parts["neighbor"])
    torch.testing.assert_close(terms.parts["anchor"], terms.parts["cutmix"])


def test_what_does_not_fit_gets_a_sentence():
    x, loss = torch.ones(4, 3), build("bingo")
    with pytest.raises(ShapeError, match=r"bags \(3,\), share \(4,\)"):
        loss(x, x, torch.zeros(3, dtype=torch.int64), 0.0, x, torch.ones(4))
    with pytest.raises(ShapeError, match=r"mixed \(5, 3\)"):
        loss(x, x, torch.zeros(4, dtype=torch.int64), 0.0, torch.ones(5, 3), torch.ones(4))
