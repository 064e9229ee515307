"""The page of a comparison: the table, differences to the best, dots with intervals, curves or heat maps of a grid."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from understudy.artifacts import read_json, write_text
from understudy.report import charts
from understudy.report.comparison import Figure, footnotes, format_mean, mean_cost, measured, table_of, teacher_figures
from understudy.report.numbers import count, duration
from understudy.report.rendering import render
from understudy.report.tables import ABSENT, Cell, Row, Table, known_facts

NAMED = 6
"""Variants that the sentence on top calls by name."""

COSTS = ("images", "student_forwards", "teacher_forwards", "key_forwards")

Values = Mapping[str, Any]


def write_page(path: Path, out: Path) -> Path:
    """Tell a comparison (comparison.json) as one self-contained HTML page."""
    write_text(out, page(read_json(path)))
    return out


def page(comparison: Values) -> str:
    """The page of what comparison.json holds."""
    figures, about, axes = measured(comparison), comparison["about"], _axes(comparison)
    is_grid = comparison["kind"] == "ablate"
    title = f"{len(comparison['variants'])} ways to train {about['student']}"
    return render(
        "comparison.html.j2", kind=comparison["kind"],
        title=f"{about['student']} over {' and '.join(axes)}" if is_grid else title,
        verdict=_verdict(comparison, figures), measured=bool(figures), result=_result(comparison, figures),
        footnotes=footnotes(comparison), differences=_differences(comparison, figures),
        axes=len(axes) if is_grid else 0,
        charts=[_chart(comparison, figure, axes if is_grid else {}) for figure in figures], about=about,
        rates=_rates(comparison), done=known_facts({key: value for key, value in about.items() if key != "protocols"}),
        costs=_costs(comparison),
    )  # fmt: skip


def _verdict(comparison: Values, figures: Sequence[Figure]) -> str:
    if not figures:
        return "No run of this comparison was finished."
    first = figures[0]
    best = comparison["best"][first.key]
    entry = comparison["summary"][best][first.key]
    sentence = f"Highest {first.phrase}: {best}, {format_mean(first, entry)} (n = {entry['n']})."
    close, below = list[str](), list[str]()
    for variant in comparison["variants"]:
        difference = (comparison["summary"][variant["label"]].get(first.key) or {}).get("difference")
        if difference is not None:
            (close if difference["high"] is None or difference["high"] >= 0 else below).append(variant["label"])
    if entry["n"] < 2:
        return f"{sentence} One seed each: no difference is told from chance."
    if close:
        sentence += f" Not told apart from it by {entry['n']} seeds: {_named(close)}."
    return sentence + (f" Below it: {_named(below)}." if below else "")


def _named(labels: Sequence[str]) -> str:
    """The labels, or their number where they would fill the page."""
    return "; ".join(labels) if len(labels) <= NAMED else f"{len(labels)} variants (the differences below name them)"


def _result(comparison: Values, figures: Sequence[Figure]) -> Table:
    headings, lines = table_of(comparison)
    labels = [variant["label"] for variant in comparison["variants"]]
    rows = []
    for label, *texts in lines:
        best = [comparison["best"][figure.key] == label for figure in figures] + [False] * (len(texts) - len(figures))
        cells = [
            Cell(text or ABSENT, best=is_best, star="highest" if is_best else "")
            for text, is_best in zip(texts, best, strict=True)
        ]
        rows.append(Row(label, cells, kind="" if label in labels else "teacher"))
    caption = (
        "Mean ± standard deviation over n seeds. ★ marks the highest mean of a column. Seconds and forward passes are "
        "of one training run; the teacher's kNN is the bound of asymmetric kNN."
    )
    return Table(caption, ["Variant", *headings[1:]], rows)


def _differences(comparison: Values, figures: Sequence[Figure]) -> Table | None:
    summary, best = comparison["summary"], comparison["best"]
    if not any(entry["difference"] for row in summary.values() for entry in row.values()):
        return None
    rows = []
    for label in (variant["label"] for variant in comparison["variants"]):
        entries = ((figure, summary[label].get(figure.key)) for figure in figures)
        rows.append(Row(label, [_difference(figure, entry, label == best[figure.key]) for figure, entry in entries]))
    caption = (
        "Mean difference to the column's best, paired by seed, with its 95 % confidence interval (Student's t, n - 1 "
        "degrees of freedom); n is the number of pairs."
    )
    return Table(caption, ["Variant", *(figure.title for figure in figures)], rows)


def _difference(figure: Figure, entry: Values | None, best: bool) -> Cell:
    if best:
        return Cell("best", best=True)
    if entry is None or entry["difference"] is None:
        return Cell(ABSENT)
    difference, digits = entry["difference"], figure.digits
    note = "n = 1, no interval"
    if difference["low"] is not None:
        note = f"{difference['low']:+.{digits}f} to {difference['high']:+.{digits}f}, n = {difference['n']}"
    return Cell(f"{difference['mean']:+.{digits}f}", note)


def _axes(comparison: Values) -> dict[str, list[str]]:
    """The varied keys and their values in the order given."""
    axes: dict[str, list[str]] = {}
    for variant in comparison["variants"]:
        for key, value in variant["changes"].items():
            if value not in axes.setdefault(key, []):
                axes[key].append(value)
    return axes


def _chart(comparison: Values, figure: Figure, axes: Mapping[str, list[str]]) -> charts.Chart:
    """A figure of all variants: as a curve over one varied key, as a heat map over two, else as dots."""
    summary = comparison["summary"]
    every = ((variant, summary[variant["label"]].get(figure.key)) for variant in comparison["variants"])
    entries = [(variant, entry) for variant, entry in every if entry is not None]
    bound = teacher_figures(comparison, [figure])[figure.key]
    caption = f"{figure.phrase[0].upper()}{figure.phrase[1:]}{', %' if '%' in figure.title else ''}"
    if len(axes) == 2:
        return _heat(figure, entries, axes, caption)
    key = next(iter(axes)) if len(axes) == 1 else ""
    names = [str(variant["changes"][key]) if key else variant["label"] for variant, _ in entries]
    order = [str(value) for value in axes[key]] if key else names[::-1]
    positions, order = ([charts.escaped(one) if key else _broken(one) for one in texts] for texts in (names, order))
    across, up, hover = ("x", "y", f"{charts.escaped(key)} %{{x}}: ") if key else ("y", "x", "")
    hover += f"%{{{up}:.{figure.digits}f}}<extra></extra>"
    seeds = [
        (position, cell["figures"][figure.key])
        for position, (variant, _) in zip(positions, entries, strict=True)
        for cell in variant["cells"] if figure.key in cell["figures"]
    ]  # fmt: skip
    dots = {across: [position for position, _ in seeds], up: [value for _, value in seeds], "mode": "markers",
            "marker": {"color": charts.MUTED, "size": 5, "symbol": "circle-open"}, "hovertemplate": hover}  # fmt: skip
    bars = {"type": "data", "array": [entry["half_width"] or 0 for _, entry in entries], "color": charts.MUTED,
            "thickness": 1.5}  # fmt: skip
    line = {"mode": "lines+markers", "line": {"color": charts.color(0)}, "marker": {"size": 9}}
    means = {
        across: positions, up: [entry["mean"] for _, entry in entries], f"error_{up}": bars, "hovertemplate": hover,
        **(line if key else {"mode": "markers", "marker": {"color": charts.color(0), "size": 11}}),
    }  # fmt: skip
    axis = {"type": "category", "categoryorder": "array", "categoryarray": order}
    drawn = charts.plotly_figure(
        [charts.scatter(**dots), charts.scatter(**means)],
        shapes=[charts.reference(up, float(bound))] if bound else [],
        **{f"{across}axis": axis | ({"title": {"text": charts.escaped(key)}} if key else {})},
    )
    words = "; ".join(f"{name} {format_mean(figure, entry)}" for name, (_, entry) in zip(names, entries, strict=True))
    description = f"{figure.phrase} {f'over {key}' if key else 'by variant'}: {words}."
    size, height = ("small", None) if key else ("", 70 + 34 * len(entries))
    return charts.Chart(drawn, description, size, height, caption)


def _heat(
    figure: Figure, entries: Sequence[tuple[Values, Values]], axes: Mapping[str, list[str]], caption: str
) -> charts.Chart:
    (down, rows), (across, columns) = axes.items()
    by_place = {(variant["changes"][down], variant["changes"][across]): entry for variant, entry in entries}
    means = [[(by_place.get((y, x)) or {}).get("mean") for x in columns] for y in rows]
    texts = [[format_mean(figure, by_place.get((y, x))).replace(" ± ", "<br>± ") for x in columns] for y in rows]
    titles = {"xaxis": {"title": {"text": charts.escaped(across)}}, "yaxis": {"title": {"text": charts.escaped(down)}}}
    names = {"x": [charts.escaped(x) for x in columns], "y": [charts.escaped(y) for y in rows]}
    hover = f"{charts.escaped(down)} %{{y}}, {charts.escaped(across)} %{{x}}: %{{text}}"
    words = "; ".join(f"{y}, {x}: {format_mean(figure, entry)}" for (y, x), entry in by_place.items())
    return charts.Chart(
        charts.heat_map(means, texts, names | titles, hover), f"{figure.phrase} over {down} and {across}: {words}.",
        height=110 + 48 * len(rows), caption=caption,
    )  # fmt: skip


def _broken(label: str) -> str:
    """A label for a narrow axis: broken after colons and commas, a very long piece cut."""
    return "<br>".join(charts.escaped(charts.shortened(piece, 24)) for piece in label.replace(", ", ":").split(":"))


def _rates(comparison: Values) -> Table | None:
    criterion, rows = comparison["about"]["criterion"], []
    for variant in comparison["variants"]:
        if variant["trials"]:
            shares = [(trial["lr"], trial[criterion]) for trial in variant["trials"]]
            tried = [f"{rate:.3g}: {'failed' if share is None else f'{share:.2f}'}" for rate, share in shares]
            rate = "none" if variant["lr"] is None else f"{variant['lr']:.3g}"
            rows.append(Row(variant["label"], [Cell("; ".join(tried)), Cell(rate)]))
    headings = ["Variant", "rate: neighbors shared, %", "taken"]
    return Table("The trials of the learning rate.", headings, rows) if rows else None


def _costs(comparison: Values) -> Table:
    rows = []
    for variant in comparison["variants"]:
        seconds, *numbers = (mean_cost(variant, name) for name in ("seconds", *COSTS))
        texts = [f"{variant['passes']:g}", ABSENT if seconds is None else duration(seconds)]
        texts += [ABSENT if number is None else count(number) for number in numbers]
        rows.append(Row(variant["label"], [Cell(text) for text in texts]))
    headings = ["Variant", "image passes", "time", "images", "student", "teacher", "average of the student"]
    return Table("What one training run cost, on average: time, images seen, forward passes.", headings, rows)
