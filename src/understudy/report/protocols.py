"""The protocols as the page tells of them: what each does, whose it is, and how its figures are called and written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from understudy.report.numbers import count


@dataclass(frozen=True)
class Protocol:
    """One protocol in words.

    Args:
        title: its name on the page.
        short: the same for a chart.
        sentence: what it does.
        source: the paper.
        compared: patterns of the figures that stand for it in the overview, each compared with the teacher's; of
            several that one pattern finds, the first, except where it ends in a share of labels.
        quoted: patterns of the further figures that the results table shows; the protocol's own section shows all.
        settings: keys of the evaluation's settings that decide it.
        percent: whether its figures are in per cent unless `TITLES` says otherwise.
    """

    title: str
    short: str
    sentence: str
    source: str
    compared: tuple[str, ...]
    quoted: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    percent: bool = True


KORNBLITH = "Kornblith et al., CVPR 2019 (arXiv 1805.08974), section A.2"

PROTOCOLS: dict[str, Protocol] = {
    "knn": Protocol(
        "k nearest neighbors",
        "kNN",
        "Each of the k training images nearest by cosine votes for its class with weight exp(cosine / 0.07); nothing "
        "is trained.",
        "Wu et al., CVPR 2018 (arXiv 1805.01978)",
        (r"top1@10",),
        (r"top1@\d+", r"top5@10"),
    ),
    "linear": Protocol(
        "Linear probe",
        "Linear probe",
        "Logistic regression on frozen features to its optimum, l2 chosen on a fifth of the training images.",
        KORNBLITH,
        (r"top1",),
        (r"top5", r"mean_class"),
    ),
    "linear_sgd": Protocol(
        "Linear classifier by SGD",
        "Linear, SGD",
        "A linear layer trained by SGD on augmented images before the frozen network; the best epoch counts.",
        "He et al., CVPR 2020 (arXiv 1911.05722), section 4.1",
        (r"top1",),
        (r"top5", r"top1_last"),
        ("sgd_epochs", "sgd_lr"),
    ),
    "asymmetric_knn": Protocol(
        "Asymmetric k nearest neighbors",
        "kNN, asymmetric",
        "The same vote, where a bank of the teacher's training images is asked with the student's embeddings: the "
        "teacher's own vote is the bound.",
        "the vote of Wu et al., CVPR 2018 (arXiv 1805.01978), across two encoders",
        (r"top1@10",),
        (r"top1@\d+",),
    ),
    "semi": Protocol(
        "Semi-supervised",
        "Few labels",
        "Labels for a share of the training images only, or for a few of each class: a frozen probe and, if asked, the "
        "whole network fine-tuned. Means over several draws of the labeled images.",
        "Chen et al., SimCLR, ICML 2020 (arXiv 2002.05709), section 6",
        (r"top1 [^ ]+", r"finetuned_top1 [^ ]+"),
        (r"top5 [^ ]+", r"finetuned_top5 [^ ]+"),
        ("semi", "finetune"),
    ),
    "transfer": Protocol(
        "Transfer",
        "Transfer",
        "Logistic regression on frozen features of another set in its official split, scored by that set's convention; "
        "if asked, the whole network fine-tuned too.",
        f"{KORNBLITH}; Ericsson et al., CVPR 2021 (arXiv 2011.13377)",
        (r"top1|mean_class|map11", r"finetuned_(top1|mean_class|map11)"),
        (r"top5",),
        ("finetune",),
    ),
    "retrieval": Protocol(
        "Retrieval",
        "Retrieval",
        "The database ranked by cosine with each query: landmarks, or the other test images of the query's class. "
        "Asymmetric: the student's queries against the teacher's database.",
        "Radenovic et al., CVPR 2018 (arXiv 1803.11285), for landmarks; Oh Song et al., CVPR 2016 (arXiv 1511.06452), "
        "for Recall@k",
        (r"map_medium|map", r"map_hard", r"asymmetric_(map_medium|map)", r"asymmetric_map_hard"),
        (r"map_easy", r"recall@1", r"mp@10(_\w+)?", r"asymmetric_map_easy", r"asymmetric_recall@1"),
    ),
    "robustness": Protocol(
        "Robustness and shift",
        "Robustness",
        "What the main training images teach, asked about other photographs, drawings or corrupted images.",
        "Hendrycks and Dietterich, ICLR 2019 (arXiv 1903.12261), and the papers of the sets",
        (r"mean_error|top1",),
        (r"clean", r"mce", r"knn"),
        ("robustness",),
    ),
    "fidelity": Protocol(
        "Fidelity",
        "Fidelity",
        "How far the student's neighborhoods and the shape of its space are the teacher's, on the same images and "
        "without labels. Intervals hold 95 % of resamples of the images.",
        "Kornblith et al., ICML 2019 (arXiv 1905.00414), for CKA; Venna and Kaski, ICANN 2001, for trustworthiness; "
        "Facco et al., 2017 (arXiv 1803.06992), for TwoNN",
        (r"overlap@11",),
        (r"row_cosine", r"column_cosine", r"cka", r"cka_debiased", r"trustworthiness", r"continuity",
         r"distance_correlation",
         r"intrinsic_dimension", r"effective_rank", r"dead_dimensions", r"topology_h[01]"),
        percent=False,
    ),
    "cost": Protocol(
        "Cost",
        "Cost",
        "Size, work for one image, and speed and memory of the network alone on the machine named under What was done.",
        "multiply-accumulates as papers' tables count them",
        (),
        (r".+",),
        ("batch_size",),
        percent=False,
    ),
    "detection": Protocol(
        "Detection and instance segmentation",
        "Detection",
        "The whole network fine-tuned under Mask R-CNN or Faster R-CNN with a feature pyramid; average precision over "
        "IoU 0.50 to 0.95.",
        "He et al., CVPR 2020 (arXiv 1911.05722), section 4.2",
        (r"box_ap", r"mask_ap"),
        (r"(box|mask)_ap(50|75)",),
        ("detection",),
    ),
    "segmentation": Protocol(
        "Semantic segmentation",
        "Segmentation",
        "A linear layer on frozen feature maps; the mean over classes of intersection over union.",
        "Oquab et al., DINOv2 (arXiv 2304.07193), section 7.4",
        (r"miou",),
        (r"mean_accuracy", r"accuracy"),
        ("segmentation",),
    ),
    "davis": Protocol(
        "Video object segmentation",
        "Video",
        "Masks of a video's first frame carried on by similarity of frozen feature maps; nothing is trained.",
        "Jabri et al., NeurIPS 2020 (arXiv 2006.14613); Caron et al., ICCV 2021 (arXiv 2104.14294)",
        (r"j_and_f",),
        (r"j", r"f"),
    ),
}  # fmt: skip
"""Protocol name -> how the page tells of it, in the order of the page. A name unknown here is shown all the same."""

WORDS = {
    "top1": "Top-1", "top5": "Top-5", "mean_class": "Mean of the classes", "validation": "Validation images",
    "l2": "l2 weight chosen", "best_epoch": "Best epoch", "map": "mAP", "map11": "11-point mAP",
    "mean_error": "Mean error, corrupted", "mce": "Mean corruption error (AlexNet = 100)", "clean": "Not corrupted",
    "knn": "10-NN", "row_cosine": "Row cosine", "column_cosine": "Column cosine", "cka": "CKA",
    "cka_debiased": "CKA, debiased", "trustworthiness": "Trustworthiness", "continuity": "Continuity",
    "distance_correlation": "Distance correlation", "intrinsic_dimension": "Intrinsic dimension (TwoNN)",
    "effective_rank": "Effective rank", "dead_dimensions": "Dead dimensions",
    "topology_h0": "Topology distance, components", "topology_h1": "Topology distance, loops",
    "parameters": "Parameters", "flops": "Multiply-adds", "file_mb": "File, MB", "miou": "Mean IoU",
    "mean_accuracy": "Pixel accuracy, mean of the classes", "accuracy": "Pixel accuracy", "j_and_f": "J and F",
    "j": "J (region)", "f": "F (contour)", "j_recall": "J recall", "f_recall": "F recall",
}  # fmt: skip
"""Figures whose name does not say it by itself."""

PLAIN = frozenset({"l2", "best_epoch"})
"""Figures of protocols in per cent that are none themselves, beside counts."""

SHARES = re.compile(r"(finetuned_)?top[15](@\d+)?(,T=1)?(_last)?|clean|knn|(asymmetric_)?recall@\d+")
"""Figures that count images or queries, each right or wrong."""

WHOLE = frozenset({"best_epoch", "dead_dimensions", "dead_dimensions_teacher"})
"""Figures that are counts."""

COUNTED = re.compile(r"images|queries|classes|objects|sequences|iterations|(images|draws) .+")
"""Figures that say what others were counted on; the page tells them in a line, not in a table."""

ENDS = re.compile(r".+_(low|high)|.+ std|interval_(level|draws)")
"""Figures that say how sure another one is; they stand below it."""

LESS = re.compile(r"mean_error|mce|topology_h[01]|dead_dimensions")
"""Figures of which less is better, beside all of `cost` but its throughput."""


def split(key: str) -> tuple[str, str]:
    """A key of the evaluation as protocol and set; "" for the main evaluation images."""
    protocol, _, target = key.partition("@")
    return protocol, target


def ordered(keys: Iterable[str]) -> list[str]:
    """Keys of an evaluation in the order of the page: by protocol, the main images first."""
    places = {name: place for place, name in enumerate(PROTOCOLS)}
    return sorted(dict.fromkeys(keys), key=lambda key: (places.get(split(key)[0], len(places)), bool(split(key)[1])))


def protocol_title(name: str) -> str:
    """How the page calls a protocol."""
    return PROTOCOLS[name].title if name in PROTOCOLS else name.replace("_", " ")


def set_title(target: str) -> str:
    """How the page calls a set."""
    return target or "main images"


def short(key: str, metric: str, *, alone: bool) -> str:
    """A figure's label in a chart: protocol, figure where the protocol has several there, and set.

    Args:
        key: PROTOCOL or PROTOCOL@SET.
        metric: the figure.
        alone: whether it is the protocol's only one.
    """
    protocol, target = split(key)
    name = PROTOCOLS[protocol].short if protocol in PROTOCOLS else protocol_title(protocol)
    told = metric_title(metric)
    if protocol == "semi":
        told = told.partition(", ")[2] + (", fine-tuned" if metric.startswith("finetuned_") else "")
        told = told.replace(" of the labels", "")
    elif protocol == "fidelity":
        name, alone = told, True
    elif protocol == "knn" or protocol == "asymmetric_knn":
        name, alone = name.replace("kNN", metric_title(metric).split(" ")[0]), True
    return "\n".join([name if alone and protocol != "semi" else f"{name}, {told}", *([target] if target else [])])


def compared(key: str, metrics: Sequence[str]) -> list[str]:
    """The figures that stand for a protocol beside the teacher's."""
    protocol = PROTOCOLS.get(split(key)[0])
    found = []
    for pattern in () if protocol is None else protocol.compared:
        matching = [metric for metric in metrics if re.fullmatch(pattern, metric) and not ENDS.fullmatch(metric)]
        # A protocol gives a set's own figure first. Shares of labels all stand for themselves.
        found += matching if " " in pattern else matching[:1]
    return found


