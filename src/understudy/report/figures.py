"""The charts, as plotly figures whose colours are names of the style sheet, so that they follow light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from understudy.report.account import Account
from understudy.report.judgement import Measure, Model, constant_answer
from understudy.report.markup import Markup, tag
from understudy.report.numbers import interval, percent
from understudy.report.spaces import Groups

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

POINTS = 300
"""Points a curve is thinned to."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = {
    "circle": "●", "square": "■", "triangle-up": "▲", "diamond": "◆", "star": "★",
    "triangle-down": "▼", "cross": "✚", "pentagon": "⬟", "x": "✖", "hexagon": "⬢",
}  # fmt: skip
"""Plotly's marker shapes and the characters that stand for them in a legend."""

TITLES = {
    "loss": "Total loss",
    "row_cosine": "Row cosine",
    "column_cosine": "Column cosine",
    "overlap@10": "10 nearest shared, %",
    "knn": "kNN accuracy, %",
    "spread": "Spread of the features",
    "images_per_s": "Images per second",
    "data_wait": "Share of time waiting for data",
    "lr": "Learning rate",
}


FROM_ZERO = frozenset({"images_per_s", "data_wait", "spread"})
NOT_DRAWN = frozenset({"kind", "step", "passes", "time", "knn_relative"})


@dataclass(frozen=True)
class Line:
    """One curve of a chart.

    Args:
        name: whose it is.
        series: number of its colour and dash; None for the teacher's grey dashes.
        x: (n,) image passes.
        y: (n,) values, NaN where there is none.
    """

    name: str
    series: int | None
    x: np.ndarray
    y: np.ndarray


def colour(series: int) -> str:
    """The style sheet's colour of a series."""
    return f"var(--series-{series % 10})"


def dash(series: int) -> str:
    """The dash of a series."""
    return DASHES[series % len(DASHES)]


def plot(figure: Figure, description: str, kind: str = "", **attributes: str) -> Markup:
    """The place of a chart on the page, with its data and, for those who cannot see it, its content in words."""
    data = Markup(figure.to_json().replace("<", "\\u003c"))
    script = tag("script", data, type="application/json")
    return tag("div", script, class_=f"plot {kind}".strip(), role="img", aria_label=description, **attributes)


