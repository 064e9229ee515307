"""The images of an export: held-out ones that it is judged on, and training images that int8 ranges come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from understudy.artifacts import Run
from understudy.errors import DataError, StoreError, UnreadableImage
from understudy.export.parity import BATCH, HeldOut
from understudy.export.settings import ExportSettings
from understudy.settings import read_toml
from understudy.sources.evaluation import open_evaluation
from understudy.sources.source import Source, open_source

if TYPE_CHECKING:
    from understudy.models.student import Student


def draw_held_out(run: Run, student: Student, settings: ExportSettings) -> HeldOut:
    """Held-out images with the embeddings of the student and, of those in the run's own sample, of the teacher.

    Raises:
        DataError: too few images can be read.
        StoreError: the run names no images and no other are given.
    """
    name, source = _source(run, settings)
    teacher = _teacher_rows(run) if settings.data is None else {}
    rows = _drawn(len(source), len(source), settings.seed)
    if teacher:  # those first that the teacher's embeddings are known of
        known = np.array([source.name(row) in teacher for row in rows.tolist()])
        rows = np.concatenate([rows[known], rows[~known]])
    prepared, kept = _read(source, student, rows, settings.images)
    if len(kept) < 16:
        raise DataError(f"{name} has {len(kept)} readable images; an export is judged on at least 16. Give --data.")
    names = [source.name(row) for row in kept]
    theirs = np.stack([teacher[name] for name in names]) if teacher and all(n in teacher for n in names) else None

    def picture(number: int) -> np.ndarray:
        return np.asarray(source.read(kept[number]))[None]

    return HeldOut(name, prepared, picture, _embedded(student, prepared), theirs)


def draw_calibration(run: Run, student: Student, settings: ExportSettings) -> np.ndarray:
    """(n, 3, S, S) prepared training images, drawn by the seed.

    Raises:
        DataError: none can be read.
    """
    spec = str(_configuration(run).get("data"))
    source = open_source(spec, listings=None)
    prepared, _ = _read(
        source, student, _drawn(len(source), 4 * settings.calibration, settings.seed), settings.calibration
    )
    if not len(prepared):
        raise DataError(f"None of the training images {spec} can be read, and int8 ranges come from them.")
    return prepared


def _source(run: Run, settings: ExportSettings) -> tuple[str, Source]:
    if settings.data is not None:
        return settings.data, open_source(settings.data)
    table = _configuration(run)
    evaluation = table.get("eval_data") or table.get("evaluation", {}).get("eval_data")
    if evaluation:
        return f"{evaluation} (test half)", open_evaluation(evaluation)[1]
    if not (data := table.get("data")):
        raise StoreError(f"{run.config_path} names no images. Give some the student has not seen: --data FOLDER.")
    return f"{data} (training images: none are held out)", open_source(data)


def _configuration(run: Run) -> dict[str, Any]:
    return read_toml(run.config_path) if run.config_path.is_file() else {}


def _drawn(count: int, most: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)[:most]


def _read(source: Source, student: Student, rows: np.ndarray, count: int) -> tuple[np.ndarray, list[int]]:
    """The first `count` of the rows that can be read, prepared, and which they are."""
    prepared: list[np.ndarray] = []
    kept: list[int] = []
    for row in rows.tolist():
        if len(kept) == count:
            break
        try:
            image = source.read(row)
        except UnreadableImage:  # what cannot be read was not trained on either
            continue
        prepared.append(student.preprocess(image).numpy())
        kept.append(row)
    size = student.contract.size
    return (np.stack(prepared) if prepared else np.empty((0, 3, size, size), np.float32)), kept


def _embedded(student: Student, prepared: np.ndarray) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {"embedding": [], "features": []}
    with torch.inference_mode():
        for batch in torch.from_numpy(prepared).split(BATCH):
            features = student.features(batch)
            parts["features"].append(features.numpy())
            parts["embedding"].append(student.to_teacher_space(features).numpy())
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def _teacher_rows(run: Run) -> dict[str, np.ndarray]:
    """Name -> the teacher's embedding, of the sample of test images that evaluation left; empty without one."""
    if not run.sample_path.is_file():
        return {}
    try:
        with np.load(run.sample_path, allow_pickle=False) as sample:
            if "teacher" not in sample:
                return {}
            return dict(zip(sample["names"].tolist(), sample["teacher"].astype(np.float32), strict=True))
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{run.sample_path} cannot be read ({error}). Run `understudy evaluate` again.") from None