def quoted(key: str, metrics: Sequence[str]) -> list[str]:
    """The figures of the results table: those compared, then the further ones; all of a protocol unknown here."""
    protocol = PROTOCOLS.get(split(key)[0])
    if protocol is None:
        return [metric for metric in metrics if not ENDS.fullmatch(metric)]
    first = compared(key, metrics)
    further = [
        metric for pattern in protocol.quoted for metric in metrics
        if re.fullmatch(pattern, metric) and not ENDS.fullmatch(metric)
    ]  # fmt: skip
    return list(dict.fromkeys([*first, *further]))


PATTERNS: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"asymmetric_(.+)", lambda m: f"{metric_title(m[1])}, asymmetric"),
    (r"finetuned_(.+)", lambda m: f"{metric_title(m[1])}, fine-tuned"),
    (r"(top[15])@(\d+)(,T=1)?", lambda m: f"{m[2]}-NN {m[1].replace('top', 'top-')}{', T = 1' if m[3] else ''}"),
    (r"(top[15])_last", lambda m: f"{metric_title(m[1])}, last epoch"),
    (r"([a-z0-9_]+) ([\d.]+)%", lambda m: f"{metric_title(m[1])}, {m[2]}\u00a0% of the labels"),
    (r"([a-z0-9_]+) (\d+)", lambda m: f"{metric_title(m[1])}, {m[2]} labels a class"),
    (r"map_(\w+)", lambda m: f"mAP, {m[1]}"),
    (r"mp@(\d+)(?:_(\w+))?", lambda m: f"mP@{m[1]}" + (f", {m[2]}" if m[2] else "")),
    (r"recall@(\d+)", lambda m: f"Recall@{m[1]}"),
    (r"overlap@(\d+)", lambda m: f"{m[1]}-NN shared"),
    (r"severity_(\d)", lambda m: f"Severity {m[1]}"),
    (r"(box|mask)_ap(\d*)(?:_(\w+))?", lambda m: f"{m[1].title()} AP{m[2]}" + (f", {m[3]}" if m[3] else "")),
    (r"latency_ms (\w+)", lambda m: f"Latency of one image, {m[1].upper()}, ms"),
    (r"images_per_s@(\d+) (\w+)", lambda m: f"Images a second, {m[2].upper()}, batch of {m[1]}"),
    (r"peak_memory_mb@(\d+) (\w+)", lambda m: f"Peak memory, {m[2].upper()}, batch of {m[1]}, MB"),
)  # fmt: skip
"""Patterns of names, and what they say."""


