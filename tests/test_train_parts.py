"""Schedule, optimiser, settings and averages: numbers a person can check."""

import math

import pytest
import torch
from torch import nn

from understudy.config import resolve
from understudy.errors import ConfigError
from understudy.train.loop import follow
from understudy.train.schedule import build_optimiser, learning_rate
from understudy.train.settings import OptimiserSettings, TrainSettings
from understudy.train.signals import verdict


def test_learning_rate_warms_up_then_follows_a_cosine_to_zero():
    settings = OptimiserSettings(name="sgd", lr=1.0)
    assert [learning_rate(step, 12, 2, settings) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert learning_rate(7, 12, 2, settings) == pytest.approx(0.5)
    assert learning_rate(11, 12, 2, settings) == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))
    assert learning_rate(11, 12, 0, OptimiserSettings(name="sgd", lr=1.0, schedule="constant")) == 1.0


def test_each_optimiser_has_its_own_peak_unless_one_is_written():
    assert OptimiserSettings(name="sgd").peak == 0.03
    assert OptimiserSettings(name="adamw").peak == 0.002
    assert OptimiserSettings(name="adamw", lr=0.5).peak == 0.5


def test_sgd_decays_everything_and_adamw_spares_vectors():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    sgd = build_optimiser([module], OptimiserSettings(name="sgd"), torch.device("cpu"))
    assert len(sgd.param_groups) == 1 and sgd.param_groups[0]["weight_decay"] == 1e-4
    adamw = build_optimiser([module], OptimiserSettings(name="adamw"), torch.device("cpu"))
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
    with pytest.raises(ConfigError, match="Unknown setting 'optimiser.lrr'. Did you mean 'lr'"):
        resolve(TrainSettings, {"data": "digits", "student": "x", "optimiser.lrr": 1})
    with pytest.raises(ConfigError, match="'student' is required"):
        resolve(TrainSettings, {"data": "digits"})
    with pytest.raises(ConfigError, match="'batch_size' must be int; got 'many'"):
        resolve(TrainSettings, {"data": "digits", "student": "x", "batch-size": "many"})
    with pytest.raises(ConfigError, match="one of auto, fp32, bf16, fp16; got 'fp8'"):
        resolve(TrainSettings, {"data": "digits", "student": "x", "precision": "fp8"})


def test_verdicts_are_plain():
    assert "collapsed" in verdict({"spread": 0.00001, "knn_relative": 90.0})
    assert "97.5 % of the teacher's kNN" in verdict({"spread": 0.4, "knn_relative": 97.5})
    assert "12.0 % of the 10 nearest" in verdict({"spread": 0.4, "overlap@10": 12.0})
