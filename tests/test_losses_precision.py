"""Arithmetic of every method: fp32 whatever autocast says, and right for very small and very large embeddings."""

import pytest
import torch

from test_losses_registry import every_method, inputs, small
from understudy.losses import LOSSES
from understudy.losses.coss import coss

EMBEDDINGS = {"student", "teacher", "key", "mixed"}
LENGTHS = {"mse", "attndistill", "proteus"}
"""Methods that compare the embeddings themselves, whose squares are what is asked for."""
SOFT = {"seed": {"tau_teacher": 0.1}}
"""At 1e-4, a rounding of 1e-7 in a cosine is one of 1e-3 in its logit."""


def steps(name, settings, dtype, scales, cast=None):
    """(value, gradient of the student) while a queue fills, for embeddings of fp32 taken to a type."""
    torch.manual_seed(0)  # of the parameters that a loss may have
    loss = small(name, {**SOFT.get(name, {}), **settings}, width=8).to(dtype)
    found = []
    for step in range(3):
        given = inputs(loss, step, rows=32, width=8, dtype=torch.float32)
        for key in EMBEDDINGS & given.keys():
            scaled = (given[key].detach() * scales[key == "teacher"]).to(torch.float32)
            given[key] = scaled.to(dtype).requires_grad_()
        for key in given.keys() - EMBEDDINGS:
            if torch.is_tensor(given[key]) and given[key].is_floating_point():
                given[key] = given[key].detach().to(dtype)
        with torch.autocast("cpu", cast, enabled=cast is not None):
            total = loss(**given).total
        if total.requires_grad:
            total.backward()
        gradient = given["student"].grad
        found.append((total.detach(), torch.zeros(1) if gradient is None else gradient))
    return found


@every_method
@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(name, settings, cast):
    plain, cast_to = (steps(name, settings, torch.float32, (1, 1), kind) for kind in (None, cast))
    for (value, gradient), (other, other_gradient) in zip(plain, cast_to, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(value, other) and torch.equal(gradient, other_gradient)


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_the_function_of_coss_is_as_exact(cast):
    student, teacher = torch.randn(2, 32, 8).unbind()
    for center in (False, True):
        with torch.autocast("cpu", cast):
            inside = coss(student, teacher, center=center).total
        assert torch.equal(inside, coss(student, teacher, center=center).total)


SCALES = [1e-20, 1e-10, 1e-3, 1.0, 1e10, 3e19]


@every_method
@pytest.mark.parametrize(("student", "teacher"), [*((x, x) for x in SCALES), (3e19, 1.0), (1.0, 3e19), (1e-20, 1.0)])
def test_every_size_of_embedding_is_right_or_refused(name, settings, student, teacher):
    """Against the same numbers in float64, where nothing overflows; at 1e-20, rows have no direction in both."""
    found = steps(name, settings, torch.float32, (student, teacher))
    exact = steps(name, settings, torch.float64, (student, teacher))
    for (value, gradient), (expected, slope) in zip(found, exact, strict=True):
        if name in LENGTHS and expected > torch.finfo(torch.float32).max:
            assert not value.isfinite()  # the loop stops and says so
            continue
        floor = 1e-5 * student**2 if name in LENGTHS else 1e-6
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=floor)
        largest = slope.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        torch.testing.assert_close(gradient.double() / largest, slope / largest, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("size", [1e27, 1e37])
def test_what_is_too_large_is_not_a_number(center, size):
    """Not 0, which would train on without a word."""
    student, teacher = torch.randn(2, 32, 8).unbind()
    assert coss(student * size, teacher, center=center).total.isnan()
    assert LOSSES["simreg"](None)(student * size, teacher).total.isnan()
