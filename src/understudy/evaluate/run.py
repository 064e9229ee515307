"""From a finished run, or any encoder, to evaluation.json: encode each image set once, then apply every protocol.

    {"teacher": {"knn": {"top1@10": 71.2, ...}, ...}, "student": {...}, "student_embed": {...}, "about": {...}}

"student" is the backbone's pooled feature, "student_embed" the same after the head, in the teacher's space. A protocol
that cannot be applied for a reason of the user's (no labels, one class, features that are not finite) says so as
{"error": sentence} in its place, and the others still run.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from understudy import __version__
from understudy.artifacts import Run, Store, fingerprint, read_json, write_json
from understudy.config import as_table
from understudy.data.sources import Source, open_evaluation, open_source
from understudy.embed.embedding import embed, extract, open_rows
from understudy.errors import ConfigError, ModelError, StoreError, UnderstudyError
from understudy.evaluate.protocols import COMPARES, EVALUATIONS, LABEL_FREE
from understudy.evaluate.sample import write_sample
from understudy.evaluate.settings import EvaluationSettings
from understudy.evaluate.subject import Encoder, Figures, Progress, Subject
from understudy.models.contract import Contract
from understudy.models.student import Student, load_student
from understudy.models.teacher import Teacher, build_teacher

FORMAT = 1
UNLABELLED = 2000
"""Training images looked at when there are neither evaluation images nor held-out ones."""

HOW = frozenset({"eval_data", "protocols", "batch_size", "memory_mb"})
"""Settings that do not change a figure: the images count by their fingerprint, protocols are kept one by one."""


def evaluate_run(
    run: Run,
    settings: EvaluationSettings,
    *,
    device: str | torch.device = "cpu",
    store_root: str | os.PathLike[str] = "store",
    workers: int | None = None,
    held_out: Source | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a finished run's student, and its teacher, and write evaluation.json and sample.npz into the run folder.

    Figures of the same weights, images and settings that are already there are kept; only missing protocols run.

    Args:
        run: the run folder.
        settings: protocols and evaluation images.
        device: where encoders and protocols compute.
        store_root: where teacher embeddings are kept, shared with training and with other runs.
        workers: processes that read images; None lets the loader choose.
        held_out: images kept out of training, for label-free protocols when `settings.eval_data` is None.
        progress: called as progress(done, total, note) within each stage.

    Returns:
        What evaluation.json holds.

    Raises:
        StoreError: the run is not finished.
        ModelError: the teacher cannot be built, or its weights are not those the run was trained with.
        DataError: the evaluation images cannot be opened.
    """
    if not run.trained:
        raise StoreError(f"{run.path} holds no finished student. Run `understudy train` on it again: it resumes.")
    facts = run.student
    images = _images(settings, held_out, facts)
    origin = facts.get("teacher")
    key = _key(settings, images, facts["weights"], origin and origin["fingerprint"])
    old = _kept(run, key)
    missing = _missing(settings, old, images)
    if old and not missing and (run.sample_path.is_file() or old["about"]["sample"]):
        return old

    student = load_student(run.path).to(device)
    teacher = None if origin is None else _teacher_of(origin).to(device)
    bench = _Bench(settings, device, store_root, workers, progress)
    test, train = bench.encode(images.test, teacher, student), None
    if images.train is not None:
        train = bench.encode(images.train, teacher, student)
    subjects = bench.subjects(train, test, teacher, student)
    results = bench.apply(missing, subjects)
    about = bench.about(key, images, train, test)
    with bench.stage("sample"):
        about["sample"] = _sample(run, subjects, test.source, settings)
    evaluation = _merged(old, results, about)
    write_json(run.evaluation_path, evaluation)
    return evaluation


