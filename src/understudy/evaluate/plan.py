"""What is evaluated: the image sets, and a task for each protocol on each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from understudy.artifacts import fingerprint
from understudy.errors import ConfigError, UnderstudyError
from understudy.evaluate.dataset import EvaluationSet
from understudy.evaluate.open_set import kind_of, open_set, split_name
from understudy.evaluate.protocol import Requirements
from understudy.evaluate.protocols import PROTOCOLS
from understudy.evaluate.settings import EvaluationSettings
from understudy.sources.evaluation import open_evaluation
from understudy.sources.source import Source, limited, open_source

FORMAT = 3
"""Of evaluation.json; figures of another format are not read."""
UNLABELED = 2000
"""Training images used when there are neither evaluation images nor held-out ones."""

Encoders = tuple[str | None, ...]
"""Fingerprints of the encoders; another one's figures do not count."""


@dataclass(frozen=True)
class MainImages:
    """The main evaluation images: labeled ones to learn from (None without labels), and those to evaluate on.

    Caveats are sentences by the protocol whose figures they qualify, "" for the whole evaluation.
    """

    train: Source | None
    test: Source
    spec: str
    caveats: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprints(self) -> list[str | None]:
        """Of both halves."""
        return [self.train.fingerprint if self.train else None, self.test.fingerprint]


def open_main_images(
    settings: EvaluationSettings, held_out: Source | None, run: Mapping[str, Any], listings: Path
) -> MainImages:
    """The labeled images of `eval_data`, else those held out of training, else some of the training images.

    `run` is the metadata of the student, with the spec of its training images; `listings` is as in `Resources`.

    Raises:
        DataError: they cannot be opened.
    """
    if settings.eval_data is not None:
        halves = open_evaluation(settings.eval_data, listings=listings)
        train, test = (limited(half, settings.limit) for half in halves)
        return MainImages(train, test, settings.eval_data)
    # Sets of `--on` may have labels of their own.
    unlabeled = {} if settings.on else {"": "No evaluation images were given, so nothing was measured with labels."}
    if held_out is not None:
        caveats = _of_agreement(f"was measured on {len(held_out)} images held out of training.")
        return MainImages(None, held_out, held_out.spec, {**unlabeled, **caveats})
    source = open_source(run["data"]["spec"], limit=UNLABELED, listings=listings)
    caveats = _of_agreement(f"was measured on {len(source)} of the training images: it flatters the student.")
    return MainImages(None, source, source.spec, {**unlabeled, **caveats})


def _of_agreement(words: str) -> dict[str, str]:
    """A sentence on each protocol that compares with the teacher without labels."""
    needs = {name: protocol.requirements for name, protocol in PROTOCOLS.items()}
    chosen = [name for name, need in needs.items() if need.reference and not need.labels]
    return {name: f"{PROTOCOLS[name].display.title} {words}" for name in chosen}


@dataclass(frozen=True)
class Task:
    """One protocol on one image set, "" for the main one.

    Settings are a fingerprint of the encoders and of the settings that decide the figures, images one of the images; a
    fault is the sentence that says why it cannot be done at all, "" where it can.
    """

    protocol: str
    dataset: str
    settings: str = ""
    images: str = ""
    fault: str = ""

    @property
    def name(self) -> str:
        """What the figures are filed under."""
        return f"{self.protocol}@{self.dataset}" if self.dataset else self.protocol

    @property
    def identity(self) -> dict[str, str]:
        """What its figures depend on, as evaluation.json keeps it."""
        return {"settings": self.settings, "images": self.images}

    @property
    def requirements(self) -> Requirements:
        """Of its protocol."""
        return PROTOCOLS[self.protocol].requirements


@dataclass(frozen=True)
class EvaluationPlan:
    """All that was asked: the main images, the `--on` sets that could be opened, and a task a protocol and set."""

    main: MainImages | None
    datasets: Mapping[str, EvaluationSet]
    tasks: tuple[Task, ...]

    @classmethod
    def of(
        cls, settings: EvaluationSettings, main: MainImages | None, encoders: Encoders, listings: Path
    ) -> EvaluationPlan:
        """Open the sets and match them with the protocols.

        Raises:
            ConfigError: two sets of one name.
        """
        datasets, kinds, faults = _open_sets(settings, listings)
        tasks = []
        for protocol in settings.protocols:
            needs = PROTOCOLS[protocol].requirements
            served = [name for name, kind in kinds.items() if kind in needs.kinds]
            if not needs.images or (needs.main and main is not None and (main.train or not needs.labels)):
                served.insert(0, "")
            elif needs.main and main is None:
                served = [name for name, kind in kinds.items() if kind in needs.kinds | {"labeled"}]
            identity = settings_identity(settings, protocol, encoders)
            for name in served:
                fault = faults.get(name)
                parts = [fault, *main_identity(needs, main, kinds.get(name)), *_set_identity(datasets.get(name))]
                tasks.append(Task(protocol, name, identity, fingerprint(parts), fault or ""))
            # Without evaluation images a protocol that needs labels is not an error: nobody asked for it on purpose.
            if not served and not needs.main:
                fault = f"'{protocol}' is measured on sets of its own. Give --on; docs/reference/sets.md lists them."
                tasks.append(Task(protocol, "", identity, "", fault))
        return cls(main, datasets, tuple(tasks))

    def sources(self, name: str) -> dict[str, Source]:
        """The images of a set ("" for the main one), by role."""
        if name:
            return self.datasets[name].sources
        if self.main is None:
            return {}
        return {"train": self.main.train, "test": self.main.test} if self.main.train else {"test": self.main.test}


def _open_sets(
    settings: EvaluationSettings, listings: Path
) -> tuple[dict[str, EvaluationSet], dict[str, str], dict[str, str]]:
    """The `--on` sets that could be opened, the kinds of all, and why the others could not, by name."""
    datasets: dict[str, EvaluationSet] = {}
    kinds: dict[str, str] = {}
    faults: dict[str, str] = {}
    for text in settings.on:
        name = split_name(text)[0]
        if name in kinds:
            raise ConfigError(f"Two sets of --on are called '{name}'. Give one another name: NAME=PATH.")
        kinds[name] = kind_of(text)
        try:
            datasets[name] = _at_most(open_set(text, listings=listings), settings.limit)
            kinds[name] = datasets[name].kind
        except UnderstudyError as error:
            faults[name] = str(error)
    return datasets, kinds, faults


def _at_most(dataset: EvaluationSet, limit: int | None) -> EvaluationSet:
    """The set with so many images of each half; a database is always whole, its ground truth names every image."""
    if dataset.kind not in ("labeled", "shift"):
        return dataset
    train, test = (None if half is None else limited(half, limit) for half in (dataset.train, dataset.test))
    return dataclasses.replace(dataset, train=train, test=test)


def settings_identity(settings: EvaluationSettings, protocol: str, encoders: Encoders) -> str:
    """Fingerprint of the encoders and of the settings that decide a protocol's figures."""
    return fingerprint(FORMAT, protocol, *encoders, settings.identity_settings(protocol))


def main_identity(needs: Requirements, main: MainImages | None, kind: str | None) -> list[str | None]:
    """What a task's figures owe to the main images, by the kind of its set (None for the main one)."""
    return main.fingerprints if main is not None and needs.images and kind in (None, "shift") else []


def _set_identity(dataset: EvaluationSet | None) -> list[str | None]:
    """What figures owe to an `--on` set."""
    if dataset is None:
        return []
    sources = (source.fingerprint for source in dataset.sources.values())
    return [dataset.kind, dataset.spec, *sources, dataset.metadata.get("fingerprint")]
