"""Schedule, optimizer, settings and averages: numbers a person can check."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from understudy.errors import ConfigError
from understudy.settings import resolve
from understudy.train.meter import Meter
from understudy.train.schedule import build_optimizer, learning_rate
from understudy.train.settings import OptimizerSettings, TrainSettings
from understudy.train.signals import verdict
from understudy.train.state import follow
from understudy.views.batches import NeighborBatches


def test_learning_rate_warms_up_then_follows_a_cosine_to_zero():
    settings = OptimizerSettings(name="sgd", lr=1.0)
    assert [learning_rate(step, 12, 2, settings) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert learning_rate(7, 12, 2, settings) == pytest.approx(0.5)
    assert learning_rate(11, 12, 2, settings) == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))
    assert learning_rate(11, 12, 0, OptimizerSettings(name="sgd", lr=1.0, schedule="constant")) == 1.0


def test_compress_steps_down_after_epochs_90_and_120_of_130():
    settings = OptimizerSettings(
        name="sgd", lr=0.01, schedule="step", milestones=(90 / 130, 120 / 130), decay=0.2, every="epoch"
    )
    # 7 steps an epoch, and 23 of 58 images are left over: ImageNet is no whole number of batches either.
    batches = NeighborBatches(58, 8)
    steps = batches.steps_for(130, whole_epochs=True)
    assert steps == 130 * 7 == batches.steps_for(130) - 33 and batches.steps_per_epoch == 7
    rates = [learning_rate(step, steps, 0, settings, 7) for step in range(steps)]
    assert rates[: 90 * 7] == [0.01] * (90 * 7)
    assert rates[90 * 7 : 120 * 7] == pytest.approx([0.002] * (30 * 7))
    assert rates[120 * 7 :] == pytest.approx([0.0004] * (10 * 7))
    every_step = OptimizerSettings(name="sgd", lr=1.0, schedule="step", milestones=(0.5,), decay=0.1)
    assert [learning_rate(step, 4, 0, every_step, 3) for step in range(4)] == [1, 1, 0.1, 0.1]


def test_coss_stays_at_its_peak_for_5_epochs_of_25_and_is_then_on_the_cosine():
    settings = OptimizerSettings(name="sgd", lr=0.03, every="epoch", hold=5 / 25)
    rates = [learning_rate(step, 25 * 4, 0, settings, 4) for step in range(25 * 4)]
    # The authors' rule: epochs 0 to 4 at the rate itself, then rate * (1 + cos(pi * epoch / epochs)) / 2.
    by_hand = [0.03 if epoch < 5 else 0.03 * 0.5 * (1 + math.cos(math.pi * epoch / 25)) for epoch in range(25)]
    assert rates == pytest.approx([rate for rate in by_hand for _ in range(4)])
    assert by_hand[5] == pytest.approx(0.02713525)


def test_an_epochwise_rate_begins_at_its_peak_after_warm_up_and_never_rises_again():
    settings = OptimizerSettings(name="sgd", lr=1.0, every="epoch")
    rates = [learning_rate(step, 26, 8, settings, 4) for step in range(26)]
    assert rates[:4] == [0.5] * 4 and rates[4:12] == [1.0] * 8  # two epochs of warm-up, each of one rate
    assert rates[8:] == sorted(rates[8:], reverse=True)
    assert len(set(rates[12:16])) == 1 and 0 < rates[-1] < 0.05  # the seventh epoch has only begun
    # Warm-up that is no whole number of epochs: an epoch has the rate at which a warm-up by steps would end it.
    assert [learning_rate(step, 40, 10, settings, 4) for step in range(0, 16, 4)] == [
        0.4,
        0.8,
        1.0,
        pytest.approx(1, abs=0.05),
    ]
    # Shorter than an epoch: all of it is the first one.
    assert {learning_rate(step, 3, 0, settings, 100) for step in range(3)} == {1.0}


def test_no_step_of_whole_epochs_is_wasted_and_passes_are_what_was_seen():
    """200 epochs of ImageNet in batches of 256; counted by images they were 112 steps longer, all of them at rate 0."""
    batches = NeighborBatches(1_281_167, 256)
    steps = batches.steps_for(200, whole_epochs=True)
    assert (steps, batches.steps_for(200)) == (200 * 5004, 200 * 5004 + 112)
    settings = OptimizerSettings(name="sgd", lr=1.0, every="epoch")
    last = [learning_rate(step, steps, 0, settings, 5004) for step in (steps - 5004, steps - 1)]
    assert last == pytest.approx([0.5 * (1 + math.cos(math.pi * 199 / 200))] * 2)
    assert "199.978 image passes = 1,000,800 steps = 200 epochs" in batches.describe(200, whole_epochs=True)
    # With neighbors an epoch of anchors is 1 + k image passes; 0.5 of one is rounded up to steps.
    graph = np.zeros((1000, 3), np.int64)
    assert NeighborBatches(1000, 64, k=3, n=3, graph=graph).steps_for(2, whole_epochs=True) == 31


def test_a_length_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="'passes' must be above 0; got 0"):
        resolve(TrainSettings, {"data": "digits", "student": "x", "passes": 0})


def test_milestones_are_asked_for_and_are_shares():
    with pytest.raises(ConfigError, match="needs optimizer.milestones, shares of training"):
        OptimizerSettings(schedule="step")
    with pytest.raises(ConfigError, match="between 0 and 1; got 90, 120"):
        resolve(TrainSettings, {"data": "x", "student": "x", "optimizer.milestones": "90,120"})
    given = resolve(TrainSettings, {"data": "x", "student": "x", "optimizer.milestones": "0.6,0.8"})
    assert given.optimizer.milestones == (0.6, 0.8)


def test_each_optimizer_has_its_own_peak_unless_one_is_written():
    assert OptimizerSettings(name="sgd").peak == 0.03
    assert OptimizerSettings(name="adamw").peak == 0.002
    assert OptimizerSettings(name="adamw", lr=0.5).peak == 0.5


def test_sgd_decays_everything_and_adamw_spares_vectors():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    sgd = build_optimizer([module], OptimizerSettings(name="sgd"), torch.device("cpu"))
    assert len(sgd.param_groups) == 1 and sgd.param_groups[0]["weight_decay"] == 1e-4
    adamw = build_optimizer([module], OptimizerSettings(name="adamw"), torch.device("cpu"))
    decayed, spared = adamw.param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(3, 2)] and decayed["weight_decay"] == 1e-4
    assert len(spared["params"]) == 3 and spared["weight_decay"] == 0


def test_the_average_moves_parameters_and_running_statistics_alike():
    average, student = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        student.weight.fill_(3.0)
        student.running_mean.fill_(10.0)
    follow(average, student, momentum=0.9)
    torch.testing.assert_close(average.weight, torch.full((2,), 1.2))
    torch.testing.assert_close(average.running_mean, torch.full((2,), 1.0))


def test_a_method_named_by_a_flag_drops_the_settings_of_the_one_in_the_file():
    file = {"data": "digits", "student": "small:resnet8", "method": {"name": "coss", "weight": 0.5}}
    assert resolve(TrainSettings, file).method == {"name": "coss", "weight": 0.5}
    assert resolve(TrainSettings, file, {"method.scale": 70}).method == {"name": "coss", "weight": 0.5, "scale": 70}
    assert resolve(TrainSettings, file, {"method": "moco"}).method == {"name": "moco"}
    assert resolve(TrainSettings, file, {"method": "moco", "method.queue": 8}).method == {"name": "moco", "queue": 8}


def test_wrong_settings_get_a_sentence():
    with pytest.raises(ConfigError, match="Unknown setting 'optimizer.lrr'. Did you mean 'lr'"):
        resolve(TrainSettings, {"data": "digits", "student": "x", "optimizer.lrr": 1})
    with pytest.raises(ConfigError, match="'student' is required"):
        resolve(TrainSettings, {"data": "digits"})
    with pytest.raises(ConfigError, match="'batch_size' must be a whole number; got 'many'"):
        resolve(TrainSettings, {"data": "digits", "student": "x", "batch-size": "many"})
    with pytest.raises(ConfigError, match="one of auto, fp32, bf16, fp16; got 'fp8'"):
        resolve(TrainSettings, {"data": "digits", "student": "x", "precision": "fp8"})


def test_verdicts_are_plain():
    assert "collapsed" in verdict({"spread": 0.00001, "knn_relative": 90.0})
    assert "97.5 % of the teacher's kNN" in verdict({"spread": 0.4, "knn_relative": 97.5})
    assert "12.0 % of the 10 nearest" in verdict({"spread": 0.4, "overlap@10": 12.0})


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_is_the_published_one_also_for_weights_kept_channels_last(name: str):
    """Against the formulas in float64; the kernels are fused, and see the memory of a weight as it lies there."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last))
    module = nn.Module()
    module.weight = weight
    optimizer = build_optimizer([module], OptimizerSettings(name=name, lr=0.1, weight_decay=0.01), torch.device("cpu"))
    assert optimizer.param_groups[0]["fused"]
    value = weight.detach().double().numpy()
    first, second = np.zeros_like(value), np.zeros_like(value)
    for step in range(1, 4):
        direction = torch.randn(4, 3, 5, 5)  # the usual layout, as some backward passes give it
        optimizer.zero_grad()
        (weight * direction).sum().backward()
        optimizer.step()
        gradient = direction.double().numpy()
        if name == "sgd":
            gradient = gradient + 0.01 * value
            first = gradient if step == 1 else 0.9 * first + gradient
            value = value - 0.1 * first
        else:
            value = value * (1 - 0.1 * 0.01)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            size = np.sqrt(second / (1 - 0.999**step)) + 1e-8
            value = value - 0.1 * first / (1 - 0.9**step) / size
    np.testing.assert_allclose(weight.detach().numpy(), value, rtol=1e-4, atol=1e-5)


def test_time_between_rows_is_shared_out(monkeypatch: pytest.MonkeyPatch):
    """Of 100 s 8 do not count as training, and 23 are the teacher's."""
    now = [1000.0]
    monkeypatch.setattr("understudy.train.meter.time.monotonic", lambda: now[0])
    meter = Meter(torch.device("cpu"), 16, 40)
    for block, seconds in ((meter.paused, 8), (meter.in_teacher, 23)):
        with block():
            now[0] += seconds
    now[0] += 69
    meter._losses = [{"total": 1.0}] * 4  # as four steps leave them
    row = meter.row(4)
    assert row["images_per_s"] == pytest.approx(4 * 16 / 92)
    assert row["teacher_share"] == pytest.approx(23 / 92)
    assert row["eta_s"] == pytest.approx(36 / 4 * 92)
