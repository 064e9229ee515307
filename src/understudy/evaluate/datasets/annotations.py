"""Annotations in COCO's own terms, held to what they say: a box that is no box ends in a sentence and not in a crash.

The outlines go to a library in C, which believes what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def checked_id(value: Any) -> int | str:
    """The number or name of an image, an object or a category.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    raise ValueError(f"the id {_shown(value)} is neither a whole number nor a text")


def checked_side(value: Any) -> int:
    """Width or height of an image, in pixels.

    Raises:
        ValueError: it is no whole number above 0.
    """
    if isinstance(value, int | float) and math.isfinite(value) and value == int(value) and value > 0:
        return int(value)
    raise ValueError(f"the width or height {_shown(value)} is no whole number of pixels")


def checked_object(one: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    """An object of a COCO file, with its area and whether it is a crowd.

    Args:
        one: as the file has it.
        image: {"width", "height"} of its image.

    Raises:
        ValueError: a field is not what it must be; with the reason.
        KeyError: one is missing.
    """
    box, crowd, outline = one["bbox"], one.get("iscrowd", 0), one.get("segmentation")
    if not isinstance(box, list) or len(box) != 4 or not _finite(box) or min(box[2:]) < 0:
        raise ValueError(f"the box {_shown(box)} has not four numbers, left, top, width and height")
    if not isinstance(crowd, int) or crowd not in (0, 1):
        raise ValueError(f"iscrowd is {_shown(crowd)}, and it is 0 or 1")
    area = one.get("area", box[2] * box[3])
    if not _finite([area]) or area < 0:
        raise ValueError(f"the area is {_shown(area)}")
    fields = {key: checked_id(one[key]) for key in ("id", "image_id", "category_id")}
    if outline:
        check_outline(outline, image["width"], image["height"])
    kept = {"segmentation": outline} if "segmentation" in one else {}
    return {**fields, "bbox": box, **kept, "area": area, "iscrowd": int(crowd)}


def check_outline(outline: Any, width: int, height: int) -> None:
    """Let only polygons pass, or run lengths, that belong to an image of this size.

    Raises:
        ValueError: it is something else; with the reason.
    """
    if isinstance(outline, list):
        far = 2 * max(
            width, height
        )  # polygons may leave the image a little; what is drawn takes memory by their length
        for polygon in outline:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not _finite(polygon):
                raise ValueError(f"the polygon {_shown(polygon)} has not three points or more of two numbers each")
            if min(polygon) < -far or max(polygon) > far:
                raise ValueError(f"the polygon {_shown(polygon)} lies outside of its image, {width} x {height}")
        return
    counts = outline.get("counts") if isinstance(outline, dict) else None
    if isinstance(counts, str):
        counts = run_lengths(counts)
    if not isinstance(counts, list) or outline.get("size") != [height, width]:
        raise ValueError(f"its outline is neither polygons nor run lengths of an image of {width} x {height}")
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != width * height:
        raise ValueError(f"its run lengths do not add up to {width} x {height} pixels")


def run_lengths(text: str) -> list[int]:
    """The run lengths in the compressed text of COCO: digits of 5 bits, each count less the one two before it.

    Raises:
        ValueError: it is no such text.

    Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; `rleFrString` of the authors' code.
    """
    counts: list[int] = []
    value = digits = 0
    for letter in text:
        digit = ord(letter) - 48
        if not 0 <= digit < 64 or digits > 8:
            raise ValueError("its run lengths are no compressed text of COCO")
        value |= (digit & 0x1F) << 5 * digits
        digits += 1
        if not digit & 0x20:
            value -= (1 << 5 * digits) if digit & 0x10 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = digits = 0
    if digits:
        raise ValueError("its run lengths end in the middle of a number")
    return counts


def _finite(values: Sequence[Any]) -> bool:
    try:
        return math.isfinite(sum(values)) and not any(map(_BOOLS.__contains__, map(type, values)))
    except (TypeError, OverflowError):
        return False


_BOOLS = (bool,)


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, list | dict) else repr(value[:8] if isinstance(value, list) else value)
    return text if len(text) <= 80 else f"{text[:80]}..."
