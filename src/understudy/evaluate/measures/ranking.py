"""Rankings of a database by cosine with queries, and their scores."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from understudy.errors import DataError, ShapeError
from understudy.evaluate.encoded_set import EncodedSet, Figures
from understudy.evaluate.settings import EvaluationSettings

PRECISIONS = (1, 5, 10)
RECALLS = (1, 2, 4, 8)
QUERIES = 2000
"""Class-level queries at most, drawn by the seed; the database is always whole."""

MODES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""What each task asks for, and what it takes out of the ranking."""


def landmark_figures(
    encoded_set: EncodedSet, queries: np.ndarray, database: np.ndarray, settings: EvaluationSettings
) -> Figures:
    """Figures of queries with ground truth of their own; see `Retrieval.evaluate`."""
    assert encoded_set.dataset is not None
    assert encoded_set.test_source is not None
    truth: Sequence[Mapping[str, np.ndarray]] = encoded_set.dataset.metadata["gnd"]
    # Ground truth names images by their place in the list; those that cannot be read have no row.
    place = np.full(int(encoded_set.test_source.ids.max(initial=0)) + 1, -1)
    place[encoded_set.test_source.ids] = np.arange(len(database))
    images = encoded_set.dataset.queries
    assert images is not None
    if len(images) != len(queries):
        raise DataError(f"{len(images) - len(queries)} queries of {encoded_set.dataset.name} cannot be read.")
    modes = MODES if any("easy" in entry for entry in truth) else {"": (("ok",), ("junk",))}
    scores_by_mode: dict[str, list[tuple[float, list[float]]]] = {mode: [] for mode in modes}
    for query, ranking in ranked(queries, database, settings.memory_mb, encoded_set.device):
        for mode, (answers, junk) in modes.items():
            good, bad = (_rows([truth[query].get(kind, []) for kind in kinds], place) for kinds in (answers, junk))
            if len(good):
                position = positions(ranking, good, bad)
                scores_by_mode[mode].append((trapezia(position), [precision_at(position, k) for k in PRECISIONS]))
    figures: Figures = {}
    for mode, scores in ((mode, scores) for mode, scores in scores_by_mode.items() if scores):
        end = f"_{mode}" if mode else ""
        figures[f"map{end}"] = 100.0 * float(np.mean([one for one, _ in scores]))
        for number, k in enumerate(PRECISIONS):
            figures[f"mp@{k}{end}"] = 100.0 * float(np.mean([precision[number] for _, precision in scores]))
    if not figures:
        raise DataError(f"No query of {encoded_set.dataset.name} has an answer in the database.")
    return {**figures, "queries": len(queries)}


def _rows(parts: Sequence[Any], place: np.ndarray) -> np.ndarray:
    ids = np.concatenate(parts).astype(np.int64)
    rows: np.ndarray = place[ids[ids < len(place)]]
    return rows[rows >= 0]


def class_figures(
    encoded_set: EncodedSet, queries: np.ndarray, database: np.ndarray, settings: EvaluationSettings
) -> Figures:
    """Figures of test images that look for the others of their class; see `Retrieval.evaluate`."""
    labels = encoded_set.test_labels
    if labels is None or (len(labels) and int(labels.min()) < 0):
        raise DataError("Class-level retrieval needs labeled test images and there are none. Give --eval-data.")
    if len(labels) != len(queries):
        raise ShapeError(f"{encoded_set.name}: {len(queries)} test rows but {len(labels)} labels.")
    several = np.flatnonzero(np.bincount(labels)[labels] > 1)
    if not len(several):
        raise DataError(f"No class has two of the {len(labels)} test images, so nothing can be found.")
    chosen = np.sort(np.random.default_rng(settings.seed).permutation(several)[:QUERIES])
    precision, first, at = [], [], []
    for query, ranking in ranked(queries[chosen], database, settings.memory_mb, encoded_set.device):
        image = int(chosen[query])
        ranking = ranking[ranking != image]
        hits = np.flatnonzero(labels[ranking] == labels[image])
        precision.append(float((np.arange(1, len(hits) + 1) / (hits + 1)).mean()))
        first.append(int(hits[0]))
        at.append([float((hits < k).sum()) / k for k in PRECISIONS])
    figures: Figures = {"map": 100.0 * float(np.mean(precision))}
    figures |= {f"recall@{k}": 100.0 * float(np.mean(np.array(first) < k)) for k in RECALLS}
    figures |= {f"mp@{k}": 100.0 * value for k, value in zip(PRECISIONS, np.mean(at, axis=0).tolist(), strict=True)}
    figures["queries"] = len(chosen)
    if alone := int((np.bincount(labels)[labels] == 1).sum()):
        figures["note"] = f"{alone} test images are the only ones of their class and ask for nothing."
    return figures


def ranked(
    queries: Float[np.ndarray, "Q F"],
    database: Float[np.ndarray, "M F"],
    memory_mb: int,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[int, Int[np.ndarray, " M"]]]:
    """Each query with the whole database by falling cosine, equal ones by row: the order that `search` defines.

    `memory_mb` is for a block of rankings; products are taken on the device.

    Yields:
        Number of the query, and (M,) database rows.
    """
    computing = torch.device("cpu" if torch.device(device).type == "mps" else device)
    budget = memory_mb << 20
    many = max(1, budget // 4 // (8 * database.shape[1]))
    block = max(1, min(1024, budget // 4 // (24 * len(database))))
    for start in range(0, len(queries), block):
        block_queries = _unit(queries[start : start + block], computing)
        cosines = np.empty((len(block_queries), len(database)), dtype=np.float32)
        for low in range(0, len(database), many):
            products = block_queries @ _unit(database[low : low + many], computing).T
            cosines[:, low : low + many] = products.float().cpu().numpy()
        for number, row in enumerate(cosines):
            yield start + number, np.argsort(-row, kind="stable")


def _unit(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    values = torch.from_numpy(np.array(rows, dtype=np.float64)).to(device)
    length = values.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-12, values / length.clamp_min(1e-300), torch.zeros_like(values))


def positions(
    ranking: Int[np.ndarray, " M"], good: Int[np.ndarray, " n"], junk: Int[np.ndarray, " j"]
) -> Int[np.ndarray, " n"]:
    """Places, counted from 0, of the good rows in a ranking, best first, without its junk."""
    return np.flatnonzero(np.isin(ranking[~np.isin(ranking, junk)], good))


def trapezia(places: Int[np.ndarray, " n"]) -> float:
    """Average precision of the Oxford buildings, by the places of the good images, counted from 0, rising.

    The area under precision over recall, by trapezia.
    """
    before = np.where(places == 0, 1.0, np.arange(len(places)) / np.maximum(places, 1))
    after = np.arange(1, len(places) + 1) / (places + 1)
    return float(((before + after) / 2).mean())


def precision_at(places: Int[np.ndarray, " n"], k: int) -> float:
    """Share of good images among the first k, or among as many as it takes to reach the last of them if fewer."""
    first = min(int(places[-1]) + 1, k)
    return float((places < first).sum() / first)
