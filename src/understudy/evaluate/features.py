"""Encoders under evaluation, and the features of each image set: one pass each, kept on disk."""

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

from understudy.artifacts import Store, atomic, fingerprint, is_whole
from understudy.embed.embedding import Frozen, Inference, embed, open_rows
from understudy.errors import DataError, StoreError, first_line
from understudy.evaluate.dataset import EvaluationSet
from understudy.evaluate.datasets.shifted import numbered_as
from understudy.evaluate.encoded_set import Embedding, EncodedSet, EvaluatedEncoder, Notify, Progress
from understudy.models.checkpoints import fingerprint_weights
from understudy.models.precision import arithmetic
from understudy.models.student import Student
from understudy.models.teacher import Teacher
from understudy.sources.source import Source


@dataclass(frozen=True)
class Resources:
    """Where an evaluation computes, where it keeps features, and whom it tells."""

    device: str | torch.device = "cpu"  # of encoders and protocols
    store_root: str | os.PathLike[str] = "store"  # of teacher embeddings, shared with training and other runs
    workers: int | None = None  # processes that read images; None lets the loader choose
    progress: Progress | None = None  # within each stage
    notify: Notify | None = None  # of the plan, a sentence for each encoder, before anything is computed

    @property
    def listings(self) -> Path:
        """Where the indices of tar shards are kept."""
        return Path(self.store_root) / "listings"

    @property
    def teacher_root(self) -> Path:
        """Where a teacher's features are kept: beside a store, where the user named one of the training images."""
        root = Path(self.store_root)
        return root.parent if Store(root).complete else root


class StudentBackbone:
    """A student's backbone, in eval mode, as something that can be embedded with and kept in a store."""

    def __init__(self, student: Student) -> None:
        self.student = student
        self.spec, self.width, self.contract = student.spec, student.width, student.contract
        self.fingerprint = fingerprint_weights(student)
        if student.code:
            self.fingerprint = fingerprint(self.fingerprint, student.code)
        self.weights, self.library = student.weights, student.library
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
class SetFeatures:
    """One source of images encoded by every encoder, rows in the same order everywhere.

    The source has the images that could be read, `skipped` counts the others; rows by encoder are memory-mapped.
    """

    source: Source
    rows: Mapping[str, np.ndarray]
    skipped: int

    def subset(self, index: Int[np.ndarray, " n"]) -> SetFeatures:
        """Some of the images; encoders that share their rows still do."""
        parts = {id(rows): rows[index] for rows in {id(rows): rows for rows in self.rows.values()}.values()}
        rows = {name: parts[id(rows)] for name, rows in self.rows.items()}
        return SetFeatures(self.source.subset(index), rows, self.skipped)


