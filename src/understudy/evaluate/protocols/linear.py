"""Linear probe on cached features, exactly: multinomial logistic regression by L-BFGS.

The protocol of transfer studies since Kornblith et al., "Do Better ImageNet Models Transfer Better?" (CVPR 2019,
arXiv 1805.08974), used by SimCLR, BYOL and Ericsson et al. (arXiv 2011.13377), whose harness the CoSS authors run:
no augmentation, no standardization of features; the l2 weight is the best of 45 values log-spaced in 1e-6..1e5 on a
validation split; the classifier is then refitted on training + validation images and scored once on the test images.

The objective is theirs (scikit-learn's with C = 1/l2):  sum_i CE(W x_i + b, y_i) + l2/2 |W|^2, the bias unpenalized.

How it differs from the released harness, in ways that do not move the optimum or make it better defined:

- Features are centered and rotated to their principal axes, and each axis is scaled by the curvature there. The bias
  and the rotation absorb this exactly: the optimum is the same, and L-BFGS reaches it in far fewer steps.
- The path runs from the strongest to the weakest l2, each fit starting at the last one's solution; ties on the
  validation images go to the stronger l2 (theirs: the weaker).
- The validation split is a fifth of every class (theirs: a fifth of all images, so that a small class may vanish).
- The last fit runs to convergence, in double precision (theirs stops after 100 iterations).
"""

from understudy.evaluate.protocol import Display, Protocol


class Linear(Protocol):
    """Multinomial logistic regression on frozen features."""

    name = "linear"
    summary = "multinomial logistic regression on frozen features, l2 chosen on a validation split"
    paper = ("kornblith2019transfer",)
    measure = "probe.linear_figures"
    display = Display(
        title="Linear probe",
        sentence="Logistic regression on frozen features to its optimum, l2 chosen on a fifth of the training images.",
        source="Kornblith et al., CVPR 2019 (arXiv 1805.08974), section A.2", compared=(r"top1",),
        quoted=(r"top5", r"mean_class"), headline=(r"top1",), plain=(r"l2",),
    )  # fmt: skip
