"""The page, told in order: verdict, what was done, result, curves, neighbors, maps, dimensions, caveats."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from understudy.artifacts import Run, write_text
from understudy.errors import MissingDependency
from understudy.report import details, figures, gallery, results, spaces, tables
from understudy.report.markup import Child, Markup, join, prose, tag
from understudy.report.numbers import count, duration, percent
from understudy.report.provenance import Account, read_accounts
from understudy.report.verdict import (
    OVERLAP,
    Model,
    caveats,
    figure,
    headline,
    images_tested,
    models,
    share,
    teacher_of,
    verdict,
)

# The browser itself is told to fetch nothing: images are data, styles and scripts are in the page.
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

WHO = ("teacher", "student")


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
    accounts = read_accounts(runs)
    rows = models(accounts)
    story = [
        _opening(accounts, rows),
        section("done", "What was done", *_done(accounts)),
        section("result", "Result", *_result(accounts[0], rows)),
        section("protocols", "Protocol by protocol", *_protocols(accounts, rows)),
        section("curves", "Training curves", *_curves(accounts)),
        section("neighbors", "Nearest neighbors", *_neighbors(accounts[0])),
        section("map", "The two spaces", *_maps(accounts[0])),
        section("dimensions", "Dimension by dimension", *_dimensions(accounts)),
        section("caveats", "Before quoting a number", *_caveats(accounts, rows)),
    ]
    write_text(out, "<!doctype html>\n" + document(_title(accounts[0]), join(*story)) + "\n")
    return Path(out)


def document(title: str, story: Markup) -> Markup:
    """A whole page with everything in it: styles, scripts, content."""
    from plotly.offline import get_plotlyjs

    files = importlib.resources.files("understudy.report")
    style, script = ((files / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    scripts = [tag("script", Markup(code)) for code in (get_plotlyjs(), script)]
    missing = tag("noscript", tag("p", "The charts need JavaScript; the tables and pictures do not.", class_="notice"))
    return tag("html", head, tag("body", tag("main", missing, story), *scripts), lang="en")


def section(name: str, title: str, *content: Child) -> Markup:
    """One section of the page."""
    return tag("section", tag("h2", title), *content, id=name, aria_label=title)


def _title(main: Account) -> str:
    student = str(main.student.get("spec") or main.config.get("student") or main.name)
    teacher = str(main.teacher.get("spec") or main.config.get("teacher") or "")
    return f"{_short(student)}, " + (f"understudy of {_short(teacher)}" if teacher else "trained without a teacher")


def _short(spec: str) -> str:
    """A spec without its prefix, its weights file and its folders."""
    return spec.partition(":")[2].partition("@")[0].rstrip("/").rpartition("/")[2] or spec


def _opening(accounts: Sequence[Account], rows: Sequence[Model]) -> Markup:
    main = accounts[0]
    links = {
        "done": "What was done", "result": "Result", "protocols": "Protocols", "curves": "Curves",
        "neighbors": "Neighbors", "map": "Maps", "dimensions": "Dimensions",
        "caveats": f"Caveats ({len(caveats(accounts, rows))})",
    }  # fmt: skip
    return tag(
        "header",
        tag("p", "Understudy report", class_="kicker"),
        tag("h1", _title(main)),
        tag("p", verdict(rows, main), class_="verdict"),
        _tiles(main, rows),
        tag("nav", *(tag("a", title, href=f"#{name}") for name, title in links.items()), aria_label="Sections"),
    )


def _tiles(main: Account, rows: Sequence[Model]) -> Markup | None:
    teacher, found = teacher_of(rows), headline(rows)
    tiles: list[tuple[str, str, str]] = []
    if found is not None:
        measure, student = found
        value, theirs = measure.of(student) or 0.0, teacher and measure.of(teacher)
        if measure.accuracy and theirs:
            detail = f"{percent(value)} against {percent(theirs)}"
            tiles.append((percent(100 * value / theirs), f"of the teacher's {measure.phrase}", detail))
        else:
            tiles.append((figure(measure, value), measure.phrase, student.part))
        shared = OVERLAP.of(student)
        if measure is not OVERLAP and shared is not None:
            tiles.append((figure(OVERLAP, shared), OVERLAP.phrase, "student with teacher"))
    students = [row for row in rows if row.main]
    for name, noun in (("parameters", "parameters"), ("flops", "multiply-adds")):
        ours = getattr(students[0], name) if students else None
        theirs = getattr(teacher, name, None)
        ratio = share(ours, theirs)
        if ours is not None and theirs is not None and ratio is not None:
            tiles.append((percent(ratio), f"of the teacher's {noun}", f"{count(ours)} against {count(theirs)}"))
        elif ours is not None:
            tiles.append((count(ours), noun, "of the student"))
    seconds = main.end.get("seconds", main.student.get("seconds"))
    if seconds is not None:
        passes = f"{main.passes:g} image passes" if main.passes is not None else ""
        tiles.append((duration(seconds), "of training", passes))
    cards = (
        tag("li", tag("strong", value), tag("span", label), tag("span", detail, class_="note"), class_="card")
        for value, label, detail in tiles
    )
    return tag("ul", *cards, class_="tiles") if tiles else None


def _done(accounts: Sequence[Account]) -> list[Child]:
    configurations = [
        tag("details", tag("summary", f"Configuration of {a.name}"), tag("pre", a.config_text, tabindex="0"))
        for a in accounts
        if a.config_text
    ]
    if not accounts[0].config_text:
        configurations.append(notice("The run folder has no config.toml: training has not started in it."))
    again = "`understudy train --config config.toml --out FOLDER` trains a run again from its configuration."
    return [tables.what_was_done(accounts[0]), *configurations, tag("p", prose(again), class_="note")]


def _result(main: Account, rows: Sequence[Model]) -> list[Child]:
    failures = [notice(sentence) for sentence in main.failures]
    if not any(figures for row in rows for figures in row.scores.values()):
        return [
            notice("Nothing has been measured yet: `understudy evaluate` does, then make this page again."),
            *failures,
        ]
    n, found = images_tested(main), headline(rows)
    content: list[Child] = [*_overview(rows), tag("h3", "At a glance"), tables.result_table(rows, n)]
    if found is not None and found[0].accuracy:
        content.append(figures.accuracies(found[0], rows, images_tested(main, found[0])))
    content.append(
        tag("p", "Backbone is the student's pooled feature, as published protocols use it; embed is what its head puts "
            "into the teacher's space. Multiply-adds are for one image.", class_="note")
    )  # fmt: skip
    content += [tag("h3", "By protocol and set"), tables.results_table(rows, results.keys_of(rows))]
    return [*content, *failures]


def _overview(rows: Sequence[Model]) -> list[Child]:
    """Every protocol as share of the teacher's figure, and what that costs."""
    quality, costs = results.against_teacher(rows), results.costs_against_teacher(rows)
    if not quality and not costs:
        return [
            notice("No figure was measured of both teacher and student, so none can be shown as the teacher's share.")
        ]
    runs = list(dict.fromkeys(row.name for row in rows if not row.is_teacher))
    keys = [figures.swatch(figures.color(i), run) for i, run in enumerate(runs)] if len(runs) > 1 else []
    keys.append(figures.line_key("var(--muted)", "the teacher", "dash"))
    if any(entry.guessing is not None for entry in quality):
        keys.append(tag("li", tag("span", "|", class_="tick", aria_hidden="true"), "guessing"))
    charts = []
    if quality:
        charts.append(figures.captioned("What the students keep", figures.shares(quality, runs)))
    if costs:
        charts.append(figures.captioned("What they cost", figures.shares(costs, runs, less=True)))
    return [
        tag("p", "The students' backbones (what only embeddings have: the embeddings) as per cent of the teacher's "
            "figure. An error is compared by what it leaves to 100 %, asymmetric figures with the teacher's own, and "
            "shared neighbors are per cent by themselves."),
        tag("ul", *keys, class_="legend"),
        tag("div", *charts, class_="overview"),
    ]  # fmt: skip


