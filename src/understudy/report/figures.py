"""The charts of a run's page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from understudy.report import charts
from understudy.report.numbers import interval, percent
from understudy.report.provenance import RunRecord
from understudy.report.results import Model, Results
from understudy.report.shares import TeacherShare
from understudy.report.spaces import Groups
from understudy.report.verdict import Measure, constant_answer, images_tested

POINTS = 300
"""Points a curve is thinned to."""

TITLES = {
    "loss": "Total loss", "row_cosine": "Row cosine", "column_cosine": "Column cosine",
    "overlap@10": "10 nearest shared, %", "knn": "kNN accuracy, %", "spread": "Spread of the features",
    "images_per_s": "Images per second", "data_wait": "Share of time waiting for data", "lr": "Learning rate",
}  # fmt: skip

FROM_ZERO = frozenset({"images_per_s", "data_wait", "spread"})
NOT_DRAWN = frozenset({"kind", "step", "passes", "time", "knn_relative"})


@dataclass(frozen=True)
class Line:
    """One curve of a chart over (n,) image passes, NaN where there is no value; series None is the teacher's."""

    name: str
    series: int | None
    x: np.ndarray
    y: np.ndarray


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `POINTS` points, each the mean of equally many neighbors; NaN values take no part in a mean."""
    if len(x) <= POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS + 1).astype(int)
    known = np.isfinite(y)
    total, number = (np.add.reduceat(part, edges[:-1]) for part in (np.where(known, y, 0.0), known.astype(float)))
    means = np.where(number > 0, total / np.maximum(number, 1), math.nan)
    return np.add.reduceat(x, edges[:-1]) / np.diff(edges), means


def curve(name: str, lines: Sequence[Line]) -> charts.Chart:
    """One chart of one figure over image passes, a line for each run that has it."""
    traces, words = [], []
    for line in lines:
        x, y = thinned(line.x, line.y)
        look: Mapping[str, Any] = charts.REFERENCE_LINE
        if line.series is not None:
            look = {"color": charts.color(line.series), "dash": charts.dash(line.series), "width": 2}
        traces.append(
            charts.scatter(
                x=x, y=y, name=line.name, line=look, mode="lines" if len(x) > 1 else "markers",
                hovertemplate="%{y:.4~g}", connectgaps=False,
            )
        )  # fmt: skip
        finite = y[np.isfinite(y)]
        words.append(f"{line.name} from {finite[0]:.3g} to {finite[-1]:.3g}")
    figure = charts.plotly_figure(
        traces, hovermode="x unified", xaxis={"title": {"text": "image passes"}, "hoverformat": ".2f"},
        yaxis={"rangemode": "tozero" if name in FROM_ZERO else "normal"},
    )  # fmt: skip
    title = TITLES.get(name, name.replace("_", " "))
    return charts.Chart(figure, f"{title} over image passes: {'; '.join(words)}.", "small", caption=title)


def curves(records: Sequence[RunRecord], kind: str) -> list[charts.Chart]:
    """Charts of all figures of one kind, each with a line for each run that has at least one finite value.

    Kinds are "terms", the loss and its terms; "signals", what was measured on held-out images; and "pace", speed.
    """
    drawn: dict[str, list[Line]] = {}
    for series, record in enumerate(records):
        rows = record.signals if kind == "signals" else record.steps
        tables = [_values(row, kind) for row in rows]
        x = np.array([float(row.get("passes", math.nan)) for row in rows])
        for name in dict.fromkeys(key for table in tables for key in table):
            y = np.array([table.get(name, math.nan) for table in tables])
            if not np.isfinite(y).any():
                continue
            if name != "teacher_knn":
                drawn.setdefault(name, []).append(Line(record.name, series, x, y))
            elif not any(line.series is None for line in drawn.get("knn", [])):
                drawn.setdefault("knn", []).append(Line("teacher", None, x, y))
    return [curve(name, lines) for name, lines in drawn.items()]


def _values(row: Mapping[str, Any], kind: str) -> dict[str, float]:
    if kind == "signals":
        table = {key: value for key, value in row.items() if key not in NOT_DRAWN}
    elif kind == "pace":
        table = {key: row.get(key) for key in ("lr", "images_per_s", "data_wait")}
    else:
        terms = row.get("terms") or {}
        table = {**terms, "loss": row.get("loss")} if len(terms) != 1 else dict(terms)
    return {key: float(value) for key, value in table.items() if isinstance(value, int | float)}


def accuracies(measure: Measure, results: Results) -> charts.Chart:
    """One dot a model with its 95 % interval: which differences are larger than the test images' own play."""
    n, runs = images_tested(results, measure), results.run_names
    shown = [(row, value) for row in reversed(results.rows) if (value := measure.of(row)) is not None]
    bounds = [interval(value, n) if n else (value, value) for _, value in shown]
    dots = charts.scatter(
        x=[value for _, value in shown],
        y=[two_lines(row) for row, _ in shown],
        mode="markers",
        marker={
            "color": [charts.MUTED if row.is_teacher else charts.color(runs.index(row.name)) for row, _ in shown],
            "symbol": ["diamond" if row.is_teacher else "circle" for row, _ in shown],
            "size": 11,
        },
        error_x={
            "type": "data", "symmetric": False, "color": charts.MUTED, "thickness": 1.5,
            "array": [high - value for (_, value), (_, high) in zip(shown, bounds, strict=True)],
            "arrayminus": [value - low for (_, value), (low, _) in zip(shown, bounds, strict=True)],
        },
        text=[f"{low:.1f} to {high:.1f}" for low, high in bounds],
        hovertemplate="%{x:.1f} % (95 %: %{text})<extra></extra>",
    )  # fmt: skip
    words = "; ".join(f"{row.label} {percent(value)}" for row, value in reversed(shown))
    return charts.Chart(
        charts.plotly_figure([dots], xaxis={"title": {"text": f"{measure.phrase}, %"}}),
        f"{measure.phrase} with 95 % intervals: {words}.",
        height=70 + 38 * len(shown),
    )


