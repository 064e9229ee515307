"""Protocol by protocol: what it is and whose, how it was set, on what it was counted, every figure, and its charts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.report import charts
from understudy.report.figures import two_lines
from understudy.report.numbers import duration
from understudy.report.protocols import Display, set_title, split, teacher_key
from understudy.report.results import Measurement, Model, Results
from understudy.report.tables import figures_table, in_words
from understudy.settings import flatten

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "defocus_blur", "gaussian_blur", "glass_blur",
    "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "spatter", "contrast", "saturate",
    "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""Those of ImageNet-C and CIFAR-10-C, the extra four included, in the order of noise, blur, weather, digital."""


@dataclass(frozen=True)
class Axis:
    """A chart of figures whose names differ in one place only, drawn for any protocol that has them.

    The first group of the pattern is the place, in the order of the evaluation unless `places` says it; the title says
    what the places are, the unit what the figures are. `whole` is the protocol whose `top1` stands at a further place
    "all".
    """

    caption: str
    title: str
    unit: str
    pattern: str
    places: Sequence[str] = ()
    whole: str = ""

    def metrics(self, names: Sequence[str]) -> dict[str, str]:
        """Place -> figure, of the figures that there are."""
        matches = [(match[1] or "50-95", name) for name in names if (match := re.fullmatch(self.pattern, name))]
        if self.places:
            matches = [(place, name) for place, name in matches if place in self.places]
            matches.sort(key=lambda match: self.places.index(match[0]))
        return dict(matches)


MODES = ("easy", "medium", "hard")
SIZES = ("small", "medium", "large")
LEVELS = ("50-95", "50", "75")
AXES = (
    Axis("By number of voters", "k", "top-1, %", r"top1@(\d+)"),
    Axis("By labels, frozen", "labels", "top-1, %", r"top1 (\S+)", whole="linear"),
    Axis("By labels, fine-tuned", "labels", "top-1, %", r"finetuned_top1 (\S+)"),
    Axis("mAP by task", "task", "mAP, %", r"map_(\w+)", MODES),
    Axis("Recall", "k", "Recall@k, %", r"recall@(\d+)"),
    Axis("mAP by task, asymmetric", "task", "mAP, %", r"asymmetric_map_(\w+)", MODES),
    Axis("Recall, asymmetric", "k", "Recall@k, %", r"asymmetric_recall@(\d+)"),
    Axis("By severity", "severity", "mean top-1, %", r"severity_(\d)"),
    Axis("Neighbors shared", "k", "shared, %", r"overlap@(\d+)"),
    Axis("AP of boxes by size", "size", "AP, %", r"box_ap_(\w+)", SIZES),
    Axis("AP of boxes by IoU", "IoU, %", "AP, %", r"box_ap(\d*)", LEVELS),
    Axis("AP of masks by size", "size", "AP, %", r"mask_ap_(\w+)", SIZES),
    Axis("AP of masks by IoU", "IoU, %", "AP, %", r"mask_ap(\d*)", LEVELS),
)


def protocol_parts(results: Results) -> list[dict[str, Any]]:
    """What the template tells of each protocol that has figures or a note."""
    keys = results.displays.ordered([*results.keys, *(key for record in results.records for key in record.notes)])
    names = dict.fromkeys(split(key)[0] for key in keys)
    return [_part(results, name, [key for key in keys if split(key)[0] == name]) for name in names]


def _part(results: Results, name: str, keys: Sequence[str]) -> dict[str, Any]:
    display = results.displays.display(name)
    drawn = [chart for key in keys for chart in _charts(results, key, len(keys) > 1)]
    measured = [(key, metric) for key in keys for metric in results.metrics(key)]
    shown = [row for row in results.rows if any(results.measurement(row, *one) for one in measured)]
    return {
        "display": display,
        "sets": "" if name == "cost" else f": {', '.join(set_title(split(key)[1]) for key in keys)}",
        "settings": _settings(results, display),
        "counts": [line for key in keys if (line := _counts(results, key))],
        "charts": drawn,
        "legend": _legend(results, keys, drawn),
        "table": figures_table(results, shown, keys, whole=True) if shown else None,
        "notes": dict.fromkeys(
            f"{key}: {note}" for key in keys for record in results.records for note in record.notes.get(key, ())
        ),
    }


