"""The page of a run: what its template is given, section by section."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from understudy.artifacts import Run, write_text
from understudy.report import charts, figures, gallery, spaces
from understudy.report.details import protocol_parts
from understudy.report.exports import exports_part
from understudy.report.numbers import count, duration, percent, share
from understudy.report.provenance import RunRecord, read_records
from understudy.report.rendering import render
from understudy.report.results import Results
from understudy.report.shares import cost_shares, quality_shares
from understudy.report.tables import figures_table, glance_table, what_was_done
from understudy.report.verdict import OVERLAP, caveats, headline, verdict

SIDES = gallery.SIDES

CURVES = {
    "terms": ("Loss", "On training batches."),
    "signals": ("Student against teacher", "On held-out images, as training went."),
    "pace": ("Pace", ""),
}


def write_report(runs: Sequence[Run], out: Path) -> Path:
    """Tell the story of a run, beside further ones, as one self-contained HTML page that opens offline.

    What a run has not got yet (evaluation, sample, labels, a teacher) is said in a sentence where it would stand.

    Args:
        runs: the run the page is about, then controls and other methods to set beside it.
        out: the file to write; its folder is made. About 5 MB, most of it plotly.js, which draws the charts.

    Returns:
        `out`.

    Raises:
        ConfigError: no run was given, or a config.toml is damaged.
        StoreError: a run folder does not exist, or a file in it is damaged.
    """
    results = Results.of(read_records(runs))
    records, main = results.records, results.main
    page = render(
        "report.html.j2", title=_title(main), verdict=verdict(results), tiles=_tiles(results), result=_result(results),
        failures=main.failures, protocols=protocol_parts(results), curves=_curves(records), neighbors=_neighbors(main),
        maps=_maps(main), dimensions=_dimensions(records), done=what_was_done(results),
        configurations={record.name: record.config_text for record in records if record.config_text},
        configured=bool(main.config_text), caveats=caveats(results), exports=exports_part(main.exports),
    )  # fmt: skip
    write_text(out, page)
    return Path(out)


def _title(main: RunRecord) -> str:
    student = str(main.student.get("spec") or main.config.get("student") or main.name)
    teacher = str(main.teacher.get("spec") or main.config.get("teacher") or "")
    ending = f"understudy of {_short(teacher)}" if teacher else "trained without a teacher"
    return f"{_short(student)}, {ending}"


def _short(spec: str) -> str:
    """A spec without its prefix, its weights file and its folders."""
    return spec.partition(":")[2].partition("@")[0].rstrip("/").rpartition("/")[2] or spec


def _tiles(results: Results) -> list[tuple[str, str, str]]:
    """Value, label and detail of the numbers that the page opens with."""
    main, teacher, lead = results.main, results.teacher, headline(results)
    tiles: list[tuple[str, str, str]] = []
    if lead is not None:
        measure, student = lead
        value, theirs = measure.of(student) or 0.0, teacher and measure.of(teacher)
        if measure.accuracy and theirs:
            detail = f"{percent(value)} against {percent(theirs)}"
            tiles.append((percent(100 * value / theirs), f"of the teacher's {measure.phrase}", detail))
        else:
            tiles.append((measure.format(value), measure.phrase, student.part))
        shared = OVERLAP.of(student)
        if measure is not OVERLAP and shared is not None:
            tiles.append((OVERLAP.format(shared), OVERLAP.phrase, "student with teacher"))
    first = next((row for row in results.rows if row.main), None)
    for name, noun in (("parameters", "parameters"), ("flops", "multiply-adds")):
        ours, theirs = getattr(first, name, None), getattr(teacher, name, None)
        ratio = share(ours, theirs)
        if ours is not None and theirs is not None and ratio is not None:
            tiles.append((percent(ratio), f"of the teacher's {noun}", f"{count(ours)} against {count(theirs)}"))
        elif ours is not None:
            tiles.append((count(ours), noun, "of the student"))
    seconds = main.end.get("seconds", main.student.get("seconds"))
    if seconds is not None:
        passes = f"{main.passes:g} image passes" if main.passes is not None else ""
        tiles.append((duration(seconds), "of training", passes))
    return tiles


def _result(results: Results) -> dict[str, Any]:
    """Every protocol as share of the teacher's figure, what that costs, and the tables."""
    if not results.keys:
        return {"measured": False}
    quality, costs, runs = quality_shares(results), cost_shares(results), results.run_names
    keys = [charts.LegendKey(run, charts.color(i), kind="bar") for i, run in enumerate(runs)] if len(runs) > 1 else []
    keys.append(charts.LegendKey("the teacher", dash="dash"))
    if any(entry.chance is not None for entry in quality):
        keys.append(charts.LegendKey("guessing", kind="tick"))
    lead = headline(results)
    return {
        "measured": True, "legend": keys, "shares": figures.shares_chart(quality, runs),
        "costs": figures.shares_chart(costs, runs, less=True), "glance": glance_table(results),
        "accuracies": figures.accuracies(lead[0], results) if lead is not None and lead[0].accuracy else None,
        "figures": figures_table(results, results.rows, results.keys),
    }  # fmt: skip


