"""The page of a comparison, and what its runs allow one to say: means over seeds, paired differences to the best."""

import math
import statistics as plain
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.report.numbers import count, duration
from understudy.report.protocols import Displays, split, teacher_key

LEVEL = 0.95


@dataclass(frozen=True)
class Figure:
    """One column of the table; larger is better in all of them.

    The key is that of a cell's figures; a sentence calls it by its phrase, with so many digits after the point. `space`
    says that it needs a student in the teacher's space.
    """

    key: str
    title: str
    phrase: str
    digits: int = 1
    space: bool = False


FIGURES = (
    Figure("student.knn.top1@10", "10-NN, %", "10-NN accuracy of the backbone"),
    Figure("student.linear.top1", "linear, %", "linear-probe accuracy of the backbone"),
    Figure("student.linear_sgd.top1", "linear SGD, %", "linear-probe accuracy (SGD protocol) of the backbone"),
    Figure("student.fidelity.overlap@11", "11-NN shared, %", "share of the teacher's 11 nearest test images"),
    Figure("student_embed.asymmetric_knn.top1@10", "asym. 10-NN, %", "10-NN accuracy in the teacher's bank", 1, True),
    Figure("student_embed.fidelity.overlap@11", "embed shared, %", "share of the 11 nearest, of the embedding"),
    Figure("student_embed.fidelity.row_cosine", "row cos", "row cosine", 3, True),
    Figure("student_embed.fidelity.column_cosine", "col cos", "column cosine", 3, True),
)


def quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution with 1 or more degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % confidence interval of a mean by Student's t; None for fewer than two values."""
    n = len(values)
    return quantile((1 + LEVEL) / 2, n - 1) * plain.stdev(values) / math.sqrt(n) if n > 1 else None


def compared_figures(variants: Sequence[Mapping[str, Any]], protocols: Mapping[str, Any]) -> list[Figure]:
    """The columns: `FIGURES`, then what else stands for a protocol by its display, of the backbone.

    `variants` are rows of comparison.json with their `cells`, `protocols` how evaluation.json shows their protocols.
    """
    displays = Displays.of([{"protocols": protocols}])
    metrics: dict[str, dict[str, None]] = {}
    for name in (name for variant in variants for cell in variant["cells"] for name in cell["figures"]):
        model, key, metric = name.split(".", 2)
        if model == "student":
            metrics.setdefault(key, {})[metric] = None
    figures = {figure.key: figure for figure in FIGURES}
    for key in displays.ordered(metrics):
        display, target = displays.display(key), split(key)[1]
        standing = [metric for metric in display.compared_in(list(metrics[key])) if not display.less_is_better(metric)]
        for metric in standing:
            title = displays.label(key, metric, alone=len(standing) == 1).replace("\n", ", ")
            phrase = f"{display.title} ({display.metric_title(metric)}){f' on {target}' if target else ''}, backbone"
            percent = display.in_percent(metric)
            figure = Figure(f"student.{key}.{metric}", title + ", %" * percent, phrase, 1 if percent else 3)
            figures.setdefault(figure.key, figure)
    return list(figures.values())


