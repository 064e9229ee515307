"""From a finished run, or any encoder, to evaluation.json: encode each image set once, then apply every protocol.

    {"teacher": {"knn": {"top1@10": 71.2, ...}, "transfer@cifar10": {...}, ...}, "student": {...}, "about": {...}}

"student" is the backbone's pooled feature, "student_embed" the same after the head, in the teacher's space. Figures of
the main evaluation images are filed under the protocol's name, those of an `--on` set under PROTOCOL@SET. A protocol
that cannot be applied for a reason of the user's (no labels, one class, a missing file) says so as {"error": sentence}
in its place, and the others still run; it is tried again the next time. Figures are kept as they are finished: an
evaluation that was killed goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from understudy import __version__
from understudy.artifacts import Run, Store, fingerprint, read_json, write_json
from understudy.errors import ConfigError, ModelError, StoreError, UnderstudyError
from understudy.evaluate.datasets.dataset import Target
from understudy.evaluate.datasets.layouts import kind_of, open_target, split_target
from understudy.evaluate.encoded_set import EncodedSet, Figures, Progress
from understudy.evaluate.features import Bench
from understudy.evaluate.protocols import REQUIREMENTS, Requirements, display_tables
from understudy.evaluate.sample import write_sample
from understudy.evaluate.settings import HOW, EvaluationSettings
from understudy.hardware import hardware
from understudy.models.contract import Contract
from understudy.models.precision import has_tf32
from understudy.models.student import load_student
from understudy.models.teacher import Teacher, build_teacher
from understudy.settings import as_table
from understudy.sources.evaluation import open_evaluation
from understudy.sources.source import Source, limited, open_source

FORMAT = 3
UNLABELED = 2000
"""Training images looked at when there are neither evaluation images nor held-out ones."""

Notify = Callable[[str], None]
"""Called with one sentence for the user."""


def evaluate_run(
    run: Run,
    settings: EvaluationSettings,
    *,
    device: str | torch.device = "cpu",
    store_root: str | os.PathLike[str] = "store",
    workers: int | None = None,
    held_out: Source | None = None,
    control: Teacher | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> dict[str, Any]:
    """Evaluate a finished run's student, and its teacher, and write evaluation.json and sample.npz into the run folder.

    Figures of the same weights, images and settings that are already there are kept; only missing ones are computed.

    Args:
        run: the run folder. The student's features are kept in it, in `features/`.
        settings: protocols, evaluation images and further sets.
        device: where encoders and protocols compute.
        store_root: where teacher embeddings are kept, shared with training and with other runs.
        workers: processes that read images; None lets the loader choose.
        held_out: images kept out of training, for label-free protocols when `settings.eval_data` is None.
        control: the teacher of other runs, to set a run beside that was trained without one; else not looked at.
        progress: called as progress(done, total, note) within each stage.
        notify: called with the plan, a sentence for each encoder, before anything is computed.

    Returns:
        What evaluation.json holds.

    Raises:
        StoreError: the run is not finished.
        ModelError: the teacher cannot be built, or its weights are not those the run was trained with.
        DataError: the evaluation images cannot be opened.
    """
    if not run.trained:
        raise StoreError(f"{run.path} holds no finished student. Run `understudy train` on it again: it resumes.")
    metadata = run.student
    origin = metadata.get("teacher")
    listings = Path(store_root) / "listings"
    images = _images(settings, held_out, metadata, listings)
    known = origin["fingerprint"] if origin else control.fingerprint if control else None
    results = Results(run.evaluation_path, (metadata["weights"], known), settings)
    plan = EvaluationPlan.of(settings, images, results, listings)
    sampled = results.about.get("sample_of") == results.sample_key(plan)
    sampled = sampled and (run.sample_path.is_file() or bool(results.about["sample"]))
    if results.whole and sampled and not plan.missing:
        return results.whole

    student = load_student(run.path).to(device)
    teacher = _teacher_of(origin, torch.device(device), notify) if origin else control
    bench = Bench(
        settings, teacher.to(device) if teacher else None, student, device, store_root, run.path / "features",
        workers=workers, progress=progress,
        in_teacher_space=bool(origin) and bool(metadata.get("in_teacher_space", True)),
    )  # fmt: skip

    def draw(encoded_sets: Mapping[str, EncodedSet], source: Source) -> None:
        with bench.stage("sample"):
            results.sample = {
                "sample": _sample(run, encoded_sets, source, settings),
                "sample_of": results.sample_key(plan),
            }

    _work(bench, plan, results, notify, None if sampled else draw)
    return results.finish(bench, plan)


def evaluate_model(
    spec: str,
    settings: EvaluationSettings,
    *,
    device: str | torch.device = "cpu",
    store_root: str | os.PathLike[str] = "store",
    workers: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> dict[str, Any]:
    """Evaluate any encoder with weights.

    Args:
        spec: a model spec. A run of ours, `run:FOLDER`, is evaluated by `evaluate_run`, beside its teacher.
        settings: as in `evaluate_run`; `eval_data` or `on` is needed by every protocol that looks at images.
        device: as in `evaluate_run`.
        store_root: as in `evaluate_run`; features and figures are kept there; a second call adds what is missing.
        workers: as in `evaluate_run`.
        precision: see `build_teacher`; the teacher of a run computes as in its training.
        progress: as in `evaluate_run`.
        notify: as in `evaluate_run`.

    Returns:
        `{"teacher": {...}, "about": {...}}`; of a run, what `evaluate_run` returns.

    Raises:
        ConfigError: no evaluation images.
        ModelError: the spec is unknown or has no weights.
        DataError: the evaluation images cannot be opened.
    """
    common: dict[str, Any] = {"device": device, "store_root": store_root, "workers": workers, "progress": progress}
    if spec.startswith("run:") and Run(spec.removeprefix("run:")).trained:
        return evaluate_run(Run(spec.removeprefix("run:")), settings, **common, notify=notify)
    if settings.eval_data is None and not settings.on and any(REQUIREMENTS[name].images for name in settings.protocols):
        raise ConfigError(f"Evaluating {spec} needs labeled images. Give --eval-data, or sets of their own with --on.")
    teacher = build_teacher(spec, precision=precision, device=torch.device(device))
    return evaluate_teacher(teacher, settings, **common, notify=notify)


def evaluate_teacher(
    teacher: Teacher,
    settings: EvaluationSettings,
    *,
    device: str | torch.device = "cpu",
    store_root: str | os.PathLike[str] = "store",
    workers: int | None = None,
    held_out: Source | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> dict[str, Any]:
    """Evaluate a teacher that is built already.

    Args:
        teacher: the frozen encoder.
        settings: as in `evaluate_run`.
        device: as in `evaluate_run`.
        store_root: as in `evaluate_run`.
        workers: as in `evaluate_run`.
        held_out: images without labels. Nothing is measured of a teacher alone, but its embeddings are made.
        progress: as in `evaluate_run`.
        notify: as in `evaluate_run`.

    Returns:
        `{"teacher": {...}, "about": {...}}`.

    Raises:
        DataError: the evaluation images cannot be opened.
    """
    teacher = teacher.to(device)
    listings = Path(store_root) / "listings"
    images = None if settings.eval_data is None and held_out is None else _images(settings, held_out, {}, listings)
    root = Path(store_root).parent if Store(store_root).complete else Path(store_root)
    known = _known(teacher)
    key = fingerprint(FORMAT, known, None if images is None else images.test.fingerprint)
    results = Results(root / "evaluations" / f"{key}.json", (known, None), settings)
    plan = EvaluationPlan.of(settings, images, results, listings)
    bench = Bench(settings, teacher, None, device, store_root, workers=workers, progress=progress)
    if results.whole and not plan.missing:
        return results.whole
    _work(bench, plan, results, notify, None)
    return results.finish(bench, plan)


@dataclass(frozen=True)
class Main:
    """The main evaluation images."""

    train: Source | None
    test: Source
    spec: str
    caveats: Mapping[str, str] = field(default_factory=dict)
    """Sentences by the protocol whose figures they qualify, "" for the whole evaluation."""


def _images(settings: EvaluationSettings, held_out: Source | None, metadata: Mapping[str, Any], listings: Path) -> Main:
    if settings.eval_data is not None:
        halves = open_evaluation(settings.eval_data, listings=listings)
        train, test = (limited(half, settings.limit) for half in halves)
        return Main(train, test, settings.eval_data)
    # Sets of `--on` may have labels of their own.
    unlabeled = {} if settings.on else {"": "No evaluation images were given, so nothing was measured with labels."}
    if held_out is not None:
        caveat = f"Fidelity was measured on {len(held_out)} images held out of training."
        return Main(None, held_out, held_out.spec, {**unlabeled, "fidelity": caveat})
    source = open_source(metadata["data"]["spec"], limit=UNLABELED, listings=listings)
    caveat = f"Fidelity was measured on {len(source)} of the training images: it flatters the student."
    return Main(None, source, source.spec, {**unlabeled, "fidelity": caveat})


def _known(teacher: Teacher) -> str:
    """What figures of a teacher alone are known by: its weights, and its precision if that is not fp32."""
    return teacher.fingerprint if teacher.precision == "fp32" else fingerprint(teacher.fingerprint, teacher.precision)


def _teacher_of(origin: Mapping[str, Any], device: torch.device, notify: Notify | None) -> Teacher:
    """The teacher as training had it, normalization and, if the device has it, precision included."""
    contract = Contract.from_table(origin["contract"])
    precision = origin.get("precision", "fp32")  # it was no choice once
    if precision == "tf32" and not has_tf32(device):
        precision = "fp32"
        if notify is not None:
            notify(f"In training the teacher computed in tf32, which {device} does not have: here it computes in fp32.")
    teacher = build_teacher(origin["spec"], mean=contract.mean, std=contract.std, precision=precision, device=device)
    if teacher.fingerprint != origin["fingerprint"]:
        raise ModelError(
            f"The teacher {origin['spec']} has weights {teacher.fingerprint}, the run was trained with "
            f"{origin['fingerprint']}. Restore that file, or train again."
        )
    return teacher


@dataclass(frozen=True)
class Task:
    """One protocol on one image set.

    Args:
        protocol: its name.
        target: name of the `--on` set, "" for the main evaluation images.
        settings: fingerprint of the encoders and of the settings that decide the figures.
        images: fingerprint of the image sets.
        fault: the sentence that says why it cannot be done at all; "" where it can.
    """

    protocol: str
    target: str
    settings: str = ""
    images: str = ""
    fault: str = ""

    @property
    def name(self) -> str:
        """What the figures are filed under."""
        return f"{self.protocol}@{self.target}" if self.target else self.protocol


@dataclass(frozen=True)
class EvaluationPlan:
    """Which protocols are asked for on which image sets, and which of them are still to be done.

    Args:
        main: the main evaluation images.
        targets: the `--on` sets that could be opened, by name.
        jobs: all that was asked.
        missing: those without figures yet.
        before: what earlier figures say of themselves.
    """

    main: Main | None
    targets: Mapping[str, Target]
    tasks: tuple[Task, ...]
    missing: tuple[Task, ...]
    before: Mapping[str, Any]

    @classmethod
    def of(cls, settings: EvaluationSettings, main: Main | None, results: Results, listings: Path) -> EvaluationPlan:
        """Open the sets and match them with the protocols.

        Raises:
            ConfigError: two sets of one name.
        """
        targets: dict[str, Target] = {}
        faults: dict[str, str] = {}
        kinds: dict[str, str] = {}
        for text in settings.on:
            name = split_target(text)[0]
            if name in kinds:
                raise ConfigError(f"Two sets of --on are called '{name}'. Give one another name: NAME=PATH.")
            kinds[name] = kind_of(text)
            try:
                targets[name] = _at_most(open_target(text, listings=listings), settings.limit)
                kinds[name] = targets[name].kind
            except UnderstudyError as error:
                faults[name] = str(error)
        tasks = []
        for protocol in settings.protocols:
            takes = REQUIREMENTS[protocol]
            served = [name for name, kind in kinds.items() if kind in takes.kinds]
            if not takes.images or (takes.main and main is not None and (main.train or not takes.labels)):
                served.insert(0, "")
            elif takes.main and main is None:
                served = [name for name, kind in kinds.items() if kind in takes.kinds | {"labeled"}]
            decided = fingerprint(FORMAT, protocol, *results.encoders, settings.identity_settings(protocol))
            for name in served:
                seen = _seen(takes, main, targets.get(name), kinds.get(name), faults.get(name))
                tasks.append(Task(protocol, name, decided, seen, faults.get(name, "")))
            # Without evaluation images a protocol that needs labels is not an error: nobody asked for it on purpose.
            if not served and not takes.main:
                fault = f"'{protocol}' is measured on sets of its own. Give --on; the README lists what there is."
                tasks.append(Task(protocol, "", decided, "", fault))
        missing = tuple(task for task in tasks if not results.has(task))
        return cls(main, targets, tuple(tasks), missing, results.about)

    def sources(self, target: str) -> dict[str, Source]:
        """The sources of an image set, by role."""
        if target:
            return self.targets[target].sources
        if self.main is None:
            return {}
        return {"train": self.main.train, "test": self.main.test} if self.main.train else {"test": self.main.test}


def _at_most(target: Target, limit: int | None) -> Target:
    """The target with so many images of each half; a database is always whole, its ground truth names every image."""
    if target.kind not in ("labeled", "shift"):
        return target
    train, test = (None if half is None else limited(half, limit) for half in (target.train, target.test))
    return dataclasses.replace(target, train=train, test=test)


def _seen(takes: Requirements, main: Main | None, target: Target | None, kind: str | None, fault: str | None) -> str:
    """Fingerprint of the images behind the figures of one job."""
    parts: list[str | None] = [fault]
    if main is not None and takes.images and kind in (None, "shift"):
        parts += [main.train.fingerprint if main.train else None, main.test.fingerprint]
    if target is not None:
        parts += [target.kind, target.spec, *(one.fingerprint for one in target.sources.values())]
        parts.append(target.metadata.get("fingerprint"))
    return fingerprint(parts)


@dataclass
class Results:
    """The figures of one encoder on disk: evaluation.json when all that was asked is there, a partial file until then.

    Args:
        path: where evaluation.json is, or will be.
        encoders: fingerprints of the encoders; another one's figures do not count.
        settings: of the evaluation.
    """

    path: Path
    encoders: tuple[str | None, ...]
    settings: EvaluationSettings
    whole: dict[str, Any] = field(default_factory=dict)
    sample: dict[str, str] = field(default_factory=dict)
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = read_json(self.path) if self.path.is_file() else {}
        if found.get("about", {}).get("format") == FORMAT:
            self.whole = found
        if self.partial.is_file():
            self.done = read_json(self.partial)

    @property
    def partial(self) -> Path:
        """Figures finished so far, `{task: {"settings": ..., "images": ..., "figures": {encoded_set: {...}}}}`."""
        return self.path.with_suffix(".partial.json")

    @property
    def about(self) -> dict[str, Any]:
        """What the whole file says of itself."""
        about: dict[str, Any] = self.whole.get("about", {})
        return about

    def sample_key(self, plan: EvaluationPlan) -> str:
        """What a sample drawn now would be drawn from."""
        images = None if plan.main is None else plan.main.test.fingerprint
        return fingerprint(FORMAT, *self.encoders, images, self.settings.seed)

    def has(self, task: Task) -> bool:
        """Whether the whole file holds the figures of this job, without an error."""
        kept = self.about.get("jobs", {}).get(task.name, {})
        found = [figures[task.name] for name, figures in self.whole.items() if name != "about" and task.name in figures]
        same = (kept.get("settings"), kept.get("images")) == (task.settings, task.images)
        return same and not any("error" in figures for figures in found)

    def begun(self, task: Task) -> dict[str, Figures]:
        """Figures of this job that a killed evaluation left, by subject."""
        found = self.done.get(task.name, {})
        if (found.get("settings"), found.get("images")) != (task.settings, task.images):
            return {}
        figures: dict[str, Figures] = found["figures"]
        return {name: one for name, one in figures.items() if "error" not in one}

    def add(self, task: Task, encoded_set: str, figures: Figures) -> None:
        """Keep figures as they are finished."""
        entry = self.done.get(task.name)
        if entry is None or (entry["settings"], entry["images"]) != (task.settings, task.images):
            entry = self.done[task.name] = {"settings": task.settings, "images": task.images, "figures": {}}
        entry["figures"][encoded_set] = figures
        write_json(self.partial, self.done)

    def finish(self, bench: Bench, plan: EvaluationPlan) -> dict[str, Any]:
        """Write the whole file: figures kept, figures new, and where they come from."""
        tasks = {
            name: metadata for name, metadata in self.about.get("jobs", {}).items() if self._stays(name, metadata, plan)
        }
        evaluation: dict[str, Any] = {}
        for encoded_set in bench.names:
            old = self.whole.get(encoded_set, {})
            evaluation[encoded_set] = {name: old[name] for name in tasks if name in old}
            for task in plan.missing:
                figures = self.done.get(task.name, {}).get("figures", {})
                if encoded_set in figures:
                    evaluation[encoded_set][task.name] = figures[encoded_set]
        tasks |= {task.name: {"settings": task.settings, "images": task.images} for task in plan.missing}
        evaluation["about"] = {
            **describe(bench, plan, tasks),
            "protocols": display_tables(evaluation),
            "jobs": tasks,
            "seconds": {**self.about.get("seconds", {}), **bench.seconds},
            **{name: value for name, value in self.about.items() if name.startswith("sample")},
            **self.sample,
        }
        write_json(self.path, evaluation)
        self.partial.unlink(missing_ok=True)
        return evaluation

    def _stays(self, name: str, metadata: Mapping[str, str], plan: EvaluationPlan) -> bool:
        """Whether figures of an earlier call belong beside those of this one: same encoders, settings and images."""
        protocol, _, target = name.partition("@")
        asked = next((task for task in plan.tasks if task.name == name), None)
        if asked is not None:
            return asked not in plan.missing
        if protocol not in REQUIREMENTS:
            return False
        if metadata["settings"] != fingerprint(
            FORMAT, protocol, *self.encoders, self.settings.identity_settings(protocol)
        ):
            return False
        # A set that is not named this time cannot be compared.
        return bool(target) or metadata["images"] == _seen(REQUIREMENTS[protocol], plan.main, None, None, None)


def _work(
    bench: Bench,
    plan: EvaluationPlan,
    results: Results,
    notify: Notify | None,
    draw: Callable[[Mapping[str, EncodedSet], Source], None] | None,
) -> None:
    """Encode the image sets that missing jobs look at, one after another, and do the jobs."""
    wanted: dict[str, list[Task]] = {}
    for task in plan.missing:
        wanted.setdefault(task.target, []).append(task)
    lone = any(name in plan.targets and plan.targets[name].kind == "shift" for name in wanted)
    images = lone or draw is not None  # of the main set, whatever its own jobs look at
    if images:
        wanted.setdefault("", [])
    order = sorted(wanted, key=bool)  # the main images first: others are based on them

    def sources(name: str) -> dict[str, Source]:
        looked_at = (
            name or images or any(REQUIREMENTS[task.protocol].images and not task.fault for task in wanted[name])
        )
        return plan.sources(name) if looked_at else {}

    if notify is not None and order:
        known = {name: list(sources(name).values()) for name in order if not name or name in plan.targets}
        for sentence in bench.plan(known, {name: [task.protocol for task in wanted[name]] for name in order}):
            notify(sentence)
    base: dict[str, EncodedSet] = {}
    for name in order:
        faults = {task.name: task.fault for task in wanted[name] if task.fault}
        encoded_sets: dict[str, EncodedSet] = {}
        if len(faults) < len(wanted[name]) or not name:
            try:
                encoded = {
                    role: bench.encode(source, f"{name or 'main'} {role} images")
                    for role, source in sources(name).items()
                }
                main = None if plan.main is None else Target("", "main", plan.main.spec)
                encoded_sets = bench.encoded_sets(plan.targets[name] if name else main, encoded, base)
            except UnderstudyError as error:
                if not name:
                    raise
                faults = {task.name: str(error) for task in wanted[name]}
            else:
                bench.note_images(name, encoded)
                if not name:
                    base = encoded_sets
                    if draw is not None:
                        draw(encoded_sets, encoded["test"].source)
        for task in wanted[name]:
            shared = _shared_path(bench, task)
            begun = results.begun(task)
            if shared is not None and shared.is_file():
                begun["teacher"] = read_json(shared)
            if task.name in faults:
                done: Iterable[tuple[str, Figures]] = (
                    (encoded_set, {"error": faults[task.name]}) for encoded_set in bench.names
                )
            else:
                done = bench.apply(task.name, task.protocol, encoded_sets, begun)
            for encoded_set, figures in done:
                results.add(task, encoded_set, figures)
                if (
                    encoded_set == "teacher"
                    and shared is not None
                    and "error" not in figures
                    and encoded_set not in begun
                ):
                    write_json(shared, figures)


def _shared_path(bench: Bench, task: Task) -> Path | None:
    """Where the teacher's figures of a job are kept for all of its students, beside its stores."""
    if bench.teacher is None:
        return None
    key = fingerprint(
        FORMAT, __version__, task.protocol, _known(bench.teacher), bench.teacher.contract.table(), task.images,
        bench.settings.identity_settings(task.protocol),
    )  # fmt: skip
    return bench.roots["teacher"][1] / "evaluations" / f"{task.protocol}-{key}.json"


