"""Protocol by protocol: what it is and whose, how it was set, on what it was counted, every figure, and its charts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from understudy.report import figures, tables
from understudy.report.markup import Child, Markup, prose, tag
from understudy.report.numbers import duration
from understudy.report.protocols import COUNTED, PROTOCOLS, protocol_title, set_title, split
from understudy.report.provenance import Account
from understudy.report.results import Result, guessing, keys_of, metrics_of, result
from understudy.report.verdict import Model
from understudy.settings import flatten

HOLLOW = {"circle": "○", "square": "□", "triangle-up": "△", "diamond": "◇", "star": "☆", "triangle-down": "▽",
          "cross": "✚", "pentagon": "⬠", "x": "✕", "hexagon": "⬡"}  # fmt: skip
"""Characters that stand for plotly's open marks in a legend."""

GUESSED = frozenset({"knn", "asymmetric_knn", "semi", "fidelity"})
"""Protocols whose charts have figures that guessing reaches a known share of."""

SIZES = ("small", "medium", "large")
MODES = ("easy", "medium", "hard")
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "defocus_blur", "gaussian_blur", "glass_blur",
    "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "spatter", "contrast", "saturate",
    "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""Those of ImageNet-C and CIFAR-10-C, the extra four included, in the order of noise, blur, weather, digital."""


def details(accounts: Sequence[Account], rows: Sequence[Model]) -> list[Child]:
    """One part that opens for each protocol that has figures or a note."""
    keys = keys_of(rows)
    for account in accounts:
        keys += [key for key in account.notes if key not in keys]
    return [
        _protocol(name, [key for key in keys if split(key)[0] == name], accounts, rows)
        for name in dict.fromkeys(split(key)[0] for key in keys)
    ]


def _protocol(name: str, keys: Sequence[str], accounts: Sequence[Account], rows: Sequence[Model]) -> Markup:
    known, main = PROTOCOLS.get(name), accounts[0]
    sets = "" if name == "cost" else f": {', '.join(set_title(split(key)[1]) for key in keys)}"
    content: list[Child] = []
    if known is not None:
        content += [tag("p", known.sentence), tag("p", f"Source: {known.source}.", class_="note")]
    told = _settings(name, main)
    if told:
        content.append(tag("p", f"Settings: {told}.", class_="note"))
    content += [tag("p", line, class_="note") for key in keys if (line := _counted(key, accounts, rows))]
    drawn = [chart for key in keys for chart in _charts(name, key, keys, rows)]
    if drawn:
        content += [_legend(name, keys, rows), tag("div", *drawn, class_="charts wide")]
    shown = [row for row in rows if any(result(row, key, one, rows) for key in keys for one in metrics_of(rows, key))]
    if shown:
        content.append(tables.results_table(shown, keys, whole=True))
    content += [
        tag("p", prose(f"{key}: {sentence}"), class_="note")
        for key in keys
        for sentence in dict.fromkeys(one for account in accounts for one in account.notes.get(key, ()))
    ]
    summary = tag("summary", tag("strong", protocol_title(name)), tag("span", sets, class_="note"))
    return tag("details", summary, *content, class_="protocol", id=f"protocol-{name}")


def _settings(name: str, account: Account) -> str:
    """The settings that decide a protocol, as they were written into the evaluation."""
    given = account.about.get("settings")
    known = PROTOCOLS.get(name)
    if not isinstance(given, Mapping) or known is None:
        return ""
    flat = flatten(given)
    wanted = [key for key in flat if key in known.settings or key.split(".")[0] in known.settings]
    if name in ("semi", "transfer") and not flat.get("finetune.epochs"):
        wanted = [key for key in wanted if key != "finetune.lr"]
    pairs = [f"{key} {_plain(flat[key])}" for key in [*wanted, "seed"] if flat.get(key) is not None]
    return "; ".join(pairs)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _counted(key: str, accounts: Sequence[Account], rows: Sequence[Model]) -> str:
    """On what the figures of one protocol and set were counted, and how long it took."""
    protocol, target = split(key)
    account = next((one for one in accounts if any(key in figures for figures in one.scores.values())), accounts[0])
    parts = []
    if protocol != "cost":
        for number, noun in ((account.images(target), "test images"), (account.classes(target), "classes")):
            if number:
                parts.append(f"{number:,} {noun}")
    own = next((row.scores[key] for row in rows if row.account is account and row.scores.get(key)), {})
    for name, value in own.items():
        if COUNTED.fullmatch(name):
            noun, _, share = name.partition(" ")
            parts.append(f"{value:,.0f} {noun} {f'for {share}' if share else 'of the protocol'}")
    seconds = account.about.get("seconds")
    compute_cost = seconds.get(key) if isinstance(seconds, Mapping) else None
    if isinstance(compute_cost, int | float):
        parts.append(f"{duration(compute_cost)} on top of the features")
    title = "Counted on" if protocol == "cost" else f"On {set_title(target)}"
    return f"{title}: {', '.join(parts)}." if parts else ""


def _legend(name: str, keys: Sequence[str], rows: Sequence[Model]) -> Markup:
    entries = []
    bound = ["knn"] if name == "asymmetric_knn" else []
    for row, look in zip(rows, figures.looks(rows), strict=True):
        if not any(row.scores.get(key) for key in [*keys, *(bound if row.is_teacher else [])]):
            continue
        shape = look.symbol.removesuffix("-open")
        mark = (figures.SYMBOLS if shape == look.symbol else HOLLOW)[shape]
        entries.append(figures.line_key(look.color, row.label, look.dash, mark))
    if any(guessing(row.account, key, one, table) is not None
           for row in rows for key in keys if name in GUESSED for one, table in _each(row, key)):  # fmt: skip
        entries.append(figures.line_key("var(--muted)", "guessing", "dot"))
    return tag("ul", *entries, class_="legend")