def evaluate_model(
    spec: str,
    settings: EvaluationSettings,
    *,
    device: str | torch.device = "cpu",
    store_root: str | os.PathLike[str] = "store",
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate any encoder with weights.

    Args:
        spec: a model spec. A run of ours, `run:FOLDER`, is evaluated by `evaluate_run`, beside its teacher.
        settings: as in `evaluate_run`; `eval_data` is needed.
        device: as in `evaluate_run`.
        store_root: as in `evaluate_run`; the features are kept there, so a second call computes protocols only.
        workers: as in `evaluate_run`.
        progress: as in `evaluate_run`.

    Returns:
        `{"teacher": {...}, "about": {...}}`; of a run, what `evaluate_run` returns.

    Raises:
        ConfigError: no evaluation images.
        ModelError: the spec is unknown or has no weights.
        DataError: the evaluation images cannot be opened.
    """
    if spec.startswith("run:") and Run(spec.removeprefix("run:")).trained:
        return evaluate_run(
            Run(spec.removeprefix("run:")),
            settings,
            device=device,
            store_root=store_root,
            workers=workers,
            progress=progress,
        )
    if settings.eval_data is None:
        raise ConfigError(f"Evaluating {spec} needs labelled images. Give --eval-data.")
    images = _images(settings, None, {})
    teacher = build_teacher(spec).to(device)
    bench = _Bench(settings, device, store_root, workers, progress)
    test, train = bench.encode(images.test, teacher, None), None
    if images.train is not None:
        train = bench.encode(images.train, teacher, None)
    results = bench.apply(settings.protocols, bench.subjects(train, test, teacher, None))
    key = _key(settings, images, teacher.fingerprint, None)
    return {**results, "about": bench.about(key, images, train, test)}


@dataclass(frozen=True)
class _Images:
    train: Source | None
    test: Source
    spec: str
    caveats: tuple[str, ...] = ()


def _images(settings: EvaluationSettings, held_out: Source | None, facts: Mapping[str, Any]) -> _Images:
    if settings.eval_data is not None:
        train, test = open_evaluation(settings.eval_data)
        return _Images(train, test, settings.eval_data)
    unlabelled = "No evaluation images were given, so nothing was measured with labels."
    if held_out is not None:
        caveat = f"{unlabelled} Fidelity was measured on {len(held_out)} images held out of training."
        return _Images(None, held_out, held_out.spec, (caveat,))
    source = open_source(facts["data"]["spec"], limit=UNLABELLED)
    caveat = f"{unlabelled} Fidelity was measured on {len(source)} of the training images: it flatters the student."
    return _Images(None, source, source.spec, (caveat,))


def _teacher_of(origin: Mapping[str, Any]) -> Teacher:
    """The teacher as training had it, normalisation included."""
    contract = Contract.from_table(origin["contract"])
    teacher = build_teacher(origin["spec"], mean=contract.mean, std=contract.std)
    if teacher.fingerprint != origin["fingerprint"]:
        raise ModelError(
            f"The teacher {origin['spec']} has weights {teacher.fingerprint}, the run was trained with "
            f"{origin['fingerprint']}. Restore that file, or train again."
        )
    return teacher


def _key(settings: EvaluationSettings, images: _Images, weights: str, teacher: str | None) -> str:
    """Changes with whatever changes a figure; not with the list of protocols, which are kept one by one."""
    train = None if images.train is None else images.train.fingerprint
    return fingerprint(FORMAT, weights, teacher, train, images.test.fingerprint, _binding(settings))


def _binding(settings: EvaluationSettings) -> dict[str, Any]:
    """The settings that decide the figures."""
    return {name: value for name, value in as_table(settings).items() if name not in HOW}


def _kept(run: Run, key: str) -> dict[str, Any]:
    """The figures already in the run folder if they are of this key, else nothing."""
    if not run.evaluation_path.is_file():
        return {}
    found = read_json(run.evaluation_path)
    return found if found.get("about", {}).get("fingerprint") == key else {}


def _missing(settings: EvaluationSettings, old: Mapping[str, Any], images: _Images) -> tuple[str, ...]:
    done = old.get("about", {}).get("protocols", ())
    # Without evaluation images a protocol that needs labels is not an error: nobody asked for it on purpose.
    possible = LABEL_FREE if images.train is None else EVALUATIONS.keys()
    return tuple(name for name in settings.protocols if name in possible and name not in done)


def _merged(old: Mapping[str, Any], new: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """New figures beside kept ones; what is said of them adds up."""
    before = old.get("about", {})
    evaluation: dict[str, Any] = {name: {**old.get(name, {}), **figures} for name, figures in new.items()}
    about["protocols"] = [*before.get("protocols", ()), *about["protocols"]]
    about["seconds"] = {**before.get("seconds", {}), **about["seconds"]}
    return {**evaluation, "about": about}


def _sample(run: Run, subjects: Mapping[str, Subject], source: Source, settings: EvaluationSettings) -> str:
    """Write sample.npz; the reason in a sentence where there can be none, else nothing."""
    run.sample_path.unlink(missing_ok=True)  # an older one must not pass for this student's
    try:
        write_sample(
            run,
            subjects["student"],
            subjects["student_embed"],
            source,
            seed=settings.seed,
            memory_mb=settings.memory_mb,
        )
    except UnderstudyError as error:
        return f"No sample of images for the report: {error}"
    return ""


@dataclass(frozen=True)
class _Embedding:
    """A student seen as an encoder into the teacher's space."""

    student: Student

    @property
    def contract(self) -> Contract:
        return self.student.contract

    def features(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        return self.student.embed(images)


@dataclass(frozen=True)
class _Encoded:
    """One image set seen by every encoder, rows in the same order everywhere.

    Args:
        source: the images that could be read.
        rows: features by subject name.
        skipped: images that could not be read.
    """

    source: Source
    rows: Mapping[str, np.ndarray]
    skipped: int


@dataclass
class _Bench:
    """What every stage needs, and how long each took."""

    settings: EvaluationSettings
    device: str | torch.device
    store_root: str | os.PathLike[str]
    workers: int | None
    progress: Progress | None
    seconds: dict[str, float] = field(default_factory=dict)
    applied: tuple[str, ...] = ()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)

    def encode(self, source: Source, teacher: Teacher | None, student: Student | None) -> _Encoded:
        """One forward pass of each encoder; the head works on the backbone's features."""
        images, rows = source, {}
        common: dict[str, Any] = {
            "device": self.device,
            "batch_size": self.settings.batch_size,
            "workers": self.workers,
        }
        if teacher is not None:
            with self.stage("teacher"):
                root = Path(self.store_root)
                # The user may have named one particular store, of the training images; these go beside it.
                root = root.parent if Store(root).complete else root
                store = embed(teacher, source, root, **common, progress=self._note("teacher"))
                images = open_rows(store, source)
                rows["teacher"] = np.asarray(store.embeddings())
        if student is not None:
            with self.stage("student"):
                features, kept, _ = extract(
                    student.features, student.contract, images, **common, progress=self._note("student")
                )
                if len(kept) < len(images):
                    images, rows = images.subset(kept), {name: found[kept] for name, found in rows.items()}
                rows["student"] = features
                identical = isinstance(student.head, torch.nn.Identity)
                rows["student_embed"] = features if identical else self._through(student.head, features)
        return _Encoded(images, rows, len(source) - len(images))

    @torch.no_grad()
    def _through(self, head: torch.nn.Module, features: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(features).split(4096)
        return torch.cat([head(part.to(self.device)).float().cpu() for part in parts]).numpy()

    def _note(self, what: str) -> Progress | None:
        if self.progress is None:
            return None
        report = self.progress
        return lambda done, total, note: report(done, total, f"{what}: {note}" if note else what)

    def subjects(
        self, train: _Encoded | None, test: _Encoded, teacher: Teacher | None, student: Student | None
    ) -> dict[str, Subject]:
        """The encoded images as subjects, by name."""
        encoders: dict[str, Encoder] = {}
        if teacher is not None:
            encoders["teacher"] = teacher
        if student is not None:
            encoders |= {"student": student, "student_embed": _Embedding(student)}
        lands = student is not None and isinstance(student.head, torch.nn.Identity)
        found: dict[str, Subject] = {}
        for name, encoder in encoders.items():
            found[name] = Subject(
                name=name,
                test=test.rows[name],
                train=None if train is None else train.rows[name],
                test_labels=None if train is None else test.source.labels,
                train_labels=None if train is None else train.source.labels,
                class_names=() if train is None else tuple(train.source.class_names or ()),
                reference=None if name == "teacher" else found.get("teacher"),
                aligned="teacher" in found and (name == "student_embed" or (name == "student" and lands)),
                encoder=encoder,
                train_source=None if train is None else train.source,
                test_source=test.source,
                device=self.device,
                workers=self.workers,
                progress=self._note(name),
            )
        return found

    def apply(self, protocols: tuple[str, ...], subjects: Mapping[str, Subject]) -> dict[str, dict[str, Figures]]:
        """Every protocol to every subject it applies to; a user's fault stops that protocol only."""
        results: dict[str, dict[str, Figures]] = {name: {} for name in subjects}
        for name, subject in subjects.items():
            if name == "student_embed" and subject.test is subjects["student"].test:
                results[name] = results["student"]  # no head: the same rows, the same figures
                continue
            for protocol in protocols:
                if protocol in COMPARES and subject.reference is None:
                    continue
                with self.stage(protocol):
                    try:
                        results[name][protocol] = EVALUATIONS[protocol](subject, self.settings)
                    except UnderstudyError as error:
                        results[name][protocol] = {"error": str(error)}
        self.applied = protocols
        return results

    def about(self, key: str, images: _Images, train: _Encoded | None, test: _Encoded) -> dict[str, Any]:
        """Where the figures come from."""
        names = None if train is None else train.source.class_names
        device = torch.device(self.device)
        return {
            "format": FORMAT,
            "fingerprint": key,
            "protocols": list(self.applied),
            "eval_data": images.spec,
            "train_images": 0 if train is None else len(train.source),
            "test_images": len(test.source),
            "classes": None if names is None else len(names),
            "skipped": test.skipped + (0 if train is None else train.skipped),
            "train_fingerprint": None if images.train is None else images.train.fingerprint,
            "test_fingerprint": images.test.fingerprint,
            "caveats": list(images.caveats),
            "settings": _binding(self.settings),
            "seconds": self.seconds,
            "hardware": {
                "device": str(device),
                "name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
                "cpus": os.cpu_count(),
                "threads": torch.get_num_threads(),
            },
            "versions": {
                "understudy": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
        }
