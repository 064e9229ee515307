"""The small ResNets: the paper's sizes, and the same numbers as a ResNet-56 that somebody else built and trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from understudy.errors import ModelError
from understudy.models.resnet import small_resnet


# Published totals (He et al. 2016, table 6; akamaster's README) less the classifier's 64 x 10 + 10.
@pytest.mark.parametrize(("name", "total"), [("resnet20", 269_722), ("resnet32", 464_154), ("resnet56", 853_018)])
def test_parameters_are_the_papers(name: str, total: int) -> None:
    assert sum(parameter.numel() for parameter in small_resnet(name).parameters()) == total - 650


@pytest.mark.parametrize(
    ("name", "width"), [("resnet8", 64), ("resnet14x2", 128), ("resnet8x0.5", 32), ("resnet20x1.5", 96)]
)
def test_width_multiplier(name: str, width: int) -> None:
    network = small_resnet(name).eval()
    assert network.width == width
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, width)
    assert network(torch.rand(1, 3, 25, 31)).shape == (1, width)


@pytest.mark.parametrize("name", ["resnet21", "resnet20x", "resnet20x0", "resnet", "vgg", "resnet20x-1"])
def test_unknown_names_are_sentences(name: str) -> None:
    with pytest.raises(ModelError, match="Unknown network 'small:" + name):
        small_resnet(name)


def test_channels_last_changes_nothing() -> None:
    network = small_resnet("resnet8").eval()
    images = torch.rand(2, 3, 32, 32)
    expected = network(images)
    network = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(images.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)


def test_equals_the_published_resnet56(shared: Path) -> None:
    """Weights of a foreign ResNet-56, put into ours convolution by convolution, give the foreign embeddings."""
    from understudy.models.onnx_encoder import OnnxEncoder

    foreign = OnnxEncoder(shared / "weights" / "resnet56_cifar10.onnx")
    from onnx import load, numpy_helper

    graph = load(foreign.file).graph
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    convolutions = [node.input for node in graph.node if node.op_type == "Conv"]
    network = small_resnet("resnet56").eval()
    ours = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(ours) == len(norms) == len(convolutions) == 55
    for conv, norm, (_, weight, bias) in zip(ours, norms, convolutions, strict=True):
        # The file has BatchNorm folded into its convolutions: ours becomes x + bias.
        conv.weight.data = torch.from_numpy(np.array(arrays[weight]))
        norm.running_var.fill_(1 - norm.eps)
        norm.bias.data = torch.from_numpy(np.array(arrays[bias]))
    images = torch.rand(4, 3, 32, 32) * 4 - 2
    with torch.no_grad():
        torch.testing.assert_close(network(images), foreign(images), rtol=1e-3, atol=1e-4)
