"""SEED, CompRess, ISD, queue-KL and DisCo: a plain list as the queue, softmaxes in loops, numbers worked by hand."""

import math

import numpy as np
import pytest
import torch

from understudy.errors import ConfigError, ShapeError
from understudy.losses import build
from understudy.losses.base.queue import Queue

E1, E2 = [1.0, 0.0], [0.0, 1.0]


def batches(count, rows=4, width=3, streams=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(streams, rows, width, generator=generator, dtype=torch.float64)) for _ in range(count)]


def unit(x):
    x = x.numpy() if torch.is_tensor(x) else x
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def softmax(logits):
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


def divergence(target, logits):
    p, q = softmax(target), softmax(logits)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def seed_oracle(stream, size, tau_t, tau_s):
    queue, losses = [], []
    for student, teacher in stream:
        per_image = []
        for s, t in zip(unit(student), unit(teacher), strict=True):
            candidates = [t, *queue]
            target = softmax([t @ c / tau_t for c in candidates])
            predicted = softmax([s @ c / tau_s for c in candidates])
            per_image.append(-sum(a * math.log(b) for a, b in zip(target, predicted, strict=True)))
        losses.append(np.mean(per_image))
        queue = (queue + list(unit(teacher)))[-size:]
    return losses


def compress_oracle(stream, size, tau, queues):
    teachers, students, losses = [], [], []
    for student, teacher, *key in stream:
        per_image = [0.0]
        if teachers:
            own = students if queues == 2 else teachers
            per_image = [
                divergence([t @ c / tau for c in teachers], [s @ c / tau for c in own])
                for s, t in zip(unit(student), unit(teacher), strict=True)
            ]
        losses.append(np.mean(per_image))
        teachers = (teachers + list(unit(teacher)))[-size:]
        students = (students + list(unit(key[0])))[-size:] if key else []
    return losses


def queue_kl_oracle(stream, size, tau):
    queue, losses = [], []
    for student, teacher in stream:
        queue = (queue + list(unit(teacher)))[-size:]
        losses.append(
            np.mean(
                [
                    divergence([t @ c / tau for c in queue], [s @ c / tau for c in queue])
                    for s, t in zip(unit(student), unit(teacher), strict=True)
                ]
            )
        )
    return losses


def disco_oracle(stream, size, tau):
    queue, found = [], []
    for s0, s1, t0, t1, key in stream:
        contrast, distance = [], []
        for a, b, c, d, k in zip(*(unit(x) for x in (s0, s1, t0, t1, key)), strict=True):
            logits = [a @ k / tau, *(a @ row / tau for row in queue)]
            contrast.append(-math.log(softmax(logits)[0]))
            distance.append(sum((a - c) ** 2) + sum((b - d) ** 2))
        found.append((np.mean(contrast), np.mean(distance)))
        queue = (queue + list(unit(key)))[-size:]
    return found


# By the formula, while the queue fills and wraps --------------------------------------------------------------------

SIZES = pytest.mark.parametrize("size", [6, 8, 100])


@SIZES
@pytest.mark.parametrize("tau_t", [1e-4, 0.05])
def test_seed_against_numpy(size, tau_t):
    stream = batches(6)
    loss = build("seed", queue=size, tau_teacher=tau_t)
    found = [loss(*batch).total.item() for batch in stream]
    np.testing.assert_allclose(found, seed_oracle(stream, size, tau_t, 0.2), rtol=1e-10, atol=1e-12)


@SIZES
@pytest.mark.parametrize("queues", [1, 2])
def test_compress_against_numpy(size, queues):
    stream = batches(6, streams=queues + 1)
    loss = build("compress", queue=size, queues=queues, temperature=0.3)
    found = [loss(*batch).total.item() for batch in stream]
    np.testing.assert_allclose(found, compress_oracle(stream, size, 0.3, queues), rtol=1e-10, atol=1e-12)


@SIZES
def test_isd_against_numpy(size):
    stream = batches(6)
    loss = build("isd", queue=size, temperature=0.3)
    found = [loss(*batch).total.item() for batch in stream]
    # The average's past keys stand in for the teacher's: CompRess with one queue.
    np.testing.assert_allclose(found, compress_oracle(stream, size, 0.3, 1), rtol=1e-10, atol=1e-12)


@SIZES
def test_queue_kl_against_numpy(size):
    stream = batches(6)
    loss = build("queue_kl", queue=size, temperature=0.3)
    found = [loss(*batch).total.item() for batch in stream]
    np.testing.assert_allclose(found, queue_kl_oracle(stream, size, 0.3), rtol=1e-10, atol=1e-12)


@SIZES
def test_disco_against_numpy(size):
    stream = batches(6, streams=5)
    loss = build("disco", queue=size, weight=7)
    found = [loss(torch.stack([s0, s1]), torch.stack([t0, t1]), key) for s0, s1, t0, t1, key in stream]
    expected = disco_oracle(stream, size, 0.2)
    np.testing.assert_allclose([terms.parts["infonce"].item() for terms in found], [a for a, _ in expected], atol=1e-12)
    np.testing.assert_allclose(
        [terms.parts["distance"].item() for terms in found], [b for _, b in expected], atol=1e-12
    )
    np.testing.assert_allclose([terms.total.item() for terms in found], [a + 7 * b for a, b in expected], atol=1e-11)


