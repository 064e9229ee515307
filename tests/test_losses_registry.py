"""What every method promises, whatever it computes: fed by its declared needs, over the whole registry."""

import copy
import dataclasses
import inspect

import pytest
import torch

from understudy.errors import ConfigError, ShapeError
from understudy.losses import LOSSES, build
from understudy.losses.base.bags import next_in_bag

# Every method as its authors ran it, and where a setting changes what it needs or which code runs, that too.
METHODS = [
    *((name, {}) for name in LOSSES),
    ("compress", {"queues": 1}),
    ("smd", {"views": 1}),
    ("proteus", {"patch": 0}),
]
every_method = pytest.mark.parametrize(("name", "settings"), METHODS, ids=str)
OPTIONAL = {"teacher", "key", "bags", "passes", "mixed", "share"}
OPTIONAL |= {f"{who}_{what}" for who in ("student", "teacher") for what in ("tokens", "attention")}
OPTIONAL |= {"masked_tokens", "masks", "masked"}
LEARNED = ("student", "mixed", "student_tokens", "student_attention", "masked_tokens")
TOKEN_WIDTH = 5


def small(name, settings, width=4):
    """The method with a queue that these few rows fill and wrap, and its own parameters, if any, in float64."""
    loss = build(name, **settings, **({"queue": 10} if "queue" in vars(LOSSES[name].Settings()) else {}))
    loss.prepare(TOKEN_WIDTH, width)
    return loss.double() if list(loss.parameters()) else loss


def inputs(loss, step, rows=6, width=4, dtype=torch.float64, scale=1.0):
    """What the loop would hand over at a step: exactly what is declared, drawn from the step alone."""
    generator = torch.Generator().manual_seed(step)

    def draw(*shape):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype).requires_grad_()

    def views(which):
        return draw(rows, width) if len(which) == 1 else draw(len(which), rows, width)

    given = {"student": views(loss.needs.student_views)}
    if loss.needs.teacher:
        given["teacher"] = views(loss.needs.teacher_views)
    if loss.needs.key:
        given["key"] = views(loss.needs.key_views)
    if loss.needs.bags:
        given["bags"] = torch.arange(rows) // 2
    if loss.needs.passes:
        given["passes"] = 6.0 * step  # from step 2 on, past every method's first phase
    if loss.needs.cutmix:
        given["mixed"] = draw(rows, width)
        given["share"] = torch.rand(rows, generator=generator)
    if loss.needs.tokens:
        given["student_tokens"], given["teacher_tokens"] = draw(rows, 4, TOKEN_WIDTH), draw(rows, 4, width)
    if loss.needs.masks:
        given["masked"] = torch.arange(rows)[1::2]
        given["masked_tokens"] = draw(len(given["masked"]), 4, TOKEN_WIDTH)
        given["masks"] = torch.rand(len(given["masked"]), 4, generator=generator) < 0.5
    if loss.needs.attention:  # two heads over four patches
        for who in ("student", "teacher"):
            shares = draw(rows, 2, 5).detach().double().softmax(2)
            given[f"{who}_attention"] = shares.to(dtype).requires_grad_()
    return given


def images_axis(key, value):
    """Where the images of a batch lie: several views stand before them, tokens and heads behind them."""
    return 0 if value.ndim == 1 or "_" in key else -2


def warm(loss, steps=3, **kwargs):
    for step in range(steps):
        loss(**inputs(loss, step, **kwargs))
    return loss


@pytest.mark.parametrize("name", LOSSES)
def test_every_method_has_a_citation_and_a_docstring(name):
    method = LOSSES[name]
    assert method.paper.startswith("@") and method.paper.count("{") == method.paper.count("}")
    assert method.summary and "\n" not in method.summary
    document = " ".join(inspect.getdoc(method).split())
    assert "Source:" in document and ("arXiv" in document or "ECCV 2022" in document)
    for setting in dataclasses.fields(method.Settings):
        assert setting.metadata["help"].endswith("."), setting.name


@every_method
def test_where_a_turned_student_is_as_good_none_lands_in_the_teacher_s_space(name, settings):
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    totals = []
    for rotation in (torch.eye(4, dtype=torch.float64), turn):
        loss = small(name, settings)
        for step in range(3):
            given = inputs(loss, step)
            for part in {"student", "key", "mixed"} & given.keys():  # all that the student makes
                given[part] = given[part] @ rotation
            total = loss(**given).total
        totals.append(total.item())
    assert (totals[0] == pytest.approx(totals[1], rel=1e-6, abs=1e-9)) == (not loss.in_teacher_space)


@every_method
def test_forward_takes_exactly_what_is_declared(name, settings):
    loss = small(name, settings)
    parameters = inspect.signature(loss.forward).parameters
    required = {p.name for p in parameters.values() if p.default is p.empty}
    assert required <= set(inputs(loss, 0)) <= set(parameters) <= {"student"} | OPTIONAL
    declared = [*loss.needs.student_views, *loss.needs.teacher_views, *loss.needs.key_views]
    assert max(declared) < loss.needs.views
    assert loss.needs.teacher or loss.embed_dim


@every_method
def test_gradient_reaches_the_student_only(name, settings):
    loss = warm(small(name, settings))
    given = inputs(loss, 3)
    terms = loss(**given)
    terms.total.backward()
    for key, value in given.items():
        if key in LEARNED:
            assert torch.isfinite(value.grad).all() and value.grad.abs().sum() > 0, key
        elif torch.is_tensor(value):
            assert value.grad is None, key
    assert terms.total.shape == () and all(part.shape == () for part in terms.parts.values())