def _protocols(accounts: Sequence[Account], rows: Sequence[Model]) -> list[Child]:
    told = details.details(accounts, rows)
    return told or [notice("No protocol has been applied yet.")]


def _curves(accounts: Sequence[Account]) -> list[Child]:
    groups = {
        "terms": ("Loss", "On training batches."),
        "signals": ("Student against teacher", "On held-out images, as training went."),
        "pace": ("Pace", ""),
    }
    content: list[Child] = []
    for kind, (heading, note) in groups.items():
        charts = figures.lines_of(accounts, kind)
        if charts:
            content += [tag("h3", heading), tag("p", note, class_="note") if note else None]
            cells = (
                figures.captioned(figures.title(name), figures.curve(name, lines)) for name, lines in charts.items()
            )
            content.append(tag("div", *cells, class_="charts"))
    if not content:
        return [notice("metrics.jsonl has no steps yet: training has not got that far.")]
    if any(len(account.steps) > figures.POINTS for account in accounts):
        content.append(tag("p", f"Long curves are drawn as the means of {figures.POINTS} equal parts.", class_="note"))
    keys = [_series_key(i, account) for i, account in enumerate(accounts)]
    if any("teacher_knn" in row for account in accounts for row in account.signals):
        keys.append(figures.line_key("var(--muted)", "teacher", "dash"))
    return [tag("ul", *keys, class_="legend") if len(keys) > 1 else None, *content]


