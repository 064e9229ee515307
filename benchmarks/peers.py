"""The whole training step at 224 pixels, live and recorded, against a plain PyTorch loop and against lightly-train.

    python benchmarks/peers.py                                      # Imagenette, on this machine's cores
    python benchmarks/peers.py --teacher mobilenetv1_100 --student mobilenetv3_small_100 --batch-size 64 --workers 1
    python benchmarks/peers.py --device cuda --teacher resnet50 --student resnet18 --batch-size 256 --workers 16

The same photographs, teacher, student, batch size, number of workers and threads for all; networks from timm with
random weights, because only time is measured. Each side runs in a process of its own, in turn, several rounds; images/s
count from its third step to its last, start-up left out. Images a processor second (workers counted) stand beside them,
and hold on a machine that is busy with other things too. On a GPU every side but the peer's computes in bf16, the
teacher too (`--teacher-precision bf16` of ours), and the most memory that its tensors held is told; the clock waits for
the GPU at both ends.

- plain: `ImageFolder`, torchvision's transforms of the MoCo-v2 recipe, `DataLoader`, teacher without gradients, student
  with a linear head, cosines of rows and columns, AdamW. What one would write in an afternoon, and no more.
- lightly: lightly-train's default distillation, run as its documentation says, in an environment of its own that is
  made in a temporary folder (--lightly PYTHON uses one that is there). Its recipe is its own: lighter augmentation, no
  blur to speak of, and in addition a loss over patches. Steps are timed by a hook on the teacher's first layer.
- live, recorded: `train`, the loop of this package, with its default views; recorded after its pool is full.
- compiled: live with `--compile true`; compiling, which comes before the first step, is left out.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared"
FIRST = 2
"""Steps before the clock starts."""

Stamp = tuple[float, float]
Found = tuple[float, float, float]
"""Images/s on the wall and of processor time, and MiB of GPU memory (0 where there is none, or it is not known)."""


def stamp() -> Stamp:
    """Seconds on the wall, and of processor time of this process and its workers."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    ticks = 0
    for process in ("self", *children):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # a worker has just ended
            continue
        ticks += int(fields[11]) + int(fields[12])
    return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK")


def mark(stamps: list[Stamp], options: argparse.Namespace) -> None:
    """The beginning of a step; the first and the last that count wait for what a GPU still has to do."""
    import torch

    if options.device != "cpu" and len(stamps) in (FIRST, options.steps):
        torch.cuda.synchronize()
    stamps.append(stamp())


def rate(stamps: list[Stamp], batch: int) -> Found:
    """Images/s from the beginnings of steps: on the wall, and of processor time; and what the GPU held."""
    import torch

    images = (len(stamps) - 1 - FIRST) * batch
    wall, worked = (stamps[-1][i] - stamps[FIRST][i] for i in (0, 1))
    held = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    return images / wall, images / worked, held


