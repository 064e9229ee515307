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

from typing import TYPE_CHECKING

from understudy.errors import DataError, ShapeError
from understudy.evaluate.protocol import Display, Protocol, Requirements, prefixed

if TYPE_CHECKING:
    from understudy.evaluate.encoded_set import EncodedSet, Figures
    from understudy.evaluate.settings import EvaluationSettings

RANKING_TITLES = {
    "map": "mAP", r"map_(\w+)": r"mAP, \1", r"mp@(\d+)": r"mP@\1", r"mp@(\d+)_(\w+)": r"mP@\1, \2",
    r"recall@(\d+)": r"Recall@\1",
}  # fmt: skip


class Retrieval(Protocol):
    """A database ranked by cosine with each query."""

    name = "retrieval"
    summary = "ranking by cosine, of landmarks or of classes; also the student against the teacher's database"
    paper = ("radenovic2018revisiting", "ohsong2016lifted")
    requirements = Requirements(kinds=frozenset({"labeled", "landmarks"}))
    display = Display(
        title="Retrieval",
        sentence="The database ranked by cosine with each query: landmarks, or the other test images of the query's "
        "class. Asymmetric: the student's queries against the teacher's database.",
        source="Radenovic et al., CVPR 2018 (arXiv 1803.11285), for landmarks; Oh Song et al., CVPR 2016 (arXiv "
        "1511.06452), for Recall@k",
        compared=(r"map_medium|map", r"map_hard", r"asymmetric_(map_medium|map)", r"asymmetric_map_hard"),
        quoted=(r"map_easy", r"recall@1", r"mp@10(_\w+)?", r"asymmetric_map_easy", r"asymmetric_recall@1"),
        figures=RANKING_TITLES | prefixed("asymmetric_", "asymmetric", RANKING_TITLES),
        shares=(r"(asymmetric_)?recall@\d+",),
    )

    @staticmethod
    def evaluate(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
        """Score an encoded set's rankings, and where it lands in its teacher's space also of the teacher's database.

        `test` is the database; the queries are `queries` with the ground truth of the set, or, for labeled images, the
        test images themselves, drawn by `seed`.

        Returns:
            Landmarks: "map_medium" and "mp@10_medium", likewise easy and hard, and other k; "map", "mp@k" for ground
            truth of the older kind. Class level: "map", "recall@k", "mp@k". The same with "asymmetric_" before it. In
            per cent.

        Raises:
            DataError: no labels, no class with two test images, no query with an answer, or rows that are not finite.
            ShapeError: the two spaces have different widths.
        """
        from understudy.evaluate.encoded_set import check_finite
        from understudy.evaluate.measures.ranking import class_figures, landmark_figures

        landmarks = encoded_set.dataset is not None and encoded_set.dataset.kind == "landmarks"
        score = landmark_figures if landmarks else class_figures
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
                    f"{encoded_set.name} has width {own.shape[1]}, {encoded_set.reference.name} {database.shape[1]}: "
                    "one cannot be searched with the other."
                )
            check_finite(database, f"{encoded_set.reference.name} features of the test images")
            asymmetric = score(encoded_set, own, database, settings)
            asymmetric.pop("queries")
            figures |= {name if name == "note" else f"asymmetric_{name}": value for name, value in asymmetric.items()}
        return figures
