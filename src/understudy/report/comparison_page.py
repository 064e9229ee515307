"""The page of a comparison: the table, differences to the best, dots with intervals, curves or heat maps of a grid."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from understudy.artifacts import read_json, write_text
from understudy.report.comparison import (
    Figure,
    cost_of,
    footnotes,
    of_teacher,
    table_of,
    used,
    written,
)
from understudy.report.figures import captioned, chart, color, dash, plot
from understudy.report.markup import Child, Markup, join, tag
from understudy.report.numbers import count, duration
from understudy.report.page import document, notice, section
from understudy.report.tables import ABSENT, table

NAMED = 6
"""Variants that the sentence on top calls by name."""


def write_page(path: Path, out: Path) -> Path:
    """Tell a comparison as one self-contained HTML page.

    Args:
        path: comparison.json.
        out: the file to write.
    """
    write_text(out, page(read_json(path)))
    return out


def page(comparison: Mapping[str, Any]) -> str:
    """The page.

    Args:
        comparison: what comparison.json holds.
    """
    figures = used(comparison)
    about = comparison["about"]
    title = f"{len(comparison['variants'])} ways to train {about['student']}"
    if comparison["kind"] == "ablate":
        title = f"{about['student']} over {' and '.join(_axes(comparison))}"
    story = [
        _opening(comparison, title, figures),
        section("result", "Result", *_result(comparison, figures)),
        section("differences", "Differences to the best", *_differences(comparison, figures)),
        section("plots", "Figure by figure", *_plots(comparison, figures)),
        section("rates", "Learning rates", *_rates(comparison)),
        section("done", "What was done", *_done(comparison)),
    ]
    return "<!doctype html>\n" + document(title, join(*story)) + "\n"


def _opening(comparison: Mapping[str, Any], title: str, figures: Sequence[Figure]) -> Markup:
    links = {"result": "Result", "differences": "Differences", "plots": "Plots", "rates": "Learning rates",
             "done": "What was done"}  # fmt: skip
    return tag(
        "header",
        tag("p", f"Understudy {comparison['kind']}", class_="kicker"),
        tag("h1", title),
        tag("p", _verdict(comparison, figures), class_="verdict"),
        tag("nav", *(tag("a", text, href=f"#{name}") for name, text in links.items()), aria_label="Sections"),
    )


def _verdict(comparison: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    if not figures:
        return "No run of this comparison was finished."
    first = figures[0]
    best = comparison["best"][first.key]
    entry = comparison["summary"][best][first.key]
    sentence = f"Highest {first.phrase}: {best}, {written(first, entry)} (n = {entry['n']})."
    close, apart = [], []
    for variant in comparison["variants"]:
        difference = (comparison["summary"][variant["label"]].get(first.key) or {}).get("difference")
        if difference is None:
            continue
        if difference["high"] is None or difference["high"] >= 0:
            close.append(variant["label"])
        else:
            apart.append(variant["label"])
    if entry["n"] < 2:
        return f"{sentence} One seed each: no difference is told from chance."
    if close:
        sentence += f" Not told apart from it by {entry['n']} seeds: {_named(close)}."
    if apart:
        sentence += f" Below it: {_named(apart)}."
    return sentence


def _named(labels: Sequence[str]) -> str:
    """The labels, or their number where they would fill the page."""
    return "; ".join(labels) if len(labels) <= NAMED else f"{len(labels)} variants (the differences below name them)"


def _result(comparison: Mapping[str, Any], figures: Sequence[Figure]) -> list[Child]:
    if not figures:
        return [notice("Nothing has been measured."), *_notes(comparison)]
    headings, rows = table_of(comparison)
    body = []
    labels = [variant["label"] for variant in comparison["variants"]]
    for row in rows:
        cells = []
        for position, cell in enumerate(row[1:]):
            best = position < len(figures) and comparison["best"][figures[position].key] == row[0]
            star = tag("span", "★", class_="star", role="img", aria_label="highest") if best else None
            cells.append(tag("td", star, cell or ABSENT, class_="best" if best else None))
        body.append(tag("tr", tag("th", row[0], scope="row"), *cells, class_=None if row[0] in labels else "teacher"))
    caption = (
        "Mean ± standard deviation over n seeds. ★ marks the highest mean of a column. Seconds and forward passes are "
        "of one training run; the teacher's kNN is the bound of asymmetric kNN."
    )
    return [table(caption, ["Variant", *headings[1:]], body), *_notes(comparison)]


def _notes(comparison: Mapping[str, Any]) -> list[Child]:
    return [tag("p", sentence, class_="note") for sentence in footnotes(comparison)]


def _differences(comparison: Mapping[str, Any], figures: Sequence[Figure]) -> list[Child]:
    if not any(entry["difference"] for row in comparison["summary"].values() for entry in row.values()):
        return [notice("There are no two variants with a seed in common.")]
    body = []
    for variant in comparison["variants"]:
        cells = []
        for figure in figures:
            entry = comparison["summary"][variant["label"]].get(figure.key)
            cells.append(_difference(figure, entry, variant["label"] == comparison["best"][figure.key]))
        body.append(tag("tr", tag("th", variant["label"], scope="row"), *cells))
    caption = (
        "Mean difference to the column's best, paired by seed, with its 95 % confidence interval (Student's t, n - 1 "
        "degrees of freedom); n is the number of pairs."
    )
    assumes = (
        "What the interval assumes: the seeds' differences are independent and about normal. It covers the play of "
        "seeds only: the images are the same in all runs, so other test images could still order the variants "
        "differently. The best is the best of several, which flatters it; no correction is made for many comparisons."
    )
    headings = ["Variant", *(figure.title for figure in figures)]
    return [table(caption, headings, body), tag("p", assumes, class_="note")]


def _difference(figure: Figure, entry: Mapping[str, Any] | None, best: bool) -> Markup:
    if best:
        return tag("td", "best", class_="best")
    if entry is None or entry["difference"] is None:
        return tag("td", ABSENT)
    found, digits = entry["difference"], figure.digits
    if found["low"] is None:
        return tag("td", f"{found['mean']:+.{digits}f}", tag("span", "n = 1, no interval", class_="note"))
    span = f"{found['low']:+.{digits}f} to {found['high']:+.{digits}f}, n = {found['n']}"
    return tag("td", f"{found['mean']:+.{digits}f}", tag("span", span, class_="note"))


def _plots(comparison: Mapping[str, Any], figures: Sequence[Figure]) -> list[Child]:
    if not figures:
        return [notice("Nothing has been measured.")]
    axes = _axes(comparison)
    if comparison["kind"] == "ablate" and len(axes) == 1:
        drawn = [captioned(_caption(figure), _line(comparison, figure, *axes.items())) for figure in figures]
        return [_legend_of_dots(), tag("div", *drawn, class_="charts")]
    if comparison["kind"] == "ablate" and len(axes) == 2:
        drawn = [captioned(_caption(figure), _heat(comparison, figure, *axes.items())) for figure in figures]
        return [tag("p", "Means over seeds.", class_="note"), tag("div", *drawn, class_="charts")]
    drawn = [captioned(_caption(figure), _dots(comparison, figure)) for figure in figures]
    return [_legend_of_dots(), tag("div", *drawn, class_="charts")]


def _caption(figure: Figure) -> str:
    return f"{figure.phrase[0].upper()}{figure.phrase[1:]}{', %' if '%' in figure.title else ''}"


def _legend_of_dots() -> Markup:
    sentence = (
        "Large: the mean with its 95 % confidence interval over seeds (Student's t); small: each seed. The dashed line "
        "is the teacher."
    )
    return tag("p", sentence, class_="note")


def _axes(comparison: Mapping[str, Any]) -> dict[str, list[str]]:
    """The varied keys and their values in the order given."""
    axes: dict[str, list[str]] = {}
    for variant in comparison["variants"]:
        for key, value in variant["changes"].items():
            if value not in axes.setdefault(key, []):
                axes[key].append(value)
    return axes


def _entries(comparison: Mapping[str, Any], figure: Figure) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return [
        (variant, comparison["summary"][variant["label"]][figure.key])
        for variant in comparison["variants"]
        if figure.key in comparison["summary"][variant["label"]]
    ]


def _dots(comparison: Mapping[str, Any], figure: Figure) -> Markup:
    import plotly.graph_objects as go

    entries = _entries(comparison, figure)[::-1]
    names = [_wrapped(variant["label"]) for variant, _ in entries]
    means = [entry["mean"] for _, entry in entries]
    spans = [entry["half_width"] or 0 for _, entry in entries]
    seeds = [
        (name, cell["figures"][figure.key])
        for name, (variant, _) in zip(names, entries, strict=True)
        for cell in variant["cells"] if figure.key in cell["figures"]
    ]  # fmt: skip
    look = {"color": "var(--muted)", "size": 5, "symbol": "circle-open"}
    hover = f"%{{x:.{figure.digits}f}}<extra></extra>"
    drawn = chart(
        [
            go.Scatter(x=[v for _, v in seeds], y=[n for n, _ in seeds], mode="markers", marker=look,
                       hovertemplate=hover),
            go.Scatter(x=means, y=names, mode="markers", marker={"color": color(0), "size": 11}, hovertemplate=hover,
                       error_x={"type": "data", "array": spans, "color": "var(--muted)", "thickness": 1.5}),
        ],
        yaxis={"type": "category", "categoryorder": "array", "categoryarray": names},
        shapes=_bound(comparison, figure, "x"),
    )  # fmt: skip
    words = "; ".join(f"{variant['label']} {written(figure, entry)}" for variant, entry in reversed(entries))
    return plot(drawn, f"{figure.phrase} by variant: {words}.", style=f"height:{70 + 34 * len(entries)}px")


def _bound(comparison: Mapping[str, Any], figure: Figure, axis: str) -> list[dict[str, Any]]:
    """The teacher's figure as a dashed line."""
    value = of_teacher(comparison, [figure])[figure.key]
    if not value:
        return []
    other = "y" if axis == "x" else "x"
    place = {f"{axis}0": float(value), f"{axis}1": float(value), f"{other}0": 0, f"{other}1": 1}
    line = {"color": "var(--muted)", "dash": "dash", "width": 1.5}
    return [{"type": "line", f"{other}ref": "paper", **place, "line": line}]


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _line(comparison: Mapping[str, Any], figure: Figure, axis: tuple[str, list[str]]) -> Markup:
    import plotly.graph_objects as go

    key, values = axis
    entries = [(str(variant["changes"][key]), variant, entry) for variant, entry in _entries(comparison, figure)]
    seeds = [(value, cell["figures"][figure.key]) for value, variant, _ in entries
             for cell in variant["cells"] if figure.key in cell["figures"]]  # fmt: skip
    hover = f"{html.escape(key)} %{{x}}: %{{y:.{figure.digits}f}}<extra></extra>"
    spans = [entry["half_width"] or 0 for _, _, entry in entries]
    drawn = chart(
        [
            go.Scatter(x=[v for v, _ in seeds], y=[y for _, y in seeds], mode="markers", hovertemplate=hover,
                       marker={"color": "var(--muted)", "size": 5, "symbol": "circle-open"}),
            go.Scatter(x=[v for v, _, _ in entries], y=[entry["mean"] for _, _, entry in entries],
                       mode="lines+markers", line={"color": color(0), "dash": dash(0)}, marker={"size": 9},
                       hovertemplate=hover,
                       error_y={"type": "data", "array": spans, "color": "var(--muted)", "thickness": 1.5}),
        ],
        xaxis={"title": {"text": key}, "type": "category", "categoryorder": "array", "categoryarray": values},
        shapes=_bound(comparison, figure, "y"),
    )  # fmt: skip
    words = "; ".join(f"{value} {written(figure, entry)}" for value, _, entry in entries)
    return plot(drawn, f"{figure.phrase} over {key}: {words}.", "small")


