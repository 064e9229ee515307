"""One batch of views from its numbers: which images, which rows, and the pixels that are cut by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from understudy.errors import ConfigError, UnreadableImage
from understudy.sources.formats.npy import ArrayImages
from understudy.sources.pixels import SMALL
from understudy.sources.source import Source
from understudy.views.augmentation import SIGMA, Recipe, draw, geometry, geometry_of_batch
from understudy.views.batches import Batch

Skipped = list[tuple[str, str]]
"""Images that could not be read: name, and the sentence that says why."""


@dataclass(frozen=True)
class TeacherInput:
    """The views for a teacher whose input is not as large as the student's."""

    size: int  # T, side of its views in pixels
    views: tuple[int, ...]  # which of the V views of an image it sees
    # Called with the images' indices and a view's number for each, both (B,): which of them need no pixels. None: all
    # are cut.
    recorded: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class Views:
    """What is cut from each image of a batch.

    Raises:
        ConfigError: the pool has fewer views than a batch.
    """

    size: int  # S, side of a view in pixels
    recipe: Recipe  # how views are augmented
    seed: int  # of the views
    per_image: int = 1  # V, views of each image in a batch
    pool: int = 0  # how many different views an image has, used in turn; 0 for no end
    interpolation: str = "bilinear"  # of the resizing; "nearest", "bilinear", "bicubic" or "lanczos"
    # The same crops once more, at the teacher's size, where that is not S. The recipe is for the larger of the two
    # sizes; on the other the blur is narrower by their ratio.
    teacher: TeacherInput | None = None

    def __post_init__(self) -> None:
        if 0 < self.pool < self.per_image:
            raise ConfigError(
                f"This method sees {self.per_image} views of an image in a batch, and the pool has {self.pool}. Set "
                f"--views.pool to at least {self.per_image}."
            )

    @property
    def nbytes(self) -> int:
        """Of the pixels of one image, at most."""
        teacher = 0 if self.teacher is None else len(self.teacher.views) * self.teacher.size**2
        return 3 * (self.per_image * self.size**2 + teacher)


@dataclass(frozen=True)
class TeacherViews:
    """The views of one step for the teacher, at its own size, before photometry, with their view rows."""

    place: Int64[Tensor, " n"]  # which of the teacher's views these are, counted view by view: i is image i % B
    pixels: UInt8[Tensor, "n 3 T T"]
    rows: Float64[Tensor, "n 31"]


@dataclass(frozen=True)
class ImageBatch:
    """Views of the images of one step, on this process."""

    step: int  # counted from 0
    index: Int64[Tensor, " B"]  # (B,) int64 on the CPU, which images of the source
    anchor: Int64[Tensor, " B"]  # (B,) int64, the bag of each in the global batch
    view: Int64[Tensor, "V B"]  # (V, B) int64, the number of each view
    pixels: UInt8[Tensor, "V B 3 S S"]  # (V, B, 3, S, S) uint8, V views of each image, before photometry
    rows: Float64[Tensor, "V B 31"]
    """(V, B, P) float64, their view rows; `augmentation.photometry` wants them on the CPU."""
    skipped: Skipped  # images that could not be read; they are in none of the above
    teacher: TeacherViews | None = None  # views at the teacher's size, where it has one of its own

    def pin_memory(self) -> ImageBatch:
        """The same with the pixels in page-locked memory, so that copying them to a GPU does not wait."""
        teacher = self.teacher and replace(self.teacher, pixels=self.teacher.pixels.pin_memory())
        return replace(self, pixels=self.pixels.pin_memory(), teacher=teacher)


@dataclass(frozen=True)
class _Cut:
    """Views of the images of a batch at one size: (V, B, P) rows, and (V, B) which of them need pixels."""

    size: int
    rows: np.ndarray
    needed: np.ndarray

    @property
    def needed_rows(self) -> np.ndarray:
        """(n, P), view by view."""
        return np.asarray(self.rows[self.needed])

    @property
    def images(self) -> np.ndarray:
        """(n,) position in the batch of the image of each."""
        return self.needed.nonzero()[1]


