"""From a finished run, or any encoder, to evaluation.json: encode each image set once, then apply every protocol.

    {"teacher": {"knn": {"top1@10": 71.2, ...}, "transfer@cifar10": {...}, ...}, "student": {...}, "about": {...}}

"student" is the backbone's pooled feature, "student_embed" the same after the head, in the teacher's space. Figures of
the main evaluation images are filed under the protocol's name, those of an `--on` set under PROTOCOL@SET. A protocol
that cannot be applied for a reason of the user's (no labels, one class, a missing file) says so as {"error": sentence}
in its place, and the others still run; it is tried again the next time. Figures are kept as they are finished: an
evaluation that was killed goes on where it was.
"""

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from understudy import __version__
from understudy.artifacts import Run, fingerprint, is_whole, read_json, write_json
from understudy.errors import ConfigError, ModelError, StoreError, UnderstudyError
from understudy.evaluate.dataset import EvaluationSet
from understudy.evaluate.encoded_set import EncodedSet, Figures, Notify
from understudy.evaluate.estimate import estimate
from understudy.evaluate.features import FeatureExtractor, Resources, SetFeatures
from understudy.evaluate.plan import FORMAT, EvaluationPlan, Task, open_main_images
from understudy.evaluate.protocols import PROTOCOLS
from understudy.evaluate.results import Results, RunResults
from understudy.evaluate.sample import write_sample
from understudy.evaluate.settings import WITHOUT_EFFECT, EvaluationSettings
from understudy.hardware import hardware
from understudy.models.contract import Contract
from understudy.models.precision import has_tf32
from understudy.models.student import load_student
from understudy.models.teacher import Teacher, build_teacher
from understudy.models.trust import require_trust
from understudy.settings import as_table
from understudy.sources.source import Source

DEFAULT_RESOURCES = Resources()


