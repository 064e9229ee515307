"""Drop-in: what becomes of an index when the student asks it in the teacher's place.

The index holds the test images as one encoder embeds them, and each test image asks it as the other embeds it, its own
row being taken out. What is right are the teacher's own answers: its index, asked by itself.

- "recall@k": the index is the teacher's, the queries are the student's. Mean share, in per cent, of the teacher's k
  nearest images that the k answers hold, for k = 1, 10 and 100.
- "reverse_recall@k": the index is the student's, the queries are the teacher's.
- "map", "reverse_map": of the same rankings, where images of the query's class are right, as `retrieval` counts; and
  "map_teacher" of the teacher's own, which they are to be read against. Only where labels exist.

Both encoders on their own side, each in its own index, is "overlap@k" of `fidelity`.

NAME_low and NAME_high of recalls hold 95 % of 100 bootstrap resamples of the queries.
"""

from understudy.evaluate.protocol import Display, Protocol, Requirements, prefixed

DROP_IN_TITLES = {r"recall@(\d+)": r"Recall@\1", "map": "mAP"}


class DropIn(Protocol):
    """The teacher's answers that an index still gives when the student asks it, and the other way round."""

    name = "drop_in"
    summary = "the teacher's answers that its index still gives to the student's queries, and the other way round"
    measure = "drop_in.swap_encoders"
    requirements = Requirements(kinds=frozenset({"labeled"}), labels=False, reference=True, space=True)
    display = Display(
        title="Drop-in search",
        short="drop-in",
        sentence="The teacher's index asked by the student: how many of the teacher's own k nearest images are among "
        "the k answers. Reverse: the student's index asked by the teacher. mAP, with labels: images of the query's "
        "class are right.",
        source="recall as of approximate search, with the teacher's answers as the truth",
        compared=(r"recall@10", r"reverse_recall@10"),
        quoted=(r"recall@\d+", r"reverse_recall@\d+", r"map", r"reverse_map", r"map_teacher"),
        headline=(r"recall@10", r"reverse_recall@10"),
        figures={
            **DROP_IN_TITLES, **prefixed("reverse_", "reverse", DROP_IN_TITLES),
            "map_teacher": "mAP, the teacher's index and queries",
        },
        shares=(),
        agreement=(r"(reverse_)?recall@\d+",),
    )  # fmt: skip