def _settings(results: Results, display: Display) -> str:
    """The settings that decide a protocol, as they were written into the evaluation."""
    given = results.main.about.get("settings")
    if not isinstance(given, Mapping) or display.name not in results.displays.entries:
        return ""
    flat = flatten(given)
    keys = [key for key in flat if key in display.settings or key.split(".")[0] in display.settings]
    if not flat.get("finetune.epochs"):
        keys = [key for key in keys if key != "finetune.lr"]
    return "; ".join(f"{key} {in_words(flat[key])}" for key in [*keys, "seed"] if flat.get(key) is not None)


def _counts(results: Results, key: str) -> str:
    """On what the figures of one protocol and set were counted, and how long it took."""
    protocol, target = split(key)
    records = results.records
    record = next((one for one in records if any(key in figures for figures in one.scores.values())), records[0])
    parts = []
    if protocol != "cost":
        numbers = ((record.images(target), "test images"), (record.classes(target), "classes"))
        parts += [f"{number:,} {noun}" for number, noun in numbers if number]
    figures = next((row.scores[key] for row in results.rows if row.record is record and row.scores.get(key)), {})
    for name, value in figures.items():
        if name in results.displays.display(key).counts:
            noun, _, labels = name.partition(" ")
            parts.append(f"{value:,.0f} {noun} {f'for {labels}' if labels else 'of the protocol'}")
    seconds = record.about.get("seconds")
    compute_cost = seconds.get(key) if isinstance(seconds, Mapping) else None
    if isinstance(compute_cost, int | float):
        parts.append(f"{duration(compute_cost)} on top of the features")
    title = "Measurement" if protocol == "cost" else f"On {set_title(target)}"
    return f"{title}: {', '.join(parts)}." if parts else ""


def _key(row: Model, runs: Sequence[str]) -> charts.LegendKey:
    """How a model is drawn: colors tell the runs apart, hollow marks and dots the embeddings from the backbones."""
    if row.is_teacher:
        return charts.LegendKey(row.label, dash="dash", symbol="diamond")
    series, hollow = runs.index(row.name), row.part == "embed"
    symbol = charts.SYMBOLS[series % len(charts.SYMBOLS)]
    return charts.LegendKey(row.label, charts.color(series), "dot" if hollow else "solid", symbol, hollow)


def _legend(results: Results, keys: Sequence[str], drawn: Sequence[charts.Chart]) -> list[charts.LegendKey]:
    entries = []
    for row in results.rows:
        bounds = [teacher_key(key) for key in keys] if row.is_teacher else []
        if any(row.scores.get(key) for key in [*keys, *bounds]):
            entries.append(_key(row, results.run_names))
    if any(trace.get("name") == "guessing" for chart in drawn for trace in chart.figure["data"]):
        entries.append(charts.LegendKey("guessing", dash="dot"))
    return entries


def _charts(results: Results, key: str, several: bool) -> list[charts.Chart]:
    """The charts of one protocol on one set, as far as its figures have an inner order."""
    target = split(key)[1]
    suffix = f", {set_title(target)}" if several or target else ""
    drawn = [_corruptions(results, key, suffix)]
    drawn += [_profile(results, key, axis, axis.caption + suffix) for axis in AXES]
    return [chart for chart in drawn if chart is not None]


