"""Weighted k-nearest-neighbor classification on frozen features.

The protocol of instance discrimination (Wu et al., CVPR 2018, arXiv 1805.01978), as DINO's and the CoSS authors' code
run it: rows normalized, each of the k nearest training images votes for its class with weight exp(cosine / T), where
T = 0.07. The paper's tables show k = 10, for which T = 1 is given too.

Differences from the released code: images go through the encoder's own resize and center crop, where the CoSS authors
resize the shorter side to 235 pixels, bicubic, and crop 224; the search works in blocks, so that memory is bounded
whatever the number of images; and a class that got no vote never counts as a top-5 hit (there, ties among zeros are
broken by the sort).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from understudy.evaluate.protocol import Display, Protocol, Requirements

if TYPE_CHECKING:
    from understudy.evaluate.encoded_set import EncodedSet, Figures
    from understudy.evaluate.settings import EvaluationSettings

VOTE_TITLES = {r"top(\d)@(\d+)": r"\2-NN top-\1", r"top(\d)@(\d+),T=1": r"\2-NN top-\1, T = 1"}

KS = (1, 10, 20, 50)
TEMPERATURE = 0.07


class Knn(Protocol):
    """Vote of the k nearest training images."""

    name = "knn"
    summary = "weighted k-nearest-neighbor vote on frozen features"
    paper = ("wu2018instance",)
    requirements = Requirements(kinds=frozenset({"labeled"}))
    display = Display(
        title="k nearest neighbors",
        short="kNN",
        sentence="Each of the k training images nearest by cosine votes for its class with weight exp(cosine / 0.07); "
        "nothing is trained.",
        source="Wu et al., CVPR 2018 (arXiv 1805.01978)",
        compared=(r"top1@10",),
        quoted=(r"top1@\d+", r"top5@10"),
        headline=(r"top1@(10|20)",),
        figures=VOTE_TITLES,
        labels={r"top\d@(\d+).*": r"\1-NN"},
    )

    @staticmethod
    def evaluate(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
        """Score an encoded set by the vote of nearest training images.

        Returns:
            "top1@K" for K in 1, 10, 20, 50 and "top1@10,T=1", in per cent; "top5@..." likewise where there are more
            than 5 classes. A K larger than the number of training images is left out, and "note" says so.

        Raises:
            DataError: no labels, one class, or features that are not finite.
        """
        from understudy.neighbors.search import search
        from understudy.neighbors.vote import weighted_vote

        data = encoded_set.labeled()
        ks = [k for k in KS if k <= len(data.train)]
        neighbors = search(
            data.test, data.train, max(ks), memory_mb=settings.memory_mb, device=encoded_set.device,
            progress=encoded_set.progress,
        )  # fmt: skip
        figures: Figures = {}
        for temperature, voters, suffix in ((TEMPERATURE, ks, ""), (1.0, [k for k in ks if k == 10], ",T=1")):
            ranked = weighted_vote(
                neighbors, data.train_labels, data.classes, voters, temperature=temperature, top=5,
                memory_mb=settings.memory_mb,
            )  # fmt: skip
            for k in voters:
                hits = ranked[k] == data.test_labels[:, None]
                figures[f"top1@{k}{suffix}"] = 100.0 * float(hits[:, 0].mean())
                if data.classes > 5:
                    figures[f"top5@{k}{suffix}"] = 100.0 * float(hits.any(axis=1).mean())
        if left_out := [str(k) for k in KS if k not in ks]:
            figures["note"] = f"k = {', '.join(left_out)} left out: there are only {len(data.train)} training images."
        return figures