def evaluate_run(
    run: Run,
    settings: EvaluationSettings,
    resources: Resources = DEFAULT_RESOURCES,
    *,
    held_out: Source | None = None,
    control: Teacher | None = None,
) -> dict[str, Any]:
    """Evaluate a finished run's student, and its teacher, and write evaluation.json and sample.npz into the run folder.

    Figures of the same weights, images and settings that are already there are kept; only missing ones are computed.

    Args:
        run: the run folder. The student's features are kept in it, in `features/`.
        settings: protocols, evaluation images and further sets.
        resources: device, stores and readers.
        held_out: images kept out of training, for label-free protocols when `settings.eval_data` is None.
        control: the teacher of other runs, to set a run beside that was trained without one; else not used.

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
    known = origin["fingerprint"] if origin else control.fingerprint if control else None
    found = RunResults.of(run, settings, held_out, known, resources.listings)
    if found.finished is not None:
        return found.finished
    plan, results = found.plan, found.results

    student = load_student(run.path).to(resources.device)
    teacher = _teacher_of(run, origin, torch.device(resources.device), resources.notify) if origin else control
    extractor = FeatureExtractor(
        teacher.to(resources.device) if teacher else None, student, resources, settings.batch_size,
        run.path / "features", in_teacher_space=bool(origin) and bool(metadata.get("in_teacher_space", True)),
    )  # fmt: skip

    def draw(sets: Mapping[str, EncodedSet], source: Source) -> None:
        run.sample_path.unlink(missing_ok=True)  # an older one must not pass for this student's
        results.sample = {"sample": "", "sample_of": results.sample_identity(plan)}
        with extractor.stage("sample"):
            try:
                seed, memory_mb = settings.seed, settings.memory_mb
                write_sample(run, sets["student"], sets["student_embed"], source, seed=seed, memory_mb=memory_mb)
            except UnderstudyError as error:
                results.sample["sample"] = f"No sample of images for the report: {error}"

    return _Evaluation(settings, extractor, plan, results).run(None if found.sampled else draw)


def evaluate_model(
    spec: str, settings: EvaluationSettings, resources: Resources = DEFAULT_RESOURCES, *, precision: str = "auto",
    image_size: int | None = None, output: str = "pooled",
) -> dict[str, Any]:  # fmt: skip
    """Evaluate any encoder with weights by its model spec; a run of ours, `run:FOLDER`, by `evaluate_run`.

    Every protocol that looks at images needs `eval_data` or `on`. Features and figures are kept beside the stores; a
    second call adds what is missing. `precision`, `image_size` and `output` are as in `build_teacher`.

    Returns:
        `{"teacher": {...}, "about": {...}}`; of a run, what `evaluate_run` returns.

    Raises:
        ConfigError: no evaluation images.
        ModelError: the spec is unknown or has no weights.
        DataError: the evaluation images cannot be opened.
    """
    if spec.startswith("run:") and Run(spec.removeprefix("run:")).trained:
        return evaluate_run(Run(spec.removeprefix("run:")), settings, resources)
    images = any(PROTOCOLS[name].requirements.images for name in settings.protocols)
    if settings.eval_data is None and not settings.on and images:
        raise ConfigError(f"Evaluating {spec} needs labeled images. Give --eval-data, or sets of their own with --on.")
    device = torch.device(resources.device)
    teacher = build_teacher(spec, image_size=image_size, output=output, precision=precision, device=device)
    return evaluate_teacher(teacher, settings, resources)


def evaluate_teacher(
    teacher: Teacher,
    settings: EvaluationSettings,
    resources: Resources = DEFAULT_RESOURCES,
    *,
    held_out: Source | None = None,
) -> dict[str, Any]:
    """Evaluate a teacher that is built already, as `evaluate_model` does.

    `held_out` are images without labels: nothing is measured of a teacher alone there, but its embeddings are made.

    Returns:
        `{"teacher": {...}, "about": {...}}`.

    Raises:
        DataError: the evaluation images cannot be opened.
    """
    teacher = teacher.to(resources.device)
    images = None
    if settings.eval_data is not None or held_out is not None:
        images = open_main_images(settings, held_out, {}, resources.listings)
    known = fingerprint(_teacher_key(teacher), teacher.contract.table())
    key = fingerprint(FORMAT, known, None if images is None else images.test.fingerprint)
    results = Results(resources.teacher_root / "evaluations" / f"{key}.json", (known, None), settings)
    plan = EvaluationPlan.of(settings, images, results.encoders, resources.listings)
    if results.whole and not results.missing(plan):
        return results.whole
    extractor = FeatureExtractor(teacher, None, resources, settings.batch_size)
    return _Evaluation(settings, extractor, plan, results).run(None)


def _teacher_key(teacher: Teacher) -> str:
    """What figures of a teacher are known by: its fingerprint, its precision if that is not fp32, its library."""
    more = [part for part in (teacher.precision, teacher.library) if part not in ("fp32", "")]
    return fingerprint(teacher.fingerprint, *more) if more else teacher.fingerprint


def _teacher_of(run: Run, origin: Mapping[str, Any], device: torch.device, notify: Notify | None) -> Teacher:
    """The teacher as training had it, normalization and, if the device has it, precision included."""
    if missing := [name for name in ("spec", "contract", "fingerprint") if name not in origin]:
        raise StoreError(f"{run.student_path} names a teacher without {', '.join(missing)}. Restore it.")
    require_trust(origin["spec"], run.student_path)
    contract = Contract.from_table(origin["contract"])
    precision = origin.get("precision", "fp32")  # it was no choice once
    if precision == "tf32" and not has_tf32(device):
        precision = "fp32"
        if notify is not None:
            notify(f"In training the teacher computed in tf32, which {device} does not have: here it computes in fp32.")
    teacher = build_teacher(
        origin["spec"], mean=contract.mean, std=contract.std, image_size=contract.size,
        output=origin.get("output", "pooled"), precision=precision, device=device,
    )  # fmt: skip
    if teacher.fingerprint != origin["fingerprint"]:
        raise ModelError(
            f"The teacher {origin['spec']} is {teacher.fingerprint} now, and the run was trained with "
            f"{origin['fingerprint']}: its weights or its code changed. Restore them, or train again."
        )
    if teacher.contract != contract:
        raise ModelError(
            f"The teacher {origin['spec']} takes its images as {teacher.contract.table()} now, and the run was trained "
            f"with {contract.table()}. Restore what it was, or train again."
        )
    return teacher


DrawSample = Callable[[Mapping[str, EncodedSet], Source], None]


@dataclass(frozen=True)
class _Evaluation:
    """One evaluation under way: image sets are encoded one after another, and their missing tasks are done."""

    settings: EvaluationSettings
    extractor: FeatureExtractor
    plan: EvaluationPlan
    results: Results

    def run(self, draw: DrawSample | None) -> dict[str, Any]:
        """Do what is missing and write the whole file; `draw` writes a sample of the main test images, if any."""
        tasks: dict[str, list[Task]] = {}
        for task in self.results.missing(self.plan):
            tasks.setdefault(task.dataset, []).append(task)
        datasets = self.plan.datasets
        shifted = any(name in datasets and datasets[name].kind == "shift" for name in tasks)
        main = shifted or draw is not None  # the main images are used, whatever their own tasks are
        if main:
            tasks.setdefault("", [])
        sources = {
            name: self.plan.sources(name) if self._uses_images(name, tasks[name], main) else {}
            for name in sorted(tasks, key=bool)  # others are based on the main set
        }
        self._announce(sources, tasks)
        base: dict[str, EncodedSet] = {}
        for name, halves in sources.items():
            faults = {task.name: task.fault for task in tasks[name] if task.fault}
            encoded_sets: dict[str, EncodedSet] = {}
            if len(faults) < len(tasks[name]) or not name:
                try:
                    features, encoded_sets = self._encode(name, halves, base)
                except UnderstudyError as error:
                    if not name:
                        raise
                    faults = {task.name: str(error) for task in tasks[name]}
                else:
                    self.extractor.count_images(name, features)
                    if not name:
                        base = encoded_sets
                        if draw is not None:
                            draw(encoded_sets, features["test"].source)
            for task in tasks[name]:
                self._do(task, encoded_sets, faults.get(task.name))
        names = [*self.results.earlier(self.plan), *(task.name for of_set in tasks.values() for task in of_set)]
        return self.results.finish(self.plan, self.extractor.encoders, self._describe(names))

    def _uses_images(self, name: str, tasks: list[Task], main: bool) -> bool:
        """Whether the images of a set are encoded; one that could not be opened has none."""
        if name:
            return name in self.plan.datasets
        return main or any(task.requirements.images and not task.fault for task in tasks)

    def _announce(self, sources: Mapping[str, Mapping[str, Source]], tasks: Mapping[str, list[Task]]) -> None:
        notify = self.extractor.resources.notify
        if notify is None or not sources:
            return
        opened = {"", *self.plan.datasets}
        halves = {name: list(of_set.values()) for name, of_set in sources.items() if of_set or name in opened}
        protocols = {name: [task.protocol for task in tasks[name]] for name in sources}
        for sentence in estimate(self.extractor, self.settings, halves, protocols):
            notify(sentence)

    def _encode(
        self, name: str, sources: Mapping[str, Source], base: Mapping[str, EncodedSet]
    ) -> tuple[dict[str, SetFeatures], dict[str, EncodedSet]]:
        """The features of a set, by role, and the set as each encoder sees it."""
        features = {
            role: self.extractor.encode(source, f"{name or 'main'} {role} images") for role, source in sources.items()
        }
        main = None if self.plan.main is None else EvaluationSet("", "main", self.plan.main.spec)
        return features, self.extractor.encoded_sets(self.plan.datasets[name] if name else main, features, base)

    def _do(self, task: Task, encoded_sets: Mapping[str, EncodedSet], fault: str | None) -> None:
        """One task for every encoder, its figures kept as they are finished."""
        shared = self._shared_path(task)
        begun = self.results.begun(task)
        if shared is not None and shared.exists() and is_whole(shared):
            begun["teacher"] = read_json(shared)
        if fault is not None:
            for encoder in self.extractor.encoders:
                self.results.add(task, encoder, {"error": fault})
            return
        for encoder, figures in self._apply(task, encoded_sets, begun):
            self.results.add(task, encoder, figures)
            if encoder == "teacher" and shared is not None and "error" not in figures and encoder not in begun:
                write_json(shared, figures)

    def _apply(
        self, task: Task, encoded_sets: Mapping[str, EncodedSet], begun: Mapping[str, Figures]
    ) -> Iterator[tuple[str, Figures]]:
        """A protocol applied to every encoder that it is meant for; a user's fault stops that encoder only."""
        done: dict[str, Figures] = {}
        needs = task.requirements
        for name, encoded_set in encoded_sets.items():
            if (needs.reference and encoded_set.reference is None) or (name == "student_embed" and not needs.head):
                continue
            if needs.space and name == "student" and encoded_set.test is not encoded_sets["student_embed"].test:
                continue
            if name in begun:
                done[name] = begun[name]
            elif name == "student_embed" and encoded_set.test is encoded_sets["student"].test:
                done[name] = done["student"]  # no head: the same rows, the same figures
            else:
                self.extractor.activity = task.name
                with self.extractor.stage(task.name):
                    try:
                        done[name] = PROTOCOLS[task.protocol].evaluate(encoded_set, self.settings)
                    except UnderstudyError as error:
                        done[name] = {"error": str(error)}
            yield name, done[name]

    def _shared_path(self, task: Task) -> Path | None:
        """Where the teacher's figures of a task are kept for all of its students, beside its stores."""
        teacher = self.extractor.teacher
        if teacher is None:
            return None
        identity = self.settings.identity_settings(task.protocol)
        known = _teacher_key(teacher), teacher.contract.table()
        key = fingerprint(FORMAT, __version__, task.protocol, *known, task.images, identity)
        return self.extractor.resources.teacher_root / "evaluations" / f"{task.protocol}-{key}.json"

    def _describe(self, tasks: list[str]) -> dict[str, Any]:
        """Where the figures of some tasks come from: images, settings, machine, versions."""
        main, before, teacher = self.plan.main, self.results.about, self.extractor.teacher
        class_names = main.train.class_names if main is not None and main.train is not None else None
        images, counts = self.extractor.images, self.extractor.images.get("", {})
        train_fingerprint, test_fingerprint = (None, None) if main is None else main.fingerprints
        settings = {key: value for key, value in as_table(self.settings).items() if key not in WITHOUT_EFFECT}
        return {
            "format": FORMAT,
            "eval_data": None if main is None else main.spec,
            "train_images": counts.get("train", before.get("train_images", 0)),
            "test_images": counts.get("test", before.get("test_images", 0)),
            "classes": None if class_names is None else len(class_names),
            "skipped": counts.get("skipped", before.get("skipped", 0)),
            "train_fingerprint": train_fingerprint,
            "test_fingerprint": test_fingerprint,
            "teacher_precision": None if teacher is None else teacher.precision,
            "on": {**before.get("on", {}), **{name: one for name, one in images.items() if name}},
            "caveats": [] if main is None else [text for about, text in main.caveats.items() if about in ("", *tasks)],
            # Through JSON, as it will be read back: tuples become lists.
            "settings": json.loads(json.dumps(settings)),
            "hardware": hardware(torch.device(self.extractor.resources.device)),
            "versions": {
                "understudy": __version__, "python": platform.python_version(), "torch": torch.__version__,
                "numpy": np.__version__,
            },
            "seconds": {**before.get("seconds", {}), **self.extractor.seconds},
        }  # fmt: skip
