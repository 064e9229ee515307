"""The model card: what a student is, by its run's own records; nothing that was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy.artifacts import Run
from understudy.export.settings import ExportSettings

MOST = 4
"""Figures of a protocol on the card; all of them are in evaluation.json."""

TITLES = {"teacher": "teacher", "student": "student, backbone", "student_embed": "student, embedding"}


def card_of(run: Run, settings: ExportSettings, repository: str | None = None) -> str:
    """README.md of a student, with the hub's YAML in front.

    Args:
        run: a finished run, evaluated or not.
        settings: the license is stated as it was given, or not at all.
        repository: ORG/NAME under which it can be loaded; the place of the file unless given.
    """
    from huggingface_hub import EvalResult, ModelCardData
    from jinja2 import Environment, PackageLoader, StrictUndefined

    table = run.student
    evaluation = run.evaluation if run.evaluation_path.is_file() else {}
    teacher = (table.get("teacher") or {}).get("spec") or "no teacher"
    sides = [side for side in TITLES if side in evaluation]
    evaluated_on = Path(str(evaluation.get("about", {}).get("eval_data") or "")).name
    results = [
        EvalResult(
            task_type="image-feature-extraction", dataset_type=evaluated_on or "images",
            dataset_name=evaluated_on or "images", metric_type=f"{protocol} {metric}", metric_value=value,
        )
        for protocol, figures in evaluation.get("student", {}).items()
        for metric, value in _shown(figures).items()
    ]  # fmt: skip
    data = ModelCardData(
        license=settings.license, library_name="understudy", pipeline_tag="image-feature-extraction",
        tags=["understudy", "knowledge-distillation", "image-embeddings", f"method:{_method(table)}"],
        model_name=_name(run, repository) if results else None, eval_results=results or None,
    )  # fmt: skip
    environment = Environment(
        loader=PackageLoader("understudy.export"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        autoescape=False, keep_trailing_newline=True,
    )  # fmt: skip
    text = environment.get_template("card.md.j2").render(
        title=_name(run, repository), name=repository or "THIS FOLDER", student=table, teacher=_short(teacher),
        parameters=sum(table["parameters"].values()), contract=table["contract"], method=_method(table),
        in_teacher_space=bool(table.get("in_teacher_space")), passes=table.get("passes", 0.0), seed=table.get("seed"),
        data=_data(table), version=table["understudy"], license=settings.license, evaluated_on=evaluated_on,
        sides=[TITLES[side] for side in sides], figures=_rows(evaluation, sides),
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _name(run: Run, repository: str | None) -> str:
    return (repository or run.path.resolve().name).rpartition("/")[2]


def _method(table: Mapping[str, Any]) -> str:
    return str((table.get("method") or {}).get("name", "unknown"))


def _short(spec: str) -> str:
    """A spec without the folders of this machine."""
    prefix, colon, rest = spec.partition(":")
    return f"{prefix}{colon}{Path(rest).name}" if prefix in ("onnx", "run") else spec.partition("@")[0]


def _data(table: Mapping[str, Any]) -> str:
    data = table.get("data") or {}
    return f"{data.get('images', 0):,} images of {Path(str(data.get('spec', 'unknown'))).name}"


def _shown(figures: Any) -> dict[str, float]:
    """The first figures of a protocol, without the ends of intervals."""
    if not isinstance(figures, Mapping):
        return {}
    plain = {
        name: float(value)
        for name, value in figures.items()
        if isinstance(value, int | float) and not name.endswith(("_low", "_high"))
    }
    return dict(list(plain.items())[:MOST])


def _rows(evaluation: Mapping[str, Any], sides: list[str]) -> list[list[str]]:
    """Protocol and metric, then each side's figure with its interval."""
    found: dict[tuple[str, str], None] = {}
    for side in sides:
        for protocol, figures in evaluation[side].items():
            found |= dict.fromkeys((protocol, metric) for metric in _shown(figures))
    return [
        [f"{protocol} {metric}", *(_cell(evaluation[side].get(protocol), metric) for side in sides)]
        for protocol, metric in found
    ]


def _cell(figures: Any, metric: str) -> str:
    if not isinstance(figures, Mapping) or not isinstance(figures.get(metric), int | float):
        return ""
    low, high = figures.get(f"{metric}_low"), figures.get(f"{metric}_high")
    interval = f" ({low:.4g} to {high:.4g})" if isinstance(low, int | float) and isinstance(high, int | float) else ""
    return f"{figures[metric]:.4g}{interval}"