def _heat(
    comparison: Mapping[str, Any], figure: Figure, down: tuple[str, list[str]], across: tuple[str, list[str]]
) -> Markup:
    import plotly.graph_objects as go

    found = {
        (variant["changes"][down[0]], variant["changes"][across[0]]): entry
        for variant, entry in _entries(comparison, figure)
    }
    means = [[(found.get((y, x)) or {}).get("mean") for x in across[1]] for y in down[1]]
    texts = [[written(figure, found.get((y, x))).replace(" ± ", "<br>± ") for x in across[1]] for y in down[1]]
    drawn = chart(
        [
            go.Heatmap(
                z=means, x=across[1], y=down[1], text=texts, texttemplate="%{text}", showscale=False,
                colorscale=[[0, "#dfe9f5"], [1, "#7fb2e5"]], textfont={"color": "#191c20"}, xgap=2, ygap=2,
                hovertemplate=f"{html.escape(down[0])} %{{y}}, {html.escape(across[0])} %{{x}}: %{{text}}"
                "<extra></extra>",
            )
        ],
        xaxis={"title": {"text": across[0]}, "type": "category", "showgrid": False},
        yaxis={"title": {"text": down[0]}, "type": "category", "showgrid": False},
    )  # fmt: skip
    words = "; ".join(f"{y}, {x}: {written(figure, entry)}" for (y, x), entry in found.items())
    description = f"{figure.phrase} over {down[0]} and {across[0]}: {words}."
    return plot(drawn, description, style=f"height:{110 + 48 * len(down[1])}px")


