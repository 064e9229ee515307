"""Masks and average precision by pycocotools."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from understudy.errors import MissingDependency

MEASURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The first six of COCO's twelve; small is below 32 x 32 pixels of area, large above 96 x 96, of the original image."""


def outline_mask(outline: Any, height: int, width: int) -> np.ndarray:
    """(height, width) uint8 of 0 and 1 from polygons or run lengths, as COCO writes them."""
    tools = mask_tools()
    runs = tools.frPyObjects(outline, height, width) if isinstance(outline, list) else outline
    if isinstance(runs, list):
        runs = tools.merge(runs)
    elif isinstance(runs["counts"], list):
        runs = tools.frPyObjects(runs, height, width)
    with warnings.catch_warnings():
        # pycocotools 2.0.11 hands its array over without numpy 2's `copy` keyword.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        drawn: np.ndarray = tools.decode(runs)
    return drawn


def mask_tools() -> Any:
    """The module `pycocotools.mask`.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise MissingDependency("Detection is scored by pycocotools: pip install 'understudy[detection]'.") from None
    return mask


def average_precision(
    truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], kind: str = "box"
) -> dict[str, float]:
    """COCO's average precision of detections: those of `MEASURES` that the truth has objects for, in per cent.

    Args:
        truth: a COCO table: "images", "annotations", "categories".
        detections: tables {"image_id", "category_id", "score", "bbox"} and, for masks, "segmentation" as run lengths.
        kind: "box" or "mask".

    Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; pycocotools.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    tools = mask_tools()
    results = []
    for number, one in enumerate(detections, 1):
        area = float(tools.area(one["segmentation"])) if kind == "mask" else one["bbox"][2] * one["bbox"][3]
        results.append({**one, "id": number, "area": area, "iscrowd": 0})
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        indexed = []
        for annotations in (truth["annotations"], results):
            one_side = COCO()
            one_side.dataset = {**truth, "annotations": annotations}
            one_side.createIndex()
            indexed.append(one_side)
        scorer = COCOeval(*indexed, {"box": "bbox", "mask": "segm"}[kind])
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    # -1 stands for "no such objects".
    return {name: 100.0 * float(value) for name, value in zip(MEASURES, scorer.stats, strict=False) if value >= 0}
