"""Training runs of seconds on digits, as processes of the command line: what several test files share."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import launch

TINY = [
    "--data", "digits:train", "--limit", "320", "--eval-data", "digits", "--student", "small:resnet8x0.25",
    "--batch-size", "64", "--workers", "0", "--probes", "2", "--head-hidden", "32", "--device", "cpu",
]  # fmt: skip


# A teacher that costs nothing and is not random: the low frequencies of a gray thumbnail.
TEACHER = """
import math
import torch

class ToyEncoder(torch.nn.Module):
    contract = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}

    def __init__(self):
        super().__init__()
        place = (torch.arange(8) + 0.5) * math.pi / 8
        waves = torch.stack([torch.outer((u * place).cos(), (v * place).cos()) for u in range(5) for v in range(5)])
        self.register_buffer("waves", waves[1:].flatten(1))

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 8).flatten(1) @ self.waves.T

def no_norm():  # a student without BatchNorm: its batch statistics would differ between process counts
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()
    )

def transformer(width=24, heads=3):
    from timm.models.vision_transformer import VisionTransformer
    torch.manual_seed(0)
    module = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=width, depth=2, num_heads=heads, mlp_ratio=2, num_classes=0
    )
    module.norm.weight.data += torch.linspace(-0.5, 0.5, width)  # as a teacher: it did leave its initial values
    module.contract = ToyEncoder.contract
    return module

def smaller_transformer():
    return transformer(16, 2)

def poisonous():
    module = no_norm()
    seen = []
    def spoil(module, inputs, output):
        seen.append(1)
        return output * float("nan") if module.training and len(seen) > 4 else output
    module.register_forward_hook(spoil)
    return module
"""


def command(workplace: Path, out: str, *more: str) -> list[str]:
    """A run of the toy teacher in `workplace`, where thumbnail.py lies: thirty steps, into the folder `out`."""
    given = [*TINY, "--teacher", "python:thumbnail:ToyEncoder", "--store", "store", "--passes", "6", "--out", out]
    return [sys.executable, "-m", "understudy", "train", *given, *more]


def train(workplace: Path, out: str, *more: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = launch.run(command(workplace, out, *more), cwd=workplace, capture_output=True, text=True, timeout=240)
    assert done.returncode == expect, done.stderr
    return done


def assert_same(workplace: Path, out: str, expected: dict) -> None:
    found = load_file(workplace / out / "student.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
