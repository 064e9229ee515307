"""MoCo-v2 and its queue: an independent oracle, honest filling, and a state dict that continues the sequence."""

import numpy as np
import pytest
import torch

from understudy.errors import ConfigError, ShapeError
from understudy.losses import build
from understudy.losses.base.queue import Queue


def batches(count, rows=4, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(2, rows, width, generator=generator)) for _ in range(count)]


def oracle(pairs, size, temperature):
    """InfoNCE with the queue as a plain list of rows, newest last; float64."""
    queue, losses = [], []
    for student, key in pairs:
        s, k = (x.numpy().astype(np.float64) for x in (student, key))
        s, k = s / np.linalg.norm(s, axis=1, keepdims=True), k / np.linalg.norm(k, axis=1, keepdims=True)
        per_image = []
        for query, positive in zip(s, k, strict=True):
            scores = np.array([query @ positive, *(query @ row for row in queue)]) / temperature
            per_image.append(np.log(np.exp(scores).sum()) - scores[0])
        losses.append(np.mean(per_image))
        queue = (queue + list(k))[-size:]
    return losses


@pytest.mark.parametrize("size", [6, 8, 100])
def test_losses_against_numpy_while_the_queue_fills_and_wraps(size):
    pairs = batches(6)
    loss = build("moco", queue=size)
    found = [loss(student, key).total.item() for student, key in pairs]
    np.testing.assert_allclose(found, oracle(pairs, size, 0.2), rtol=1e-5, atol=1e-6)


def test_numbers_worked_by_hand():
    loss = build("moco", queue=4, temperature=1.0)
    one = torch.tensor([[1.0, 0.0]])
    assert loss(one, one).total.item() == 0  # no negative yet
    terms = loss(one, torch.tensor([[0.0, 2.0]]))  # positive scores 0, the queued key 1
    assert terms.parts["infonce"].item() == pytest.approx(np.log(1 + np.e), abs=1e-6)


def test_a_state_dict_continues_the_exact_sequence():
    pairs = batches(8)
    loss = build("moco", queue=10)
    for student, key in pairs[:5]:
        loss(student, key)
    resumed = build("moco", queue=10)
    resumed.load_state_dict(loss.state_dict())
    for student, key in pairs[5:]:
        assert torch.equal(resumed(student, key).total, loss(student, key).total)


def test_gradient_reaches_the_student_only_and_half_precision_stays_finite():
    loss = build("moco", queue=10)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        student = torch.randn(4, 3).to(dtype).requires_grad_()
        key = torch.randn(4, 3).to(dtype).requires_grad_()
        terms = loss(student, key)
        if len(loss.queue.rows()) > 4:
            terms.total.backward()
            assert torch.isfinite(student.grad).all() and key.grad is None


def test_only_pushed_rows_are_ever_returned():
    queue = Queue(5)
    assert queue.rows().shape == (0, 0)
    queue.push(torch.ones(2, 3))
    assert queue.rows().shape == (2, 3) and bool((queue.rows() == 1).all())
    queue.push(torch.arange(21.0).reshape(7, 3))  # more rows than the queue holds: the newest five stay
    assert sorted(queue.rows()[:, 0].tolist()) == [6.0, 9.0, 12.0, 15.0, 18.0]
    with pytest.raises(ShapeError, match="width 3, got width 4"):
        queue.push(torch.ones(1, 4))


def test_settings_and_shapes_are_checked():
    with pytest.raises(ConfigError, match="'method.queue' must be at least 1; got 0"):
        build("moco", queue=0)
    with pytest.raises(ConfigError, match="temperature"):
        build("moco", temperature=0.0)
    with pytest.raises(ShapeError, match=r"student \(2, 3\), key \(2, 4\)"):
        build("moco")(torch.ones(2, 3), torch.ones(2, 4))
