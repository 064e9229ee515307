"""`understudy demo`: the whole flow on scikit-learn's handwritten digits, with the two controls that keep it honest.

No weights exist offline, so a teacher is trained first, without labels. Then one student is distilled by the default
method and by the paper's, and the same student is trained, for as many image passes, without the space term (weight 0)
and without any teacher (MoCo-v2).
"""

from pathlib import Path
from typing import Any

from understudy.artifacts import Run
from understudy.errors import Stopped
from understudy.pipeline import RunSettings, evaluate_stage, report_stage, train_stage
from understudy.settings import resolve

TEACHER, STUDENT = "small:resnet14", "small:resnet8x0.4"
PASSES = 15
MOCO = {"name": "moco", "queue": 1024, "momentum": 0.99}
"""The queue must be smaller than the 1,437 images, and an average over 1,000 steps longer than the run lags behind."""


def demo(out: Path, *, seed: int = 0, device: str = "auto") -> tuple[list[Run], Path]:
    """Train a teacher, distill it, train the controls, evaluate all on held-out digits, write the report.

    Args:
        out: folder of the runs and of their store; a second call finds them done.
        seed: seed of everything random.
        device: where to compute.

    Returns:
        The runs (the default method, the paper's, weight 0, without teacher) and the path of the report.

    Raises:
        Stopped: training was asked to stop and left a checkpoint; call again to go on.
    """
    common: dict[str, Any] = {
        "data": "digits:train", "eval_data": "digits", "seed": seed, "device": device, "store": str(out / "store"),
        "batch_size": 64, "workers": 0, "probes": 3, "head_hidden": 128,
    }  # fmt: skip
    teacher = _run(out / "teacher", student=TEACHER, method=MOCO, passes=PASSES, **common)
    distilled = {"student": STUDENT, "passes": PASSES, **common}
    spec = f"run:{teacher.path}"
    runs = [
        _run(out / "coss_centered", teacher=spec, **distilled),
        _run(out / "coss", teacher=spec, method={"name": "coss"}, **distilled),
        _run(out / "weight-0", teacher=spec, method={"name": "coss", "weight": 0.0}, **distilled),
        _run(out / "no-teacher", method=MOCO, **distilled),
    ]
    return runs, report_stage(runs, out / "report.html")


def _run(out: Path, **given: Any) -> Run:
    settings = resolve(RunSettings, {"out": str(out), **given})
    finished = train_stage(settings)
    if finished is None:
        raise Stopped
    evaluate_stage(finished, settings)
    return finished
