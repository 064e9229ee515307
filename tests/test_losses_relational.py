"""SimReg, MSE, DIST, SP, PKT, RKD: numbers worked by hand, float64 numpy loops written from the papers, properties."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from understudy.losses import build
from understudy.losses.coss import coss

# The three images of tests/test_losses_coss.py: rows (3,4)|(4,3), (1,0)|(0,2), (0,-2)|(0,5).
STUDENT = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, -2.0]])
TEACHER = torch.tensor([[4.0, 3.0], [0.0, 2.0], [0.0, 5.0]])


def pair(rows=7, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, rows, width, generator=generator, dtype=torch.float64))


def rotation(width=5):
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).Q


def norm(x):
    return math.sqrt(sum(v * v for v in x))


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (norm(a) * norm(b))


def pearson(a, b):
    return cosine(a - sum(a) / len(a), b - sum(b) / len(b))


def huber(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


# By hand ------------------------------------------------------------------------------------------------------------


def test_simreg_by_hand():
    # Cosines of the rows: 24/25, 0, -1.
    assert build("simreg")(STUDENT, TEACHER).total.item() == pytest.approx((2 - 1.92 + 2 + 4) / 3, abs=1e-6)


def test_mse_by_hand():
    # Differences (-1, 1), (1, -2), (0, -7).
    assert build("mse")(STUDENT, TEACHER).total.item() == pytest.approx((2 + 5 + 49) / 6, abs=1e-6)


def test_dist_by_hand():
    # Two numbers a row: each row rises where the other falls, three times -1. Columns less their means, in thirds:
    # (5, -1, -4)|(8, -4, -4): 60/sqrt(42 * 96); (10, -2, -8)|(-1, -4, 5): -42/84.
    columns = 1 - (60 / math.sqrt(42 * 96) - 0.5) / 2
    terms = build("dist", beta=3, gamma=5)(STUDENT, TEACHER)
    assert terms.parts["rows"].item() == pytest.approx(2, abs=1e-6)
    assert terms.parts["columns"].item() == pytest.approx(columns, abs=1e-6)
    assert terms.total.item() == pytest.approx(3 * 2 + 5 * columns, abs=1e-5)


def test_sp_by_hand():
    # Inner products (25, 3, -8), (3, 1, 0), (-8, 0, 4) against (25, 6, 15), (6, 4, 10), (15, 10, 25); two rows of
    # norm 1 are 2 - 2 cos apart.
    cosines = 523 / math.sqrt(698 * 886) + 22 / math.sqrt(10 * 152) - 20 / math.sqrt(80 * 950)
    terms = build("sp", weight=2)(STUDENT, TEACHER)
    assert terms.parts["similarity"].item() == pytest.approx((6 - 2 * cosines) / 9, abs=1e-6)
    assert terms.total.item() == pytest.approx(2 * (6 - 2 * cosines) / 9, abs=1e-6)


def test_pkt_by_hand():
    # Cosines 0.6, -0.8, 0 of the student and 0.6, 0.6, 1 of the teacher, mapped to (cos + 1) / 2.
    q = [[1 / 1.9, 0.8 / 1.9, 0.1 / 1.9], [0.8 / 2.3, 1 / 2.3, 0.5 / 2.3], [0.1 / 1.6, 0.5 / 1.6, 1 / 1.6]]
    p = [[1 / 2.6, 0.8 / 2.6, 0.8 / 2.6], [0.8 / 2.8, 1 / 2.8, 1 / 2.8], [0.8 / 2.8, 1 / 2.8, 1 / 2.8]]
    divergence = sum(p[i][j] * math.log(p[i][j] / q[i][j]) for i, j in product(range(3), repeat=2)) / 9
    terms = build("pkt", weight=10)(STUDENT, TEACHER)
    assert terms.parts["divergence"].item() == pytest.approx(divergence, abs=2e-6)
    assert terms.total.item() == pytest.approx(10 * divergence, abs=2e-5)


def test_rkd_by_hand():
    # A 3-4-5 triangle, distances 3/4, 1, 5/4 of their mean, cosines 0, 3/5, 4/5; against half a square, cosines
    # 0, sqrt(1/2), sqrt(1/2). Each distance stands twice among 9, each angle twice among 27; all differences are < 1.
    student, teacher = torch.tensor([[0.0, 0], [3, 0], [0, 4]]), torch.tensor([[0.0, 0], [1, 0], [0, 1]])
    mean, half = (2 + math.sqrt(2)) / 3, math.sqrt(0.5)
    distance = ((0.75 - 1 / mean) ** 2 + (1 - 1 / mean) ** 2 + (1.25 - math.sqrt(2) / mean) ** 2) / 9
    angle = ((0.6 - half) ** 2 + (0.8 - half) ** 2) / 27
    terms = build("rkd")(student, teacher)
    assert terms.parts["distance"].item() == pytest.approx(distance, abs=1e-6)
    assert terms.parts["angle"].item() == pytest.approx(angle, abs=1e-6)
    assert terms.total.item() == pytest.approx(25 * distance + 50 * angle, abs=1e-5)


# By the formula, in loops -------------------------------------------------------------------------------------------


def simreg_oracle(s, t):
    return {"distance": np.mean([norm(a / norm(a) - b / norm(b)) ** 2 for a, b in zip(s, t, strict=True)])}


def mse_oracle(s, t):
    return {"mse": np.mean([(a - b) ** 2 for a, b in zip(s.ravel(), t.ravel(), strict=True)])}


def dist_oracle(s, t):
    return {
        "rows": 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(s, t, strict=True)]),
        "columns": 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(s.T, t.T, strict=True)]),
    }


def sp_oracle(s, t):
    def alike(x):
        rows = [[sum(a * b) for b in x] for a in x]
        return [[value / norm(row) for value in row] for row in rows]

    pairs = product(range(len(s)), repeat=2)
    return {"similarity": sum((alike(s)[i][j] - alike(t)[i][j]) ** 2 for i, j in pairs) / len(s) ** 2}


def pkt_oracle(s, t):
    def probability(x, i, j):
        return (cosine(x[i], x[j]) + 1) / sum(cosine(x[i], other) + 1 for other in x)

    total = 0.0
    for i, j in product(range(len(s)), repeat=2):
        p, q = probability(t, i, j), probability(s, i, j)
        total += p * math.log((p + 1e-7) / (q + 1e-7))
    return {"divergence": total / len(s) ** 2}


def rkd_oracle(s, t):
    count = len(s)

    def distances(x):
        raw = [[norm(a - b) for b in x] for a in x]
        return np.array(raw) / np.mean([raw[i][j] for i, j in product(range(count), repeat=2) if i != j])

    def angle(x, i, j, k):
        return 0.0 if i in (j, k) else cosine(x[j] - x[i], x[k] - x[i])

    triples = list(product(range(count), repeat=3))
    return {
        "distance": np.mean([huber(a - b) for a, b in zip(distances(s).ravel(), distances(t).ravel(), strict=True)]),
        "angle": np.mean([huber(angle(s, *triple) - angle(t, *triple)) for triple in triples]),
    }


ORACLES = {
    "simreg": simreg_oracle,
    "mse": mse_oracle,
    "dist": dist_oracle,
    "sp": sp_oracle,
    "pkt": pkt_oracle,
    "rkd": rkd_oracle,
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("shape", [(7, 5), (4, 9), (2, 2)])
def test_against_numpy(name, shape):
    student, teacher = pair(*shape)
    parts = build(name)(student, teacher).parts
    expected = ORACLES[name](student.numpy(), teacher.numpy())
    assert parts.keys() == expected.keys()
    for part, value in expected.items():
        assert parts[part].item() == pytest.approx(value, abs=1e-12), part


# Properties ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORACLES)
def test_equality_is_the_minimum_and_has_no_gradient(name):
    _, teacher = pair()
    student = teacher.clone().requires_grad_()
    loss = build(name, **({"weight": 1} if name == "pkt" else {}))  # the epsilon in PKT's logarithm leaves 1e-9
    terms = loss(student, teacher)
    terms.total.backward()
    assert terms.total.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-8
    assert loss(*pair()).total.item() > 0


@pytest.mark.parametrize(
    ("name", "scaled", "moved", "rotated"),
    [
        ("simreg", True, False, False),
        ("mse", False, False, False),
        ("dist", True, True, False),
        ("sp", True, False, True),
        ("pkt", True, False, True),
        ("rkd", True, True, True),
    ],
)
def test_what_each_method_pins_down(name, scaled, moved, rotated):
    """A perfect student changed as a whole: what leaves the loss at 0 is what the method does not ask for."""
    _, teacher = pair()
    loss = build(name)
    for student, free in [
        (2.5 * teacher, scaled),
        (teacher + 0.7, moved),
        (teacher @ rotation(), rotated),
        (teacher * torch.linspace(0.5, 2, 5, dtype=torch.float64), False),
    ]:
        assert (loss(student, teacher).total.item() < 1e-9) == free


@pytest.mark.parametrize("name", ["simreg", "pkt"])
def test_the_norm_of_each_image_is_free(name):
    student, teacher = pair()
    radii = torch.linspace(0.2, 3, 7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(build(name)(student * radii, teacher).total, build(name)(student, teacher).total)


def test_simreg_is_coss_without_its_space_term():
    student, teacher = (x.requires_grad_() for x in pair())
    simreg = build("simreg")(student, teacher).total
    feature = coss(student, teacher, weight=0.0).total
    torch.testing.assert_close(simreg, 2 + 2 * feature)
    (mine,), (other,) = torch.autograd.grad(simreg, student), torch.autograd.grad(feature, student)
    torch.testing.assert_close(mine, 2 * other)


def test_dist_columns_are_the_centered_space_term_of_coss():
    student, teacher = pair()
    space = coss(student, teacher, center=True).parts["space"]
    torch.testing.assert_close(build("dist")(student, teacher).parts["columns"], 1 + space)


def test_rkd_in_blocks_is_rkd(monkeypatch):
    student, teacher = pair(9, 4)
    student.requires_grad_()
    whole = build("rkd")(student, teacher)
    (gradient,) = torch.autograd.grad(whole.total, student)
    monkeypatch.setattr("understudy.losses.rkd.CHUNK", 2 * 9 * 9)  # two vertices at a time, the last one alone
    blocks = build("rkd")(student, teacher)
    torch.testing.assert_close(blocks.parts["angle"], whole.parts["angle"])
    torch.testing.assert_close(torch.autograd.grad(blocks.total, student)[0], gradient)


def test_rkd_in_fp32_far_from_the_origin():
    """Angles come from inner products: a common offset of ten spreads must not cost their digits."""
    student, teacher = pair(12, 16)
    exact = build("rkd")(student + 10, teacher + 10).parts
    rounded = build("rkd")((student + 10).float(), (teacher + 10).float()).parts
    for part in exact:
        assert rounded[part].item() == pytest.approx(exact[part].item(), rel=1e-4)


def test_rkd_with_near_images():
    """A hundredth of the mean distance is a direction like any other; a millionth is rounding, and counts as none."""
    student, teacher = pair(6, 4)
    student[1] = student[0] + 0.01 * student[1]
    expected = rkd_oracle(student.numpy(), teacher.numpy())["angle"]
    assert build("rkd")(student, teacher).parts["angle"].item() == pytest.approx(expected, abs=1e-10)
    same, nearly = student.clone(), student.clone()
    same[1], nearly[1] = student[0], student[0] + 1e-6
    parts = [build("rkd")(x, teacher).parts["angle"].item() for x in (same, nearly)]
    assert parts[1] == pytest.approx(parts[0], abs=1e-5)


def test_rkd_with_equal_images():
    student, teacher = (x.float() for x in pair(6, 4))
    student[1], teacher[2] = student[0], teacher[3]
    student.requires_grad_()
    terms = build("rkd")(student, teacher)
    terms.total.backward()
    expected = rkd_oracle_with_equal_images(student.detach().double().numpy(), teacher.double().numpy())
    assert terms.parts["angle"].item() == pytest.approx(expected, abs=1e-5)
    assert torch.isfinite(student.grad).all() and student.grad.abs().max() < 100
    same = torch.ones(3, 2, requires_grad=True)
    total = build("rkd")(same, teacher[:3, :2]).total
    total.backward()
    assert torch.isfinite(total) and same.grad.abs().max() == 0


def rkd_oracle_with_equal_images(s, t):
    def angle(x, i, j, k):
        a, b = x[j] - x[i], x[k] - x[i]
        return 0.0 if norm(a) == 0 or norm(b) == 0 else cosine(a, b)

    return np.mean([huber(angle(s, *triple) - angle(t, *triple)) for triple in product(range(len(s)), repeat=3)])
