"""CoSS against numbers worked by hand, an independent float64 numpy derivation, and the paper's own properties."""

import math

import numpy as np
import pytest
import torch

from understudy.errors import ConfigError, ShapeError
from understudy.losses import build
from understudy.losses.coss import coss

# Three images, two dimensions, chosen so that every cosine is a fraction a person can check:
# rows: (3,4)|(4,3): 24/25; (1,0)|(0,2): 0; (0,-2)|(0,5): -1          -> feature = -(0.96 + 0 - 1) / 3
# columns: (3,1,0)|(4,0,0): 12/(sqrt(10)*4); (4,0,-2)|(3,2,5): 2/(sqrt(20)*sqrt(38)) -> space = -(their sum) / 2
STUDENT = [[3.0, 4.0], [1.0, 0.0], [0.0, -2.0]]
TEACHER = [[4.0, 3.0], [0.0, 2.0], [0.0, 5.0]]
FEATURE = 0.04 / 3
SPACE = -(3 / math.sqrt(10) + 2 / math.sqrt(760)) / 2


def pair(rows=7, width=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, width, generator=generator, dtype=dtype).requires_grad_()
    return student, torch.randn(rows, width, generator=generator, dtype=dtype)


def oracle(s, t, weight):
    """Value and gradient from the definition of the derivative of a cosine, written with loops over vectors."""

    def cosine(a, b):
        na, nb = math.sqrt(sum(x * x for x in a)), math.sqrt(sum(x * x for x in b))
        value = sum(x * y for x, y in zip(a, b, strict=True)) / (na * nb)
        return value, np.array([y / (na * nb) - value * x / na**2 for x, y in zip(a, b, strict=True)])

    rows, width = s.shape
    gradient = np.zeros_like(s)
    feature = space = 0.0
    for i in range(rows):
        value, slope = cosine(s[i], t[i])
        feature -= value / rows
        gradient[i] -= slope / rows
    for j in range(width):
        value, slope = cosine(s[:, j], t[:, j])
        space -= value / width
        gradient[:, j] -= weight * slope / width
    return feature, space, gradient


