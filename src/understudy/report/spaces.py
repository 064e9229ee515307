"""The sample of evaluation images seen as two spaces: groups of images, and a flat map of each space."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from understudy.errors import MissingDependency

SHOWN = 10
"""Groups that get a color and a shape of their own; the rest share gray."""

FEWEST_FOR_TSNE = 50
"""Below this many images t-SNE's neighborhoods are most of the set, and PCA tells more."""

CLUSTERS = 8


@dataclass(frozen=True)
class Groups:
    """What the maps are colored by: groups of the teacher's clusters or of labels, at most `SHOWN`.

    `member` is the (n,) group of each image, -1 for the rest.
    """

    names: tuple[str, ...]
    member: np.ndarray
    clusters: bool

    @property
    def description(self) -> str:
        """What the groups are."""
        return "k-means clusters of the teacher's space (there are no labels)" if self.clusters else "class"


def label_names(sample: Mapping[str, np.ndarray]) -> list[str | None] | None:
    """The class of each image by name, None for an image without a label; None if no image has one."""
    labels = sample.get("labels")
    if labels is None or not (labels >= 0).any():
        return None
    known = {number: str(name) for number, name in enumerate(sample.get("class_names", ()))}
    return [None if label < 0 else known.get(label, f"class {label}") for label in labels.tolist()]


def groups(sample: Mapping[str, np.ndarray]) -> Groups:
    """The most frequent classes, or k-means clusters of the teacher's embeddings where there are no labels."""
    if (named := label_names(sample)) is not None:
        keys, counts = np.unique([name for name in named if name is not None], return_counts=True)
        shown = sorted(keys[np.argsort(-counts, kind="stable")[:SHOWN]].tolist())
        position = {name: i for i, name in enumerate(shown)}
        return Groups(tuple(shown), np.array([-1 if name is None else position.get(name, -1) for name in named]), False)
    from sklearn.cluster import KMeans

    rows = unit(sample["teacher"])
    k = min(CLUSTERS, len(np.unique(rows, axis=0)))
    member = KMeans(k, n_init=4, random_state=0).fit_predict(rows)
    order = np.argsort(-np.bincount(member, minlength=k), kind="stable")
    return Groups(tuple(f"cluster {i + 1}" for i in range(k)), np.argsort(order)[member], True)


def unit(embeddings: np.ndarray) -> np.ndarray:
    """(n, D) float64 rows of length one; a zero row stays zero."""
    rows = np.asarray(embeddings, np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def tsne_or_pca(embeddings: np.ndarray) -> np.ndarray | None:
    """A flat map of (n, D) embeddings under cosine distance: t-SNE, or PCA when there are few images.

    Returns:
        (n, 2) float64, the same on every call; None if there is nothing to lay out: fewer than three images, values
        that are not finite, or all images in one point.

    Source:
        van der Maaten & Hinton, "Visualizing data using t-SNE", JMLR 2008; PCA initialization as in Kobak & Berens,
        Nature Communications 2019.
    """
    rows, components = _principal(embeddings)
    if components is None or len(rows) < FEWEST_FOR_TSNE or not components[:, 1].any():
        return components
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    start = components / components[:, 0].std() * 1e-4
    # One thread: sums in one order, hence one map; and threads that wait for each other on a busy machine are slower.
    with threadpool_limits(1, user_api="openmp"):
        method = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), init=start, random_state=0)
        return np.asarray(method.fit_transform(rows), np.float64)


def _principal(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(n, D) centered rows of length one and their (n, 2) principal components; None where there is nothing to see."""
    if len(embeddings) < 3 or not np.isfinite(embeddings).all():
        return np.asarray(embeddings, np.float64), None
    rows = unit(embeddings)
    rows -= rows.mean(axis=0)
    left, spread, _ = np.linalg.svd(rows, full_matrices=False)
    if spread[0] < 1e-6:
        return rows, None
    components: np.ndarray = np.zeros((len(rows), 2))
    components[:, : min(2, len(spread))] = (left * np.where(spread < 1e-6, 0.0, spread))[:, :2]
    return rows, components


def pacmap(embeddings: np.ndarray) -> np.ndarray | None:
    """A flat map that keeps more of how groups lie to each other than t-SNE: PaCMAP, as its authors set it.

    Of all D dimensions, where they take the first 100 principal components.

    Returns:
        (n, 2) float64, the same on every call; None where `tsne_or_pca` gives no t-SNE either.

    Raises:
        MissingDependency: pacmap is not installed.

    Source:
        Wang, Huang, Rudin & Shaposhnik, "Understanding how dimension reduction tools work", JMLR 2021
        (arXiv 2012.04456).
    """
    from threadpoolctl import threadpool_limits

    # As for t-SNE; and PaCMAP sets the number of threads of the whole process, already when it is imported.
    with threadpool_limits(1, user_api="openmp"):
        try:
            import numba
            from pacmap import PaCMAP
        except ImportError:
            raise MissingDependency("PaCMAP maps need pacmap: `pip install 'understudy[maps]'`.") from None
        import faiss

        rows, components = _principal(embeddings)
        # It draws 20 far pairs an image, and with fewer images than that it does not end.
        if components is None or len(rows) < FEWEST_FOR_TSNE or not components[:, 1].any():
            return None
        logging.getLogger("pacmap").setLevel(logging.ERROR)  # it warns of being given a seed
        threads, searching = numba.get_num_threads(), faiss.omp_get_max_threads()
        numba.set_num_threads(1)
        try:
            flat: np.ndarray = PaCMAP(random_state=0, apply_pca=False).fit_transform(rows, init=components)
        finally:
            numba.set_num_threads(threads)
            faiss.omp_set_num_threads(searching)
    return flat.astype(np.float64)


def aligned(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(n, 2) points turned and mirrored, not stretched, to lie as near to the reference as they can.

    A map's orientation means nothing, so this changes nothing but the ease of comparing two of them.
    """
    points, reference = points - points.mean(axis=0), reference - reference.mean(axis=0)
    left, _, right = np.linalg.svd(points.T @ reference)  # orthogonal Procrustes, Schönemann 1966
    return np.asarray(points @ left @ right)


def layouts(teacher: np.ndarray, student: np.ndarray) -> tuple[dict[str, dict[str, np.ndarray]], str]:
    """Flat maps of both spaces: t-SNE and PaCMAP, or PCA of few images; the student's turned to lie like the teacher's.

    Returns:
        "teacher" and "student" -> method -> (n, 2), empty for a space that cannot be laid out; and a sentence on the
        package that a further map needs, "" when none is missing.
    """
    few = len(teacher) < FEWEST_FOR_TSNE
    methods = {"PCA": tsne_or_pca} if few else {"t-SNE": tsne_or_pca, "PaCMAP": pacmap}
    maps: dict[str, dict[str, np.ndarray]] = {"teacher": {}, "student": {}}
    for name, method in methods.items():
        try:
            reference, moved = method(teacher), method(student)
        except MissingDependency as error:
            return maps, str(error)
        first = not maps["teacher"]
        # A button steers both maps, so a further method has to lay out what the first one did.
        if reference is None or (not first and (moved is None) != (not maps["student"])):
            continue
        maps["teacher"][name] = reference
        if moved is not None:
            maps["student"][name] = aligned(moved, reference)
    return maps, ""
