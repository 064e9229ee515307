"""Every export of a run: parity, size, and the time of an image alone beside the student in PyTorch and the teacher.

    python benchmarks/exports.py runs/first
    python benchmarks/exports.py runs/first --to onnx,onnx-int8 --images 512 --trust-code my_models

Prints a table in Markdown. Figures are those of `understudy export`, written into a temporary folder: each target is
run by its own runtime on held-out images of the run. Times are medians of batches of one on two threads, quartiles in
brackets, all in one process, the teacher first; the machine must have nothing else to do. The teacher is that of the
run, with its input; its size is that of its parameters in float32. "Features" stands beside targets that hold no head.
Targets whose packages are not installed are listed below the table, as are those that failed; `hub`, which is `folder`
and an upload, is left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from understudy.artifacts import Run
from understudy.errors import MissingDependency
from understudy.export.exporting import THREADS, export_student, refuse_missing
from understudy.export.parity import latency
from understudy.export.settings import ExportSettings
from understudy.export.targets import TARGETS
from understudy.hardware import hardware
from understudy.models.contract import Contract
from understudy.models.teacher import build_teacher
from understudy.models.trust import require_trust, trusting

HEADINGS = (
    "", "runtime", "MiB", "of the student", "ms an image", "student's / this", "teacher's / this", "cosine, mean",
    "cosine, least", "neighbors shared, %",
)  # fmt: skip


def teacher_figures(run: Run) -> dict[str, Any]:
    """Size and latency of the run's teacher; empty for a run without one."""
    if not (origin := run.student.get("teacher")):
        return {}
    require_trust(origin["spec"], run.student_path)
    contract = Contract.from_table(origin["contract"])
    teacher = build_teacher(
        origin["spec"], mean=contract.mean, std=contract.std, image_size=contract.size,
        output=origin.get("output", "pooled"), precision="fp32",
    )  # fmt: skip
    image = torch.zeros(1, 3, contract.size, contract.size)
    with torch.inference_mode():
        return {
            "runtime": "onnxruntime" if origin["spec"].startswith("onnx:") else "PyTorch",
            "bytes": 4 * int(origin["parameters"]), "latency": latency(lambda: teacher.features(image)),
        }  # fmt: skip


def row(name: str, figures: Mapping[str, Any], student: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[str]:
    """One line of the table."""
    time, size, compared = figures.get("latency"), figures["bytes"], dict(figures.get("parity", {}))
    output = next(iter(compared), "")
    parity = compared.get(output, {})
    cells = [f"{name}, features" if output == "features" else name, figures["runtime"], f"{size / 2**20:.2f}"]
    cells.append(f"{size / student['bytes']:.2f}")
    if time is None:
        return [*cells, figures["why"], *[""] * 5]
    cells.append("{median_ms:.3g} ({low_ms:.3g} to {high_ms:.3g})".format(**time))
    ratios = (other["latency"]["median_ms"] / time["median_ms"] if other else None for other in (student, teacher))
    shared = next((f"{value:.1f}" for key, value in parity.items() if key.startswith("overlap@")), "")
    cells += ["" if ratio is None else f"{ratio:.3g}" for ratio in ratios]
    return [*cells, *(f"{parity[key]:.6f}" if key in parity else "" for key in ("cosine_mean", "cosine_min")), shared]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--to", default=",".join(name for name in TARGETS if name != "hub"))
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--trust-code", action="append", default=[], metavar="MODULE")
    options = parser.parse_args(arguments)
    run, absent, chosen = Run(options.run), [], []
    for name in options.to.split(","):
        try:
            refuse_missing(TARGETS.named(name))
            chosen.append(name)
        except MissingDependency as error:
            absent.append(str(error))
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with trusting(options.trust_code), tempfile.TemporaryDirectory() as folder:
            teacher = teacher_figures(run)
            settings = ExportSettings(to=tuple(chosen), out=folder, images=options.images)
            record = export_student(run, settings, lambda line: print(line, file=sys.stderr))
        machine = hardware(torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    student = {"runtime": "PyTorch", **record["student"]}
    print(f"{machine}, {record['held_out']['images']} images of {record['held_out']['data']}\n")
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    rows = {"teacher": teacher, "student": student, **record["targets"]}
    for name, figures in rows.items():
        if figures and "failed" not in figures:
            print(f"| {' | '.join(row(name, figures, student, teacher))} |")
    failed = [f"{name}: {figures['failed']}" for name, figures in record["targets"].items() if "failed" in figures]
    print("".join(f"\n{line}" for line in [*absent, *failed]))


if __name__ == "__main__":
    main()
