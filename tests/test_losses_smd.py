"""SMD: the mining worked by hand, the whole loss in float64 loops, and its weights held fixed."""

import math

import numpy as np
import pytest
import torch

from understudy.errors import ConfigError, ShapeError
from understudy.losses import build


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def metric(s, t, tau):
    """The loss of one view from the paper's definitions; i is always among its own positives."""
    s, t = unit(s), unit(t)
    count, total = len(s), 0.0
    across = [[np.linalg.norm(t[i] - s[j]) for j in range(count)] for i in range(count)]
    within = [[np.linalg.norm(t[i] - t[j]) for j in range(count)] for i in range(count)]
    for i in range(count):
        negatives = [j for j in range(count) if within[i][j] > across[i][i]]
        positives = [j for j in range(count) if j not in negatives]
        p = max(positives, key=lambda j: across[i][j])
        w_p, margin = max(across[i][p] - within[i][p], 0.0), 0.0
        margin = w_p * across[i][p]
        if negatives:
            n = min(negatives, key=lambda j: across[i][j])
            margin -= max(within[i][n] - across[i][n], 0.0) * across[i][n]
        total += math.log1p(math.exp(margin / tau))
    return total / count


def views(rows=7, width=4, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(2, rows, width, generator=generator, dtype=torch.float64)
    return teacher + spread * torch.randn(2, rows, width, generator=generator, dtype=torch.float64), teacher


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("tau", [0.04, 0.5])
def test_against_numpy(spread, tau):
    student, teacher = views(spread=spread)
    terms = build("smd", tau=tau)(student, teacher, 5.0)
    expected = np.mean([metric(s, t, tau) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)])
    cosines = (unit(student.numpy()) * unit(teacher.numpy())).sum(-1)
    assert terms.parts["metric"].item() == pytest.approx(expected, abs=1e-12)
    assert terms.parts["cosine"].item() == pytest.approx(-cosines.mean(), abs=1e-12)
    one = build("smd", tau=tau, views=1)(student[0], teacher[0], 5.0)
    assert one.total.item() == pytest.approx(metric(student[0].numpy(), teacher[0].numpy(), tau), abs=1e-12)


def test_by_hand():
    # t = e1, e2, -e1 and s = e2, e2, -e1. Image 1 is |e1 - e2| = r from its own student, no farther than image 2
    # (T = r, a tie is positive), but image 3 is (T = 2). Positives 1 and 2, both at D = r; the first is taken: w_p = r.
    # Negative 3: D = 2 = T, w_n = 0. Images 2 and 3 are perfect: no weight on themselves; for 2 the nearest negative
    # is image 1, T = r, whose student lies on e2, D = 0, so w_n D = 0; for 3 it is 1 or 2 at D = r, T = 2 or r.
    r = math.sqrt(2)
    teacher, student = torch.tensor([[1.0, 0], [0, 1], [-1, 0]]), torch.tensor([[0.0, 1], [0, 1], [-1, 0]])
    margins = [r * r, 0.0, -(2 - r) * r]
    found = build("smd", tau=1.0, views=1)(student, teacher, 9.0).total
    assert found.item() == pytest.approx(sum(math.log1p(math.exp(m)) for m in margins) / 3, abs=1e-6)


def test_at_equality_nothing_pushes():
    _, teacher = views()
    student = (3 * teacher).requires_grad_()  # norms are free
    terms = build("smd")(student, teacher, 5.0)
    terms.total.backward()
    assert terms.total.item() == pytest.approx(math.log(2), abs=1e-9)
    assert terms.parts["cosine"].item() == pytest.approx(-1) and student.grad.abs().max() < 1e-6


def test_the_weights_carry_no_gradient():
    """One anchor alone: its own student is the only positive, D the one distance, and w = D - 0 is held fixed."""
    student, teacher, tau = torch.tensor([[1.0, 0.2]], dtype=torch.float64), torch.tensor([[0.3, 1.0]]).double(), 0.3
    student.requires_grad_()
    build("smd", tau=tau, views=1)(student, teacher, 5.0).total.backward()
    s = student.detach().clone().requires_grad_()
    distance = (torch.nn.functional.normalize(teacher) - torch.nn.functional.normalize(s)).norm()
    slope = torch.sigmoid(distance**2 / tau).item() * distance.item() / tau  # with w inside it would be twice this
    (slope * distance).backward()
    torch.testing.assert_close(student.grad, s.grad)


def test_the_cosine_helps_for_the_first_passes_only():
    student, teacher = views()
    loss = build("smd", warmup=2)
    early, late = loss(student, teacher, 1.99), loss(student, teacher, 2.0)
    torch.testing.assert_close(early.total, early.parts["metric"] + early.parts["cosine"])
    torch.testing.assert_close(late.total, late.parts["metric"])
    assert early.parts.keys() == late.parts.keys()


def test_views_are_a_need_and_a_setting():
    assert build("smd").needs.views == 2 and build("smd").needs.student_views == (0, 1)
    assert build("smd", views="1").needs.views == 1 and build("smd", views=1).needs.teacher_views == (0,)
    with pytest.raises(ConfigError, match="one of 1, 2; got 3"):
        build("smd", views=3)
    with pytest.raises(ShapeError, match=r"\(2, B, D\), got student \(4, 3\)"):
        build("smd")(torch.ones(4, 3), torch.ones(4, 3), 0.0)
