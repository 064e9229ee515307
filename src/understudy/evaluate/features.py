"""The bench: encoders, the features of each image set (one pass each, kept on disk), and protocols applied to them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from understudy.artifacts import Store, atomic
from understudy.embed.embedding import Frozen, Inference, embed, open_rows, store_key
from understudy.errors import DataError, UnderstudyError
from understudy.evaluate.datasets.dataset import Target
from understudy.evaluate.datasets.shifted import numbered_as
from understudy.evaluate.encoded_set import Embedding, EncodedSet, Encoder, Figures, Progress
from understudy.evaluate.protocols import EVALUATIONS, REQUIREMENTS
from understudy.evaluate.settings import EvaluationSettings
from understudy.models.checkpoints import fingerprint_weights
from understudy.models.precision import arithmetic
from understudy.models.student import Student
from understudy.models.teacher import Teacher
from understudy.sources.source import Source

MEASURED = 16
"""Blank images behind the seconds an image that the plan names."""


class StudentBackbone:
    """A student's backbone as something that can be embedded with and kept in a store.

    Args:
        student: in eval mode.
    """

    def __init__(self, student: Student) -> None:
        self.student = student
        self.spec, self.width, self.contract = student.spec, student.width, student.contract
        self.fingerprint = fingerprint_weights(student)
        self.weights = student.weights
        self.precision = "fp32"

    def to(self, device: torch.device) -> StudentBackbone:
        """See `Frozen`."""
        self.student.to(device)
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """See `Frozen`."""
        return self.features(self.contract.prepare(images))

    def features(self, images: Tensor) -> Tensor:
        """See `Frozen`."""
        with arithmetic(self.precision, images.device):
            return self.student.features(images)


@dataclass(frozen=True)
class Encoded:
    """One image set seen by every encoder, rows in the same order everywhere.

    Args:
        source: the images that could be read.
        rows: features by subject name, memory-mapped.
        skipped: images that could not be read.
    """

    source: Source
    rows: Mapping[str, np.ndarray]
    skipped: int

    def subset(self, kept: Int[np.ndarray, " n"]) -> Encoded:
        """Some of the images; subjects that share their rows still do."""
        parts = {id(rows): rows[kept] for rows in {id(rows): rows for rows in self.rows.values()}.values()}
        return Encoded(
            self.source.subset(kept), {name: parts[id(rows)] for name, rows in self.rows.items()}, self.skipped
        )


@dataclass
class Bench:
    """Encoders under evaluation, what every stage needs, and how long each took.

    Args:
        settings: of the evaluation.
        teacher, student: at least one of them.
        device: where encoders and protocols compute.
        store_root: where the teacher's features are kept.
        student_root: where the student's are: they are of use to this run alone.
        workers: processes that read images.
        progress: called as progress(done, total, note).
        in_teacher_space: whether a perfect student would lie in the teacher's space; if not, their cosines say nothing.
    """

    settings: EvaluationSettings
    teacher: Teacher | None
    student: Student | None
    device: str | torch.device
    store_root: str | os.PathLike[str]
    student_root: str | os.PathLike[str] = ""
    workers: int | None = None
    progress: Progress | None = None
    in_teacher_space: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    images: dict[str, dict[str, int]] = field(default_factory=dict)
    now: str = field(default="", init=False)
    """What is being done, for progress."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to those of a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)

    @property
    def names(self) -> list[str]:
        """The subjects, in order."""
        return [*(["teacher"] if self.teacher else []), *(["student", "student_embed"] if self.student else [])]

    @property
    def roots(self) -> dict[str, tuple[Frozen, Path, str]]:
        """Encoder, root of stores and stored precision, by subject name."""
        found: dict[str, tuple[Frozen, Path, str]] = {}
        if self.teacher is not None:
            root = Path(self.store_root)
            # The user may have named one particular store, of the training images; these go beside it.
            found["teacher"] = self.teacher, root.parent if Store(root).complete else root, "float16"
        if self.student is not None:
            found["student"] = StudentBackbone(self.student), Path(self.student_root), "float32"
        return found

    def encode(self, source: Source, title: str) -> Encoded:
        """One forward pass of each encoder, none where its features are kept; the head works on the backbone's.

        Args:
            source: an image set.
            title: what progress calls it.

        Raises:
            UnderstudyError: as `embed` says.
        """
        self.now, images = title, source
        rows: dict[str, np.ndarray] = {}
        for name, (encoder, root, dtype) in self.roots.items():
            with self.stage(name):
                inference = Inference(self.device, self.settings.batch_size, self.workers, self.note(name))
                store = embed(encoder, images, root, inference, dtype=dtype, check=name == "teacher")
                kept = open_rows(store, images)
                if len(kept) < len(images):
                    rows = {other: found[np.isin(images.ids, kept.ids)] for other, found in rows.items()}
                images = kept
                rows[name] = np.asarray(store.embeddings())
                if name == "student":
                    assert self.student is not None
                    rows["student_embed"] = (
                        rows[name] if self.student.headless else self._through_head(store, rows[name])
                    )
        return Encoded(images, rows, len(source) - len(images))

    @torch.no_grad()
    def _through_head(self, store: Store, features: np.ndarray) -> np.ndarray:
        """The student's embeddings beside its features: the key of the store covers the head's weights too."""
        path = store.folder / "head.npy"
        if not path.is_file():
            assert self.student is not None
            to_teacher_space, width = self.student.to_teacher_space, self.student.embed_dim
            with atomic(path) as temporary, open(temporary, "wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(features), width)}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(features), 4096):
                    part = torch.from_numpy(np.array(features[start : start + 4096])).to(self.device)
                    file.write(to_teacher_space(part).float().cpu().numpy().astype("<f4").tobytes())
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))

    def note(self, what: str) -> Progress | None:
        """`progress` with the encoder and what is being done before its note."""
        if self.progress is None:
            return None
        report = self.progress

        def told(done: int, total: int, note: str) -> None:
            report(done, total, ": ".join(part for part in (f"{what}, {self.now}", note) if part))

        return told

    def encoded_sets(
        self, target: Target | None, encoded: Mapping[str, Encoded], base: Mapping[str, EncodedSet] | None = None
    ) -> dict[str, EncodedSet]:
        """One image set as subjects, by name.

        Args:
            target: the set; its kind is "main" for the main evaluation images, None for no images at all.
            encoded: its sources, by role.
            base: the subjects on the main evaluation images.

        Raises:
            DataError: test images alone, of classes that the main evaluation images lack, or there are none of those.
        """
        test, train = encoded.get("test"), encoded.get("train")
        lone = target is not None and target.kind == "shift"
        if lone and not (base and next(iter(base.values())).train is not None):
            assert target is not None
            raise DataError(
                f"{target.name} has test images only: what is known of its classes is learned from the main "
                "evaluation images, and there are none. Give --eval-data."
            )
        numbers: np.ndarray | None = None
        if lone and base and target is not None and test is not None:
            names = next(iter(base.values())).class_names
            numbers = numbered_as(test.source, names, target.name, published="home" in target.metadata)
            if (numbers < 0).any():
                test, numbers = test.subset(np.flatnonzero(numbers >= 0)), numbers[numbers >= 0]
        encoders: dict[str, Encoder] = {}
        if self.teacher is not None:
            encoders["teacher"] = self.teacher
        if self.student is not None:
            encoders |= {"student": self.student, "student_embed": Embedding(self.student)}
        headless = self.student is not None and self.student.headless
        places = {name: root for name, (_, root, _) in self.roots.items()}
        found: dict[str, EncodedSet] = {}
        for name, encoder in encoders.items():
            main = base[name] if lone and base else None
            metadata: dict[str, Any] = {}
            if main is not None:
                metadata = {
                    "train": main.train,
                    "train_labels": main.train_labels,
                    "train_source": main.train_source,
                    "class_names": main.class_names,
                    "test_labels": numbers,
                    "base": main,
                }
            elif train is not None:
                metadata = {
                    "train": train.rows[name],
                    "train_labels": train.source.labels,
                    "train_source": train.source,
                    "class_names": tuple(train.source.class_names or ()),
                    "test_labels": None if test is None else test.source.labels,
                }
            found[name] = EncodedSet(
                name=name,
                test=np.empty((0, 0), np.float32) if test is None else test.rows[name],
                reference=None if name == "teacher" else found.get("teacher"),
                aligned=self.in_teacher_space and "teacher" in found and (name == "student_embed" or headless),
                encoder=encoder,
                test_source=None if test is None else test.source,
                target=None if target is None or target.kind == "main" else target,
                queries=encoded["queries"].rows[name] if "queries" in encoded else None,
                folder=places["teacher" if name == "teacher" else "student"],
                device=self.device,
                workers=self.workers,
                progress=self.note(name),
                **metadata,
            )
        return found

    def apply(
        self,
        job: str,
        protocol: str,
        encoded_sets: Mapping[str, EncodedSet],
        begun: Mapping[str, Figures],
    ) -> Iterator[tuple[str, Figures]]:
        """One protocol to every subject it applies to; a user's fault stops that subject only.

        Args:
            job: what the seconds are filed under.
            protocol: its name.
            encoded_sets: by name.
            begun: figures that are there already, by subject name.

        Yields:
            Subject name and figures, as each is done.
        """
        results: dict[str, Figures] = {}
        for name, encoded_set in encoded_sets.items():
            takes = REQUIREMENTS[protocol]
            if (takes.reference and encoded_set.reference is None) or (name == "student_embed" and not takes.head):
                continue
            if takes.space and name == "student" and encoded_set.test is not encoded_sets["student_embed"].test:
                continue
            if name in begun:
                results[name] = begun[name]
            elif name == "student_embed" and encoded_set.test is encoded_sets["student"].test:
                results[name] = results["student"]  # no head: the same rows, the same figures
            else:
                self.now = job
                with self.stage(job):
                    try:
                        results[name] = EVALUATIONS[protocol](encoded_set, self.settings)
                    except UnderstudyError as error:
                        results[name] = {"error": str(error)}
            yield name, results[name]

    def note_images(self, target: str, encoded: Mapping[str, Encoded]) -> None:
        """Keep how many images of a set were seen, by role, and how many could not be read."""
        if encoded:
            self.images[target] = {role: len(one.source) for role, one in encoded.items()}
            self.images[target]["skipped"] = sum(one.skipped for one in encoded.values())
            names = encoded["train"].source.class_names if "train" in encoded else None
            if names is not None:
                self.images[target]["classes"] = len(names)

    def plan(self, sources: Mapping[str, list[Source]], protocols: Mapping[str, list[str]]) -> list[str]:
        """What is about to be computed, in sentences: images, passes, and seconds an image as measured here.

        Args:
            sources: image sets by name of the target, "" for the main one.
            protocols: protocols to apply to each.
        """
        lines = []
        for name, (encoder, root, dtype) in self.roots.items():
            each, total, parts, later = self._seconds_an_image(encoder), 0, [], []
            for target, sets in sources.items():
                fresh = [one for one in sets if not Store.at(root, store_key(encoder, one, dtype)).complete]
                images = sum(len(one) for one in fresh)
                counts = [len(one) for one in sets]
                train, test = (counts[0], counts[-1]) if counts else (0, 0)
                title = target or "main images"
                if images:
                    parts.append(f"{title} {images:,}")
                if not sets:
                    later += [f"{one} on {title}" for one in protocols.get(target, ()) if target]
                    continue
                # Of test images alone, what protocols ask for is the shared features.
                for protocol in protocols.get(target, ()) if len(sets) > 1 or not target else ():
                    passes = REQUIREMENTS[protocol].passes(self.settings, train, test)
                    if passes:
                        parts.append(f"{protocol} on {title} {passes:,.0f}")
                    images += int(passes)
                total += images
            line = f"{name}: no image passes, all features are kept"
            if parts:
                line = (
                    f"{name}: {total:,} image passes ({', '.join(parts)}) at {1000 * each:.1f} ms, measured on blank "
                    f"images: about {_duration(total * each)} beside reading them"
                )
            lines.append(line + (f"; and of unknown length: {', '.join(later)}" if later else ""))
        return lines

    @torch.no_grad()
    def _seconds_an_image(self, encoder: Frozen) -> float:
        """Forward seconds of one image in a batch, the better of two tries. Reading and decoding are not in it."""
        size = encoder.contract.size
        module: Any = encoder.student.backbone if isinstance(encoder, StudentBackbone) else encoder.module  # type: ignore[attr-defined]
        images = torch.zeros(min(MEASURED, self.settings.batch_size), 3, size, size, device=self.device)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            module(images).float().cpu()
            seconds.append(time.perf_counter() - start)
        return min(seconds) / len(images)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
