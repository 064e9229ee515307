"""A batch in chunks: the losses and the weights of the whole batch, for every method, in double precision."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import nn

from understudy.losses import LOSSES, build
from understudy.train.chunks import in_chunks
from understudy.train.step import image_axis
from understudy.train.step_inputs import stacked

ROWS, WIDTH = 24, 5
METHODS = [name for name, method in LOSSES.items() if not (method.needs.tokens or method.needs.attention)]


def steps(name: str, chunks: int, make, count: int = 4):
    """Losses, gradients and weights of a few SGD steps."""
    torch.manual_seed(0)
    student = make().double()
    loss = build(name, **({"queue": 12} if "queue" in vars(LOSSES[name].Settings()) else {})).double()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    width = loss.embed_dim or WIDTH
    generator = torch.Generator().manual_seed(1)
    values = []
    for step in range(count):
        views = torch.randn(max(loss.needs.views, 1), ROWS, 7, generator=generator, dtype=torch.float64)
        teacher = torch.randn(len(loss.needs.teacher_views), ROWS, width, generator=generator, dtype=torch.float64)
        inputs = {}
        if loss.needs.teacher:
            inputs["teacher"] = stacked(teacher.flatten(0, 1), loss.needs.teacher_views)
        if loss.needs.key:
            key = torch.randn(len(loss.needs.key_views), ROWS, width, generator=generator, dtype=torch.float64)
            inputs["key"] = stacked(key.flatten(0, 1), loss.needs.key_views)
        if loss.needs.bags:
            inputs["bags"] = torch.arange(ROWS) // 4
        if loss.needs.cutmix:
            inputs["share"] = torch.full((ROWS,), 0.7, dtype=torch.float64)
        if loss.needs.passes:
            inputs["passes"] = float(step)
        shown = [views[view] for view in loss.needs.student_views] + ([views.mean(0)] if loss.needs.cutmix else [])

        def look(network, places, shown=shown):
            made = network(torch.cat([view[places] for view in shown]))[:, :width]
            clean = len(made) // len(shown) * len(loss.needs.student_views)
            found = {"student": stacked(made[:clean], loss.needs.student_views)}
            return {**found, "mixed": made[clean:]} if loss.needs.cutmix else found

        def judge(seen, inputs=inputs):
            terms = loss(**inputs, **seen)
            optimizer.zero_grad()
            terms.total.backward()
            return terms

        if chunks == 1:
            torch.manual_seed(step)
            terms = judge(look(student, slice(None)))
        else:
            ends = [round(ROWS * part / chunks) for part in range(chunks + 1)]
            parts = tuple(slice(*pair) for pair in itertools.pairwise(ends))
            axis = functools.partial(image_axis, loss=loss)
            terms = in_chunks(look, judge, student, student, parts, axis, seed=step)
        values.append(terms.total.detach())
        optimizer.step()
    return torch.stack(values), student.state_dict()


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 512))


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 16), nn.BatchNorm1d(16), nn.Linear(16, 512))


@pytest.mark.parametrize("name", METHODS)
def test_any_number_of_chunks_gives_the_losses_and_weights_of_one(name):
    values, weights = steps(name, 1, plain)
    assert len(set(values.tolist())) == len(values)
    for chunks in (2, 4, 5):  # 24 images in five parts: unequal ones
        found, moved = steps(name, chunks, plain)
        torch.testing.assert_close(found, values, rtol=1e-12, atol=1e-12)
        for key in weights:
            torch.testing.assert_close(moved[key], weights[key], rtol=1e-11, atol=1e-12)


def test_batch_statistics_are_those_of_each_chunk_and_move_once():
    _, moved = steps("coss", 3, with_norm, count=1)
    assert int(moved["1.num_batches_tracked"]) == 3
    torch.manual_seed(0)
    student = with_norm().double()
    views = torch.randn(1, ROWS, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for part in views[0].split(8):
        student(part)
    torch.testing.assert_close(moved["1.running_mean"], student[1].running_mean)


def test_dropout_is_the_same_in_both_passes():
    seen = {}

    class Recorded(nn.Dropout):
        def forward(self, x):
            y = super().forward(x)
            seen.setdefault(torch.is_grad_enabled(), []).append(y.detach() == 0)
            return y

    values, _ = steps("coss", 3, lambda: nn.Sequential(nn.Linear(7, 512), Recorded(0.5)), count=1)
    assert values.isfinite().all()
    first, second = torch.cat(seen[False]), torch.cat(seen[True])
    assert torch.equal(first, second) and 0.3 < first.double().mean() < 0.7
    assert not torch.equal(seen[True][0], seen[True][1])


def test_summing_the_losses_of_the_parts_would_not_do():
    # The control: what gradient accumulation computes is another loss.
    student = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    teacher = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    loss = build("coss")
    whole = loss(student, teacher).total
    parts = torch.stack([loss(s, t).total for s, t in zip(student.split(6), teacher.split(6), strict=True)]).mean()
    assert abs(whole - parts) > 0.01
