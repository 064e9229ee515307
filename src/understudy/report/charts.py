"""What all charts share: plotly's look in colors of the style sheet, which follow light and dark, and legends."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MUTED = "var(--muted)"

REFERENCE_LINE = {"color": MUTED, "dash": "dash", "width": 1.5}
"""The teacher's line, or another one that the runs are held against."""

DASHES = {
    "solid": None, "dash": "9 5", "dot": "3 3", "dashdot": "9 4 3 4", "longdash": "13 6", "longdashdot": "13 4 3 4",
}  # fmt: skip
"""Plotly's dashes, and how SVG draws them in a legend."""

GLYPHS = {
    "circle": "●○", "square": "■□", "triangle-up": "▲△", "diamond": "◆◇", "star": "★☆",
    "triangle-down": "▼▽", "cross": "✚✚", "pentagon": "⬟⬠", "x": "✖✕", "hexagon": "⬢⬡",
}  # fmt: skip
"""Plotly's marker shapes, and the characters that stand for the filled and the open one in a legend."""

SYMBOLS = tuple(GLYPHS)


@dataclass(frozen=True)
class Chart:
    """A chart on the page: plotly's data and layout, its content in words for those who cannot see it, and a heading.

    The height is that of a class of the style sheet ("small", "medium", "map"), or in pixels, where the content decides
    it.
    """

    figure: Mapping[str, Any]
    description: str
    size: str = ""
    height: int | None = None
    caption: str = ""


@dataclass(frozen=True)
class LegendKey:
    """One entry of a legend ("line", "bar" or "tick"), which is how its line or bar is drawn.

    The dash is one of `DASHES`, the symbol of the marks on the line one of `GLYPHS`, "" without marks.
    """

    name: str
    color: str = MUTED
    dash: str = "solid"
    symbol: str = ""
    hollow: bool = False
    kind: str = "line"

    @property
    def strokes(self) -> str | None:
        """The dash as SVG has it."""
        return DASHES[self.dash]

    @property
    def glyph(self) -> str:
        """The character that stands for the marks."""
        return GLYPHS[self.symbol][self.hollow] if self.symbol else ""

    @property
    def marker(self) -> dict[str, Any]:
        """The marks as plotly has them."""
        return {"color": self.color, "symbol": self.symbol + "-open" * self.hollow, "size": 9}


def color(series: int) -> str:
    """The style sheet's color of a series."""
    return f"var(--series-{series % 10})"


def dash(series: int) -> str:
    """The dash of a series."""
    return list(DASHES)[series % len(DASHES)]


def series_key(series: int, name: str) -> LegendKey:
    """Legend entry of a run: a piece of its line."""
    return LegendKey(name, color(series), dash(series))


def scatter(**trace: Any) -> dict[str, Any]:
    """A trace of lines or marks."""
    return {"type": "scatter", **trace}


def bar(**trace: Any) -> dict[str, Any]:
    """A trace of bars."""
    return {"type": "bar", **trace}


def plotly_figure(data: Sequence[Mapping[str, Any]], **layout: Any) -> dict[str, Any]:
    """A plotly figure in the look of the page, without the buttons and the zoom that a page to read does not need."""
    import plotly.graph_objects as go

    axis = {
        "gridcolor": "var(--line)", "linecolor": "var(--line)", "zerolinecolor": "var(--line)",
        "automargin": True, "fixedrange": True, "title": {"font": {"size": 12}},
    }  # fmt: skip
    look = {
        "template": {}, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--ink)", "size": 12, "family": "system-ui, sans-serif"},
        "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8}, "showlegend": False, "dragmode": False,
        "xaxis": axis | layout.pop("xaxis", {}), "yaxis": axis | layout.pop("yaxis", {}),
    }  # fmt: skip
    traces = [{**trace, "name": escaped(trace["name"])} if "name" in trace else dict(trace) for trace in data]
    return dict(go.Figure(traces, look | layout).to_dict())


def reference(axis: str, value: float) -> dict[str, Any]:
    """A dashed line across a chart at a value of the axis "x" or "y": the teacher's figure."""
    other = "y" if axis == "x" else "x"
    ends = {f"{axis}0": value, f"{axis}1": value, f"{other}0": 0, f"{other}1": 1}
    return {"type": "line", f"{other}ref": "paper", **ends, "line": REFERENCE_LINE}


def heat_map(
    values: Sequence[Sequence[float | None]], texts: Sequence[Sequence[str]], axes: Mapping[str, Any], hover: str
) -> dict[str, Any]:
    """A heat map with its numbers written in: darker is more.

    `axes` has "x" and "y" with names across and downwards, and may have plotly's layout of them in "xaxis" and "yaxis".
    """
    trace = {
        "type": "heatmap", "z": values, "x": axes["x"], "y": axes["y"], "text": texts, "texttemplate": "%{text}",
        "textfont": {"color": "#191c20"}, "colorscale": [[0, "#dfe9f5"], [1, "#7fb2e5"]], "showscale": False,
        "xgap": 2, "ygap": 2, "hovertemplate": f"{hover}<extra></extra>", "hoverongaps": False,
    }  # fmt: skip
    flat = {"type": "category", "showgrid": False}
    return plotly_figure([trace], xaxis=flat | axes.get("xaxis", {}), yaxis=flat | axes.get("yaxis", {}))


def escaped(text: str) -> str:
    """Somebody's text for a name in a chart: plotly reads a little markup of its own in all it writes."""
    return html.escape(text, quote=False)


def shortened(text: str, length: int) -> str:
    """The end of a text that is longer than that many characters."""
    return text if len(text) <= length else f"…{text[1 - length :]}"