def _curves(records: Sequence[RunRecord]) -> dict[str, Any]:
    drawn = ((title, note, figures.curves(records, kind)) for kind, (title, note) in CURVES.items())
    groups = [{"title": title, "note": note, "charts": some} for title, note, some in drawn if some]
    keys = [charts.series_key(i, record.name) for i, record in enumerate(records)]
    if any("teacher_knn" in row for record in records for row in record.signals):
        keys.append(charts.LegendKey("teacher", dash="dash"))
    thinned = any(len(record.steps) > figures.POINTS for record in records)
    return {"groups": groups, "legend": keys, "thinned_to": figures.POINTS if thinned else None}


def _missing(main: RunRecord, *arrays: str) -> str | None:
    """The sentence that stands in for a section whose arrays are missing."""
    if not main.sample:
        return "There is no sample of evaluation images (sample.npz). `understudy evaluate` writes one."
    missing = [name for name in arrays if name not in main.sample]
    if missing and "teacher" not in main.sample:
        return "This run has no teacher, so there are no two spaces to compare here."
    if missing:
        return f"The sample of evaluation images (sample.npz) has no {' and no '.join(missing)} to show here."
    if not len(main.sample[arrays[0]]):
        return "The sample of evaluation images (sample.npz) is empty."
    return None


def _neighbors(main: RunRecord) -> dict[str, Any] | str:
    missing = _missing(main, "thumbnails", "teacher_neighbors", "student_neighbors")
    if missing is not None:
        return missing
    shared = gallery.shared_neighbors(main.sample)
    return {
        "listed": main.sample["teacher_neighbors"].shape[1], "images": len(shared), "shared": shared.mean(),
        "labeled": spaces.label_names(main.sample) is not None, "queries": gallery.queries(main.sample),
    }  # fmt: skip


def _maps(main: RunRecord) -> dict[str, Any] | str:
    missing = _missing(main, "teacher", "student")
    if missing is not None:
        return missing
    sample, n = main.sample, len(main.sample["teacher"])
    layouts, missing_package = spaces.layouts(sample["teacher"], sample["student"])
    if not layouts["teacher"]:
        return "The teacher's sample cannot be laid out: fewer than three images, or all in one point."
    groups = spaces.groups(sample)
    labels = spaces.label_names(sample) or [None] * n
    names = [str(name) for name in sample.get("names", [""] * n)]
    texts = [" · ".join(filter(None, pair)) or f"image {i}" for i, pair in enumerate(zip(labels, names, strict=True))]
    return {
        "methods": list(layouts["teacher"]), "images": n, "groups_are": groups.description, "missing": missing_package,
        "buttons": _group_buttons(groups), "texts": texts,
        "sheet": gallery.thumbnail_sheet(sample["thumbnails"]) if "thumbnails" in sample else None,
        "charts": [
            figures.space_map(layouts[side], groups, texts, side) if layouts[side]
            else {"caption": side.capitalize(),
                  "notice": f"The {side}'s sample cannot be laid out: all images lie in one point."}
            for side in SIDES
        ],
    }  # fmt: skip


def _group_buttons(groups: spaces.Groups) -> list[dict[str, Any]]:
    """One for each trace of the maps; the first trace has the images of no group."""
    glyphs = [pair[0] for pair in charts.GLYPHS.values()]
    buttons = [
        {"name": name, "trace": i + 1, "glyph": glyphs[i], "color": charts.color(i)}
        for i, name in enumerate(groups.names)
    ]
    rest = int((groups.member < 0).sum())
    if rest:
        buttons.append({"name": f"other ({rest:,})", "trace": 0, "glyph": "•", "color": charts.MUTED})
    return buttons


def _dimensions(records: Sequence[RunRecord]) -> dict[str, Any] | str:
    missing = _missing(records[0], "column_cosine")
    if missing is not None:
        return missing
    cosines = records[0].sample["column_cosine"]
    return {
        "number": len(cosines), "mean": cosines.mean(), "low": 100 * (cosines < 0.5).mean(),
        "legend": figures.column_cosine_legend(records), "chart": figures.column_cosines(records),
    }  # fmt: skip
