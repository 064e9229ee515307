"""What a redesign must not move: bytes of students, embeddings and graphs, and every figure, before and after.

    python tests/goldens.py write FILE.json     # runs everything, keeps the digests
    python tests/goldens.py check FILE.json     # runs everything again, prints each difference; exit 1 if there is one
    python tests/goldens.py check FILE.json coss bingo demo     # these only

All methods run on the handwritten digits at tiny size with 7 of 15 neighbors and with recorded views where they can,
the demo's teacher, student and controls at a third of their length. Digests depend on the processor and on the versions
of torch and numpy: write and check belong on one machine. One thread, so that sums are taken in one order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
NOT_FIGURES = {"cost"}
"""Times of this machine."""

PAIR = """
from timm.models.vision_transformer import VisionTransformer

class Student(VisionTransformer):
    contract = {"size": 40, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}

    def __init__(self):
        super().__init__(
            img_size=40, patch_size=4, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2, num_classes=0
        )
"""
"""A small transformer of as many patches as timm's test_vit, for methods that compare tokens or attention."""


def digest(content: bytes) -> str:
    """The first 16 letters of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def of_weights(path: Path) -> str:
    """Shapes, types and bytes of the tensors of a safetensors file, whatever they are called."""
    from safetensors.numpy import load_file

    return digest(b"".join(sorted(f"{v.dtype} {v.shape}".encode() + v.tobytes() for v in load_file(path).values())))


def of_run(run: Any) -> dict[str, Any]:
    """Weights and figures of a finished run."""
    found: dict[str, Any] = {"student": of_weights(run.weights_path)}
    if run.evaluation_path.is_file():
        evaluation = json.loads(run.evaluation_path.read_text())
        for who in ("teacher", "student", "student_embed"):
            for protocol, figures in evaluation.get(who, {}).items():
                if protocol.split("@")[0] not in NOT_FIGURES:
                    found[f"{who} {protocol}"] = figures
    return found


def of_stores(root: Path) -> dict[str, str]:
    """Arrays of all stores below a folder, by their content: names hold fingerprints, which may change."""
    digests = (f"{path.name} {digest(path.read_bytes())}" for path in root.rglob("*.npy"))
    return {f"array {name}": "" for name in sorted(digests)}


def tiny(method: str, folder: Path, /, **more: Any) -> dict[str, Any]:
    """One method at tiny size: from its teacher to its figures."""
    import torch
    from safetensors.torch import save_file

    from understudy import pipeline

    settings: dict[str, Any] = {
        "data": "digits:train", "limit": 192, "eval_data": "digits", "evaluation.limit": 160, "image_size": 32,
        "passes": 2, "batch_size": 32, "workers": 0, "device": "cpu", "probes": 1, "optimizer.warmup": 0.5,
        "teacher": "python:understudy.models.toy_encoder:ToyEncoder", "student": "small:resnet8x0.25",
        "evaluation.linear_sgd.epochs": 1, "evaluation.protocols": "knn,linear,asymmetric_knn,fidelity,retrieval",
        "method": {"name": method}, "neighbors.k": 7, "neighbors.n": 15, "store": str(folder / "store"),
    }  # fmt: skip
    if method in ("attndistill", "proteus"):
        import timm

        torch.manual_seed(5)
        weights = folder / "teacher.safetensors"
        vit = timm.create_model("test_vit", num_classes=0)
        with torch.no_grad():
            for parameter in vit.parameters():  # norms at their first values are taken for a random network's
                parameter += 0.1 * torch.randn_like(parameter)
        save_file(vit.state_dict(), weights)
        (folder / "golden_pair.py").write_text(PAIR)
        sys.path.insert(0, str(folder))
        settings |= {
            "teacher": f"timm:test_vit@{weights}", "student": "python:golden_pair:Student", "limit": 64,
            "head": {"attndistill": "gelu", "proteus": "norm"}[method],
        }  # fmt: skip
        del settings["image_size"]
    if method in ("moco", "isd"):
        for key in ("teacher", "neighbors.k", "neighbors.n"):
            del settings[key]
        settings["evaluation.protocols"] = "knn,linear"
    settings |= {**more, "out": str(folder / "run")}
    run = pipeline.run(pipeline.resolve_run(settings), quiet=True)
    return of_run(run) | of_stores(folder / "store")


def variants() -> dict[str, dict[str, Any]]:
    """Other ways through the loop than the plain one."""
    return {
        "coss recorded": {"views.teacher": "recorded", "views.pool": 2},
        "coss int8": {"views.teacher": "recorded", "views.dtype": "int8", "views.pool": 2},
        "coss centered": {"method": {"name": "coss_centered"}, "neighbors.k": 0},
        "coss transform": {"transform": "standardize", "head_hidden": 32},
        "coss chunks": {"chunks": 2, "optimizer.name": "sgd", "optimizer.lr": 0.05},
        "seed queue": {"method": {"name": "seed", "queue": 128}},
        "smd views": {"method": {"name": "smd", "views": 2}},
    }  # fmt: skip


def demo(folder: Path) -> dict[str, Any]:
    """The demo's runs at a third of their length, its stores and figures; students of a teacher with 15 neighbors."""
    import understudy.demo

    def run(out: Path, **given: Any) -> Any:
        return plain(out, **given, **({"neighbors": {"k": 15}} if "teacher" in given else {}))

    plain, understudy.demo._run = understudy.demo._run, run
    understudy.demo.PASSES = 5
    runs, _ = understudy.demo.demo(folder / "demo", device="cpu")
    found: dict[str, Any] = {"demo teacher": of_weights(folder / "demo" / "teacher" / "student.safetensors")}
    for run in runs:
        found |= {f"demo {run.path.name} {key}": value for key, value in of_run(run).items()}
    return found | of_stores(folder / "demo" / "store")


def everything(only: tuple[str, ...], keep: Path | None) -> dict[str, Any]:
    """All of it, or what is named: name -> digests and figures; what is ready is kept in a file on the way."""
    import torch

    from understudy.losses import LOSSES

    torch.set_num_threads(1)
    cases = {name: (name, {}) for name in LOSSES} | {
        name: (name.split()[0], more) for name, more in variants().items()
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, (method, more) in cases.items():
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found[name] = tiny(method, Path(folder), **more)
        print(name, found[name].get("student"), file=sys.stderr, flush=True)
        if keep is not None:
            keep.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if only and "demo" not in only:
        return found
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
        found["demo"] = demo(Path(folder))
    return found


def differences(before: dict[str, Any], after: dict[str, Any], place: str = "") -> list[str]:
    """Each place where two trees of figures differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in sorted(set(before) | set(after))
            for line in differences(before.get(key), after.get(key), f"{place} / {key}" if place else key)
        ]
    return [] if before == after else [f"{place}: was {before}, is {after}"]


def main(verb: str, path: str, *only: str) -> int:
    """Write the goldens, or hold today's against them."""
    found = json.loads(json.dumps(everything(only, Path(path) if verb == "write" else None)))
    if verb == "write":
        Path(path).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        return 0
    before = json.loads(Path(path).read_text())
    lines = differences({name: before[name] for name in only or before}, found)
    print(*lines or ["no difference"], sep="\n")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
