"""How far the student's space is the teacher's: neighborhoods, cosines, CKA, trustworthiness and continuity.

Everything compares two sets of rows over the same images, without labels:

- "overlap@k": mean share, in per cent, of the k nearest images that both spaces have in common (the CoSS paper's
  k = 1, 5, 11, 21, 31); cosine neighbors over all test images, the image itself removed.
- "row_cosine", "column_cosine": mean cosine per image and per dimension between raw embeddings, the two terms of CoSS;
  only where the student's rows are meant to lie in the teacher's space.
- "cka": linear centered kernel alignment (Kornblith et al., ICML 2019, arXiv 1905.00414), the biased estimator: 1 for
  spaces equal up to rotation, shift and one scale. It needs many more images than dimensions to be small for unrelated
  spaces.
- "trustworthiness", "continuity" (Venna & Kaski, ICANN 2001): how few strangers enter a student neighborhood, and how
  few teacher neighbors leave it, weighted by how far they rank; at k = 10, both spaces under cosine distance, over at
  most 2,000 test images (the measure ranks all pairs, so it depends on the number of images).

And over the same at most 2,000 images, of `geometry` and `topology`:

- "cka_debiased": from the unbiased estimator, about 0 for unrelated spaces however few the images.
- "distance_correlation": Székely's, of Euclidean distances between rows of unit length.
- "intrinsic_dimension" (TwoNN, rows of unit length), "effective_rank", "dead_dimensions": of the student's space alone,
  and with "_teacher" of the teacher's.
- "topology_h0", "topology_h1": distance of the persistence diagrams of components and of loops, 0 for the same shape,
  over at most 200 images.

NAME_low and NAME_high hold 95 % of `fidelity.draws` resamples ("interval_level", "interval_draws"): the bootstrap over
images for means of one number an image, random halves for all others (`geometry.interval_by_halves` says why).
"""

from dataclasses import dataclass

from understudy.evaluate.protocol import Display, Protocol, Requirements
from understudy.settings import setting

FIDELITY_TITLES = {
    r"overlap@(\d+)": r"\1-NN shared", "row_cosine": "Row cosine", "column_cosine": "Column cosine", "cka": "CKA",
    "cka_debiased": "CKA, debiased", "trustworthiness": "Trustworthiness", "continuity": "Continuity",
    "distance_correlation": "Distance correlation", "intrinsic_dimension": "Intrinsic dimension (TwoNN)",
    "effective_rank": "Effective rank", "dead_dimensions": "Dead dimensions",
    "topology_h0": "Topology distance, components", "topology_h1": "Topology distance, loops",
}  # fmt: skip


@dataclass(frozen=True)
class FidelitySettings:
    """How sure `fidelity` makes of its figures."""

    draws: int = setting(100, "Resamples of the images behind each interval; 0: no intervals, much faster.", minimum=0)


class Fidelity(Protocol):
    """The student's neighborhoods and space compared with the teacher's."""

    name = "fidelity"
    summary = "how far the student's neighborhoods and space are the teacher's"
    paper = (
        "kornblith2019cka",
        "venna2001neighborhood",
        "szekely2007measuring",
        "facco2017estimating",
        "roy2007effective",
        "maria2014gudhi",
    )
    measure = "spaces.compare_spaces"
    Settings = FidelitySettings
    requirements = Requirements(labels=False, reference=True)
    display = Display(
        title="Fidelity",
        sentence="How far the student's neighborhoods and the shape of its space are the teacher's, on the same images "
        "and without labels. Intervals hold 95 % of resamples of the images.",
        source="Kornblith et al., ICML 2019 (arXiv 1905.00414), for CKA; Venna and Kaski, ICANN 2001, for "
        "trustworthiness; Facco et al., 2017 (arXiv 1803.06992), for TwoNN",
        compared=(r"overlap@11",),
        quoted=(
            "row_cosine", "column_cosine", "cka", "cka_debiased", "trustworthiness", "continuity",
            "distance_correlation", "intrinsic_dimension", "effective_rank", "dead_dimensions", r"topology_h[01]",
        ),
        headline=(r"overlap@11", r"cka", r"row_cosine", r"column_cosine"),
        figures=FIDELITY_TITLES,
        labels=FIDELITY_TITLES,
        plain=(r"(?!overlap@).+",),
        less=(r"topology_h[01]|dead_dimensions",),
        whole=(r"dead_dimensions(_teacher)?",),
    )  # fmt: skip