def metric_title(metric: str) -> str:
    """A figure's name in words, without its unit."""
    if metric in WORDS:
        return WORDS[metric]
    for pattern, told in PATTERNS:
        match = re.fullmatch(pattern, metric)
        if match:
            return told(match)
    words = metric.replace("_", " ")
    return words[:1].upper() + words[1:]


def in_percent(key: str, metric: str) -> bool:
    """Whether a figure is a percentage."""
    name = split(key)[0]
    if metric.startswith("overlap@"):
        return True
    return name in PROTOCOLS and PROTOCOLS[name].percent and metric not in PLAIN and not COUNTED.fullmatch(metric)


def is_accuracy(metric: str) -> bool:
    """Whether a figure is a share of test images whose class was guessed, so that guessing has a known share."""
    return bool(re.fullmatch(r"(finetuned_)?(top1|mean_class)(_last)?|top1@\d+(,T=1)?|(finetuned_)?top1 .+|clean|knn",
                             metric)) and not ENDS.fullmatch(metric)  # fmt: skip


def is_share(metric: str) -> bool:
    """Whether a figure counts images or queries, each right or wrong, and so has a binomial interval."""
    return bool(SHARES.fullmatch(metric.partition(" ")[0])) and not ENDS.fullmatch(metric)


def less_is_better(key: str, metric: str) -> bool:
    """Whether the smaller of two figures is the better one."""
    if split(key)[0] == "cost":
        return not metric.startswith("images_per_s")
    return bool(LESS.fullmatch(metric))


def written(key: str, metric: str, value: float) -> str:
    """A figure as the page writes it in a cell, without its unit."""
    if in_percent(key, metric):
        return f"{value:.1f}"
    if metric in ("parameters", "flops"):
        return count(value)
    if value == round(value) and (metric in WHOLE or COUNTED.fullmatch(metric)):
        return f"{value:,.0f}"
    return f"{value:.3f}" if 1e-3 <= abs(value) < 10 else f"{value:,.1f}" if 10 <= abs(value) < 1e6 else f"{value:.3g}"
