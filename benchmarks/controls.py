"""CoSS and its two controls on CIFAR-10: weight 0 (no space term) and k = 0 (random batches), several seeds each.

    python benchmarks/controls.py                       # 10,000 images, 10 passes, 3 seeds: the table in dev/RECORDS.md
    python benchmarks/controls.py --images 500 --passes 1 --seeds 1   # a quick look

One teacher store serves all runs, and the teacher sees each view once: seeds differ in student and batches, not in
views. Finished runs are not repeated, so it can be interrupted. Prints two Markdown tables: mean and standard deviation
over seeds; and what the space term and what neighbors do to every figure of fidelity, as differences paired by seed,
each averaged over the other factor, with 95 % intervals (Student t over seeds).
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from understudy.pipeline import RunSettings, run
from understudy.report.comparison import paired
from understudy.settings import resolve

SHARED = Path(__file__).resolve().parents[2] / "shared"
CONDITIONS = {
    "CoSS": {},
    "weight = 0": {"method.weight": 0.0},
    "k = 0": {"neighbors.k": 0},
    "weight = 0, k = 0": {"method.weight": 0.0, "neighbors.k": 0},
}
COLUMNS = [
    ("student", "knn", "top1@10", "10-NN"),
    ("student", "linear", "top1", "linear"),
    ("student", "fidelity", "overlap@11", "overlap@11"),
    ("student_embed", "knn", "top1@10", "10-NN (embed)"),
    ("student_embed", "fidelity", "row_cosine", "row cosine"),
    ("student_embed", "fidelity", "column_cosine", "column cosine"),
]


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "cifar10")
    parser.add_argument("--teacher", default=f"onnx:{SHARED / 'weights' / 'resnet56_cifar10.onnx'}")
    parser.add_argument("--student", default="small:resnet8")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--passes", type=float, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--judged-on", type=int, default=None, help="images of each half; all of them unless given")
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/controls"))
    options = parser.parse_args()

    runs: dict[str, list[dict]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        for name, settings in CONDITIONS.items():
            given = {
                "data": str(options.data / "train.parquet"), "limit": options.images, "eval_data": str(options.data),
                "teacher": options.teacher, "student": options.student, "passes": options.passes, "seed": seed,
                "probes": 0, "optimizer.lr": options.lr, "views.teacher": "recorded", "views.pool": 0, "views.seed": 0,
                "store": str(options.out / "store"), "evaluation.fidelity.draws": 0,
                "evaluation.limit": options.judged_on,
                "out": str(options.out / f"{name.replace(' ', '').replace(',', '-')}-{seed}"), **settings,
            }  # fmt: skip
            begun = time.monotonic()
            finished = run(resolve(RunSettings, given), quiet=True)
            runs.setdefault(name, []).append(finished.evaluation)
            seconds.setdefault(name, []).append(finished.student["seconds"])
            figure = finished.evaluation["student"]["knn"]["top1@10"]
            print(f"{name}, seed {seed}: 10-NN {figure:.2f}, {time.monotonic() - begun:.0f} s", flush=True)

    teacher = runs["CoSS"][0]["teacher"]
    print(f"\nteacher: 10-NN {teacher['knn']['top1@10']:.2f}, linear {teacher['linear']['top1']:.2f}")
    print(
        f"{options.images:,} images, {options.passes:g} passes, student {options.student}, n = {options.seeds} seeds\n"
    )
    print("| method | " + " | ".join(title for *_, title in COLUMNS) + " | train s |")
    print("|---|" + "---|" * (len(COLUMNS) + 1))
    for name, found in runs.items():
        cells = []
        for model, protocol, figure, _ in COLUMNS:
            cells.append(spread([evaluation[model][protocol][figure] for evaluation in found]))
        print(f"| {name} | " + " | ".join(cells) + f" | {statistics.mean(seconds[name]):.0f} |")

    print("\n| figure | space | teacher | neither | the space term adds | neighbors add |\n|---|---|---|---|---|---|")
    for model in ("student", "student_embed"):
        fidelity = {name: [evaluation[model]["fidelity"] for evaluation in found] for name, found in runs.items()}
        for figure, value in fidelity["CoSS"][0].items():
            if isinstance(value, str) or figure == "images" or figure.endswith("_teacher"):
                continue
            columns = {name: [one[figure] for one in found] for name, found in fidelity.items()}
            own = fidelity["CoSS"][0].get(f"{figure}_teacher")
            print(
                f"| {figure} | {'embed' if model == 'student_embed' else 'backbone'} | "
                f"{'' if own is None else f'{own:.4g}'} | {spread(columns['weight = 0, k = 0'])} | "
                f"{effect(columns, ('CoSS', 'k = 0'), ('weight = 0', 'weight = 0, k = 0'))} | "
                f"{effect(columns, ('CoSS', 'weight = 0'), ('k = 0', 'weight = 0, k = 0'))} |"
            )


def effect(columns: dict[str, list[float]], having: tuple[str, str], lacking: tuple[str, str]) -> str:
    """What a factor adds, averaged over the other one within each seed."""
    sides = [
        {seed: statistics.mean(both) for seed, both in enumerate(zip(*(columns[name] for name in names), strict=True))}
        for names in (having, lacking)
    ]
    found = paired(*sides)
    assert found is not None
    ends = "" if found["low"] is None else f" [{found['low']:+.2g}, {found['high']:+.2g}]"
    return f"{found['mean']:+.2g}{ends}"


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    digits = 3 if max(map(abs, values)) <= 1 else 2
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


if __name__ == "__main__":
    main()
