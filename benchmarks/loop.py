"""What the training loop costs beyond bare forward and backward passes, and what recorded views save, at 32 x 32.

    python benchmarks/loop.py

Three sides run in this process, in turn, several rounds: teacher forward, student forward and backward on tensors made
beforehand, with neither data nor optimizer (bare); the real loop (`train`: decoding, views, teacher, student, loss,
optimizer, log) over real images with the teacher live; the same with the teacher's embeddings read from a pool that an
earlier run has filled. Prints images/s of each round and the median ratios live / bare (1 would be no overhead) and
recorded / live.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from understudy.artifacts import Run, Store
from understudy.embed.embedding import embed
from understudy.hardware import hardware
from understudy.losses import build
from understudy.models.settings import StudentSettings
from understudy.models.student import build_student
from understudy.models.teacher import Teacher, build_teacher
from understudy.pipeline import RunSettings, resolve_method
from understudy.settings import resolve
from understudy.sources.pixels import decoded
from understudy.sources.source import Source, open_source
from understudy.train.distributed import Processes
from understudy.train.loop import train
from understudy.train.setup import TrainingData

SHARED = Path(__file__).resolve().parents[2] / "shared"


def main() -> None:
    """Measure both in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(SHARED / "data" / "cifar10" / "train.parquet"))
    parser.add_argument("--teacher", default=f"onnx:{SHARED / 'weights' / 'resnet56_cifar10.onnx'}")
    parser.add_argument("--student", default="small:resnet8")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=4096, help="images")
    options = parser.parse_args()

    device = torch.device("cpu")
    print(hardware(device))
    with tempfile.TemporaryDirectory() as folder:
        source = decoded(open_source(options.data, limit=options.limit), Path(folder))
        teacher = build_teacher(options.teacher)
        store = embed(teacher, source, Path(folder) / "store")
        loop_rate(teacher, source, options, Path(folder) / "fill", store)
        overheads, savings = [], []
        for number in range(options.rounds):
            bare = bare_rate(teacher, options)
            live = loop_rate(teacher, source, options, Path(folder) / f"live-{number}")
            recorded = loop_rate(teacher, source, options, Path(folder) / f"recorded-{number}", store, full=True)
            overheads.append(live / bare)
            savings.append(recorded / live)
            print(
                f"round {number}: bare {bare:,.0f} images/s, live {live:,.0f} images/s, recorded {recorded:,.0f} "
                f"images/s; live / bare {live / bare:.3f}, recorded / live {recorded / live:.3f}",
                flush=True,
            )
    for name, ratios in (("live / bare", overheads), ("recorded / live", savings)):
        print(f"median ratio {name}: {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f})")


def bare_rate(teacher: torch.nn.Module, options: argparse.Namespace) -> float:
    """Images/s of teacher forward, student forward, loss and backward on ready tensors."""
    student = (
        build_student(StudentSettings(options.student), teacher.width).to(memory_format=torch.channels_last).train()
    )
    loss = build("coss")
    images = torch.rand(options.batch_size, 3, 32, 32)
    pixels = student.contract.prepare(images).contiguous(memory_format=torch.channels_last)
    begun = 0.0
    for step in range(options.steps + 3):
        if step == 3:
            begun = time.perf_counter()
        target = teacher(images)
        student.zero_grad(set_to_none=True)
        loss(student(pixels), target).total.backward()
    return options.steps * options.batch_size / (time.perf_counter() - begun)


def loop_rate(
    teacher: Teacher, source: Source, options: argparse.Namespace, out: Path, store: Store | None = None,
    *, full: bool = False,
) -> float:  # fmt: skip
    """Images/s of the real loop, without its start-up: between its first and its last row of metrics.

    With a store the teacher's views are recorded beside it, one of each image; `full` says that all of them are.
    """
    settings = resolve_method(
        resolve(
            RunSettings,
            {
                "data": options.data, "student": options.student, "teacher": options.teacher, "neighbors.k": 0,
                "batch_size": options.batch_size, "passes": (options.steps + 3) * options.batch_size / len(source),
                "probes": 0, "workers": 0, "views.teacher": "live" if store is None else "recorded", "views.pool": 1,
            },
        ),
    )  # fmt: skip
    run = Run(out)
    train(
        settings, run, TrainingData(source, store=store), teacher=teacher,
        processes=Processes(0, 1, torch.device("cpu")), quiet=True,
    )  # fmt: skip
    *_, end = run.metrics()
    assert not full or end["teacher_forwards"] == 0, "the teacher ran although the pool was full"
    rows = [row for row in run.metrics() if row["kind"] == "step"]
    first, last = rows[0], rows[-1]
    return (last["step"] - first["step"]) * options.batch_size / (last["time"] - first["time"])


if __name__ == "__main__":
    main()