# Not smd, whose weights are held fixed by design: tests/test_losses_smd.py has its gradient.
@pytest.mark.parametrize(("name", "settings"), [method for method in METHODS if method[0] != "smd"], ids=str)
def test_the_gradient_is_that_of_the_value(name, settings):
    loss = warm(small(name, settings, width=3), rows=4, width=3)
    given = inputs(loss, 3, rows=4, width=3)
    learned = [key for key in LEARNED if key in given]

    def total(*values):
        # A copy, because a call fills the queue.
        return copy.deepcopy(loss)(**{**given, **dict(zip(learned, values, strict=True))}).total

    assert torch.autograd.gradcheck(total, [given[key] for key in learned], atol=1e-6, rtol=1e-4)


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite(name, settings, dtype):
    loss = small(name, settings, width=8).float()
    for step in range(4):
        given = inputs(loss, step, rows=32, width=8, dtype=dtype, scale=50.0)
        terms = loss(**given)
        terms.total.backward()
        assert terms.total.dtype == torch.float32 and torch.isfinite(terms.total)
        assert given["student"].grad.dtype == dtype and torch.isfinite(given["student"].grad).all()


@every_method
def test_dead_rows_leave_the_gradient_finite(name, settings):
    """An all-zero embedding has no direction; dividing by its norm, or by an epsilon, would send 1e12 back."""
    loss = warm(small(name, settings), dtype=torch.float32)
    given = inputs(loss, 3, dtype=torch.float32)
    for key in ("student", "teacher", "key", "mixed"):
        if key in given:
            given[key] = given[key].detach().clone()
            given[key][..., 1, :] = 0
    student = given["student"].requires_grad_()
    terms = loss(**given)
    terms.total.backward()
    assert torch.isfinite(terms.total) and torch.isfinite(student.grad).all()
    assert student.grad.abs().max() < 1e5


@every_method
def test_one_image_is_a_batch(name, settings):
    loss = small(name, settings)
    for step in range(3):
        given = inputs(loss, step, rows=1)
        total = loss(**given).total
        total.backward()
        assert torch.isfinite(total) and torch.isfinite(given["student"].grad).all()


@every_method
@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, _: torch.cat([x, x[..., :1]], dim=-1),  # D differs
        lambda x, axis: x.narrow(axis, 0, x.shape[axis] - 1),  # B differs
        lambda x, _: x[..., None, :] if x.ndim > 1 else x[None],  # a dimension too many
    ],
    ids=["width", "rows", "dimensions"],
)
def test_shapes_that_do_not_fit_get_a_sentence(name, settings, wrong):
    loss = warm(small(name, settings))
    good = inputs(loss, 3)
    for key, value in good.items():
        if torch.is_tensor(value):
            with pytest.raises(ShapeError, match=r"got|width"):
                loss(**{**good, key: wrong(value, images_axis(key, value))})
    with pytest.raises(ShapeError, match="empty"):
        loss(**inputs(loss, 3, rows=0))


@every_method
def test_a_state_dict_continues_the_exact_sequence(name, settings):
    loss = warm(small(name, settings), steps=4)
    resumed = small(name, settings)
    resumed.load_state_dict(loss.state_dict())
    for step in range(4, 9):
        here, there = loss(**inputs(loss, step)), resumed(**inputs(resumed, step))
        assert torch.equal(here.total, there.total)
        assert here.parts.keys() == there.parts.keys()
        assert all(torch.equal(here.parts[part], there.parts[part]) for part in here.parts)


@pytest.mark.parametrize("name", LOSSES)
def test_numbers_out_of_range_get_a_sentence(name):
    for setting, default in vars(LOSSES[name].Settings()).items():
        if isinstance(default, int | float) and not isinstance(default, bool):
            with pytest.raises(ConfigError, match="got -7"):
                build(name, **{setting: -7})
            with pytest.raises(ConfigError, match="must be a( whole)? number.*; got 'much'"):
                build(name, **{setting: "much"})


def test_the_next_image_of_a_bag():
    bags = torch.tensor([5, 5, 5, 2, 9, 9])
    assert next_in_bag(bags).tolist() == [1, 2, 0, 3, 5, 4]
    assert next_in_bag(torch.tensor([], dtype=torch.int64)).tolist() == []


@every_method
def test_a_nan_is_never_hidden(name, settings):
    loss = warm(small(name, settings))
    given = inputs(loss, 3)
    given["student"] = given["student"].detach().clone()
    given["student"].view(-1)[0] = float("nan")
    assert not torch.isfinite(loss(**given).total)


@every_method
def test_no_method_asks_for_a_value_which_would_wait_for_the_device(name, settings):
    """On tensors of shapes without values: no `.item()`, `if tensor`, mask as index, all that a GPU must answer."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    given = [inputs(small(name, settings), step, dtype=torch.float32) for step in range(3)]
    with FakeTensorMode() as without_values:
        loss = build(name, **settings, **({"queue": 10} if "queue" in vars(LOSSES[name].Settings()) else {}))
        loss.prepare(TOKEN_WIDTH, 4)
        for values in given:
            told = {key: without_values.from_tensor(x) if torch.is_tensor(x) else x for key, x in values.items()}
            for key in set(LEARNED) & set(told):
                told[key].requires_grad_()
            terms = loss(**told)
            if terms.total.requires_grad:
                terms.total.backward()
        with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
            bool(terms.total > 0)  # that is what it would have met