def test_numbers_worked_by_hand():
    terms = coss(torch.tensor(STUDENT), torch.tensor(TEACHER), weight=0.5)
    assert terms.parts["feature"].item() == pytest.approx(FEATURE, abs=1e-6)
    assert terms.parts["space"].item() == pytest.approx(SPACE, abs=1e-6)
    assert terms.total.item() == pytest.approx(FEATURE + 0.5 * SPACE, abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
def test_value_and_gradient_against_numpy(weight):
    student, teacher = pair()
    terms = coss(student, teacher, weight)
    terms.total.backward()
    feature, space, gradient = oracle(student.detach().numpy(), teacher.numpy(), weight)
    assert terms.parts["feature"].item() == pytest.approx(feature, abs=1e-12)
    assert terms.parts["space"].item() == pytest.approx(space, abs=1e-12)
    np.testing.assert_allclose(student.grad.numpy(), gradient, atol=1e-12)


def test_gradcheck():
    student, teacher = pair(4, 3)
    assert torch.autograd.gradcheck(lambda s: coss(s, teacher, 0.7, scale=70.0).total, (student,))


def test_equality_is_the_minimum_and_has_no_gradient():
    _, teacher = pair()
    student = teacher.clone().requires_grad_()
    terms = coss(student, teacher)
    terms.total.backward()
    assert terms.parts["feature"].item() == pytest.approx(-1) and terms.parts["space"].item() == pytest.approx(-1)
    assert student.grad.abs().max() < 1e-12


def test_feature_ignores_row_scales_and_space_ignores_positive_column_scales():
    student, teacher = pair()
    base = coss(student, teacher).parts
    rows = torch.rand(7, 1, dtype=torch.float64) + 0.1
    columns = torch.rand(1, 5, dtype=torch.float64) + 0.1
    by_rows, by_columns = coss(student * rows, teacher).parts, coss(student * columns, teacher).parts
    torch.testing.assert_close(by_rows["feature"], base["feature"])
    torch.testing.assert_close(by_columns["space"], base["space"])
    assert not torch.isclose(by_rows["space"], base["space"])
    assert not torch.isclose(by_columns["feature"], base["feature"])
    torch.testing.assert_close(coss(student * -1, teacher).parts["space"], -base["space"])


def test_permuting_images_or_dimensions_changes_nothing():
    student, teacher = pair()
    rows, columns = torch.randperm(7), torch.randperm(5)
    base, moved = coss(student, teacher), coss(student[rows][:, columns], teacher[rows][:, columns])
    torch.testing.assert_close(moved.total, base.total)


def test_together_the_terms_pin_the_teacher_up_to_one_positive_number():
    """methods.md section 1: r_i = c_j wherever t[i, j] != 0, and the bipartite graph of non-zeros is connected."""
    _, teacher = pair()
    assert coss(2.5 * teacher, teacher).total.item() == pytest.approx(-2)
    student = torch.randn(7, 5, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [student], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        total = coss(student, teacher).total
        total.backward()
        return total

    optimizer.step(closure)
    ratio = (student / teacher).detach()
    assert closure().item() == pytest.approx(-2, abs=1e-9)
    assert ratio.min() > 0 and (ratio.max() / ratio.min()).item() == pytest.approx(1, abs=1e-3)


def test_without_a_connected_graph_the_scale_is_free_in_each_part():
    teacher = torch.block_diag(torch.rand(3, 2, dtype=torch.float64) + 0.1, torch.rand(4, 3, dtype=torch.float64) + 0.1)
    student = teacher.clone()
    student[:3] *= 9.0
    assert coss(student, teacher).total.item() == pytest.approx(-2)


def test_zero_rows_and_columns_count_as_nothing_and_send_no_gradient():
    student, teacher = pair()
    teacher = teacher.clone()
    teacher[:, 2] = 0
    dead = student.detach().clone()
    dead[:, 4] = 0
    dead[1] = 0
    dead.requires_grad_()
    terms = coss(dead, teacher)
    terms.total.backward()
    s, t = dead.detach().numpy(), teacher.numpy()
    alive = [j for j in range(5) if j not in (2, 4)]
    expected = -sum(s[:, j] @ t[:, j] / np.linalg.norm(s[:, j]) / np.linalg.norm(t[:, j]) for j in alive) / 5
    assert terms.parts["space"].item() == pytest.approx(expected, abs=1e-12)
    assert torch.isfinite(dead.grad).all() and dead.grad.abs().max() < 10
    assert coss(torch.zeros(3, 2), torch.zeros(3, 2)).total.item() == 0


def test_one_image():
    student = torch.tensor([[1.0, -2.0]], requires_grad=True)
    terms = coss(student, torch.tensor([[3.0, 5.0]]))
    assert terms.parts["space"].item() == pytest.approx(0)  # signs agree in one dimension, differ in the other
    terms.total.backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    student = (torch.randn(64, 8) * 200).to(dtype).requires_grad_()  # squares sum to 2.5 million, fp16 ends at 65,504
    terms = coss(student, (torch.randn(64, 8) * 200).to(dtype))
    terms.total.backward()
    assert terms.total.dtype == torch.float32 and torch.isfinite(terms.total)
    assert torch.isfinite(student.grad).all() and student.grad.dtype == dtype


def test_gradient_reaches_the_student_only():
    student, teacher = pair()
    teacher = teacher.clone().requires_grad_()
    coss(student, teacher).total.backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_scale_by_name_or_number_and_parts_are_unscaled():
    student, teacher = pair()
    base = build("coss")(student, teacher)
    for written, factor in [("unit", 1.0), ("paper", 70.0), ("code", 1 / (0.1 * 0.07)), (3.0, 3.0), ("2.5", 2.5)]:
        terms = build("coss", scale=written)(student, teacher)
        torch.testing.assert_close(terms.total, base.total * factor)
        torch.testing.assert_close(terms.parts["space"], base.parts["space"])


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        ((4, 3), (4, 5), ["(4, 3)", "(4, 5)", "width"]),
        ((4, 3), (6, 3), ["(4, 3)", "(6, 3)", "same images"]),
        ((4, 3, 2), (4, 3, 2), ["(4, 3, 2)", "Pool"]),
        ((0, 3), (0, 3), ["(0, 3)", "empty"]),
    ],
)
def test_shapes_that_do_not_fit_get_a_sentence(student, teacher, words):
    with pytest.raises(ShapeError) as error:
        coss(torch.ones(student), torch.ones(teacher))
    assert all(word in str(error.value) for word in words)


def test_integers_are_refused():
    with pytest.raises(ShapeError, match="floating point"):
        coss(torch.ones(2, 2, dtype=torch.int64), torch.ones(2, 2))


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"Did you mean 'coss'\? Known: attndistill, bingo, compress, coss"):
        build("cos")
    with pytest.raises(ConfigError, match="no setting 'wieght'. Did you mean 'weight'"):
        build("coss", wieght=1)
    with pytest.raises(ConfigError, match="must be a number or balanced; got 'much'"):
        build("coss", weight="much")
    with pytest.raises(ConfigError, match="at least 0; got -1"):
        build("coss", weight=-1)
    with pytest.raises(ConfigError, match="must be a number, unit, paper or code; got 'big'"):
        build("coss", scale="big")
    with pytest.raises(ConfigError, match="one of global, process"):
        build("coss", scope="node")


# The Pearson control ------------------------------------------------------------------------------------------------


def correlations(s, t):
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(s.T, t.T, strict=True)])


@pytest.mark.parametrize("offset", [0.0, 10.0, -1000.0])
def test_centered_columns_are_numpys_correlations(offset):
    student, teacher = pair(23, 6)
    student, teacher = (student + offset).detach(), teacher - offset
    terms = coss(student, teacher, 0.5, center=True)
    expected = -correlations(student.numpy(), teacher.numpy()).mean()
    assert terms.parts["space"].item() == pytest.approx(expected, abs=1e-10)
    torch.testing.assert_close(terms.parts["feature"], coss(student, teacher).parts["feature"])
    torch.testing.assert_close(terms.total, terms.parts["feature"] + 0.5 * terms.parts["space"])