def plain(options: argparse.Namespace, folder: Path) -> Found:  # noqa: ARG001
    """The loop one would write."""
    import timm
    import torch
    from torch.nn import functional as F
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224, scale=(0.2, 1.0)),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    loader = torch.utils.data.DataLoader(
        ImageFolder(options.data, transform), batch_size=options.batch_size, shuffle=True, drop_last=True,
        num_workers=options.workers, persistent_workers=options.workers > 0, pin_memory=options.device != "cpu",
    )  # fmt: skip
    teacher = timm.create_model(options.teacher, num_classes=0).eval()
    backbone = timm.create_model(options.student, num_classes=0)
    with torch.no_grad():
        widths = [network(torch.zeros(2, 3, 224, 224)).shape[1] for network in (backbone, teacher)]
    teacher.to(options.device, memory_format=torch.channels_last)
    student = torch.nn.Sequential(backbone, torch.nn.Linear(*widths)).train()
    student.to(options.device, memory_format=torch.channels_last)
    half = torch.autocast(options.device, torch.bfloat16, enabled=options.device != "cpu")
    optimizer = torch.optim.AdamW(student.parameters(), 0.002)
    stamps: list[Stamp] = []
    while len(stamps) <= options.steps:
        for images, _ in loader:
            mark(stamps, options)
            if len(stamps) > options.steps:
                break
            images = images.to(options.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            with half:
                with torch.no_grad():
                    target = teacher(images).float()
                found = student(images).float()
            loss = -F.cosine_similarity(found, target, dim=1).mean() - F.cosine_similarity(found, target, dim=0).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return rate(stamps, options.batch_size)


def ours(options: argparse.Namespace, folder: Path, side: str) -> Found:
    """The loop of this package."""
    way = "recorded" if side == "recorded" else "live"
    import timm
    import torch
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from understudy.artifacts import Run
    from understudy.embed.embedding import Inference, embed
    from understudy.models.contract import Contract
    from understudy.models.encoder import Encoder
    from understudy.models.teacher import Teacher
    from understudy.pipeline import RunSettings, resolve_method
    from understudy.settings import resolve
    from understudy.sources.source import open_source
    from understudy.train.distributed import Processes
    from understudy.train.loop import train
    from understudy.train.setup import TrainingData

    device = torch.device(options.device)
    torch.manual_seed(0)
    network = timm.create_model(options.teacher, num_classes=0)
    with torch.no_grad():
        width = network.eval()(torch.zeros(1, 3, 224, 224)).shape[1]
    spec = f"timm:{options.teacher}"
    backbone = Encoder(network, width, Contract(224), spec, spec, "random, for timing", spec)
    teacher = Teacher(backbone, "fp32" if device.type == "cpu" else "bf16").to(device)
    # Recording is not what is timed: a pool over fewer of the same photographs is full the sooner.
    few = options.steps * options.batch_size // 2 if way == "recorded" else None
    source = open_source(options.data, limit=few)
    store = None
    if way == "recorded":
        store = embed(teacher, source, folder / "store", Inference(device, workers=options.workers), check=False)

    def run(name: str, passes: float) -> None:
        settings = resolve(
            RunSettings,
            {
                "data": options.data, "student": f"timm:{options.student}", "teacher": spec, "head": "linear",
                "neighbors.k": 0, "batch_size": options.batch_size, "passes": passes, "probes": 0,
                "workers": options.workers, "views.teacher": way, "views.pool": 1 if store else 0, "image_size": 224,
                "device": options.device, "compile": side == "compiled",
            },
        )  # fmt: skip
        train(
            resolve_method(settings), Run(folder / name), TrainingData(source, store=store), teacher=teacher,
            processes=Processes(0, 1, device), quiet=True,
        )  # fmt: skip

    if store is not None and not (folder / "filled").exists():
        run("filling", 2)  # every image is then seen at least once
        (folder / "filled").touch()
    stamps: list[Stamp] = []

    def clock(*_: Any) -> None:
        if len(stamps) <= options.steps:
            mark(stamps, options)

    # Once a step, and outside of what may be compiled.
    register_optimizer_step_pre_hook(clock)
    run(f"measured-{time.time_ns()}", (options.steps + 1) * options.batch_size / len(source))
    return rate(stamps, options.batch_size)


LIGHTLY = """
from __future__ import annotations

import json, os, sys, time
from pathlib import Path

import timm, torch
import lightly_train

options = json.loads(sys.argv[1])
teacher = timm.create_model(options["teacher"], num_classes=0)
stamps = []
first = next(part for part in teacher.modules() if isinstance(part, torch.nn.Conv2d))
first.register_forward_pre_hook(lambda *_: stamps.append(stamp()))
if __name__ == "__main__":
    lightly_train.pretrain(
        out=options["out"], data=options["data"], model="timm/" + options["student"], method="distillation",
        method_args={"teacher": teacher}, epochs=options["epochs"], batch_size=options["batch_size"],
        num_workers=options["workers"], accelerator=options["accelerator"], overwrite=True,
    )
    print("STAMPS " + json.dumps(stamps))
"""


def lightly(options: argparse.Namespace, folder: Path) -> Found:
    """The peer, in its own environment."""
    images = sum(len(files) for _, _, files in os.walk(options.data))
    told = {
        "teacher": options.teacher, "student": options.student, "data": options.data, "workers": options.workers,
        "batch_size": options.batch_size, "out": str(folder / "lightly"),
        "accelerator": "cpu" if options.device == "cpu" else "gpu",
        "epochs": -(-(options.steps + 1) * options.batch_size // images),
    }  # fmt: skip
    script = folder / "peer.py"
    script.write_text(LIGHTLY.replace("options = ", f"{inspect.getsource(stamp)}\n\noptions = ", 1))
    command = [options.lightly, str(script), json.dumps(told)]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**inherited, "LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    line = next((line for line in done.stdout.splitlines() if line.startswith("STAMPS ")), None)
    if line is None:
        raise SystemExit(f"lightly-train failed:\n{done.stderr[-3000:]}")
    stamps = json.loads(line.removeprefix("STAMPS "))
    # The teacher may have been tried on an example before training: only the last steps are steps.
    return *rate(stamps[-(options.steps + 1) :], options.batch_size)[:2], 0.0


def environment(folder: Path) -> str:
    """A Python with lightly-train, made for the occasion."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "lightly-train[timm]"], check=True)
    return python


def main() -> None:
    """Every side in turn, several rounds; print rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(SHARED / "data" / "imagenette" / "train"))
    parser.add_argument("--teacher", default="mobilenetv1_100", help="timm name")
    parser.add_argument("--student", default="mobilenetv3_small_100", help="timm name")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=["plain", "lightly", "live", "recorded"])
    parser.add_argument("--lightly", help="a Python that has lightly-train; an environment is made unless given")
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        side, folder = options.measure[0], Path(options.measure[1])
        rates = {"plain": plain, "lightly": lightly}
        found = rates[side](options, folder) if side in rates else ours(options, folder, side)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as name:
        if "lightly" in options.sides and options.lightly is None:
            options.lightly = environment(Path(name) / "environment")
        shown = vars(options) | {"lightly": None, "measure": None}
        print({key: value for key, value in shown.items() if value is not None}, flush=True)
        rates_of: dict[str, list[Found]] = {side: [] for side in options.sides}
        for _ in range(options.rounds):
            for side in options.sides:
                command = [sys.executable, __file__, "--measure", side, name]
                for key in ("data", "teacher", "student", "batch_size", "workers", "device", "steps", "lightly"):
                    if getattr(options, key) is not None:
                        command += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rates_of[side].append(json.loads(done.stdout.splitlines()[-1]))
                wall, worked, held = rates_of[side][-1]
                memory = f", {held:,.0f} MiB of GPU memory" if held else ""
                print(f"{side}: {wall:.1f} images/s, {worked:.1f} a processor second{memory}", flush=True)
    print("| side | images/s | times plain | times lightly-train | a processor s | times plain | times lightly-train |")
    print("|---|---|---|---|---|---|---|")
    for side, found in rates_of.items():
        cells = []
        for clock in (0, 1):
            cells.append(f"{statistics.median(rates[clock] for rates in found):.1f}")
            for other in ("plain", "lightly"):
                pairs = zip(found, rates_of.get(other, []), strict=False)
                ratios = [mine[clock] / theirs[clock] for mine, theirs in pairs]
                cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
        print(f"| {side} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