def _sample(run: Run, encoded_sets: Mapping[str, EncodedSet], source: Source, settings: EvaluationSettings) -> str:
    """Write sample.npz; the reason in a sentence where there can be none, else nothing."""
    run.sample_path.unlink(missing_ok=True)  # an older one must not pass for this student's
    try:
        write_sample(
            run,
            encoded_sets["student"],
            encoded_sets["student_embed"],
            source,
            seed=settings.seed,
            memory_mb=settings.memory_mb,
        )
    except UnderstudyError as error:
        return f"No sample of images for the report: {error}"
    return ""


def describe(bench: Bench, plan: EvaluationPlan, tasks: Iterable[str]) -> dict[str, Any]:
    """Where the figures of some jobs come from: images, settings, machine, versions."""
    main = plan.main
    names = main.train.class_names if main is not None and main.train is not None else None
    counts = bench.images.get("", {})
    before = plan.before
    return {
        "format": FORMAT,
        "eval_data": None if main is None else main.spec,
        "train_images": counts.get("train", before.get("train_images", 0)),
        "test_images": counts.get("test", before.get("test_images", 0)),
        "classes": None if names is None else len(names),
        "skipped": counts.get("skipped", before.get("skipped", 0)),
        "train_fingerprint": None if main is None or main.train is None else main.train.fingerprint,
        "test_fingerprint": None if main is None else main.test.fingerprint,
        "teacher_precision": None if bench.teacher is None else bench.teacher.precision,
        "on": {**before.get("on", {}), **{name: found for name, found in bench.images.items() if name}},
        "caveats": [] if main is None else [text for about, text in main.caveats.items() if about in ("", *tasks)],
        # Through JSON, as it will be read back: tuples become lists.
        "settings": json.loads(json.dumps({k: v for k, v in as_table(bench.settings).items() if k not in HOW})),
        "hardware": hardware(torch.device(bench.device)),
        "versions": {
            "understudy": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
