"""How figures of protocols are called and written, as evaluation.json describes it for the protocols in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from understudy.report.numbers import count

CERTAINTY = re.compile(r".+_(low|high)|.+ std|interval_(level|draws)")
"""Figures that say how sure another one is; they stand below it."""

SIZES = frozenset({"parameters", "flops"})
"""Figures that are written in three digits with a unit."""


@dataclass(frozen=True)
class Display:
    """How one protocol is shown: its entry in `about.protocols` of evaluation.json; see `evaluate.protocol.Display`.

    "compared", "quoted", "less" and "agreement" are patterns of figures; the rest names single figures. `figures` are
    their titles; `labels` those in a chart, where "SHORT, TITLE" is not it; `settings` the keys of the evaluation's
    settings that decide the protocol. One without an entry is shown all the same: every figure, under the name that the
    file gives it.
    """

    name: str
    title: str = ""
    short: str = ""
    sentence: str = ""
    source: str = ""
    percent: bool = False
    compared: Sequence[str] = ()
    quoted: Sequence[str] = (r".+",)
    less: Sequence[str] = ()
    settings: Sequence[str] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    plain: Sequence[str] = ()
    shares: Sequence[str] = ()
    accuracies: Sequence[str] = ()
    counts: Sequence[str] = ()
    whole: Sequence[str] = ()
    agreement: Sequence[str] = (r"overlap@\d+",)

    @classmethod
    def from_json(cls, name: str, entry: Any) -> Display:
        """The entry of a protocol; parts that are missing or of another kind are left as they are without one."""
        generic = cls(name, title=name.replace("_", " "), short=name.replace("_", " "))
        if not isinstance(entry, Mapping):
            return generic
        kinds: dict[str, type] = {"percent": bool, "figures": Mapping, "labels": Mapping}
        texts = {"title", "short", "sentence", "source"}
        given = {
            one.name: entry[one.name] for one in fields(cls)
            if isinstance(entry.get(one.name), kinds.get(one.name, str if one.name in texts else list))
        }  # fmt: skip
        return cls(**{**vars(generic), **given, "name": name})

    def metric_title(self, metric: str) -> str:
        """A figure's name in words, without its unit."""
        words = metric.replace("_", " ")
        return str(self.figures.get(metric, words[:1].upper() + words[1:]))

    def in_percent(self, metric: str) -> bool:
        """Whether a figure is a percentage."""
        return self.percent and metric not in self.plain

    def less_is_better(self, metric: str) -> bool:
        """Whether the smaller of two figures is the better one."""
        return any(re.fullmatch(pattern, metric) for pattern in self.less)

    def is_error(self, metric: str) -> bool:
        """Whether a figure is a share of wrong answers, in per cent."""
        return self.in_percent(metric) and self.less_is_better(metric)

    def is_agreement(self, metric: str) -> bool:
        """Whether a figure NAME@K is a share of the teacher's K nearest images, so that a teacher has 100."""
        return any(re.fullmatch(pattern, metric) for pattern in self.agreement)

    def compared_in(self, metrics: Sequence[str]) -> list[str]:
        """The figures that stand for the protocol beside the teacher's.

        Of several that one pattern finds it is the first, since a protocol gives a set's own figure first; but shares
        of labels, whose pattern has a space, all stand for themselves.
        """
        figures = []
        for pattern in self.compared:
            matching = _matching(pattern, metrics)
            figures += matching if " " in pattern else matching[:1]
        return figures

    def quoted_in(self, metrics: Sequence[str]) -> list[str]:
        """The figures of the results table: those compared, then the further ones."""
        further = [metric for pattern in self.quoted for metric in _matching(pattern, metrics)]
        return list(dict.fromkeys([*self.compared_in(metrics), *further]))

    def format(self, metric: str, value: float) -> str:
        """A figure as the page writes it in a cell, without its unit."""
        if self.in_percent(metric):
            return f"{value:.1f}"
        if metric in SIZES:
            return count(value)
        if value == round(value) and metric in self.whole:
            return f"{value:,.0f}"
        size = abs(value)
        return f"{value:.3f}" if 1e-3 <= size < 10 else f"{value:,.1f}" if 10 <= size < 1e6 else f"{value:.3g}"


@dataclass(frozen=True)
class Displays:
    """The protocols that the evaluations of a page describe, in the order of the page."""

    entries: Mapping[str, Display]

    @classmethod
    def of(cls, abouts: Iterable[Mapping[str, Any]]) -> Displays:
        """Those of several evaluations' `about`, the main run's first.

        Of a protocol that two of them describe, what the first says, and all its figures.
        """
        entries: dict[str, Any] = {}
        for about in abouts:
            described = about.get("protocols")
            for name, entry in described.items() if isinstance(described, Mapping) else ():
                entries[name] = _joined(entries[name], entry) if name in entries else entry
        return cls({name: Display.from_json(name, entry) for name, entry in entries.items()})

    def display(self, key: str) -> Display:
        """The display of a protocol, by its name or by PROTOCOL@SET."""
        name = split(key)[0]
        return self.entries[name] if name in self.entries else Display.from_json(name, None)

    def ordered(self, keys: Iterable[str]) -> list[str]:
        """Keys of an evaluation in the order of the page: by protocol, the main images first."""
        positions = {name: position for position, name in enumerate(self.entries)}
        return sorted(
            dict.fromkeys(keys), key=lambda key: (positions.get(split(key)[0], len(positions)), bool(split(key)[1]))
        )

    def label(self, key: str, metric: str, *, alone: bool) -> str:
        """A figure's label in a chart: protocol, figure where it is not the protocol's only one there, and set."""
        display, target = self.display(key), split(key)[1]
        name = display.short if alone else f"{display.short}, {display.metric_title(metric)}"
        return "\n".join([str(display.labels.get(metric, name)), *([target] if target else [])])


def _joined(first: Any, second: Any) -> Any:
    """Two entries of one protocol: what they list by figure is united, the rest is the first's."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        shared = {key: _joined(first[key], second[key]) for key in first.keys() & second.keys()}
        return {**first, **second, **shared}
    if isinstance(first, list) and isinstance(second, list):
        return list(dict.fromkeys([*first, *second]))
    return first


def _matching(pattern: str, metrics: Iterable[str]) -> list[str]:
    return [metric for metric in metrics if re.fullmatch(pattern, metric) and not CERTAINTY.fullmatch(metric)]


def split(key: str) -> tuple[str, str]:
    """A key of the evaluation as protocol and set; "" for the main evaluation images."""
    protocol, _, target = key.partition("@")
    return protocol, target


def teacher_key(key: str) -> str:
    """Where the teacher's figures are that bound a student's: what is asked of the teacher's bank, by its own vote."""
    protocol, target = split(key)
    return "@".join(filter(None, (protocol.removeprefix("asymmetric_"), target)))


def set_title(target: str) -> str:
    """How the page calls a set."""
    return target or "main images"
