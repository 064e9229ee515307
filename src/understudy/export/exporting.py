"""From a run to its exports: write, run, compare, and keep only what agrees with the student."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from understudy import __version__
from understudy.artifacts import FORMAT, Run, read_json, room_on_disk, write_json, write_text
from understudy.errors import MissingDependency, StoreError, UnderstudyError, first_line
from understudy.export.card import card_of
from understudy.export.held_out import draw_calibration, draw_held_out
from understudy.export.parity import HeldOut, judge, latency, size_of
from understudy.export.settings import ExportSettings
from understudy.export.target import Exportable, ExportError, NotRunHere, Target
from understudy.export.targets import TARGETS
from understudy.models.student import load_student

THREADS = 2
"""Threads of every runtime when its latency is measured."""

RESIZED = 1e-3
"""Tolerance where the graph resizes pictures itself: a few pixels in ten thousand are rounded the other way."""


def export_student(run: Run, settings: ExportSettings, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Write a run's student to each target, judge it there by its own runtime, and record the figures.

    Args:
        run: a finished run.
        settings: targets and how they are judged.
        say: called with a line on each target.

    Returns:
        What export.json holds: "student" (its latency and size) and "targets", name -> figures, or "failed" with the
        sentence. A target that failed leaves what was there before.

    Raises:
        StoreError: no finished student, or its held-out images cannot be found.
        MissingDependency: a target needs a package that is not installed; nothing was written.
    """
    chosen = [(TARGETS[name], argument) for name, _, argument in (text.partition(":") for text in settings.to)]
    for kind, _ in chosen:
        refuse_missing(kind)
    student = load_student(run.path)
    root = Path(settings.out) if settings.out else run.path / "export"
    root.mkdir(parents=True, exist_ok=True)
    held_out = draw_held_out(run, student, settings)
    calibration = functools.partial(draw_calibration, run, student, settings)
    record = _earlier(root) | {
        "format": FORMAT, "understudy": __version__,
        "held_out": {"data": held_out.name, "images": len(held_out.prepared)},
        "machine": {"processor": platform.processor() or platform.machine(), "threads": THREADS},
    }  # fmt: skip
    record.setdefault("targets", {})
    threads = torch.get_num_threads()
    torch.set_num_threads(min(THREADS, os.cpu_count() or 1))
    try:
        record["student"] = {"bytes": size_of(run.weights_path), **_own_latency(student, held_out)}
        for kind, argument in chosen:
            target = kind(Exportable(student, run, settings, calibration, argument))
            try:
                figures = _one(target, held_out, root)
            except UnderstudyError as error:
                figures = {"failed": str(error)}
            record["targets"][target.name] = figures
            write_json(root / "export.json", record)
            say(_line(target, figures))
    finally:
        torch.set_num_threads(threads)
    return record


def refuse_missing(target: type[Target]) -> None:
    """Raise `MissingDependency` if a package that the target needs is not installed."""
    for package in target.needs:
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(
                f"The target '{target.name}' needs {package}: pip install 'understudy[{target.extra}]'."
            )


def _earlier(root: Path) -> dict[str, Any]:
    """The figures of targets exported before, which stay."""
    path = root / "export.json"
    if not path.is_file():
        return {}
    table = read_json(path)
    if not isinstance(table, dict) or not isinstance(table.get("targets"), dict):
        raise StoreError(f"{path} is not what an export wrote. Move it away, then export again.")
    return {"targets": table["targets"]}


def _one(target: Target, held_out: HeldOut, root: Path) -> dict[str, Any]:
    """Write one target beside its place, judge it, and move it there."""
    export, place, unfinished = target.export, root / target.place, root / ".partial"
    written = unfinished / target.place  # some writers look at the end of the name
    _remove(unfinished)
    unfinished.mkdir()
    try:
        # Converters draw bars and warn of versions; what matters is judged below.
        with room_on_disk(written), contextlib.redirect_stderr(io.StringIO()):
            figures: dict[str, Any] = {"file": target.place, "runtime": target.runtime, **target.write(written)}
            if written.is_dir():
                write_text(written / "README.md", card_of(export.run, export.settings, export.argument or None))
        figures["bytes"] = size_of(written)
        figures |= _judged(target, held_out, written)
        _remove(place)
        os.replace(written, place)
    except UnderstudyError:
        raise
    except Exception as error:  # of whichever library writes or runs the target
        raise ExportError(
            f"{target.name} cannot hold {export.student.spec}: {first_line(error)} ({type(error).__name__}). The "
            "targets 'folder' and 'torch' hold any student."
        ) from error
    finally:
        _remove(unfinished)
    return figures | target.deliver(place)


def _judged(target: Target, held_out: HeldOut, written: Path) -> dict[str, Any]:
    export = target.export
    pictures = target.takes_pictures and export.settings.with_preprocessing
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars again
            runner = target.open(written)
    except NotRunHere as error:
        return {"run": False, "why": f"converted, not run: {error}"}
    compared = judge(runner, held_out, pictures=pictures)
    bound = export.settings.tolerance or (RESIZED if pictures else target.tolerance)
    wanted = ("features",) if target.backbone_only else export.outputs
    for name in wanted:
        agreement = compared[name]["centered_cosine_mean"]
        if agreement is None or 1 - agreement > bound:
            figures = ", ".join(f"{key} {value}" for key, value in compared[name].items())
            raise ExportError(
                f"{target.name} is not the student: its {name} of {len(held_out.prepared)} images has {figures}. 1 - "
                f"centered cosine may be {bound:g} (--tolerance). Nothing was kept."
            )
    first = next(held_out.batches(pictures))[:1]
    return {
        "run": True, "tolerance": bound, "parity": {name: compared[name] for name in wanted},
        "latency": latency(lambda: runner(first)),
    }  # fmt: skip


def _own_latency(student: Any, held_out: HeldOut) -> dict[str, Any]:
    image = torch.from_numpy(held_out.prepared[:1])
    with torch.inference_mode():
        return {"latency": latency(lambda: student.embed(image))}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _line(target: Target, figures: dict[str, Any]) -> str:
    if "failed" in figures:
        return f"{target.name}: {figures['failed']}"
    size = f"{figures['bytes'] / 2**20:.1f} MiB"
    if not figures["run"]:
        return f"{target.name}: {size}, {figures['why']}"
    name, parity = next(iter(figures["parity"].items()))
    overlap = next((f", {value:.1f} % of neighbors" for key, value in parity.items() if key.startswith("overlap")), "")
    kept = figures.get("float_layers")
    rest = f"; {len(kept)} of {figures['layers']} layers left in float" if kept else ""
    return (
        f"{target.name}: {size}, {figures['latency']['median_ms']:.2f} ms an image; {name}: cosine "
        f"{parity['cosine_mean']:.6f} (least {parity['cosine_min']:.6f}){overlap}{rest}"
    )