def two_lines(row: Model) -> str:
    """A row's label in plotly's markup, the part on a line of its own, a very long name cut."""
    name = charts.escaped(charts.shortened(row.name, 22))
    return f"{name}<br>({charts.escaped(row.part)})" if row.part else name


def shares_chart(entries: Sequence[TeacherShare], runs: Sequence[str], *, less: bool = False) -> charts.Chart | None:
    """Bars of each run as per cent of the teacher, with the teacher's line and, where it is known, what guessing gives.

    Runs are in the order of their colors; `less` says that less is better, as of costs. None without entries.
    """
    if not entries:
        return None
    labels = [charts.escaped(entry.label).replace("\n", "<br>") for entry in entries]
    most = max([100.0, *(value for entry in entries for value in entry.shares.values())])
    traces = [_share_bars(entries, labels, series, run, most) for series, run in enumerate(runs)]
    # A teacher worse than guessing would set the scale.
    chances = ((label, entry.chance) for label, entry in zip(labels, entries, strict=True))
    guessing = [(label, chance) for label, chance in chances if chance is not None and chance <= most]
    if guessing:
        mark = {"symbol": "line-ns", "size": 16, "line": {"width": 2.5, "color": "var(--ink)"}}
        y, x = ([pair[place] for pair in guessing] for place in (0, 1))
        hover = "guessing: %{x:.1f} %<extra></extra>"
        traces.append(charts.scatter(y=y, x=x, name="guessing", mode="markers", marker=mark, hovertemplate=hover))
    figure = charts.plotly_figure(
        traces, barmode="group", bargap=0.25, hovermode="closest", margin={"l": 8, "r": 40, "t": 8, "b": 8},
        shapes=[charts.reference("x", 100)],
        xaxis={"title": {"text": "% of the teacher" + (", less is better" if less else "")}, "rangemode": "tozero"},
        yaxis={"range": [len(entries) - 0.5, -0.5], "type": "category", "showgrid": False, "categoryarray": labels},
    )  # fmt: skip
    names = [entry.label.replace("\n", " on ") for entry in entries]
    texts = (", ".join(f"{run} {percent(value)}" for run, value in entry.shares.items()) for entry in entries)
    words = "; ".join(f"{name}: {text}" for name, text in zip(names, texts, strict=True))
    return charts.Chart(
        figure, f"Share of the teacher\u2019s figure. {words}.", height=70 + (18 * len(runs) + 16) * len(entries),
        caption="What they cost" if less else "What the students keep",
    )  # fmt: skip


def _share_bars(entries: Sequence[TeacherShare], labels: Sequence[str], series: int, run: str, most: float) -> Any:
    values = [entry.shares.get(run) for entry in entries]
    return charts.bar(
        y=labels, x=values, name=run, orientation="h", marker={"color": charts.color(series)},
        customdata=[entry.comparison(run) if run in entry.shares else "" for entry in entries],
        hovertemplate="%{x:.1f} % of the teacher\u2019s (%{customdata})",
        text=[None if value is None else f"{value:.3g}" for value in values], textangle=0, cliponaxis=False,
        # Beside a short bar; inside a long one, where the teacher's line may be beside it.
        textposition=["inside" if (value or 0) > 0.3 * most else "outside" for value in values],
        insidetextanchor="end", insidetextfont={"color": "var(--page)"},
    )  # fmt: skip


