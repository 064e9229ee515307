"""Proteus: the authors' three terms in float64 numpy, and numbers worked by hand."""

import numpy as np
import pytest
import torch

from understudy.errors import ShapeError
from understudy.losses import build

D, F = 3, 4


def batch(rows=6, patches=4, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    masks = torch.rand(rows // 2, patches, generator=generator).argsort(1) < patches // 2
    return {
        "student": draw(rows, D), "teacher": draw(rows, D), "student_tokens": draw(rows, patches, F),
        "teacher_tokens": draw(rows, patches, D), "masked_tokens": draw(rows // 2, patches, F), "masks": masks,
        "masked": torch.arange(1, rows, 2),
    }  # fmt: skip


def proteus(**settings):
    loss = build("proteus", **settings)
    torch.manual_seed(1)
    loss.prepare(F, D)
    for parameter in loss.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return loss.double()


def mapped(head, token):
    """LayerNorm and Linear of one token, from the parameters."""
    gain, shift, matrix, bias = (parameter.detach().numpy() for parameter in head.parameters())
    token = (token - token.mean()) / np.sqrt(token.var() + 1e-5)
    return matrix @ (token * gain + shift) + bias


def oracle(loss, batch):
    """Token, feature and patch as the authors' code has them: mean squared errors over all that is listed."""
    x = {name: value.numpy() for name, value in batch.items()}
    token = [(s - t) ** 2 for s, t in zip(x["student"], x["teacher"], strict=True)]
    feature, patch = list(token), []
    for image, target in zip(x["student_tokens"], x["teacher_tokens"], strict=True):
        feature += [(mapped(loss.feature_head, s) - t) ** 2 for s, t in zip(image, target, strict=True)]
    for place, image, mask in zip(x["masked"], x["masked_tokens"], x["masks"], strict=True):
        targets = x["teacher_tokens"][place]
        patch += [(mapped(loss.patch_head, image[i]) - targets[i]) ** 2 for i in np.flatnonzero(mask)]
    return [np.mean(term) for term in (token, feature, patch)]


def test_against_numpy():
    loss, given = proteus(token=1, feature=0.5, patch=2), batch()
    terms, expected = loss(**given), oracle(loss, given)
    assert [terms.parts[name].item() for name in ("token", "feature", "patch")] == pytest.approx(expected, abs=1e-12)
    assert terms.total.item() == pytest.approx(np.dot([1, 0.5, 2], expected), abs=1e-12)
    assert proteus()(**given).total.item() == pytest.approx(sum(expected), abs=1e-12)


def test_by_hand():
    loss = build("proteus")
    loss.prepare(2, 2)
    for head in (loss.feature_head, loss.patch_head):
        head[1].weight.data, head[1].bias.data = torch.eye(2), torch.zeros(2)
    one = torch.tensor([[[3.0, 1.0]]])  # normalized: (1, -1), but for the epsilon of the LayerNorm
    terms = loss(
        torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]), one, torch.tensor([[[0.0, 0.0]]]),
        one, torch.tensor([[True]]), torch.tensor([0]),
    )  # fmt: skip
    assert terms.parts["token"].item() == pytest.approx(2)  # (0 + 4) / 2
    assert terms.parts["feature"].item() == pytest.approx(1.5, abs=1e-4)  # (0 + 4 + 1 + 1) / 4
    assert terms.parts["patch"].item() == pytest.approx(1, abs=1e-4)
    assert terms.total.item() == pytest.approx(4.5, abs=1e-4)
    assert not loss.mask_token.any()  # its start


def test_gradient_reaches_the_student_and_the_maps():
    loss, given = proteus(), batch()
    learned = [given[name].requires_grad_() for name in ("student", "student_tokens", "masked_tokens")]
    targets = [given[name].requires_grad_() for name in ("teacher", "teacher_tokens")]
    loss(**given).total.backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in learned) and all(tensor.grad is None for tensor in targets)
    for head in (loss.feature_head, loss.patch_head):
        assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())
    # Patches that were not hidden teach nothing in the third term.
    assert not given["masked_tokens"].grad[~given["masks"]].any()


def test_without_the_third_term_nothing_is_hidden():
    loss = proteus(patch=0)
    assert not loss.needs.masks and not hasattr(loss, "mask_token") and not hasattr(loss, "patch_head")
    given = {name: value for name, value in batch().items() if not name.startswith("mask")}
    assert set(loss(**given).parts) == {"token", "feature"}


def test_no_hidden_patch_is_no_term():
    given = batch()
    given["masks"] = torch.zeros_like(given["masks"])
    assert proteus()(**given).parts["patch"].item() == 0


def test_shapes_that_do_not_fit_get_a_sentence():
    loss, given = proteus(), batch()
    with pytest.raises(ShapeError, match=r"got 4 of the student and 3 of the teacher. Choose .*--image-size"):
        loss(**{**given, "teacher_tokens": given["teacher_tokens"][:, 1:]})
    with pytest.raises(ShapeError, match=r"prepared for a student 4 wide, got tokens \(6, 4, 3\)"):
        loss(**{**given, "student_tokens": given["student_tokens"][:, :, 1:]})
    with pytest.raises(ShapeError, match=r"beside tokens \(6, 4, 4\), got \(3, 4, 4\), \(2, 4\), \(3,\)"):
        loss(**{**given, "masks": given["masks"][1:]})
