"""How far an export is the student: differences, cosines, shared neighbors, latency and size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from understudy.export.target import Runner
from understudy.neighbors.search import search
from understudy.neighbors.vote import neighbor_overlap

BATCH = 32
NEIGHBORS = 10
LEAST_CALLS, LEAST_SECONDS = 20, 0.5


@dataclass(frozen=True)
class HeldOut:
    """Held-out images and what the encoders make of them.

    Args:
        name: where they are from.
        prepared: (n, 3, S, S) float32, as the student takes them.
        picture: image number to the decoded picture, uint8 (1, H, W, 3).
        student: "embedding" (n, D) and "features" (n, F) of the student in PyTorch.
        teacher: (n, D) of the teacher, None where the run has none of them.
    """

    name: str
    prepared: np.ndarray
    picture: Callable[[int], np.ndarray]
    student: dict[str, np.ndarray]
    teacher: np.ndarray | None

    def batches(self, pictures: bool) -> Iterator[np.ndarray]:
        """What a runner takes: prepared images, or one picture after the other."""
        if pictures:
            yield from (self.picture(number) for number in range(len(self.prepared)))
        else:
            yield from np.array_split(self.prepared, -(-len(self.prepared) // BATCH))


def judge(run: Runner, held_out: HeldOut, *, pictures: bool) -> dict[str, Any]:
    """Run an export over the held-out images and compare each of its outputs with the student's.

    Returns:
        Output -> "largest_difference", "cosine_mean", "cosine_min", "centered_cosine_mean", "overlap@10" (per cent of
        the ten nearest neighbors, within the held-out images, that it shares with the student) and
        "teacher_overlap@10".
    """
    rows: dict[str, list[np.ndarray]] = {}
    for batch in held_out.batches(pictures):
        for name, output in run(batch).items():
            rows.setdefault(name, []).append(np.asarray(output, np.float32))
    return {
        name: compared(np.concatenate(parts), held_out.student[name], held_out.teacher if name == "embedding" else None)
        for name, parts in rows.items()
    }


def compared(given: np.ndarray, wanted: np.ndarray, teacher: np.ndarray | None) -> dict[str, Any]:
    """The figures of one output (n, D) against the student's and the teacher's (n, D)."""
    if given.shape != wanted.shape or not np.isfinite(given).all():
        return {"shape": list(given.shape), "expected_shape": list(wanted.shape), "centered_cosine_mean": None}
    agreement = cosines(given, wanted)
    figures: dict[str, Any] = {
        "largest_difference": float(np.abs(given - wanted).max()),
        "cosine_mean": float(agreement.mean()),
        "cosine_min": float(agreement.min()),
        "centered_cosine_mean": float(centered_cosines(given, wanted).mean()),
    }
    k = min(NEIGHBORS, len(given) - 1)
    near = _neighbors(given, k)
    figures[f"overlap@{k}"] = 100 * neighbor_overlap(near, _neighbors(wanted, k), [k])[k]
    if teacher is not None:
        theirs = _neighbors(teacher, k)
        figures[f"teacher_overlap@{k}"] = 100 * neighbor_overlap(near, theirs, [k])[k]
        figures[f"student_teacher_overlap@{k}"] = 100 * neighbor_overlap(_neighbors(wanted, k), theirs, [k])[k]
    return figures


def cosines(first: np.ndarray, second: np.ndarray) -> Float64[np.ndarray, " n"]:
    """Cosines of the rows of two (n, D) arrays; of two zero rows, 1."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)
    return np.where(same, 1.0, (a * b).sum(axis=1) / np.maximum(norms, 1e-30))


def centered_cosines(given: np.ndarray, wanted: np.ndarray) -> Float64[np.ndarray, " n"]:
    """Cosines of the rows of two (n, D) arrays as seen from the mean of the second.

    Embeddings of different images may point nearly one way: cosines from zero would then agree whatever the image.
    """
    middle = wanted.astype(np.float64).mean(axis=0)
    return cosines(given - middle, wanted - middle)


def latency(run: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of a call: the median, and the quartiles beside it, of at least 20 calls after three more."""
    for _ in range(3):
        run()
    times: list[float] = []
    while len(times) < LEAST_CALLS or sum(times) < LEAST_SECONDS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    low, middle, high = statistics.quantiles(times, n=4)
    return {"median_ms": 1000 * middle, "low_ms": 1000 * low, "high_ms": 1000 * high}


def size_of(place: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return (
        sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        if place.is_dir()
        else (place.stat().st_size)
    )


def _neighbors(rows: np.ndarray, k: int) -> np.ndarray:
    found, _ = search(rows, rows, k, exclude=np.arange(len(rows)))
    return found