def column_cosines(records: Sequence[RunRecord]) -> charts.Chart:
    """Histogram of each dimension's cosine: the first run as bars, further runs and the constant answer as lines."""
    cosines = [record.sample.get("column_cosine", np.zeros(0)).astype(np.float64) for record in records]
    known = {i: (records[i].name, one[np.isfinite(one)]) for i, one in enumerate(cosines) if one.size}
    constant = constant_answer(records[0].sample.get("teacher"))
    every = np.concatenate([values for _, values in known.values()] + ([] if constant is None else [constant]))
    bins = int(np.clip(2 * math.sqrt(len(known[0][1])), 10, 40))
    edges = np.linspace(min(0.0, math.floor(every.min() * 10) / 10), 1.0, bins + 1)

    def histogram(name: str, values: np.ndarray) -> dict[str, Any]:
        shares = 100 * np.histogram(np.clip(values, edges[0], 1.0), edges)[0] / max(len(values), 1)
        return {"x": (edges[1:] + edges[:-1]) / 2, "y": shares, "name": name, "hovertemplate": "%{y:.1f} %"}

    name, values = known[0]
    traces: list[Any] = [charts.bar(**histogram(name, values), marker={"color": charts.color(0)})]
    for series, (name, values) in list(known.items())[1:]:
        line = {"shape": "hvh", "color": charts.color(series), "dash": charts.dash(series)}
        traces.append(charts.scatter(**histogram(name, values), mode="lines", line=line))
    if constant is not None:
        line = {"shape": "hvh", "color": charts.MUTED, "dash": "dash"}
        traces.append(charts.scatter(**histogram("constant answer", constant), mode="lines", line=line))
    figure = charts.plotly_figure(
        traces, bargap=0.05, hovermode="x unified",
        xaxis={"title": {"text": "cosine of one dimension, student with teacher"}, "hoverformat": ".2f"},
        yaxis={"title": {"text": "% of dimensions"}, "rangemode": "tozero"},
    )  # fmt: skip
    words = "; ".join(f"{name} {x.min():.2f} to {x.max():.2f}, mean {x.mean():.2f}" for name, x in known.values())
    return charts.Chart(figure, f"Histogram of column cosines. {words}.", "medium")


def column_cosine_legend(records: Sequence[RunRecord]) -> list[charts.LegendKey]:
    """The legend of `column_cosines`."""
    keys = [charts.series_key(i, record.name) for i, record in enumerate(records) if "column_cosine" in record.sample]
    if "teacher" in records[0].sample:
        keys.append(charts.LegendKey("a constant answer: the teacher's mean for every image", dash="dash"))
    return keys


def space_map(layouts: Mapping[str, np.ndarray], groups: Groups, texts: Sequence[str], side: str) -> charts.Chart:
    """A flat map, one trace a group in the same order on every map, so that a legend can steer several at once.

    Of the layouts, method -> (n, 2), the first is drawn; the others are at hand for the buttons of the page. Images of
    no group are small and gray. `texts` are what the pointer shows.
    """
    (first, points), traces = next(iter(layouts.items())), []
    others: dict[str, list[list[list[float]]]] = {name: [] for name in layouts} if len(layouts) > 1 else {}
    for group in [-1, *range(len(groups.names))]:
        members = np.flatnonzero(groups.member == group)
        marker = {"color": charts.MUTED, "symbol": "circle", "size": 4, "opacity": 0.5}
        if group >= 0:
            marker = {"color": charts.color(group), "symbol": charts.SYMBOLS[group], "size": 7, "opacity": 0.85}
        traces.append(
            charts.scatter(
                x=points[members, 0].round(3), y=points[members, 1].round(3), mode="markers", marker=marker, name=first,
                customdata=members.tolist(), text=[charts.escaped(texts[i]) for i in members.tolist()],
                hovertemplate="%{text}<extra></extra>",
            )
        )  # fmt: skip
        for name, steps in others.items():
            steps.append(layouts[name][members].round(2).T.tolist())
    bare = {
        "showgrid": False, "zeroline": False, "showline": False, "showticklabels": False, "ticks": "",
        "fixedrange": False,
    }  # fmt: skip
    figure = charts.plotly_figure(
        traces, hovermode="closest", dragmode="zoom", margin={"l": 4, "r": 4, "t": 4, "b": 4},
        xaxis={**bare, "scaleanchor": "y"}, yaxis=bare, meta={"layouts": others} if others else None,
    )  # fmt: skip
    title = f"{' and '.join(layouts)} map of the {side}'s space"
    description = f"{title}, {len(points)} images colored by {groups.description}"
    return charts.Chart(figure, description, "map", caption=side.capitalize())
