"""Images of any kind to rows of embeddings: what a student does at work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from understudy.errors import DataError, ShapeError
from understudy.sources.decode import EXTENSIONS, read_image_file, to_rgb
from understudy.sources.source import Source, open_source

if TYPE_CHECKING:
    from understudy.models.student import Student

Progress = Callable[[int, int], None]
READERS = 4  # threads that decode, which PIL does outside Python's lock


def encode(
    student: Student, images: Any, *, batch_size: int = 64, progress: Progress | None = None, normalize: bool = False
) -> Float32[np.ndarray, "*N D"]:
    """See `Student.encode`."""
    if batch_size < 1:
        raise ShapeError(f"A batch has at least one image; got batch_size = {batch_size}.")
    single = is_single(images)
    count, read = _reader([images] if single else images)
    rows = np.empty((count, student.embed_dim), np.float32)
    done = 0
    for batch in _batches(student, count, read, batch_size):
        with torch.inference_mode():
            embeddings = student.embed(batch.to(next(student.parameters()).device)).float().cpu()
        rows[done : done + len(batch)] = torch.nn.functional.normalize(embeddings) if normalize else embeddings
        done += len(batch)
        if progress is not None:
            progress(done, count)
    return rows[0] if single else rows


def is_single(images: Any) -> bool:
    """Whether this is one image: a PIL image, an array (H, W) or (H, W, 3), or the path of a picture."""
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim in (2, 3)):
        return not (isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[2] not in (3, 4))
    return isinstance(images, str | os.PathLike) and Path(images).suffix.lower() in EXTENSIONS


def _reader(images: Any) -> tuple[int, Callable[[int], Image.Image]]:
    """How many there are, and what reads the one of a number."""
    if isinstance(images, str | os.PathLike):
        images = open_source(images)
    if isinstance(images, np.ndarray):
        images = list(images)
    if isinstance(images, Source):
        return len(images), images.read
    if not isinstance(images, Sequence):
        raise DataError(
            f"encode takes a list of paths, PIL images or arrays, one of them, or a data spec; got "
            f"{type(images).__name__}."
        )
    return len(images), lambda number: opened(images[number])


def opened(image: Any) -> Image.Image:
    """A path, a PIL image or a uint8 array (H, W), (H, W, 3) or (H, W, 4) as RGB.

    Raises:
        UnreadableImage: it cannot be read or decoded.
        ShapeError: an array of another kind.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
            raise ShapeError(
                f"An array of an image is uint8 (H, W), (H, W, 3) or (H, W, 4); got {image.dtype} {image.shape}."
            )
        return to_rgb(Image.fromarray(image))
    if not isinstance(image, str | os.PathLike):
        raise DataError(f"encode takes paths, PIL images and arrays; got {type(image).__name__}.")
    path = str(Path(image).expanduser())
    return to_rgb(read_image_file(path), path)


def _batches(student: Student, count: int, read: Callable[[int], Image.Image], batch_size: int) -> Iterator[Tensor]:
    """Prepared batches; the next one is read while one is computed, and no more are held."""

    def prepared(number: int) -> Tensor:
        return student.preprocess(read(number))

    with ThreadPoolExecutor(READERS) as threads:
        numbers = range(count)
        waiting = threads.map(prepared, numbers[:batch_size])
        for low in range(0, count, batch_size):
            batch = torch.stack(list(waiting))
            following = numbers[low + batch_size : low + 2 * batch_size]
            waiting = threads.map(prepared, following)
            yield batch