@dataclass
class ViewReader(Dataset[ImageBatch]):
    """Turns the global batch of a step into this process' share of views."""

    source: Source
    share: slice
    views: Views

    @property
    def nbytes(self) -> int:
        """Of the pixels of a batch, at most."""
        return int(self.share.stop - self.share.start) * self.views.nbytes

    def __getitem__(self, batch: Batch) -> ImageBatch:
        index, anchor = batch.index[self.share], batch.anchor[self.share]
        view = self.views.per_image * batch.view[self.share] + np.arange(self.views.per_image)[:, None]
        if self.views.pool:
            view %= self.views.pool
        cuts = self._cuts(index, view)
        pixels, readable, skipped = self._read(index, cuts)
        if skipped:
            index, anchor, view = index[readable], anchor[readable], view[:, readable]
            cuts = [replace(cut, rows=cut.rows[:, readable], needed=cut.needed[:, readable]) for cut in cuts]
        teacher = None
        if self.views.teacher is not None:
            at_its_size = (np.flatnonzero(cuts[1].needed), pixels[1], cuts[1].needed_rows)
            teacher = TeacherViews(*map(torch.from_numpy, at_its_size))
        return ImageBatch(
            batch.step, torch.from_numpy(index), torch.from_numpy(anchor), torch.from_numpy(view),
            pixels=torch.from_numpy(pixels[0].reshape(*view.shape, *pixels[0].shape[1:])),
            rows=torch.from_numpy(cuts[0].rows), skipped=skipped, teacher=teacher,
        )  # fmt: skip

    def _cuts(self, index: np.ndarray, view: np.ndarray) -> list[_Cut]:
        """The student's views and, where its size is another, the teacher's."""
        views, teacher = self.views, self.views.teacher
        ids = self.source.ids[index]
        rows = np.stack([draw(views.seed, ids, numbers, views.recipe) for numbers in view])
        largest = max(views.size, teacher.size if teacher is not None else 0)
        everything = np.ones(view.shape, bool)
        cuts = [_Cut(views.size, _at_ratio(rows, views.size / largest), everything)]
        if teacher is not None:
            of_teacher, recorded = list(teacher.views), teacher.recorded
            needed = everything[of_teacher]
            if recorded is not None:
                needed = np.stack([~recorded(index, view[i]) for i in of_teacher])
            cuts.append(_Cut(teacher.size, _at_ratio(rows[of_teacher], teacher.size / largest), needed))
        return cuts

    def _read(self, index: np.ndarray, cuts: list[_Cut]) -> tuple[list[np.ndarray], np.ndarray, Skipped]:
        """For each cut its pixels (n, 3, size, size), view by view; which images could be read; the others."""
        places, rows = [cut.images for cut in cuts], [cut.needed_rows for cut in cuts]
        pixels, one_by_one = [], []
        for i, cut in enumerate(cuts):
            if (views := self._at_once(index[places[i]], rows[i], cut.size)) is None:
                one_by_one.append(i)
                # In memory as PIL has them, channels last: copying a view into place is then one plain copy.
                views = np.empty((len(rows[i]), cut.size, cut.size, 3), np.uint8).transpose(0, 3, 1, 2)
            pixels.append(views)
        readable = np.ones(len(index), bool)
        skipped: Skipped = []
        # An image is decoded once, whatever is cut from it.
        for place in np.unique(np.concatenate([places[i] for i in one_by_one])).tolist() if one_by_one else ():
            try:
                image = self.source.read(int(index[place]))
            except UnreadableImage as error:
                skipped.append((self.source.name(int(index[place])), str(error)))
                readable[place] = False
                continue
            for i in one_by_one:
                for n in np.flatnonzero(places[i] == place).tolist():
                    pixels[i][n] = geometry(image, rows[i][n], cuts[i].size, self.views.interpolation)
        if skipped:
            pixels = [views[readable[place]] for views, place in zip(pixels, places, strict=True)]
        return pixels, readable, skipped

    def _at_once(self, index: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray | None:
        """Views of small decoded images, all in one call; None where the images or the views do not allow it."""
        images = self.source.images
        if (
            not isinstance(images, ArrayImages)
            or images.pixels is None
            or not max(images.pixels.shape[1:3]) <= size <= SMALL
            or self.views.interpolation != "bilinear"
            or self.views.recipe.scale is None
            or (images.unreadable and not images.unreadable.keys().isdisjoint(self.source.rows[index].tolist()))
        ):
            return None
        return geometry_of_batch(images.pixels[self.source.rows[index]], rows, size)


def _at_ratio(rows: np.ndarray, ratio: float) -> np.ndarray:
    """View rows for views so many times as wide as those of the recipe, as `augmentation.at_ratio`."""
    if ratio != 1:
        rows = rows.copy()
        rows[..., SIGMA] *= ratio
    return rows