def _wrapped(label: str) -> str:
    """A label for a narrow axis: broken after colons and commas, a very long piece cut."""
    pieces = label.replace(", ", ":").split(":")
    return "<br>".join(html.escape(piece if len(piece) <= 24 else f"…{piece[-23:]}", quote=False) for piece in pieces)


def _rates(comparison: Mapping[str, Any]) -> list[Child]:
    about = comparison["about"]
    searched = [variant for variant in comparison["variants"] if variant["trials"]]
    if not searched:
        return [tag("p", "The learning rate was given, so none was searched.")]
    body = []
    for variant in searched:
        shares = [(trial["lr"], trial[about["criterion"]]) for trial in variant["trials"]]
        tried = [f"{rate:.3g}: {'failed' if share is None else f'{share:.2f}'}" for rate, share in shares]
        rate = "none" if variant["lr"] is None else f"{variant['lr']:.3g}"
        body.append(tag("tr", tag("th", variant["label"], scope="row"), tag("td", "; ".join(tried)), tag("td", rate)))
    how = (
        f"Each variant tried {about['trials']} rates with one seed and {about['search_share']:g} of the budget. The "
        "rate whose backbone kept most of the teacher's 11 nearest neighbors was taken, measured without labels on "
        "training images that no run of this comparison is trained on."
    )
    headings = ["Variant", "rate: neighbors shared, %", "taken"]
    return [tag("p", how), table("The trials of the learning rate.", headings, body)]


