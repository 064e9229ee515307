"""Video object segmentation on DAVIS-2017: the first frame's masks are carried along by similarity of features.

The protocol of DINO (Caron et al., ICCV 2021, arXiv 2104.14294, section 4.2.2; after Jabri et al., NeurIPS 2020), and
nothing is trained: each position of a frame takes the mean of the masks at its 5 most similar positions, weights
exp(cosine / 0.1), out of the first frame and the 7 before it, within 12 rows and columns of its own place. Frames are
480 pixels on the shorter side, the longer one a multiple of 64; features are the last block's patch tokens, of a
network with levels the map whose stride is nearest to 16. Masks enter and are carried at the resolution of the map.

Differs from the released code in how ties at the fifth place are broken (there, all that tie take part), and in
memory: positions are compared in blocks.

Scores are the official ones of the 2017 challenge, for each object, over all frames but the first and the last:
J is the intersection over the union of the masks, F the agreement of their outlines (`boundary_measure`). Pixels
marked 255 count in neither.
"""

from understudy.evaluate.protocol import Display, Protocol, Requirements


class Davis(Protocol):
    """Masks of a video's first frame, propagated by similarity of features."""

    name = "davis"
    summary = "masks propagated through videos by similarity of feature maps: J and F"
    paper = ("jabri2020walk", "caron2021dino")
    measure = "propagation.video_figures"
    requirements = Requirements(main=False, kinds=frozenset({"videos"}), labels=False, head=False)
    display = Display(
        title="Video object segmentation",
        short="Video",
        sentence="Masks of a video's first frame carried on by similarity of frozen feature maps; nothing is trained.",
        source="Jabri et al., NeurIPS 2020 (arXiv 2006.14613); Caron et al., ICCV 2021 (arXiv 2104.14294)",
        compared=(r"j_and_f",),
        quoted=(r"j", r"f"),
        figures={
            "j_and_f": "J and F", "j": "J (region)", "f": "F (contour)", "j_recall": "J recall",
            "f_recall": "F recall",
        },
    )  # fmt: skip
