"""The CoSS loss against the naive expression, forward and backward, in turn in one process.

    python benchmarks/loss.py

Naive is the formula as one would type it: torch's `cosine_similarity` along rows and along columns. Prints
milliseconds of each (median over rounds) and the ratio naive / ours at several sizes; above 1 ours is faster. With
--device cuda both are timed by events.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from understudy.hardware import hardware
from understudy.losses.coss import coss

SIZES = ((256, 64), (256, 512), (256, 2048), (1024, 1024), (4096, 768))


def naive(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The formula as one would type it."""
    return -F.cosine_similarity(student, teacher, dim=1).mean() - F.cosine_similarity(student, teacher, dim=0).mean()


def ours(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The same through the package."""
    return coss(student, teacher).total


def seconds(loss: Callable[..., torch.Tensor], student: torch.Tensor, teacher: torch.Tensor, times: int) -> float:
    """Mean seconds of forward and backward."""
    waits = torch.cuda.synchronize if student.is_cuda else lambda: None
    waits()
    begun = time.perf_counter()
    for _ in range(times):
        student.grad = None
        loss(student, teacher).backward()
    waits()
    return (time.perf_counter() - begun) / times


def main() -> None:
    """Time both in turn at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    device = torch.device(options.device)
    print(hardware(device))
    print("| B | D | naive ms | ours ms | naive / ours | largest difference of gradients |\n|---|---|---|---|---|---|")
    for rows, width in SIZES:
        generator = torch.Generator().manual_seed(0)
        student, teacher = (torch.randn(rows, width, generator=generator).to(device) for _ in range(2))
        student.requires_grad_()
        naive(student, teacher).backward()
        expected = student.grad.clone()
        student.grad = None
        ours(student, teacher).backward()
        difference = float((student.grad - expected).abs().max() / expected.abs().max())
        times = max(3, 2_000_000 // (rows * width))
        pairs = [(seconds(naive, student, teacher, times), seconds(ours, student, teacher, times)) for _ in range(3)]
        pairs = [
            (seconds(naive, student, teacher, times), seconds(ours, student, teacher, times))
            for _ in range(options.rounds)
        ]
        first, second = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        ratio = statistics.median(one / other for one, other in pairs)
        print(
            f"| {rows} | {width} | {1000 * first:.3f} | {1000 * second:.3f} | {ratio:.2f} | {difference:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