@dataclass
class FeatureExtractor:
    """The encoders under evaluation: "teacher", "student" (the backbone) and "student_embed" (after its head)."""

    teacher: Teacher | None
    student: Student | None  # one of the two at least
    resources: Resources
    batch_size: int  # images per forward pass
    student_root: str | os.PathLike[str] = ""  # of the student's features, which are of use to this run alone
    in_teacher_space: bool = True  # whether a perfect student would lie there; if not, their cosines say nothing
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage: an encoder's passes, or a protocol's work on a set."""
    images: dict[str, dict[str, int]] = field(default_factory=dict)
    """By set, "" for the main images: how many there are, by role, how many could not be read, and their classes."""
    activity: str = field(default="", init=False)
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
    def encoders(self) -> dict[str, EvaluatedEncoder]:
        """The encoders by name, in order."""
        encoders: dict[str, EvaluatedEncoder] = {} if self.teacher is None else {"teacher": self.teacher}
        if self.student is not None:
            encoders |= {"student": self.student, "student_embed": Embedding(self.student)}
        return encoders

    @property
    def stores(self) -> dict[str, tuple[Frozen, Path, str]]:
        """What images are sent through: module, root of its stores and stored precision, by name."""
        stores: dict[str, tuple[Frozen, Path, str]] = {}
        if self.teacher is not None:
            stores["teacher"] = self.teacher, self.resources.teacher_root, "float16"
        if self.student is not None:
            stores["student"] = StudentBackbone(self.student), Path(self.student_root), "float32"
        return stores

    def encode(self, source: Source, title: str) -> SetFeatures:
        """One forward pass of each encoder, none where its features are kept; the head works on the backbone's.

        Raises:
            UnderstudyError: as `embed` says.
        """
        self.activity, images = title, source
        rows: dict[str, np.ndarray] = {}
        for name, (encoder, root, dtype) in self.stores.items():
            with self.stage(name):
                resources = self.resources
                inference = Inference(resources.device, self.batch_size, resources.workers, self.progress_of(name))
                store = embed(encoder, images, root, inference, dtype=dtype, check=name == "teacher")
                readable = open_rows(store, images)
                if len(readable) < len(images):
                    rows = {other: features[np.isin(images.ids, readable.ids)] for other, features in rows.items()}
                images = readable
                rows[name] = np.asarray(store.embeddings())
                if name == "student":
                    assert self.student is not None
                    headless = self.student.headless
                    rows["student_embed"] = rows[name] if headless else self._through_head(store, rows[name])
        return SetFeatures(images, rows, len(source) - len(images))

    @torch.no_grad()
    def _through_head(self, store: Store, features: np.ndarray) -> np.ndarray:
        """The student's embeddings beside its features: the key of the store covers the head's weights too."""
        path = store.folder / "head.npy"
        if not path.exists() or not is_whole(path):
            assert self.student is not None
            to_teacher_space, width = self.student.to_teacher_space, self.student.embed_dim
            with atomic(path, sealed=True) as temporary, open(temporary, "wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(features), width)}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(features), 4096):
                    part = torch.from_numpy(np.array(features[start : start + 4096])).to(self.resources.device)
                    file.write(to_teacher_space(part).float().cpu().numpy().astype("<f4").tobytes())
        try:
            rows = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read ({first_line(error)}). Delete it: it is made anew.") from None
        if len(rows) != len(features):
            raise StoreError(f"{path} has {len(rows)} rows, not {len(features)}. Delete it: it is made anew.")
        return rows

    def progress_of(self, name: str) -> Progress | None:
        """`progress` with the name of an encoder and the activity before its note."""
        if self.resources.progress is None:
            return None
        report = self.resources.progress

        def noted(done: int, total: int, note: str) -> None:
            report(done, total, ": ".join(part for part in (f"{name}, {self.activity}", note) if part))

        return noted

    def encoded_sets(
        self,
        dataset: EvaluationSet | None,
        features: Mapping[str, SetFeatures],
        base: Mapping[str, EncodedSet] | None = None,
    ) -> dict[str, EncodedSet]:
        """One image set (None for no images at all) as each encoder sees it, by name of the encoder.

        `features` are those of its sources, by role; `base` are the encoded main evaluation images.

        Raises:
            DataError: test images alone, of classes that the main evaluation images lack, or there are none of those.
        """
        test, train, queries = (features.get(role) for role in ("test", "train", "queries"))
        numbers: np.ndarray | None = None if test is None else test.source.labels
        if dataset is None or dataset.kind != "shift":
            base = None
        else:
            assert test is not None
            test, numbers = _numbered(dataset, test, base)
        headless = self.student is not None and self.student.headless
        roots = {name: root for name, (_, root, _) in self.stores.items()}
        sets: dict[str, EncodedSet] = {}
        for name, encoder in self.encoders.items():
            main = base[name] if base else None
            learned: dict[str, Any] = {}
            if main is not None:
                learned = {
                    "train": main.train, "train_labels": main.train_labels, "train_source": main.train_source,
                    "class_names": main.class_names, "test_labels": numbers, "base": main,
                }  # fmt: skip
            elif train is not None:
                learned = {
                    "train": train.rows[name], "train_labels": train.source.labels, "train_source": train.source,
                    "class_names": tuple(train.source.class_names or ()), "test_labels": numbers,
                }  # fmt: skip
            sets[name] = EncodedSet(
                name=name, test=np.empty((0, 0), np.float32) if test is None else test.rows[name],
                reference=None if name == "teacher" else sets.get("teacher"),
                aligned=self.in_teacher_space and "teacher" in sets and (name == "student_embed" or headless),
                encoder=encoder, test_source=None if test is None else test.source,
                dataset=None if dataset is None or dataset.kind == "main" else dataset,
                queries=None if queries is None else queries.rows[name],
                folder=roots["teacher" if name == "teacher" else "student"], device=self.resources.device,
                workers=self.resources.workers, progress=self.progress_of(name), **learned,
            )  # fmt: skip
        return sets

    def count_images(self, name: str, features: Mapping[str, SetFeatures]) -> None:
        """Keep how many images of a set ("" for the main one) there were, by role, and how many could not be read."""
        if features:
            self.images[name] = {role: len(one.source) for role, one in features.items()}
            self.images[name]["skipped"] = sum(one.skipped for one in features.values())
            class_names = features["train"].source.class_names if "train" in features else None
            if class_names is not None:
                self.images[name]["classes"] = len(class_names)


def _numbered(
    dataset: EvaluationSet, test: SetFeatures, base: Mapping[str, EncodedSet] | None
) -> tuple[SetFeatures, np.ndarray]:
    """Test images alone, those of classes that the main images have, with the main images' class numbers."""
    main = next(iter(base.values())) if base else None
    if main is None or main.train is None:
        raise DataError(
            f"{dataset.name} has test images only: what is known of its classes is learned from the main "
            "evaluation images, and there are none. Give --eval-data."
        )
    numbers = numbered_as(test.source, main.class_names, dataset.name, published="home" in dataset.metadata)
    if (numbers < 0).any():
        test, numbers = test.subset(np.flatnonzero(numbers >= 0)), numbers[numbers >= 0]
    return test, numbers