def chart(data: Sequence[Any], **layout: Any) -> Figure:
    """A plotly figure in the look of the page, without the buttons and the zoom that a page to read does not need."""
    import plotly.graph_objects as go

    axis = {
        "gridcolor": "var(--line)", "linecolor": "var(--line)", "zerolinecolor": "var(--line)",
        "automargin": True, "fixedrange": True, "title": {"font": {"size": 12}},
    }  # fmt: skip
    look = {
        "template": {},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--ink)", "size": 12, "family": "system-ui, sans-serif"},
        "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "showlegend": False,
        "dragmode": False,
        "xaxis": axis | layout.pop("xaxis", {}),
        "yaxis": axis | layout.pop("yaxis", {}),
    }
    return go.Figure(list(data), look | layout)


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `POINTS` points, each the mean of equally many neighbours; NaN values take no part in a mean."""
    if len(x) <= POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS + 1).astype(int)
    known = np.isfinite(y)
    total, number = (np.add.reduceat(part, edges[:-1]) for part in (np.where(known, y, 0.0), known.astype(float)))
    means = np.where(number > 0, total / np.maximum(number, 1), math.nan)
    return np.add.reduceat(x, edges[:-1]) / np.diff(edges), means


def curve(name: str, lines: Sequence[Line]) -> Markup:
    """One chart of one figure over image passes, a line for each run that has it."""
    import plotly.graph_objects as go

    traces, words = [], []
    for line in lines:
        x, y = thin(line.x, line.y)
        look = {"color": "var(--muted)", "dash": "dash", "width": 1.5}
        if line.series is not None:
            look = {"color": colour(line.series), "dash": dash(line.series), "width": 2}
        traces.append(
            go.Scatter(
                x=x, y=y, name=html.escape(line.name), line=look, mode="lines" if len(x) > 1 else "markers",
                hovertemplate="%{y:.4~g}", connectgaps=False,
            )
        )  # fmt: skip
        finite = y[np.isfinite(y)]
        words.append(f"{line.name} from {finite[0]:.3g} to {finite[-1]:.3g}")
    figure = chart(
        traces,
        hovermode="x unified",
        xaxis={"title": {"text": "image passes"}, "hoverformat": ".2f"},
        yaxis={"rangemode": "tozero" if name in FROM_ZERO else "normal"},
    )
    return plot(figure, f"{title(name)} over image passes: {'; '.join(words)}.", "small")


def title(name: str) -> str:
    """The heading of a chart."""
    return TITLES.get(name, name.replace("_", " "))


def lines_of(accounts: Sequence[Account], kind: str) -> dict[str, list[Line]]:
    """Curves by name, each with a line for each run that has at least one finite value.

    Args:
        accounts: the runs; their order gives the colours.
        kind: "terms" for the loss and its terms, "signals" for what was measured on held-out images, "pace" for speed.
    """
    charts: dict[str, list[Line]] = {}
    for series, account in enumerate(accounts):
        rows = account.signals if kind == "signals" else account.steps
        tables = [_values(row, kind) for row in rows]
        x = np.array([float(row.get("passes", math.nan)) for row in rows])
        for name in dict.fromkeys(key for table in tables for key in table):
            y = np.array([table.get(name, math.nan) for table in tables])
            if not np.isfinite(y).any():
                continue
            if name == "teacher_knn":
                if not any(line.name == "teacher" for line in charts.get("knn", [])):
                    charts.setdefault("knn", []).append(Line("teacher", None, x, y))
            else:
                charts.setdefault(name, []).append(Line(account.name, series, x, y))
    return charts


def _values(row: Mapping[str, Any], kind: str) -> dict[str, float]:
    if kind == "signals":
        table = {key: value for key, value in row.items() if key not in NOT_DRAWN}
    elif kind == "pace":
        table = {key: row.get(key) for key in ("lr", "images_per_s", "data_wait")}
    else:
        terms = row.get("terms") or {}
        table = {**terms, "loss": row.get("loss")} if len(terms) != 1 else dict(terms)
    return {key: float(value) for key, value in table.items() if isinstance(value, int | float)}


def accuracies(measure: Measure, rows: Sequence[Model], n: int | None) -> Markup:
    """One dot a model with its 95 % interval: which differences are larger than the test images' own play."""
    import plotly.graph_objects as go

    shown = [(row, value) for row in reversed(rows) if (value := measure.of(row)) is not None]
    values = [value for _, value in shown]
    bounds = [interval(value, n) if n else (value, value) for value in values]
    runs = list(dict.fromkeys(row.name for row in rows if not row.is_teacher))  # in the order of the curves' colours
    paint = ["var(--muted)" if row.is_teacher else colour(runs.index(row.name)) for row, _ in shown]
    shapes = ["diamond" if row.is_teacher else "circle" for row, _ in shown]
    figure = chart(
        [
            go.Scatter(
                x=values,
                y=[_wrapped(row.label) for row, _ in shown],
                mode="markers",
                marker={"color": paint, "size": 11, "symbol": shapes},
                error_x={
                    "type": "data", "symmetric": False, "color": "var(--muted)", "thickness": 1.5,
                    "array": [high - value for value, (_, high) in zip(values, bounds, strict=True)],
                    "arrayminus": [value - low for value, (low, _) in zip(values, bounds, strict=True)],
                },
                text=[f"{low:.1f} to {high:.1f}" for low, high in bounds],
                hovertemplate="%{x:.1f} % (95 %: %{text})<extra></extra>",
            )
        ],
        xaxis={"title": {"text": f"{measure.phrase}, %"}},
    )  # fmt: skip
    words = "; ".join(f"{row.label} {percent(value)}" for row, value in reversed(shown))
    return plot(figure, f"{measure.phrase} with 95 % intervals: {words}.", style=f"height:{70 + 38 * len(shown)}px")