def _done(comparison: Mapping[str, Any]) -> list[Child]:
    about = comparison["about"]
    pairs = [(key.replace("_", " "), value) for key, value in about.items()
             if value not in (None, [], "") and key != "protocols"]  # fmt: skip
    metadata = [join(tag("dt", key), tag("dd", ", ".join(value) if isinstance(value, list) else str(value)))
             for key, value in pairs]  # fmt: skip
    body = []
    for variant in comparison["variants"]:
        costs = [cost_of(variant, name) for name in ("images", "student_forwards", "teacher_forwards", "key_forwards")]
        seconds = cost_of(variant, "seconds")
        cells = [f"{variant['passes']:g}", ABSENT if seconds is None else duration(seconds)]
        cells += [ABSENT if cost is None else count(cost) for cost in costs]
        body.append(tag("tr", tag("th", variant["label"], scope="row"), *(tag("td", cell) for cell in cells)))
    headings = ["Variant", "image passes", "time", "images", "student", "teacher", "average of the student"]
    return [
        tag("div", tag("div", tag("dl", *metadata), class_="card"), class_="facts"),
        table("What one training run cost, on average: time, images seen, forward passes.", headings, body),
        tag("p", "comparison.csv has a line for each run, with every figure and the folder of the run.", class_="note"),
    ]
