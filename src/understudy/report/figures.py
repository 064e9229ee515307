"""The charts, as plotly figures whose colors are names of the style sheet, so that they follow light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from understudy.report.markup import Markup, tag
from understudy.report.numbers import interval, percent
from understudy.report.protocols import written
from understudy.report.provenance import Account
from understudy.report.results import Against, Result
from understudy.report.spaces import Groups
from understudy.report.verdict import Measure, Model, constant_answer

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

POINTS = 300
"""Points a curve is thinned to."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
STROKES = {
    "solid": None,
    "dash": "9 5",
    "dot": "3 3",
    "dashdot": "9 4 3 4",
    "longdash": "13 6",
    "longdashdot": "13 4 3 4",
}
"""Plotly's dashes as SVG draws them in a legend."""

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
        series: number of its color and dash; None for the teacher's gray dashes.
        x: (n,) image passes.
        y: (n,) values, NaN where there is none.
    """

    name: str
    series: int | None
    x: np.ndarray
    y: np.ndarray


def color(series: int) -> str:
    """The style sheet's color of a series."""
    return f"var(--series-{series % 10})"


def dash(series: int) -> str:
    """The dash of a series."""
    return DASHES[series % len(DASHES)]


def captioned(caption: str, content: Markup) -> Markup:
    """A chart under its heading."""
    return tag("figure", tag("figcaption", caption), content)


def line_key(color: str, name: str, dash: str, mark: str = "") -> Markup:
    """Legend entry of a line, with the character of its marks."""
    line = tag("line", x1="0", y1="5", x2="36", y2="5", stroke=color, stroke_width="2.5",
               stroke_dasharray=STROKES[dash])  # fmt: skip
    drawn = tag("svg", line, width="36", height="10", aria_hidden="true")
    sign = tag("span", mark, style=f"color:{color}", aria_hidden="true") if mark else None
    return tag("li", drawn, sign, name)


def swatch(color: str, name: str) -> Markup:
    """Legend entry of a bar."""
    return tag("li", tag("span", class_="bar", style=f"background:{color}"), name)


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
    """At most `POINTS` points, each the mean of equally many neighbors; NaN values take no part in a mean."""
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
            look = {"color": color(line.series), "dash": dash(line.series), "width": 2}
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
        accounts: the runs; their order gives the colors.
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
    runs = list(dict.fromkeys(row.name for row in rows if not row.is_teacher))  # in the order of the curves' colors
    paint = ["var(--muted)" if row.is_teacher else color(runs.index(row.name)) for row, _ in shown]
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


@dataclass(frozen=True)
class Look:
    """How a model is drawn wherever several are.

    Args:
        color: of its run; the teacher is gray.
        dash: of its lines; an embedding's are dotted.
        symbol: of its marks; an embedding's are hollow.
    """

    color: str
    dash: str
    symbol: str


def looks(rows: Sequence[Model]) -> list[Look]:
    """One look a model: colors tell the runs apart, hollow marks the embeddings from the backbones."""
    runs = list(dict.fromkeys(row.name for row in rows if not row.is_teacher))
    found = []
    for row in rows:
        if row.is_teacher:
            found.append(Look("var(--muted)", "dash", "diamond"))
        else:
            hollow = row.part == "embed"
            symbol = list(SYMBOLS)[runs.index(row.name) % len(SYMBOLS)]
            found.append(Look(color(runs.index(row.name)), "dot" if hollow else "solid", symbol + "-open" * hollow))
    return found


