"""Whether the data and the teacher of a user can be used: both are tried."""

import time
from typing import Any

import numpy as np

from understudy.doctor.check import Check
from understudy.errors import UnderstudyError

SAMPLE = 64
"""Images read to judge a data source; half of them go through the teacher."""


def data_source(spec: str) -> tuple[Check, list[Any], int | None]:
    """Open a data source and read images all over it.

    Returns:
        The finding, the images that could be read (at most 64), and how many images there are, None if unknown.
    """
    from understudy.sources.source import open_source

    try:
        start = time.perf_counter()
        source = open_source(spec)
        listed = time.perf_counter() - start
    except UnderstudyError as error:
        return Check("data", "fail", str(error)), [], None
    count = len(source)
    images, unreadable = [], []
    start = time.perf_counter()
    for index in np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(int)).tolist():
        try:
            images.append(source.read(index))
        except UnderstudyError as error:
            unreadable.append(str(error))
    tried = len(images) + len(unreadable)
    speed = tried / max(time.perf_counter() - start, 1e-9)
    labels = "with labels" if source.labels is not None else "without labels"
    found = f"{count:,} images {labels}, listed in {listed:.1f} s; {tried} read at {speed:,.0f} a second"
    if not images:
        return Check("data", "fail", f"{found}, none of them readable. {unreadable[0]}", "check the files"), [], count
    if unreadable:
        found += f", {len(unreadable)} of them unreadable, e.g.: {unreadable[0]}"
        known = "nothing to do if you know of it: they are skipped and listed"
        return Check("data", "warn", found, known), images, count
    return Check("data", "ok", found), images, count


def teacher_model(spec: str, images: list[Any]) -> tuple[Check, int | None]:
    """Build a teacher and look at its embeddings of PIL images, perhaps none.

    Returns:
        The finding, and the width D of the embeddings, None if unknown.
    """
    try:
        import torch

        from understudy.models.teacher import build_teacher, check_embeddings

        teacher = build_teacher(spec)
        found = f"{teacher.width} wide; {teacher.weights}"
        if images:
            pixels = torch.stack([teacher.contract.preprocess(image) for image in images[::2]])
            start = time.perf_counter()
            embeddings = teacher.features(pixels)
            speed = len(pixels) / max(time.perf_counter() - start, 1e-9)
            if warning := check_embeddings(embeddings, spec):
                return Check("teacher", "warn", warning, "look at its input contract"), teacher.width
            found += f"; sound embeddings of {len(pixels)} images, {speed:,.0f} a second on the CPU"
    except UnderstudyError as error:
        return Check("teacher", "fail", str(error)), None
    except Exception as error:  # a model is foreign code: whatever it raises is a finding
        return Check("teacher", "fail", f"{spec} cannot be used: {type(error).__name__}: {error}"), None
    return Check("teacher", "ok", found), teacher.width
