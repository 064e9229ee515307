"""Retrieval: rank a database by cosine with each query, and score the ranking.

Landmarks (revisited Oxford and Paris: Radenovic et al., CVPR 2018, arXiv 1803.11285; INSTRE and sets kept like them):
queries cut to their boxes; average precision by trapezia, as their evaluation code; images that are junk for a query
are taken out of its ranking; queries without an answer count nowhere. "easy" asks for easy images, hard ones being
junk; "medium" for easy and hard ones; "hard" for hard ones, easy ones being junk. Images are seen through the encoder's
own resize and center crop at one scale, where the papers resize the longer side and often use three scales: figures
compare encoders with each other, not with theirs.

Class level (CUB-200 and Cars in metric learning, or any labeled set): each test image asks for the others of its
class; mAP is the plain mean of precisions at the hits, Recall@k the share of queries with a hit among the first k.

Symmetric: queries and database in the encoder's own space. Asymmetric, where an encoded set is in its teacher's space:
the student's queries against the teacher's database, which nobody embeds again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from understudy.errors import DataError, ShapeError
from understudy.evaluate.encoded_set import EncodedSet, Figures, check_finite
from understudy.evaluate.protocol import Display, Protocol, Requirements, prefixed
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


def retrieval(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Score an encoded set's rankings, and where it lands in its teacher's space also of the teacher's database.

    Args:
        encoded_set: `test` is the database; the queries are `queries` with the ground truth of the target, or, for
            labeled images, the test images themselves.
        settings: `memory_mb` bounds the ranking, `seed` draws class-level queries.

    Returns:
        Landmarks: "map_medium" and "mp@10_medium", likewise easy and hard, and other k; "map", "mp@k" for ground truth
        of the older kind. Class level: "map", "recall@k", "mp@k". The same with "asymmetric_" before it. In per cent.

    Raises:
        DataError: no labels, no class with two test images, no query with an answer, or rows that are not finite.
        ShapeError: the two spaces have different widths.
    """
    landmarks = encoded_set.target is not None and encoded_set.target.kind == "landmarks"
    score = _landmarks if landmarks else _classes
    check_finite(encoded_set.test, f"{encoded_set.name} features of the test images")
    own = encoded_set.queries if landmarks else encoded_set.test
    if own is None:
        raise DataError("There are no queries.")
    check_finite(own, f"{encoded_set.name} features of the queries")
    figures = score(encoded_set, own, encoded_set.test, settings)
    if encoded_set.aligned and encoded_set.reference is not None:
        database = encoded_set.reference.test
        if database.shape[1] != own.shape[1]:
            raise ShapeError(
                f"{encoded_set.name} has width {own.shape[1]}, {encoded_set.reference.name} {database.shape[1]}: one "
                "cannot be searched with the other."
            )
        check_finite(database, f"{encoded_set.reference.name} features of the test images")
        found = score(encoded_set, own, database, settings)
        found.pop("queries")
        figures |= {name if name == "note" else f"asymmetric_{name}": value for name, value in found.items()}
    return figures


def _landmarks(
    encoded_set: EncodedSet, queries: np.ndarray, database: np.ndarray, settings: EvaluationSettings
) -> Figures:
    assert encoded_set.target is not None
    assert encoded_set.test_source is not None
    truth: Sequence[Mapping[str, np.ndarray]] = encoded_set.target.metadata["gnd"]
    # Ground truth names images by their place in the list; those that cannot be read have no row.
    place = np.full(int(encoded_set.test_source.ids.max(initial=0)) + 1, -1)
    place[encoded_set.test_source.ids] = np.arange(len(database))
    asked = encoded_set.target.queries
    assert asked is not None
    if len(asked) != len(queries):
        raise DataError(f"{len(asked) - len(queries)} queries of {encoded_set.target.name} cannot be read.")
    modes = MODES if any("easy" in entry for entry in truth) else {"": (("ok",), ("junk",))}
    kept: dict[str, list[tuple[float, list[float]]]] = {mode: [] for mode in modes}
    for query, ranking in ranked(queries, database, settings.memory_mb, encoded_set.device):
        for mode, (wanted, junk) in modes.items():
            good, bad = (
                _rows([truth[query][kind] for kind in kinds if kind in truth[query]], place) for kinds in (wanted, junk)
            )
            if len(good):
                position = positions(ranking, good, bad)
                kept[mode].append((trapezia(position), [precision_at(position, k) for k in PRECISIONS]))
    figures: Figures = {}
    for mode, scores in kept.items():
        if not scores:
            continue
        end = f"_{mode}" if mode else ""
        figures[f"map{end}"] = 100.0 * float(np.mean([one for one, _ in scores]))
        for number, k in enumerate(PRECISIONS):
            figures[f"mp@{k}{end}"] = 100.0 * float(np.mean([precision[number] for _, precision in scores]))
    if not figures:
        raise DataError(f"No query of {encoded_set.target.name} has an answer in the database.")
    return {**figures, "queries": len(queries)}