def statistics(variants: Sequence[Mapping[str, Any]], protocols: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison's cells say together; arguments are those of `compared_figures`.

    Returns:
        "best": `{figure: label}`, the highest mean among the variants with most seeds; "summary": `{label: {figure:
        {mean, std, n, half_width, difference}}}`, std with n - 1 (None for one seed). "difference" is to the best,
        paired by seed: {mean, low, high, n}, low and high None for one pair; None for the best itself.
    """
    values: dict[str, dict[str, dict[int, float]]] = {}
    for figure in compared_figures(variants, protocols):
        for variant in variants:
            for cell in variant["cells"]:
                if figure.key in cell["figures"] and (variant["in_teacher_space"] or not figure.space):
                    by_seed = values.setdefault(figure.key, {}).setdefault(variant["label"], {})
                    by_seed[cell["seed"]] = cell["figures"][figure.key]
    best: dict[str, str] = {}
    summary: dict[str, dict[str, Any]] = {variant["label"]: {} for variant in variants}
    for key, rows in values.items():
        most = max(len(seeds) for seeds in rows.values())
        whole = {label: plain.fmean(seeds.values()) for label, seeds in rows.items() if len(seeds) == most}
        best[key] = max(whole, key=lambda label: whole[label])
        for label, seeds in rows.items():
            sample = list(seeds.values())
            summary[label][key] = {
                "mean": plain.fmean(sample), "std": plain.stdev(sample) if len(sample) > 1 else None, "n": len(sample),
                "half_width": half_width(sample),
                "difference": None if label == best[key] else paired(seeds, rows[best[key]]),
            }  # fmt: skip
    return {"best": best, "summary": summary}


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, float | None] | None:
    """The mean difference over the seeds that both have, with its interval; None where they share none."""
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return None
    mean, half = plain.fmean(differences), half_width(differences)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"mean": mean, "low": low, "high": high, "n": len(differences)}


def measured(comparison: Mapping[str, Any]) -> list[Figure]:
    """The figures that some run has."""
    figures = compared_figures(comparison["variants"], comparison["about"]["protocols"])
    return [figure for figure in figures if figure.key in comparison["best"]]


def table_of(comparison: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table in plain text: the teacher, then each variant, mean and standard deviation."""
    figures = measured(comparison)
    headings = ["", *(figure.title for figure in figures), "n", "lr", "seconds", "teacher / student forwards"]
    rows = []
    bounds = teacher_figures(comparison, figures)
    if any(bounds.values()):
        rows.append(["teacher", *(bounds[figure.key] for figure in figures), "", "", "", ""])
    for variant in comparison["variants"]:
        entries = comparison["summary"][variant["label"]]
        n = max((entry["n"] for entry in entries.values()), default=0)
        costs = ("seconds", "teacher_forwards", "student_forwards")
        time, teacher, student = (mean_cost(variant, name) for name in costs)
        seconds = "" if time is None else duration(time)
        forwards = "" if teacher is None or student is None else f"{count(teacher)} / {count(student)}"
        cells = [format_mean(figure, entries.get(figure.key)) for figure in figures]
        edge = {"low": " <", "high": " >", "": ""}[variant["edge"]]
        rate = "" if variant["lr"] is None else f"{variant['lr']:.3g}{edge}"
        rows.append([variant["label"], *cells, str(n), rate, seconds, forwards])
    return headings, rows


def format_mean(figure: Figure, entry: Mapping[str, Any] | None) -> str:
    """Mean and standard deviation of one cell of the table."""
    if entry is None:
        return ""
    std = "" if entry["std"] is None else f" ± {entry['std']:.{figure.digits}f}"
    return f"{entry['mean']:.{figure.digits}f}{std}"


def teacher_figures(comparison: Mapping[str, Any], figures: Sequence[Figure]) -> dict[str, str]:
    """The teacher's own figures; asymmetric kNN is bounded by its kNN."""
    texts = {}
    for figure in figures:
        _, key, metric = figure.key.split(".", 2)
        value = comparison["teacher"].get(teacher_key(key), {}).get(metric)
        texts[figure.key] = f"{value:.{figure.digits}f}" if isinstance(value, int | float) else ""
    return texts


def mean_cost(variant: Mapping[str, Any], name: str) -> float | None:
    """Mean over the finished cells."""
    known = [cell[name] for cell in variant["cells"] if cell.get(name) is not None]
    return plain.fmean(known) if known else None


def footnotes(comparison: Mapping[str, Any]) -> list[str]:
    """What must be said under the table."""
    about, notes = comparison["about"], []
    for edge, sign, word in (("low", "<", "smallest"), ("high", ">", "largest")):
        names = [variant["label"] for variant in comparison["variants"] if variant["edge"] == edge]
        if names:
            notes.append(
                f"{sign} The best learning rate of {', '.join(names)} is the {word} of the {about['trials']} tried, so "
                f"a better one may lie beyond. --trials {about['trials'] + 2} goes on from here."
            )
    astray = [variant["label"] for variant in comparison["variants"] if not variant["in_teacher_space"]]
    if astray:
        notes.append(
            f"{', '.join(astray)}: the embedding is not meant to lie in the teacher's space, so figures of that space "
            "are left empty."
        )
    if about["teacherless"]:
        notes.append(f"{', '.join(about['teacherless'])}: trained without the teacher and without neighbors.")
    if about["teacher_views"] == "recorded":
        notes.append("Teacher views are recorded and shared: its forwards are those that a run still had to make.")
    for variant in comparison["variants"]:
        if variant["failure"]:
            notes.append(f"{variant['label']}: {variant['failure']}")
        notes += [f"{variant['label']}, learning rate {trial['lr']:.3g}: {trial['failure']}"
                  for trial in variant["trials"] if trial["failure"]]  # fmt: skip
        notes += [f"{variant['label']}, seed {cell['seed']}: {cell['failure']}"
                  for cell in variant["cells"] if cell["failure"]]  # fmt: skip
        for sentence in dict.fromkeys(note for cell in variant["cells"] for note in cell["notes"]):
            notes.append(f"{variant['label']}: {sentence}")
    return notes