def _profile(results: Results, key: str, axis: Axis, caption: str) -> charts.Chart | None:
    """Figures of all models along an axis, with the error bars that are known; None with fewer than two places."""
    metrics = axis.metrics(results.all_metrics(key))
    values, chances = _along(results, key, axis, metrics)
    places = list(dict.fromkeys(place for _, line in values for place in line))
    if len(places) < 2:
        return None
    traces, words = [], []
    for row, line in values:
        look, bars = _key(row, results.run_names), [measurement.error_bar for measurement in line.values()]
        traces.append(
            charts.scatter(
                x=list(line), y=[measurement.value for measurement in line.values()], name=row.label,
                mode="lines+markers", line={"color": look.color, "dash": look.dash, "width": 1.5}, marker=look.marker,
                error_y={
                    "type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": look.color,
                    "array": [above for _, above in bars], "arrayminus": [below for below, _ in bars],
                },
                hovertemplate="%{y:.4~g}",
            )
        )  # fmt: skip
        words.append(f"{row.label} " + ", ".join(f"{one.value:.3g} at {place}" for place, one in line.items()))
    if chances:
        known = [place for place in places if place in chances]
        traces.append(
            charts.scatter(
                x=known, y=[chances[place] for place in known], name="guessing", mode="lines",
                line={"color": charts.MUTED, "dash": "dot", "width": 1.5}, hovertemplate="%{y:.3~g}",
            )
        )  # fmt: skip
    across = {"title": {"text": axis.title}, "type": "category", "categoryorder": "array", "categoryarray": places}
    figure = charts.plotly_figure(traces, hovermode="x unified", xaxis=across, yaxis={"title": {"text": axis.unit}})
    return charts.Chart(figure, f"{axis.unit} by {axis.title}: {'; '.join(words)}.", "medium", caption=caption)


def _along(
    results: Results, key: str, axis: Axis, metrics: Mapping[str, str]
) -> tuple[list[tuple[Model, dict[str, Measurement]]], dict[str, float]]:
    """Each model's figures by place, and what guessing reaches there."""
    lines, chances = [], {}
    for row in results.rows:
        # What a student asks of the teacher's bank is bounded by what the teacher itself asks of it.
        own_key = teacher_key(key) if row.is_teacher else key
        line: dict[str, Measurement] = {}
        for place, metric in metrics.items():
            if (measurement := results.measurement(row, own_key, metric)) is not None:
                line[place] = measurement
                if (chance := results.chance(row, key, metric)) is not None:
                    chances[place] = chance
        whole_key = "@".join(filter(None, (axis.whole, split(key)[1])))
        if axis.whole and line and (whole := results.measurement(row, whole_key, "top1")) is not None:
            line["all"] = whole
            chances |= {"all": next(iter(chances.values()))} if chances else {}
        if line:
            lines.append((row, line))
    return lines, chances


def _corruptions(results: Results, key: str, suffix: str) -> charts.Chart | None:
    """Corruptions against models."""
    names, shown = results.all_metrics(key), [row for row in results.rows if row.scores.get(key)]
    corruptions = [name for name in CORRUPTIONS if name in names]
    if not corruptions:
        return None
    lines = ["clean"] * ("clean" in names) + corruptions
    values = [[row.scores[key].get(name) for row in shown] for name in lines]
    titles = [name.replace("_", " ") for name in lines]
    axes = {
        "x": [two_lines(row) for row in shown], "y": titles, "xaxis": {"side": "top"},
        "yaxis": {"autorange": "reversed"},
    }  # fmt: skip
    texts = [["" if value is None else f"{value:.1f}" for value in line] for line in values]
    words = "; ".join(
        f"{title}: " + ", ".join(f"{row.label} {value:.1f}" for row, value in zip(shown, line, strict=True) if value)
        for title, line in zip(titles, values, strict=True)
    )
    caption = "Top-1 by corruption, mean over severities, %"
    return charts.Chart(
        charts.heat_map(values, texts, axes, "%{y}, %{x}: %{text}"), f"{caption}. {words}.",
        height=120 + 26 * len(lines), caption=caption + suffix,
    )  # fmt: skip