def _rows(parts: list[np.ndarray], place: np.ndarray) -> np.ndarray:
    ids = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    ids = ids[ids < len(place)]
    rows = place[ids]
    found: np.ndarray = rows[rows >= 0]
    return found


def _classes(
    encoded_set: EncodedSet, queries: np.ndarray, database: np.ndarray, settings: EvaluationSettings
) -> Figures:
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

    Args:
        queries: (Q, F).
        database: (M, F), perhaps a memory map.
        memory_mb: MiB for a block of rankings.
        device: where products are taken.

    Yields:
        Number of the query, and (M,) database rows.
    """
    place = torch.device("cpu" if torch.device(device).type == "mps" else device)
    budget = memory_mb << 20
    many = max(1, budget // 4 // (8 * database.shape[1]))
    block = max(1, min(1024, budget // 4 // (24 * len(database))))
    for start in range(0, len(queries), block):
        asked = _unit(queries[start : start + block], place)
        cosines = np.empty((len(asked), len(database)), dtype=np.float32)
        for low in range(0, len(database), many):
            cosines[:, low : low + many] = (asked @ _unit(database[low : low + many], place).T).float().cpu().numpy()
        for number, row in enumerate(cosines):
            yield start + number, np.argsort(-row, kind="stable")


def _unit(rows: np.ndarray, place: torch.device) -> torch.Tensor:
    found = torch.from_numpy(np.array(rows, dtype=np.float64)).to(place)
    length = found.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-12, found / length.clamp_min(1e-300), torch.zeros_like(found))


def positions(
    ranking: Int[np.ndarray, " M"], good: Int[np.ndarray, " n"], junk: Int[np.ndarray, " j"]
) -> Int[np.ndarray, " n"]:
    """Places, counted from 0, of the wanted rows in a ranking from which junk was taken out.

    Args:
        ranking: (M,) rows, best first.
        good: rows that are wanted.
        junk: rows that count as if they were not there.
    """
    kept = ranking[~np.isin(ranking, junk)]
    found: np.ndarray = np.flatnonzero(np.isin(kept, good))
    return found


def trapezia(places: Int[np.ndarray, " n"]) -> float:
    """Average precision of the Oxford buildings: the area under precision over recall, by trapezia.

    Args:
        places: of the n wanted images, counted from 0, rising.
    """
    before = np.where(places == 0, 1.0, np.arange(len(places)) / np.maximum(places, 1))
    after = np.arange(1, len(places) + 1) / (places + 1)
    return float(((before + after) / 2).mean())


def precision_at(places: Int[np.ndarray, " n"], k: int) -> float:
    """Share of wanted images among the first k, or among as many as it takes to reach the last of them if fewer.

    Args:
        places: of the wanted images, counted from 0, rising.
        k: how many are looked at.
    """
    looked = min(int(places[-1]) + 1, k)
    return float((places < looked).sum() / looked)


RADENOVIC = """@inproceedings{radenovic2018revisiting,
  title     = {Revisiting {Oxford} and {Paris}: Large-Scale Image Retrieval Benchmarking},
  author    = {Radenovi{\\'c}, Filip and Iscen, Ahmet and Tolias, Giorgos and Avrithis, Yannis and Chum, Ond{\\v{r}}ej},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2018}
}"""

OH_SONG = """@inproceedings{ohsong2016lifted,
  title     = {Deep Metric Learning via Lifted Structured Feature Embedding},
  author    = {Oh Song, Hyun and Xiang, Yu and Jegelka, Stefanie and Savarese, Silvio},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2016}
}"""

RANKING_TITLES = {
    "map": "mAP", r"map_(\w+)": r"mAP, \1", r"mp@(\d+)": r"mP@\1", r"mp@(\d+)_(\w+)": r"mP@\1, \2",
    r"recall@(\d+)": r"Recall@\1",
}  # fmt: skip


class Retrieval(Protocol):
    """A database ranked by cosine with each query."""

    name = "retrieval"
    summary = "ranking by cosine, of landmarks or of classes; also the student against the teacher's database"
    paper = (RADENOVIC, OH_SONG)
    requirements = Requirements(kinds=frozenset({"labeled", "landmarks"}))
    display = Display(
        title="Retrieval",
        short="Retrieval",
        sentence="The database ranked by cosine with each query: landmarks, or the other test images of the query's "
        "class. Asymmetric: the student's queries against the teacher's database.",
        source="Radenovic et al., CVPR 2018 (arXiv 1803.11285), for landmarks; Oh Song et al., CVPR 2016 (arXiv "
        "1511.06452), for Recall@k",
        compared=(r"map_medium|map", r"map_hard", r"asymmetric_(map_medium|map)", r"asymmetric_map_hard"),
        quoted=(r"map_easy", r"recall@1", r"mp@10(_\w+)?", r"asymmetric_map_easy", r"asymmetric_recall@1"),
        figures=RANKING_TITLES | prefixed("asymmetric_", "asymmetric", RANKING_TITLES),
        shares=(r"(asymmetric_)?recall@\d+",),
    )
    evaluate = staticmethod(retrieval)