def _each(row: Model, key: str) -> list[tuple[str, Mapping[str, float]]]:
    table = row.scores.get(key, {})
    return [(metric, table) for metric in table]


def _charts(name: str, key: str, keys: Sequence[str], rows: Sequence[Model]) -> list[Markup]:
    """The charts of one protocol on one set, as far as its figures have an inner order."""
    place = f", {set_title(split(key)[1])}" if len(keys) > 1 or split(key)[1] else ""

    def drawn(caption: str, axis: str, unit: str, metrics: Mapping[str, str], **more: Any) -> list[Markup]:
        chart = _along(key, axis, unit, metrics, rows, **more)
        return [figures.captioned(caption + place, chart)] if chart is not None else []

    names = list(dict.fromkeys(metric for row in rows for metric in row.scores.get(key, {})))
    if name in ("knn", "asymmetric_knn"):
        return drawn("By number of voters", "k", "top-1, %", _named(names, r"top1@(\d+)"))
    if name == "semi":
        shares = _named(names, r"top1 (\S+)")
        tuned = _named(names, r"finetuned_top1 (\S+)")
        return [
            *drawn("By labels, frozen", "labels", "top-1, %", shares, last=("all", key.replace("semi", "linear", 1))),
            *drawn("By labels, fine-tuned", "labels", "top-1, %", tuned),
        ]  # fmt: skip
    if name == "retrieval":
        charts = []
        for kind, told in (("", ""), ("asymmetric_", ", asymmetric")):
            modes = {mode: f"{kind}map_{mode}" for mode in MODES if f"{kind}map_{mode}" in names}
            charts += drawn(f"mAP by task{told}", "task", "mAP, %", modes)
            charts += drawn(f"Recall{told}", "k", "Recall@k, %", _named(names, rf"{kind}recall@(\d+)"))
        return charts
    if name == "robustness":
        severities = _named(names, r"severity_(\d)")
        return [*_heat(key, place, names, rows), *drawn("By severity", "severity", "mean top-1, %", severities)]
    if name == "fidelity":
        return drawn("Neighbors shared", "k", "shared, %", _named(names, r"overlap@(\d+)"))
    if name == "detection":
        charts = []
        for kind, noun in (("box", "boxes"), ("mask", "masks")):
            sizes = {size: f"{kind}_ap_{size}" for size in SIZES if f"{kind}_ap_{size}" in names}
            levels = {
                level or "50-95": f"{kind}_ap{level}" for level in ("", "50", "75") if f"{kind}_ap{level}" in names
            }
            charts += drawn(f"AP of {noun} by size", "size", "AP, %", sizes)
            charts += drawn(f"AP of {noun} by IoU", "IoU, %", "AP, %", levels)
        return charts
    return []


def _named(names: Sequence[str], pattern: str) -> dict[str, str]:
    """Place on an axis -> figure, of the names that a pattern fits."""
    found = ((re.fullmatch(pattern, name), name) for name in names)
    return {match[1]: name for match, name in found if match}


def _along(
    key: str, axis: str, unit: str, metrics: Mapping[str, str], rows: Sequence[Model],
    last: tuple[str, str] | None = None,
) -> Markup | None:  # fmt: skip
    """Figures along an axis; None with fewer than two places.

    Args:
        key: PROTOCOL or PROTOCOL@SET.
        axis: what the places are.
        unit: what the figures are.
        metrics: place on the axis -> figure.
        rows: the models.
        last: a further place, and the protocol whose top-1 stands there.
    """
    lines, luck = [], {}
    for number, row in enumerate(rows):
        values: dict[str, Result] = {}
        # What a student asks of the teacher's bank is bounded by what the teacher itself asks of it.
        asked = key.replace("asymmetric_knn", "knn", 1) if row.is_teacher else key
        for place, metric in metrics.items():
            found = result(row, asked, metric, rows)
            if found is not None:
                values[place] = found
                chance = guessing(row.account, key, metric, row.scores.get(key, {}))
                if chance is not None:
                    luck[place] = chance
        if last is not None and values and (end := result(row, last[1], "top1")) is not None:
            values[last[0]] = end
            luck |= {last[0]: next(iter(luck.values()))} if luck else {}
        if values:
            lines.append(figures.Profile(number, values))
    if len({place for line in lines for place in line.values}) < 2:
        return None
    return figures.profile(axis, unit, rows, lines, luck)


def _heat(key: str, place: str, names: Sequence[str], rows: Sequence[Model]) -> list[Markup]:
    """Corruptions against models."""
    corruptions = [name for name in CORRUPTIONS if name in names]
    shown = [row for row in rows if row.scores.get(key)]
    if not corruptions or not shown:
        return []
    lines = ["clean"] * ("clean" in names) + corruptions
    values = [[row.scores[key].get(name) for row in shown] for name in lines]
    words = [name.replace("_", " ") for name in lines]
    chart = figures.heat(words, [row.label for row in shown], values, "Top-1 by corruption, mean over severities, %")
    return [figures.captioned(f"Top-1 by corruption, mean over severities, %{place}", chart)]
