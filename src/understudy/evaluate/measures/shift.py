"""The main probe and vote on shifted and corrupted images."""

import dataclasses

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from understudy.embed.embedding import Inference, extract
from understudy.errors import ConfigError, DataError
from understudy.evaluate.dataset import EvaluationSet
from understudy.evaluate.encoded_set import EncodedSet, Figures, check_finite
from understudy.evaluate.measures.corruptions import CORRUPTIONS, CorruptedImages, frost_photographs
from understudy.evaluate.measures.probe import Probe, main_probe
from understudy.evaluate.protocols.knn import TEMPERATURE
from understudy.evaluate.protocols.robustness import RobustnessSettings
from understudy.evaluate.settings import EvaluationSettings
from understudy.neighbors.search import search
from understudy.neighbors.vote import weighted_vote
from understudy.sources.images import JoinedImages
from understudy.sources.source import Source

ALEXNET_ERROR = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}  # fmt: skip
"""AlexNet's mean top-1 error over the five severities, from the authors' released code."""

K = 10


def robustness_figures(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Score what the main images teach on shifted ones (`test`), or, without a set, on corrupted main test images.

    Returns:
        Accuracies in per cent. Shifted: "top1", "knn". Corrupted: one figure per corruption, the mean over its
        severities; "mean_error"; "severity_1" ... over all corruptions; "mce" for ImageNet-C; generated ones also
        "clean", on the same images. "images" counts them, and "classes" where only some are in the set; "note"
        names what is missing.

    Raises:
        DataError: no labels, one class, features that are not finite, or no pixels.
        ConfigError: a severity that there is not, or none.
    """
    return (_of_corrupted if encoded_set.dataset is None else _of_shifted)(encoded_set, settings)


def _of_shifted(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Figures of an `--on` set of test images alone."""
    assert encoded_set.dataset is not None
    assert encoded_set.test_source is not None
    data = encoded_set.labeled()
    probe = main_probe(encoded_set.base or encoded_set, settings)
    metadata = encoded_set.dataset.metadata
    part = metadata.get("part")
    present = np.zeros(data.classes, dtype=bool)
    present[np.unique(data.test_labels)] = True
    hits = _hits(probe, data.test, data.test_labels, present)
    classes = _classes(encoded_set.dataset, present, probe)
    if part is None:
        figures: Figures = {"top1": 100.0 * float(hits.mean()), "knn": _vote(encoded_set, settings, present)}
        return figures | classes | {"images": len(hits)}
    number = np.asarray(part)[encoded_set.test_source.ids]
    accuracy: dict[tuple[str, int], float] = {}
    for place, title in enumerate(metadata["parts"]):
        here = number == place
        if here.any():
            corruption, _, severity = title.rpartition("/")
            accuracy[corruption, int(severity)] = 100.0 * float(hits[here].mean())
    figures = summary(accuracy, normalize=bool(metadata.get("normalize")))
    if "note" in classes and "note" in figures:
        classes["note"] = f"{figures['note']} {classes['note']}"
    return figures | classes | {"images": len(hits)}


def _classes(dataset: EvaluationSet, present: Bool[np.ndarray, " C"], probe: Probe) -> Figures:
    """How many classes were judged, where it is not all that the main images teach or all of the set's."""
    count, own = int(present.sum()), dataset.test
    figures: Figures = {"classes": count} if count < len(probe.classes) else {}
    if own is not None and own.labels is not None and (all_classes := len(np.unique(own.labels))) > count:
        figures["note"] = f"Judged on {count} of its {all_classes} classes: the main evaluation images lack the others."
    return figures


def summary(accuracy: dict[tuple[str, int], float], *, normalize: bool) -> Figures:
    """Figures of accuracies, `{(corruption, severity): per cent}`; all severities of a corruption weigh the same.

    With `normalize` "mce" too, over the corruptions that AlexNet's errors are known of, which are means over five
    severities: over corruptions of which all five are there.
    """
    mean = {
        corruption: float(np.mean([value for (name, _), value in accuracy.items() if name == corruption]))
        for corruption in dict.fromkeys(name for name, _ in accuracy)
    }
    # The extra corruptions of the released sets (speckle noise, spatter, ...) are for validation, not for the mean.
    counted = [mean[name] for name in mean if name in CORRUPTIONS]
    figures: Figures = {**mean}
    missing = [name for name in CORRUPTIONS if name not in mean]
    notes = [f"Means are over {len(counted)} of 15 corruptions; missing: {', '.join(missing)}."] if missing else []
    if counted:
        figures["mean_error"] = 100.0 - float(np.mean(counted))
        for severity in sorted({severity for _, severity in accuracy}):
            own = [value for (name, which), value in accuracy.items() if which == severity and name in CORRUPTIONS]
            figures[f"severity_{severity}"] = float(np.mean(own))
        if normalize:
            whole = [name for name in mean if name in ALEXNET_ERROR and all((name, s) in accuracy for s in range(1, 6))]
            errors = [(100.0 - mean[name]) / ALEXNET_ERROR[name] for name in whole]
            if errors:
                figures["mce"] = float(np.mean(errors))
            if len(whole) < len(counted):
                notes.append(f"The mCE is over {len(whole)} corruptions: of the others some severities are missing.")
    if notes:
        figures["note"] = " ".join(notes)
    return figures


def _of_corrupted(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Figures of corruptions made of the main test images."""
    probe, own = main_probe(encoded_set, settings), settings.group(RobustnessSettings)
    if encoded_set.encoder is None or encoded_set.test_source is None:
        raise DataError(f"Corruptions are made of pixels, and of {encoded_set.name} there are only features.")
    contract = encoded_set.encoder.contract
    if wrong := [severity for severity in own.severities if not 1 <= severity <= 5]:
        raise ConfigError(f"Severities are 1 to 5; got {wrong[0]} in --robustness.severities.")
    if not own.severities:
        raise ConfigError("Severities are 1 to 5; --robustness.severities names none.")
    labels = encoded_set.labeled().test_labels
    chosen = np.sort(np.random.default_rng(settings.seed).permutation(len(labels))[: own.images])
    source, truth = encoded_set.test_source.subset(chosen), labels[chosen]
    photographs = frost_photographs(own.frost, contract.size) if own.frost is not None else None
    names = [name for name in CORRUPTIONS if name != "frost" or photographs]
    whole = dataclasses.replace(contract, crop=1.0)  # the corrupted image is what the encoder sees, cropped already
    kinds = [(name, severity) for name in names for severity in own.severities]
    # One pass over all of them: reader processes start once, and of an image no more than its class is kept.
    every = JoinedImages([CorruptedImages(source, contract.geometry, *kind, photographs) for kind in kinds])
    encode = encoded_set.encoder.features

    def guesses(images: Tensor) -> Tensor:
        rows = encode(images).float().cpu().numpy()
        check_finite(rows, f"{encoded_set.name} features of corrupted images")
        return torch.from_numpy(probe.classes[probe.classifier.scores(rows).argmax(axis=1)])[:, None]

    inference = Inference(encoded_set.device, settings.batch_size, encoded_set.workers, encoded_set.progress)
    predicted, index, _ = extract(guesses, whole, Source(f"{source.spec} corrupted", every), inference)
    hits, kind = predicted[:, 0] == truth[index % len(source)], index // len(source)
    accuracy = {one: 100.0 * float(hits[kind == place].mean()) for place, one in enumerate(kinds)}
    clean = _hits(probe, encoded_set.test[chosen], truth)
    figures: Figures = {"clean": 100.0 * float(clean.mean()), **summary(accuracy, normalize=False)}
    if photographs is None:
        figures["note"] = (
            "Means are over 14 of 15 corruptions: frost needs its photographs (--robustness.frost FOLDER)."
        )
    return {**figures, "images": len(chosen)}


def _hits(
    probe: Probe, features: np.ndarray, labels: Int[np.ndarray, " M"], present: Bool[np.ndarray, " C"] | None = None
) -> Bool[np.ndarray, " M"]:
    """Whether each image's best class, among those present, is its own."""
    barred = None if present is None else ~present[probe.classes]
    if barred is not None and barred.all():
        return np.zeros(len(labels), dtype=bool)
    hits = np.empty(len(labels), dtype=bool)
    for start in range(0, len(labels), 4096):
        scores = probe.classifier.scores(features[start : start + 4096])
        if barred is not None:
            scores[:, barred] = -np.inf
        hits[start : start + 4096] = probe.classes[scores.argmax(axis=1)] == labels[start : start + 4096]
    return hits


def _vote(encoded_set: EncodedSet, settings: EvaluationSettings, present: Bool[np.ndarray, " C"]) -> float:
    """10-NN accuracy in per cent, the training images of absent classes left out."""
    data = encoded_set.labeled()
    rows, labels = data.train, data.train_labels
    inside = present[labels]
    if not inside.all():
        rows, labels = rows[inside], labels[inside]
    if not len(rows):
        return 0.0
    k = min(K, len(rows))
    memory_mb = settings.memory_mb
    near = search(data.test, rows, k, memory_mb=memory_mb, device=encoded_set.device)
    ranking = weighted_vote(near, labels, data.classes, [k], temperature=TEMPERATURE, top=1, memory_mb=memory_mb)
    return 100.0 * float((ranking[k][:, 0] == data.test_labels).mean())
