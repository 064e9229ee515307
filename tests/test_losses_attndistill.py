"""AttnDistill: the authors' steps in float64 numpy, image by image and head by head, and numbers worked by hand."""

import math

import numpy as np
import pytest
import torch

from understudy.errors import ShapeError
from understudy.losses import build
from understudy.losses.attndistill import resized


def batch(rows=5, heads=(2, 2), patches=(9, 9), width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, rows, width, generator=generator, dtype=torch.float64)
    shares = [
        (3 * torch.randn(rows, h, 1 + n, generator=generator, dtype=torch.float64)).softmax(2)
        for h, n in zip(heads, patches, strict=True)
    ]
    return s, t, *shares


def cubic(x):
    """Keys' kernel with a = -0.75, as PyTorch's bicubic has it."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def bicubic(image, new):
    """A square image at another size, edge pixels repeated outwards, one output pixel at a time."""
    old = len(image)
    out = np.zeros((new, new))
    for i in range(new):
        for j in range(new):
            y, x = ((place + 0.5) * old / new - 0.5 for place in (i, j))
            for m in range(math.floor(y) - 1, math.floor(y) + 3):
                for n in range(math.floor(x) - 1, math.floor(x) + 3):
                    weight = cubic(y - m) * cubic(x - n)
                    out[i, j] += weight * image[min(max(m, 0), old - 1), min(max(n, 0), old - 1)]
    return out


def oracle(s, t, a_s, a_t, temperature=10.0):
    """The two terms as the paper has them."""
    s, t, a_s, a_t = (x.numpy() for x in (s, t, a_s, a_t))
    divergence = 0.0
    for student, teacher in zip(a_s, a_t, strict=True):
        if student.shape[1] != teacher.shape[1]:
            old, new = math.isqrt(teacher.shape[1] - 1), math.isqrt(student.shape[1] - 1)
            rows = []
            for head in teacher:
                patches = np.maximum(bicubic(head[1:].reshape(old, old), new).ravel(), 0)
                rows.append(np.r_[head[0], np.maximum(patches * (1 - head[0]) / patches.sum(), 1e-5)])
            teacher = np.array(rows)
        if len(student) != len(teacher):
            powers = [np.prod(heads, axis=0) ** (1 / temperature) for heads in (student, teacher)]
            student, teacher = (p[None] / p.sum() for p in powers)
        for p, q in zip(np.clip(teacher, 1e-5, 0.996), np.clip(student, 1e-5, 0.996), strict=True):
            p, q = p / p.sum(), q / q.sum()
            divergence += sum(p[i] * math.log(p[i] / q[i]) for i in range(len(p)))
    return np.mean((s - t) ** 2), divergence / len(a_s)


@pytest.mark.parametrize(
    ("heads", "patches"),
    [((3, 3), (9, 9)), ((2, 4), (9, 9)), ((2, 2), (9, 16)), ((2, 2), (16, 4)), ((1, 3), (4, 25)), ((2, 2), (6, 6))],
    ids=str,
)
def test_against_numpy(heads, patches):
    given = batch(heads=heads, patches=patches)
    terms = build("attndistill", weight=0.3, temperature=4)(*given)
    mse, attention = oracle(*given, temperature=4)
    assert terms.parts["mse"].item() == pytest.approx(mse, abs=1e-12)
    assert terms.parts["attention"].item() == pytest.approx(attention, abs=1e-9)
    assert terms.total.item() == pytest.approx(mse + 0.3 * attention, abs=1e-9)
    assert attention > 0.01


def test_by_hand():
    # One image, two heads over the class token and one patch: KL((1/2, 1/2) || (1/4, 3/4)) + KL of equals, 0.
    s, t = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])
    student = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])
    teacher = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]])
    terms = build("attndistill")(s, t, student, teacher)
    divergence = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert terms.parts["mse"].item() == pytest.approx(2.5)
    assert terms.parts["attention"].item() == pytest.approx(divergence, abs=1e-6)
    assert terms.total.item() == pytest.approx(2.5 + 0.1 * divergence, abs=1e-6)
    # Against one head: 0.25 * 0.5 and 0.75 * 0.5, to the power 1/2, are as 1 to sqrt(3).
    single = build("attndistill", temperature=2)(s, t, student, teacher[:, :1])
    merged = 1 / (1 + math.sqrt(3))  # the teacher's even shares stay even
    expected = 0.5 * math.log(0.5 / merged) + 0.5 * math.log(0.5 / (1 - merged))
    assert single.parts["attention"].item() == pytest.approx(expected, abs=1e-6)


def test_resizing_keeps_what_the_patches_have_together():
    attention = batch(patches=(16, 16))[3]
    other = resized(attention, 36)
    assert other.shape == (5, 2, 37) and (other > 0).all()
    torch.testing.assert_close(other[:, :, 0], attention[:, :, 0])
    torch.testing.assert_close(other.sum(2), torch.ones(5, 2, dtype=torch.float64), rtol=0, atol=36 * 1e-5)
    even = torch.full((1, 1, 17), 0.8 / 16, dtype=torch.float64)
    even[..., 0] = 0.2
    torch.testing.assert_close(resized(even, 4)[0, 0, 1:], torch.full((4,), 0.2, dtype=torch.float64))


@pytest.mark.parametrize("patches", [(9, 9), (9, 16)], ids=str)
@pytest.mark.parametrize("heads", [(2, 2), (2, 3)], ids=str)
def test_a_head_that_looks_at_one_patch_only_is_finite(heads, patches):
    s, t, a_s, a_t = batch(heads=heads, patches=patches)
    a_s, a_t = (torch.nn.functional.one_hot(a.argmax(2), a.shape[2]).half() for a in (a_s, a_t))
    a_t[0, 0] = torch.eye(a_t.shape[2])[0]  # only itself: no patch has a share that could be resized
    a_s.requires_grad_()
    terms = build("attndistill")(s.float(), t.float(), a_s, a_t)
    terms.total.backward()
    assert torch.isfinite(terms.total) and torch.isfinite(a_s.grad).all()


def test_shapes_that_do_not_fit_get_a_sentence():
    s, t, a_s, a_t = batch()
    loss = build("attndistill")
    with pytest.raises(ShapeError, match=r"between squares, got .* \(5, 2, 10\), .* \(5, 2, 8\): 7 patches are none"):
        loss(s, t, a_s, a_t[:, :, :8])
    with pytest.raises(ShapeError, match=r"for 5 images, got student \(4, 2, 10\), teacher \(5, 2, 10\)"):
        loss(s, t, a_s[:4], a_t)