def _wrapped(label: str) -> str:
    """A row's label in plotly's markup, the part on a line of its own, a very long name cut."""
    name, _, part = label.partition(" (")
    name = name if len(name) <= 22 else f"…{name[-21:]}"
    return html.escape(name) + (f"<br>({html.escape(part)}" if part else "")


def column_cosines(accounts: Sequence[Account]) -> Markup:
    """Histogram of each dimension's cosine: the first run as bars, further runs and the constant answer as lines."""
    import plotly.graph_objects as go

    found = [
        (series, account.name, account.sample["column_cosine"].astype(np.float64))
        for series, account in enumerate(accounts)
        if "column_cosine" in account.sample
    ]
    found = [(series, name, values[np.isfinite(values)]) for series, name, values in found]
    constant = constant_answer(accounts[0].sample.get("teacher"))
    every = np.concatenate([values for _, _, values in found] + ([] if constant is None else [constant]))
    bins = int(np.clip(2 * math.sqrt(len(found[0][2])), 10, 40))
    edges = np.linspace(min(0.0, math.floor(every.min() * 10) / 10), 1.0, bins + 1)
    middle = (edges[1:] + edges[:-1]) / 2

    def shares(values: np.ndarray) -> np.ndarray:
        return 100 * np.histogram(np.clip(values, edges[0], 1.0), edges)[0] / max(len(values), 1)

    traces: list[Any] = []
    for series, name, values in found:
        look = {"x": middle, "y": shares(values), "name": html.escape(name), "hovertemplate": "%{y:.1f} %"}
        if series == 0:
            traces.append(go.Bar(look, marker={"color": colour(0)}))
        else:
            line = {"shape": "hvh", "color": colour(series), "dash": dash(series)}
            traces.append(go.Scatter(look, mode="lines", line=line))
    if constant is not None:
        look = {"x": middle, "y": shares(constant), "name": "constant answer", "hovertemplate": "%{y:.1f} %"}
        line = {"shape": "hvh", "color": "var(--muted)", "dash": "dash"}
        traces.append(go.Scatter(look, mode="lines", line=line))
    figure = chart(
        traces, bargap=0.05, hovermode="x unified",
        xaxis={"title": {"text": "cosine of one dimension, student with teacher"}, "hoverformat": ".2f"},
        yaxis={"title": {"text": "% of dimensions"}, "rangemode": "tozero"},
    )  # fmt: skip
    words = "; ".join(
        f"{name} {values.min():.2f} to {values.max():.2f}, mean {values.mean():.2f}" for _, name, values in found
    )
    return plot(figure, f"Histogram of column cosines. {words}.", "medium")


def space_map(points: np.ndarray, groups: Groups, texts: Sequence[str], description: str) -> Markup:
    """A flat map, one trace a group in the same order on every map, so that a legend can steer several at once.

    Args:
        points: (n, 2).
        groups: colours and shapes; images of no group are small and grey.
        texts: (n,) what the pointer shows.
        description: the map in words.
    """
    import plotly.graph_objects as go

    traces = []
    for group in [-1, *range(len(groups.names))]:
        members = np.flatnonzero(groups.member == group)
        marker = {"color": "var(--muted)", "symbol": "circle", "size": 4, "opacity": 0.5}
        if group >= 0:
            marker = {"color": colour(group), "symbol": list(SYMBOLS)[group], "size": 7, "opacity": 0.85}
        traces.append(
            go.Scatter(
                x=points[members, 0].round(3), y=points[members, 1].round(3), mode="markers", marker=marker,
                customdata=members.tolist(), text=[html.escape(texts[i]) for i in members.tolist()],
                hovertemplate="%{text}<extra></extra>",
            )
        )  # fmt: skip
    bare = {
        "showgrid": False,
        "zeroline": False,
        "showline": False,
        "showticklabels": False,
        "ticks": "",
        "fixedrange": False,
    }
    figure = chart(
        traces, hovermode="closest", dragmode="zoom", margin={"l": 4, "r": 4, "t": 4, "b": 4},
        xaxis={**bare, "scaleanchor": "y"}, yaxis=bare,
    )  # fmt: skip
    return plot(figure, description, "map")