def shares(entries: Sequence[Against], runs: Sequence[str], *, less: bool = False) -> Markup:
    """Bars of each run as per cent of the teacher, with the teacher's line and, where it is known, what guessing gives.

    Args:
        entries: what was measured, in order.
        runs: names of the runs, in the order of their colors.
        less: whether less is better, as of costs.
    """
    import plotly.graph_objects as go

    labels = [html.escape(entry.label, quote=False).replace("\n", "<br>") for entry in entries]
    traces: list[Any] = []
    most = max([100.0, *(value for entry in entries for value in entry.shares.values())])
    for series, run in enumerate(runs):
        told = [
            f"{written(entry.key, entry.metric, entry.figures[run])} against "
            f"{written(entry.key, entry.metric, entry.teacher)}" if run in entry.shares else ""
            for entry in entries
        ]  # fmt: skip
        values = [entry.shares.get(run) for entry in entries]
        traces.append(
            go.Bar(
                y=labels, x=values, name=html.escape(run), orientation="h", marker={"color": color(series)},
                customdata=told, hovertemplate="%{x:.1f} % of the teacher\u2019s (%{customdata})",
                text=[None if value is None else f"{value:.3g}" for value in values], textangle=0, cliponaxis=False,
                # Beside a short bar; inside a long one, where the teacher's line may be beside it.
                textposition=["inside" if (value or 0) > 0.3 * most else "outside" for value in values],
                insidetextanchor="end", insidetextfont={"color": "var(--page)"},
            )
        )  # fmt: skip
    luck = [
        (label, entry.guessing) for label, entry in zip(labels, entries, strict=True)
        if entry.guessing is not None and entry.guessing <= most  # a teacher worse than guessing would set the scale
    ]  # fmt: skip
    if luck:
        mark = {"symbol": "line-ns", "size": 16, "line": {"width": 2.5, "color": "var(--ink)"}}
        traces.append(
            go.Scatter(
                y=[label for label, _ in luck], x=[value for _, value in luck], name="guessing", mode="markers",
                marker=mark, hovertemplate="guessing: %{x:.1f} %<extra></extra>",
            )
        )  # fmt: skip
    line = {"color": "var(--muted)", "dash": "dash", "width": 1.5}
    figure = chart(
        traces, barmode="group", bargap=0.25, hovermode="closest", margin={"l": 8, "r": 40, "t": 8, "b": 8},
        shapes=[{"type": "line", "x0": 100, "x1": 100, "y0": 0, "y1": 1, "yref": "paper", "line": line}],
        xaxis={"title": {"text": "% of the teacher" + (", less is better" if less else "")}, "rangemode": "tozero"},
        yaxis={"range": [len(entries) - 0.5, -0.5], "type": "category", "showgrid": False, "categoryarray": labels},
    )  # fmt: skip
    words = "; ".join(
        f"{entry.label.replace(chr(10), ' on ')}: "
        + ", ".join(f"{run} {percent(value)}" for run, value in entry.shares.items())
        for entry in entries
    )
    each = 18 * len(runs) + 16
    return plot(figure, f"Share of the teacher\u2019s figure. {words}.", style=f"height:{70 + each * len(entries)}px")


@dataclass(frozen=True)
class Profile:
    """One model's figures along an axis.

    Args:
        row: number of the model among the rows.
        values: place on the axis -> the figure.
    """

    row: int
    values: Mapping[str, Result]


def profile(
    title_of_axis: str, unit: str, rows: Sequence[Model], lines: Sequence[Profile], luck: Mapping[str, float]
) -> Markup:
    """Figures of all models along one axis of categories, with the error bars that are known.

    Args:
        title_of_axis: what the categories are.
        unit: what the figures are.
        rows: all models.
        lines: those that have figures; the categories stand in the order of the first to name them.
        luck: category -> what guessing reaches.
    """
    import plotly.graph_objects as go

    places = list(dict.fromkeys(place for line in lines for place in line.values))
    styles, traces, words = looks(rows), [], []
    for line in lines:
        style, values = styles[line.row], [(place, line.values[place]) for place in places if place in line.values]
        up = [found.std or (found.high or found.value) - found.value for _, found in values]
        down = [found.std or found.value - (found.value if found.low is None else found.low) for _, found in values]
        bars = {
            "type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1, "width": 3,
            "color": style.color,
        }  # fmt: skip
        label = rows[line.row].label
        traces.append(
            go.Scatter(
                x=[place for place, _ in values], y=[found.value for _, found in values], name=html.escape(label),
                mode="lines+markers", line={"color": style.color, "dash": style.dash, "width": 1.5},
                marker={"color": style.color, "symbol": style.symbol, "size": 9}, error_y=bars,
                hovertemplate="%{y:.4~g}",
            )
        )  # fmt: skip
        words.append(f"{label} " + ", ".join(f"{found.value:.3g} at {place}" for place, found in values))
    if luck:
        known = [place for place in places if place in luck]
        traces.append(
            go.Scatter(
                x=known, y=[luck[place] for place in known], name="guessing", mode="lines",
                line={"color": "var(--muted)", "dash": "dot", "width": 1.5}, hovertemplate="%{y:.3~g}",
            )
        )  # fmt: skip
    figure = chart(
        traces, hovermode="x unified",
        xaxis={"title": {"text": title_of_axis}, "type": "category", "categoryorder": "array", "categoryarray": places},
        yaxis={"title": {"text": unit}},
    )  # fmt: skip
    return plot(figure, f"{unit} by {title_of_axis}: {'; '.join(words)}.", "medium")