def test_centered_columns_by_hand():
    # Less their means, in thirds: (5, -1, -4)|(8, -4, -4): 60/sqrt(42 * 96); (10, -2, -8)|(-1, -4, 5): -42/84.
    terms = coss(torch.tensor(STUDENT), torch.tensor(TEACHER), center=True)
    assert terms.parts["space"].item() == pytest.approx(-(60 / math.sqrt(42 * 96) - 0.5) / 2, abs=1e-6)


def test_centered_columns_in_fp32_keep_their_digits_beside_a_large_mean():
    """Products summed before the means are taken off would be wrong in the third digit here."""
    student, teacher = pair(1024, 16)
    student = (student + 0.5 * teacher + torch.linspace(-10, 10, 16, dtype=torch.float64)).detach()
    teacher = teacher + torch.linspace(10, -10, 16, dtype=torch.float64)
    exact = correlations(student.float().double().numpy(), teacher.float().double().numpy())
    found = coss(student.float(), teacher.float(), center=True).parts["space"].item()
    assert found == pytest.approx(-exact.mean(), abs=1e-6)


def test_centered_gradient_is_that_of_the_value():
    """The means carry no gradient of their own: what flows through them sums to zero."""
    student, teacher = pair(5, 3)
    assert torch.autograd.gradcheck(lambda s: coss(s, teacher, 0.7, center=True).total, (student,))


def test_centering_frees_the_offset_of_each_column():
    student, teacher = pair()
    moved = student + torch.randn(5, dtype=torch.float64)
    for center, free in [(True, True), (False, False)]:
        base, other = (coss(x, teacher, center=center).parts["space"] for x in (student, moved))
        assert torch.isclose(base, other).item() == free


def test_constant_columns_count_as_nothing_and_send_no_gradient():
    student, teacher = (x.detach().float() for x in pair(1000, 5))
    student[:, 0], student[:, 1], teacher[:, 2] = 3.3, -0.1, 1e4 / 3  # none of them a sum of powers of two
    student.requires_grad_()
    terms = coss(student, teacher, center=True)
    (gradient,) = torch.autograd.grad(terms.parts["space"], student)
    expected = -correlations(student.detach().double().numpy()[:, 3:], teacher.double().numpy()[:, 3:]).sum() / 5
    assert terms.parts["space"].item() == pytest.approx(expected, abs=1e-6)
    assert gradient[:, :3].abs().max() == 0 and gradient[:, 3:].abs().min() > 0


def test_centered_is_a_method_of_its_own():
    student, teacher = pair()
    own = build("coss_centered", weight=0.5, scale="paper")
    expected = coss(student, teacher, 0.5, scale=70.0, center=True)
    torch.testing.assert_close(own(student, teacher).total, expected.total, rtol=0, atol=0)
    assert own(student, teacher).parts.keys() == expected.parts.keys()
    with pytest.raises(ConfigError, match="no setting 'center'"):
        build("coss", center=True)


# The balanced weight ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(7, 5), (64, 9), (9, 64)])
def test_balanced_gives_both_terms_gradients_of_one_norm(rows, width, center):
    student, teacher = pair(rows, width, seed=3)
    student = (student.detach() * torch.linspace(0.1, 4, width) + 0.5).requires_grad_()
    terms = coss(student, teacher, weight="balanced", center=center)
    norms = [
        torch.autograd.grad(terms.parts[name], student, retain_graph=True)[0].norm().item()
        for name in ("feature", "space")
    ]
    assert norms[0] != pytest.approx(norms[1], rel=0.05)  # or there would be nothing to balance
    assert terms.parts["weight"].item() == pytest.approx(norms[0] / norms[1], rel=1e-9)
    assert not terms.parts["weight"].requires_grad
    expected = coss(student, teacher, weight=norms[0] / norms[1], center=center)
    torch.testing.assert_close(terms.total, expected.total)


def test_the_balance_of_independent_entries_does_not_depend_on_the_shape():
    # Derived: each cosine's gradient has norm sin / length, and there are sqrt(B) over B of sqrt(D), or the reverse.
    for rows, width in [(256, 64), (64, 256), (256, 1024)]:
        _, teacher = pair(rows, width, seed=1)
        student = 0.6 * teacher + 0.8 * pair(rows, width, seed=2)[1]
        assert coss(student, teacher, weight="balanced").parts["weight"].item() == pytest.approx(1, abs=0.05)


def test_balanced_at_the_optimum_and_by_a_word_of_the_command_line():
    _, teacher = pair()
    loss = build("coss", weight="balanced")
    terms = loss(teacher.clone().requires_grad_(), teacher)
    assert terms.total.item() == pytest.approx(-1 - terms.parts["weight"].item()) and terms.total.isfinite()
    assert 0.01 <= terms.parts["weight"].item() <= 100
    with pytest.raises(ConfigError, match="a number or balanced"):
        build("coss", weight="even")