# By hand ------------------------------------------------------------------------------------------------------------


def test_seed_by_hand():
    loss = build("seed", queue=4, tau_teacher=1.0, tau_student=1.0)
    assert loss(torch.tensor([E1]), torch.tensor([E1])).total.item() == 0  # only itself to choose from
    # Candidates t = e2 and the queued e1: the teacher scores (1, 0), the student (0, 1).
    right, wrong = math.e / (1 + math.e), 1 / (1 + math.e)
    expected = -(right * math.log(wrong) + wrong * math.log(right))
    assert loss(torch.tensor([E1]), torch.tensor([[0.0, 3.0]])).total.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["compress", "isd"])
def test_divergence_by_hand(name):
    loss = build(name, queue=4, temperature=1.0, **({"queues": 1} if name == "compress" else {}))
    past = torch.tensor([E1, E2])
    assert loss(past, past).total.item() == 0  # nothing to compare with
    # Against e1 and e2 the target scores (1, 0), the student (0, 1): KL = (e - 1) / (e + 1).
    total = loss(torch.tensor([E2]), torch.tensor([[5.0, 0.0]])).total
    assert total.item() == pytest.approx((math.e - 1) / (math.e + 1), abs=1e-6)


def test_two_queues_compare_each_model_with_its_own_past():
    loss = build("compress", queue=4, temperature=1.0)
    teacher, turned = torch.tensor([E1, E2]), torch.tensor([E2, [-1.0, 0.0]])  # the same, turned by 90 degrees
    loss(turned, teacher, turned)
    assert loss(turned, teacher, turned).total.item() == pytest.approx(0, abs=1e-6)
    one = build("compress", queue=4, temperature=1.0, queues=1)
    one(turned, teacher)
    # The first image as in the test above; the second is as much nearer to one than to the other as the teacher's.
    assert one(turned, teacher).total.item() == pytest.approx((math.e - 1) / (math.e + 1) / 2, abs=1e-6)


def test_queue_kl_by_hand():
    # The batch is its own queue: the teacher scores (1, 0) and (0, 1), the student (0, 1) and (1, 0).
    total = build("queue_kl", temperature=1.0)(torch.tensor([E2, E1]), torch.tensor([E1, E2])).total
    assert total.item() == pytest.approx((math.e - 1) / (math.e + 1), abs=1e-6)


def test_disco_by_hand():
    loss = build("disco", temperature=1.0, weight=2.0)
    same, other = torch.tensor([E1]), torch.tensor([E2])
    first = loss(torch.stack([same, other]), torch.stack([same, -3 * other]), same)
    assert first.parts["infonce"].item() == 0  # no negative yet
    assert first.parts["distance"].item() == pytest.approx(4) and first.total.item() == pytest.approx(8)
    second = loss(torch.stack([same, same]), torch.stack([same, same]), other)  # positive scores 0, the queued key 1
    assert second.total.item() == pytest.approx(math.log(1 + math.e), abs=1e-6)


# Properties ---------------------------------------------------------------------------------------------------------


def test_seed_at_the_authors_temperature_is_infonce_with_the_teacher_as_key():
    stream = batches(5, width=8)
    seed, moco = build("seed", queue=9), build("moco", queue=9)
    for batch in stream:
        torch.testing.assert_close(seed(*batch).total, moco(*batch).total)


@pytest.mark.parametrize("name", ["compress", "isd", "seed", "disco"])
def test_the_very_first_step_is_exactly_zero_with_no_gradient(name):
    settings = {"compress": {"queues": 1}, "disco": {"weight": 0}}.get(name, {})
    student, other = (torch.randn(4, 3) for _ in range(2))
    student.requires_grad_()
    if name == "disco":
        terms = build(name, queue=8, **settings)(torch.stack([student, student]), torch.stack([other, other]), other)
    else:
        terms = build(name, queue=8, **settings)(student, other)
    terms.total.backward()
    assert terms.total.item() == 0 and student.grad.abs().max() == 0


def test_the_rows_that_backward_needs_are_not_those_that_the_next_push_writes():
    """Two losses before one backward, as with accumulated gradients: the queue wraps in between."""
    for name in ("seed", "queue_kl", "moco", "isd"):
        torch.manual_seed(0)
        loss = build(name, queue=4)
        loss(torch.randn(4, 3), torch.randn(4, 3))
        student = torch.randn(4, 3, requires_grad=True)
        first = loss(student, torch.randn(4, 3)).total
        (first + loss(student, torch.randn(4, 3)).total).backward()
        assert torch.isfinite(student.grad).all()


def test_scores_of_a_queue():
    queue = Queue(3)
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    assert queue.scores(x).shape == (1, 0)
    queue.push(torch.tensor([E1, E2]))
    assert queue.scores(x).tolist() == [[1.0, 2.0]]
    with pytest.raises(ShapeError, match="width 2, got width 3"):
        queue.scores(torch.ones(1, 3))


def test_what_a_setting_changes_in_the_needs():
    assert build("compress").needs.key and not build("compress", queues="1").needs.key
    assert build("compress", momentum=0.5).key_momentum == 0.5
    with pytest.raises(ConfigError, match="one of 1, 2; got 3"):
        build("compress", queues=3)
    with pytest.raises(ShapeError, match="needs `key`"):
        build("compress")(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ShapeError, match="takes no `key`"):
        build("compress", queues=1)(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3))