def heat(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], what: str) -> Markup:
    """A heat map with its numbers written in: darker is more.

    Args:
        rows: names downwards.
        columns: names across.
        values: one list for each row; None where nothing was measured.
        what: the figures in words.
    """
    import plotly.graph_objects as go

    names = [_wrapped(column) for column in columns]
    figure = chart(
        [
            go.Heatmap(
                z=[list(line) for line in values], x=names, y=list(rows), showscale=False, xgap=2, ygap=2,
                text=[["" if value is None else f"{value:.1f}" for value in line] for line in values],
                texttemplate="%{text}", textfont={"color": "#191c20"}, colorscale=[[0, "#e7eef6"], [1, "#7fb2e5"]],
                hovertemplate="%{y}, %{x}: %{text}<extra></extra>", hoverongaps=False,
            )
        ],
        xaxis={"type": "category", "showgrid": False, "side": "top"},
        yaxis={"type": "category", "showgrid": False, "autorange": "reversed"},
    )  # fmt: skip
    words = "; ".join(
        f"{row}: " + ", ".join(f"{column} {value:.1f}" for column, value in zip(columns, line, strict=True) if value)
        for row, line in zip(rows, values, strict=True)
    )
    return plot(figure, f"{what}. {words}.", style=f"height:{70 + 26 * len(rows)}px")


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
            traces.append(go.Bar(look, marker={"color": color(0)}))
        else:
            line = {"shape": "hvh", "color": color(series), "dash": dash(series)}
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


def space_map(layouts: Mapping[str, np.ndarray], groups: Groups, texts: Sequence[str], description: str) -> Markup:
    """A flat map, one trace a group in the same order on every map, so that a legend can steer several at once.

    Args:
        layouts: method -> (n, 2); the first is drawn, the others are at hand for the buttons of the page.
        groups: colors and shapes; images of no group are small and gray.
        texts: (n,) what the pointer shows.
        description: the map in words.
    """
    import plotly.graph_objects as go

    (first, points), traces = next(iter(layouts.items())), []
    others: dict[str, list[list[list[float]]]] = {name: [] for name in layouts} if len(layouts) > 1 else {}
    for group in [-1, *range(len(groups.names))]:
        members = np.flatnonzero(groups.member == group)
        marker = {"color": "var(--muted)", "symbol": "circle", "size": 4, "opacity": 0.5}
        if group >= 0:
            marker = {"color": color(group), "symbol": list(SYMBOLS)[group], "size": 7, "opacity": 0.85}
        traces.append(
            go.Scatter(
                x=points[members, 0].round(3), y=points[members, 1].round(3), mode="markers", marker=marker, name=first,
                customdata=members.tolist(), text=[html.escape(texts[i]) for i in members.tolist()],
                hovertemplate="%{text}<extra></extra>",
            )
        )  # fmt: skip
        for name, steps in others.items():
            steps.append(layouts[name][members].round(2).T.tolist())
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
        xaxis={**bare, "scaleanchor": "y"}, yaxis=bare, meta={"layouts": others} if others else None,
    )  # fmt: skip
    return plot(figure, description, "map")
