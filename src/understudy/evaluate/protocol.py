"""What a protocol declares: one class in one file of `evaluate/protocols`.

The registry, `--help`, the tables of the docs, the planner, citations and the report are derived from these classes.
Declarations import no torch: heavy code is imported by the method that runs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from understudy.papers import bibtex

if TYPE_CHECKING:
    from understudy.evaluate.encoded_set import EncodedSet
    from understudy.evaluate.settings import EvaluationSettings

Figures = dict[str, float | str]
"""What a protocol returns: figures by name (accuracies in per cent), and at most one sentence under "note"."""

TITLES = {
    "top1": "Top-1", "top5": "Top-5", "mean_class": "Mean of the classes", "map11": "11-point mAP",
    "validation": "Validation images", "l2": "l2 weight chosen",
}  # fmt: skip
"""Titles of the figures of a classifier; a protocol adds its own."""
SHARES = (r"(finetuned_)?top[15](@\d+)?(,T=1)?(_last)?( .+)?",)
ACCURACIES = (r"(finetuned_)?(top1|mean_class)(_last)?", r"top1@\d+(,T=1)?", r"(finetuned_)?top1 .+")
COUNTS = (r"images|queries|classes|objects|sequences|iterations", r"(images|draws) .+")
ENDS = re.compile(r".+_(low|high)|.+ std|interval_(level|draws)|note|error")
"""What stands beside a figure: ends of its interval, its standard deviation, sentences."""


TRAINING_PASSES = 3
"""A step of training costs about as much as so many forward passes."""


@dataclass(frozen=True)
class Requirements:
    """What a protocol is applied to.

    Args:
        main: the main evaluation images.
        kinds: kinds of `--on` sets.
        images: whether it looks at images at all.
        labels: whether the main images need labels.
        reference: whether it compares with the teacher, and so does not apply to the teacher itself.
        head: whether it applies to the student's embedding too, beside the backbone's features.
        space: whether it needs rows in the teacher's space, so the student's embedding and not its backbone.
    """

    main: bool = True
    kinds: frozenset[str] = frozenset()
    images: bool = True
    labels: bool = True
    reference: bool = False
    head: bool = True
    space: bool = False


@dataclass(frozen=True)
class Display:
    r"""How the report shows a protocol. Patterns are regular expressions that match a figure's whole name.

    Args:
        title: its name on the page.
        sentence: what it does.
        source: the paper, in words.
        short: its name in a chart; the title unless given.
        compared: patterns of the figures that stand for it in the overview, each compared with the teacher's; of
            several figures that one pattern finds, the first, except where the pattern has a space (a share of labels).
        quoted: patterns of the further figures of the results table; the protocol's own section shows all.
        headline: patterns of the figures that the command line prints in one row a model; others get a table each.
        percent: whether its figures are in per cent, but for those in `plain` and `counts`.
        figures: pattern -> title, where a figure's name does not say it; `\1` stands for the first group.
        labels: pattern -> label of a figure in a chart, where "SHORT, TITLE" is not it.
        plain: patterns of figures that are not in per cent.
        less: patterns of figures of which less is better.
        shares: patterns of figures that count images or queries, each right or wrong: they have a binomial interval.
        accuracies: patterns of shares of images whose class was predicted, so that chance is a known share.
        counts: patterns of figures that say what others were counted on.
        whole: patterns of further figures that are whole numbers.
        agreement: patterns of figures NAME@K, the share of the teacher's K nearest images: a teacher has 100.
    """

    title: str
    sentence: str
    source: str
    short: str = ""
    compared: tuple[str, ...] = ()
    quoted: tuple[str, ...] = ()
    headline: tuple[str, ...] = ()
    percent: bool = True
    figures: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    plain: tuple[str, ...] = ()
    less: tuple[str, ...] = ()
    shares: tuple[str, ...] = SHARES
    accuracies: tuple[str, ...] = ACCURACIES
    counts: tuple[str, ...] = COUNTS
    whole: tuple[str, ...] = ()
    agreement: tuple[str, ...] = (r"overlap@\d+",)

    def table(self, names: Iterable[str]) -> dict[str, Any]:
        """Plain JSON for evaluation.json, for the figures of these names.

        "compared", "quoted", "less" and "agreement" stay patterns. What is said of single figures is said by name.
        """
        shown = [name for name in dict.fromkeys(names) if not ENDS.fullmatch(name)]

        def matching(patterns: Iterable[str]) -> list[str]:
            return [name for name in shown if any(re.fullmatch(pattern, name) for pattern in patterns)]

        def expanded(templates: Mapping[str, str]) -> dict[str, str]:
            titles = ((name, _expanded(name, templates)) for name in shown)
            return {name: text for name, text in titles if text is not None}

        counts, plain = matching(self.counts), matching(self.plain) if self.percent else shown
        return {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()},
            "short": self.short or self.title, "figures": expanded({**TITLES, **self.figures}),
            "labels": expanded(self.labels), "plain": list(dict.fromkeys([*plain, *counts])),
            "shares": matching(self.shares), "accuracies": matching(self.accuracies), "counts": counts,
            "whole": matching((*self.whole, *self.counts)),
        }  # fmt: skip


def _expanded(name: str, templates: Mapping[str, str]) -> str | None:
    """The template of the first pattern that matches a name, its groups filled in."""
    for pattern, template in templates.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    return None


def prefixed(prefix: str, words: str, titles: Mapping[str, str]) -> dict[str, str]:
    """The same titles of figures whose names have a prefix, with words behind each."""
    return {f"{prefix}{pattern}": f"{title}, {words}" for pattern, title in titles.items()}


class Protocol:
    """One protocol. A subclass in a file of `evaluate/protocols` is all there is to adding one.

    Attributes:
        name: its name on the command line and in evaluation.json.
        summary: what it measures, in one line.
        paper: BibTeX of what its figures rest on, each declared by the key of an entry of `papers.bib`, or in full.
        Settings: frozen dataclass of its own settings, `--evaluation.NAME.KEY`; None without any.
        shared_settings: further keys of `EvaluationSettings` that change its figures and not those of all protocols.
        measure: the function of `evaluate/measures` that `evaluate` calls, as "FILE.FUNCTION".
        requirements: what it is applied to.
        display: how the report shows it.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str]
    paper: ClassVar[tuple[str, ...]] = ()
    measure: ClassVar[str]
    Settings: ClassVar[type[Any] | None] = None
    shared_settings: ClassVar[tuple[str, ...]] = ()
    requirements: ClassVar[Requirements] = Requirements()
    display: ClassVar[Display]

    def __init_subclass__(cls) -> None:
        cls.paper = tuple(map(bibtex, cls.paper))

    @classmethod
    def evaluate(cls, encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
        """The figures of one encoder on one set, by name.

        Args:
            encoded_set: its features, labels and, where the protocol needs pixels or the network, its encoder and
                images; the files of an `--on` set are in its `dataset`.
            settings: of the evaluation; a protocol reads its own group, `seed` and `memory_mb`.

        Raises:
            UnderstudyError: it cannot be applied for a reason of the user's, as the docstring of its measure says.
        """
        file, function = cls.measure.split(".")
        figures: Figures = getattr(import_module(f"understudy.evaluate.measures.{file}"), function)(
            encoded_set, settings
        )
        return figures

    @staticmethod
    def image_passes(settings: EvaluationSettings, train: int, test: int) -> float:
        """Forward passes that it needs beside the shared features of `train` training and `test` test images.

        In images; one that is trained on counts three times.
        """
        return 0.0

    @classmethod
    def settings_keys(cls) -> tuple[str, ...]:
        """Keys of `EvaluationSettings` that are its own."""
        return (*(() if cls.Settings is None else (cls.name,)), *cls.shared_settings)

    @classmethod
    def display_table(cls, names: Iterable[str]) -> dict[str, Any]:
        """What evaluation.json says about the protocol and its figures of these names, as plain JSON."""
        return {**cls.display.table(names), "settings": list(cls.settings_keys())}
