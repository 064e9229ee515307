"""Images by the nearest text."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from understudy.errors import DataError, ModelError, ShapeError
from understudy.evaluate.encoded_set import EncodedSet, Figures, check_finite
from understudy.evaluate.protocols.zeroshot import ZeroshotSettings
from understudy.evaluate.settings import EvaluationSettings
from understudy.models.text import embed_texts


def nearest_text(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Give each test image the class of the nearest text.

    Returns:
        "top1", "top5" (of five classes or more) and "mean_class" in per cent, "images" with a label, and "classes".
        Only a "note" where the rows are not meant to lie in the teacher's space.

    Raises:
        DataError: no labels, no class names, or a text file without some class.
        ModelError: the teacher has no text tower, and no file is given.
        ShapeError: texts and images have different widths.
    """
    own = settings.group(ZeroshotSettings)
    teacher = encoded_set.reference or encoded_set
    if encoded_set.reference is not None and not encoded_set.aligned:
        return {"note": "this method's embeddings are not meant to lie in the teacher's space"}
    if encoded_set.test_labels is None or not encoded_set.class_names:
        raise DataError("Zero-shot asks for the names of classes, and these images have none.")
    check_finite(encoded_set.test, f"{encoded_set.name} features of the test images")
    if "texts" not in teacher.cache:
        teacher.cache["texts"] = _texts(own, encoded_set.class_names, getattr(teacher.encoder, "spec", None))
    texts: np.ndarray = teacher.cache["texts"]
    if texts.shape[1] != encoded_set.test.shape[1]:
        raise ShapeError(
            f"The texts have width {texts.shape[1]}, the {encoded_set.name}'s images {encoded_set.test.shape[1]}: they "
            "are not of one space."
        )
    labels = np.asarray(encoded_set.test_labels)
    rows, labels = np.asarray(encoded_set.test, np.float32)[labels >= 0], labels[labels >= 0]
    scores = rows @ texts.T  # the length of an image's row changes no order among texts
    ranks = (scores > scores[np.arange(len(labels)), labels][:, None]).sum(axis=1)
    hit = ranks == 0
    figures: Figures = {
        "top1": 100.0 * float(hit.mean()),
        "mean_class": 100.0 * float(np.mean([hit[labels == one].mean() for one in np.unique(labels)])),
        "images": float(len(labels)), "classes": float(len(texts)),
    }  # fmt: skip
    return figures | ({"top5": 100.0 * float((ranks < 5).mean())} if len(texts) > 5 else {})


def _texts(own: ZeroshotSettings, names: tuple[str, ...], spec: Any) -> Float32[np.ndarray, "C D"]:
    """A row of length one for each class."""
    if own.text is not None:
        return _mean(_from_file(Path(own.text), names))
    if not isinstance(spec, str):
        raise ModelError(
            "The teacher has no text tower here. Give --zeroshot.text FILE.npz, in a run --evaluation.zeroshot.text."
        )
    if without := [template for template in own.templates if "{}" not in template]:
        raise DataError(f"The template '{without[0]}' has no {{}} for the name of the class.")
    written = [template.replace("{}", name.replace("_", " ")) for name in names for template in own.templates]
    rows = embed_texts(spec, written)
    return _mean(rows.reshape(len(names), len(own.templates), -1))


def _from_file(path: Path, names: tuple[str, ...]) -> np.ndarray:
    """(C, T, D) of the classes in their order."""
    try:
        with np.load(path.expanduser(), allow_pickle=False) as file:
            known, rows = [str(name) for name in file["names"]], np.asarray(file["embeddings"], np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is not a file of texts ({error}): it holds names (C,) and embeddings (C, D)."
        ) from None
    if rows.ndim not in (2, 3) or len(rows) != len(known) or not np.isfinite(rows).all():
        raise DataError(f"{path} has {len(known)} names and embeddings {rows.shape}; (C, D) finite rows are needed.")
    place = {name: number for number, name in enumerate(known)}
    if missing := [name for name in names if name not in place]:
        raise DataError(f"{path} has no text of the class '{missing[0]}'. It has: {', '.join(known[:8])}.")
    return rows.reshape(len(rows), -1, rows.shape[-1])[[place[name] for name in names]]


def _mean(rows: np.ndarray) -> Float32[np.ndarray, "C D"]:
    """(C, T, D) to the direction of the mean of the T directions, as CLIP's authors average prompts."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    mean = unit.mean(axis=1)
    return np.asarray(mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12), np.float32)