def _series_key(series: int, account: Account) -> Markup:
    """Legend entry of a run: a piece of its line."""
    return figures.line_key(figures.color(series), account.name, figures.dash(series))


def _lacks(main: Account, *arrays: str) -> Markup | None:
    """The sentence that stands in for a section whose arrays are missing."""
    if not main.sample:
        return notice("There is no sample of evaluation images (sample.npz). `understudy evaluate` writes one.")
    missing = [name for name in arrays if name not in main.sample]
    if missing and "teacher" not in main.sample:
        return notice("This run has no teacher, so there are no two spaces to compare here.")
    if missing:
        return notice(f"The sample of evaluation images (sample.npz) has no {' and no '.join(missing)} to show here.")
    if not len(main.sample[arrays[0]]):
        return notice("The sample of evaluation images (sample.npz) is empty.")
    return None


def _neighbors(main: Account) -> list[Child]:
    lacks = _lacks(main, "thumbnails", "teacher_neighbors", "student_neighbors")
    if lacks is not None:
        return [lacks]
    sample = main.sample
    shared, listed = gallery.shared_neighbors(sample), sample["teacher_neighbors"].shape[1]
    labeled = spaces.label_names(sample) is not None
    legend = [tag("li", tag("span", "✓", class_="both", aria_hidden="true"), "found by teacher and student")]
    if labeled:
        legend += [
            tag("li", tag("span", class_="swatch same"), "same class as the query"),
            tag("li", tag("span", class_="swatch other"), "another class"),
        ]
    return [
        tag("p", f"For each query, its {listed} nearest images among {len(shared):,} evaluation images, nearest first, "
            f"in the teacher's space and in the student's. On average {shared.mean():.1f} of {listed} are shared. The "
            "queries stand at even steps of agreement, from the worst to the best of the sample."),
        tag("ul", *legend, class_="legend"),
        None if labeled else notice("The images have no labels, so classes are not marked."),
        gallery.gallery(sample),
    ]  # fmt: skip


def _maps(main: Account) -> list[Child]:
    lacks = _lacks(main, "teacher", "student")
    if lacks is not None:
        return [lacks]
    sample, n = main.sample, len(main.sample["teacher"])
    few = n < spaces.FEWEST_FOR_TSNE
    maps = {"PCA" if few else "t-SNE": {who: spaces.flatten(sample[who]) for who in WHO}}
    (method, flat) = next(iter(maps.items()))
    if flat["teacher"] is None:
        return [notice("The teacher's sample cannot be laid out: fewer than three images, or all in one point.")]
    absent = None
    if not few:
        try:
            found = {who: spaces.pacmap(sample[who]) for who in WHO}
        except MissingDependency as error:
            absent = str(error)
        else:
            if all((found[who] is None) == (flat[who] is None) for who in WHO):
                maps["PaCMAP"] = found
    groups = spaces.groups(sample)
    layouts: dict[str, dict[str, np.ndarray]] = {who: {} for who in WHO}
    for name, points in maps.items():
        reference, moved = points["teacher"], points["student"]
        assert reference is not None
        layouts["teacher"][name] = reference
        if moved is not None:
            layouts["student"][name] = spaces.aligned(moved, reference)
    labels, names = spaces.label_names(sample) or [None] * n, [str(name) for name in sample.get("names", [""] * n)]
    texts = [" · ".join(filter(None, pair)) or f"image {i}" for i, pair in enumerate(zip(labels, names, strict=True))]
    meaning = (
        "There are too few images for t-SNE, so these are the two directions in which each space varies most."
        if few
        else "Only who is near whom means something: distances between groups, sizes and axes do not."
    )
    by = "k-means clusters of the teacher's space (there are no labels)" if groups.clusters else "class"
    cells = []
    for who, drawn in layouts.items():
        words = f"{' and '.join(maps)} map of the {who}'s space, {n} images colored by {by}"
        chart = figures.space_map(drawn, groups, texts, words) if drawn else notice(
            f"The {who}'s sample cannot be laid out: all images lie in one point."
        )  # fmt: skip
        cells.append(figures.captioned(who.capitalize(), chart))
    rest = int((groups.member < 0).sum())
    glyphs = list(figures.SYMBOLS.values())
    buttons = [
        tag("button", tag("span", glyphs[i], style=f"color:var(--series-{i})", aria_hidden="true"), name,
            type="button", aria_pressed="true", data_group=str(i + 1))
        for i, name in enumerate(groups.names)
    ]  # fmt: skip
    if rest:
        other = tag("span", "•", style="color:var(--muted)", aria_hidden="true")
        buttons.append(tag("button", other, f"other ({rest:,})", type="button", aria_pressed="true", data_group="0"))
    switch = [
        tag("button", name, type="button", aria_pressed=str(name == method).lower(), data_layout=name) for name in maps
    ]
    told = (
        " PaCMAP shows more than t-SNE of which groups lie beside each other, less of what is near within a group."
        if "PaCMAP" in maps
        else ""
    )
    return [
        tag("p", f"{' or '.join(maps)} of {n:,} evaluation images, colored by {by}. Point at an image to find it in "
            f"both maps; the buttons hide and show a group. {meaning}{told} The student's map is turned and mirrored "
            "to lie like the teacher's."),
        notice(absent + " Then make this page again to have both maps of each space.") if absent else None,
        tag("div", *switch, class_="groups layouts", role="group", aria_label="Map") if len(switch) > 1 else None,
        tag("div", *buttons, class_="groups", role="group", aria_label="Groups shown"),
        _peek(main, texts),
        tag("div", *cells, class_="maps"),
    ]  # fmt: skip


def _peek(main: Account, texts: Sequence[str]) -> Markup | None:
    """Where the image under the pointer is shown: one sheet of thumbnails, moved behind a window."""
    if "thumbnails" not in main.sample:
        return None
    uri, side = gallery.sheet(main.sample["thumbnails"])
    words = Markup(json.dumps(texts).replace("<", "\\u003c"))
    return tag(
        "div",
        tag("span", class_="peek-image", style=f"background:url({uri}) 0/{100 * side}%", data_side=str(side)),
        tag("span", "No image pointed at.", class_="peek-text"),
        tag("script", words, type="application/json"),
        class_="peek",
    )


def _dimensions(accounts: Sequence[Account]) -> list[Child]:
    lacks = _lacks(accounts[0], "column_cosine")
    if lacks is not None:
        return [lacks]
    cosines = accounts[0].sample["column_cosine"]
    keys = [_series_key(i, account) for i, account in enumerate(accounts) if "column_cosine" in account.sample]
    if "teacher" in accounts[0].sample:
        keys.append(figures.line_key("var(--muted)", "a constant answer: the teacher's mean for every image", "dash"))
    return [
        tag("p", f"The cosine between student and teacher of each of the {len(cosines):,} dimensions, over the "
            f"evaluation images; 1 is a dimension copied up to a positive factor. Mean {cosines.mean():.3f}; "
            f"{percent(100 * (cosines < 0.5).mean())} of the dimensions lie below 0.5."),
        tag("ul", *keys, class_="legend"),
        figures.column_cosines(accounts),
    ]  # fmt: skip


def _caveats(accounts: Sequence[Account], rows: Sequence[Model]) -> list[Child]:
    found = caveats(accounts, rows)
    if not found:
        return [tag("p", "None that the figures show.")]
    return [tag("ul", *(tag("li", prose(sentence)) for sentence in found), class_="caveats")]


def notice(sentence: str) -> Markup:
    """A sentence that stands where something else would."""
    return tag("p", prose(sentence), class_="notice")
