"""The loader: the same batches whoever reads them, nothing lost without a word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from understudy.errors import ConfigError
from understudy.sources.decode import Geometry, center
from understudy.sources.pixels import PixelMap, decoded
from understudy.sources.source import Source, open_source
from understudy.views.augmentation import RECIPES, SIGMA, draw, geometry, photometry
from understudy.views.batches import NeighborBatches
from understudy.views.loader import ImageLoader, Loader, Reading, Share
from understudy.views.reader import ImageBatch, TeacherInput, Views

MOCO = RECIPES["moco-v2"]


def noise(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def photographs(root: Path) -> Source:
    rng = np.random.default_rng(0)
    root.mkdir()
    for i in range(20):
        Image.fromarray(noise(1, *rng.integers(20, 90, 2))[0]).save(root / f"{i:02d}.png")
    return open_source(root)


@pytest.fixture
def folder(tmp_path: Path) -> Source:
    """Twenty photographs of many sizes."""
    return photographs(tmp_path / "images")


def ring(images: int, width: int = 5) -> np.ndarray:
    return ((np.arange(images)[:, None] + 1 + np.arange(width)) % images).astype(np.int32)


def loader_of(
    source: Source, *, reading: Reading | None = None, share: Share | None = None, steps: range | None = None, **views
) -> Loader:
    batches = NeighborBatches(len(source), 8, k=3, n=5, seed=1, graph=ring(len(source)), steps=7)
    cut = Views(**{"size": 24, "recipe": MOCO, "seed": 3, **views})
    return Loader(source, batches, cut, reading=reading or Reading(workers=0), share=share, steps=steps)


def equal(one: ImageBatch, other: ImageBatch) -> bool:
    names = ("index", "anchor", "view", "pixels", "rows")
    return (
        one.step == other.step
        and one.skipped == other.skipped
        and all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
        and (one.teacher is None) == (other.teacher is None)
        and all(
            torch.equal(getattr(one.teacher, name), getattr(other.teacher, name))
            for name in ("place", "pixels", "rows")
            if one.teacher is not None
        )
    )


def all_equal(first: Iterator[ImageBatch] | Loader, second: Iterator[ImageBatch] | Loader) -> bool:
    return all(equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_batch_is_what_its_numbers_say(folder: Source):
    part = folder.subset(np.arange(19, 3, -1))
    batches = list(loader_of(part, per_image=2))
    assert [batch.step for batch in batches] == list(range(7))
    for batch in batches:
        assert batch.pixels.shape == (2, 8, 3, 24, 24)
        assert batch.pixels.dtype == torch.uint8
        assert batch.rows.shape == (2, 8, 31)
        assert batch.anchor.tolist() == [0] * 4 + [1] * 4
        for j, (index, view) in enumerate(zip(batch.index.tolist(), batch.view[0].tolist(), strict=True)):
            for v in range(2):
                # The image's id, not its place in this subset, decides its views.
                assert batch.view[v, j] == view + v and view % 2 == 0
                row = draw(3, np.array([19 - index]), np.array([view + v]), MOCO)[0]
                assert (batch.rows[v, j].numpy() == row).all()
                assert (batch.pixels[v, j].numpy() == geometry(part.read(index), row, 24)).all()


def test_an_image_seen_again_is_another_view(folder: Source):
    views = {}
    for batch in loader_of(folder):
        for j, (index, view) in enumerate(zip(batch.index.tolist(), batch.view[0].tolist(), strict=True)):
            assert (index, view) not in views
            views[index, view] = batch.pixels[0, j]
    assert max(view for _, view in views) > 0


def test_a_pool_shows_its_views_in_turn(folder: Source):
    endless, pooled = list(loader_of(folder, per_image=2)), list(loader_of(folder, per_image=2, pool=3))
    for one, other in zip(endless, pooled, strict=True):
        assert torch.equal(other.view, one.view % 3)
    assert max(int(batch.view.max()) for batch in endless) > 2
    with pytest.raises(ConfigError, match="sees 2 views of an image in a batch, and the pool has 1"):
        loader_of(folder, per_image=2, pool=1)


def teacher_views(source: Source, batch: ImageBatch, views: tuple[int, ...], size: int) -> list[tuple]:
    """What the teacher should be shown of a batch, one view after another: pixels, and row but for the blur."""
    found = []
    for i in views:
        for index, view in zip(batch.index.tolist(), batch.view[i].tolist(), strict=True):
            row = draw(3, source.ids[[index]], np.array([view]), MOCO)[0]
            found.append((geometry(source.read(index), row, size), row))
    return found


@pytest.mark.parametrize(("kind", "size", "teacher_size"), [("folder", 24, 40), ("array", 32, 48), ("array", 40, 24)])
def test_the_teacher_is_shown_the_same_crops_at_its_own_size(folder: Source, kind: str, size: int, teacher_size: int):
    source = folder if kind == "folder" else open_source(noise(20))
    alone = list(loader_of(source, size=size, per_image=2))
    given = {"size": size, "per_image": 2, "teacher": TeacherInput(teacher_size, (1, 0))}
    batches = list(loader_of(source, **given))
    largest = max(size, teacher_size)
    blurred = 0
    for batch, other in zip(batches, alone, strict=True):
        assert torch.equal(batch.pixels, other.pixels)
        expected = teacher_views(source, batch, (1, 0), teacher_size)
        assert batch.teacher.place.tolist() == list(range(16))
        assert all(
            (found.numpy() == wanted[0]).all() for found, wanted in zip(batch.teacher.pixels, expected, strict=True)
        )
        # The recipe speaks of the larger view; on the smaller one the same blur is fewer pixels wide.
        rows = np.stack([row for _, row in expected])
        rows[:, SIGMA] *= teacher_size / largest
        np.testing.assert_array_equal(batch.teacher.rows.numpy(), rows)
        np.testing.assert_array_equal(batch.rows[..., SIGMA], other.rows[..., SIGMA] * (size / largest))
        blurred += int((rows[:, SIGMA] > 0).sum())
    assert blurred > 0
    loader = loader_of(source, **given, reading=Reading(workers=1))
    assert all_equal(loader, iter(batches))
    loader.close()


def test_views_that_are_recorded_are_not_cut_for_the_teacher(folder: Source):
    def recorded(index: np.ndarray, view: np.ndarray) -> np.ndarray:
        return (index + view) % 3 > 0

    everything = loader_of(folder, teacher=TeacherInput(40, (0,)))
    left = 0
    for whole, batch in zip(everything, loader_of(folder, teacher=TeacherInput(40, (0,), recorded)), strict=True):
        place = np.flatnonzero((batch.index + batch.view[0]).numpy() % 3 == 0)
        assert torch.equal(batch.pixels, whole.pixels) and batch.teacher.place.tolist() == place.tolist()
        assert torch.equal(batch.teacher.pixels, whole.teacher.pixels[place])
        assert torch.equal(batch.teacher.rows, whole.teacher.rows[place])
        left += len(place)
    assert left > 0
    none = TeacherInput(40, (0,), lambda index, view: np.ones(len(index), bool))
    batch = next(iter(loader_of(folder, teacher=none)))
    assert batch.teacher.pixels.shape == (0, 3, 40, 40)
    assert photometry(batch.teacher.pixels, batch.teacher.rows, MOCO).shape == (0, 3, 40, 40)


def test_places_of_the_teachers_views_count_readable_images_only(folder: Source, tmp_path: Path):
    wanted = list(loader_of(folder, per_image=2, teacher=TeacherInput(40, (0, 1))))
    (tmp_path / "images" / "05.png").write_bytes(b"no image")
    source = open_source(tmp_path / "images")
    lost = 0
    for whole, batch in zip(wanted, loader_of(source, per_image=2, teacher=TeacherInput(40, (0, 1))), strict=True):
        kept = np.flatnonzero(whole.index.numpy() != 5)
        lost += 8 - len(kept)
        assert batch.index.tolist() == whole.index[kept].tolist() and torch.equal(batch.pixels, whole.pixels[:, kept])
        assert batch.teacher.place.tolist() == list(range(2 * len(kept)))
        assert torch.equal(batch.teacher.pixels, whole.teacher.pixels[[*kept, *(8 + kept)]])
        assert torch.equal(batch.teacher.rows, whole.teacher.rows[[*kept, *(8 + kept)]])
    assert lost > 0


@pytest.mark.parametrize("kind", ["folder", "array"])
def test_any_number_of_workers_makes_the_same_batches(folder: Source, kind: str):
    source = folder if kind == "folder" else open_source(noise(20))
    state = torch.get_rng_state()
    here = list(loader_of(source, size=32))
    for workers in (1, 2):
        loader = loader_of(source, size=32, reading=Reading(workers=workers))
        assert all_equal(loader, iter(here))
        loader.close()
    assert torch.equal(torch.get_rng_state(), state)  # reading draws nothing that training would miss


def test_resuming(folder: Source):
    wanted = list(loader_of(folder))
    assert all_equal(loader_of(folder, steps=range(4, 7)), iter(wanted[4:]))
    assert all_equal(loader_of(folder, steps=range(2, 5)), iter(wanted[2:5]))
    assert list(loader_of(folder, steps=range(7, 7))) == []


def test_processes_share_a_batch_by_whole_bags(folder: Source):
    for whole, *parts in zip(*(loader_of(folder, share=Share(r, w)) for r, w in ((0, 1), (0, 2), (1, 2))), strict=True):
        for name in ("index", "anchor"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
        assert torch.equal(whole.view, torch.cat([part.view for part in parts], dim=1))
        assert torch.equal(whole.pixels, torch.cat([part.pixels for part in parts], dim=1))
        assert parts[1].anchor.tolist() == [1] * 4
    with pytest.raises(ConfigError, match=r"2 bags of 4 images .* 3 processes.*multiple of 12"):
        loader_of(folder, share=Share(0, 3))


def test_decoded_pixels_give_the_same_batches(tmp_path: Path):
    """The fast path, a whole batch at a time, against PIL, image by image."""
    (tmp_path / "images").mkdir()
    for i, image in enumerate(noise(20)):
        Image.fromarray(image).save(tmp_path / "images" / f"{i:02d}.png")
    slow = open_source(tmp_path / "images")
    fast = decoded(slow, tmp_path / "store")
    assert isinstance(fast.images, PixelMap)
    for options in (
        {"size": 32},
        {"size": 48, "per_image": 2},
        {"size": 16},
        {"size": 32, "interpolation": "bicubic"},
    ):
        assert all_equal(loader_of(fast, **options), loader_of(slow, **options))
    for name in ("weak", "none"):
        assert all_equal(loader_of(fast, recipe=RECIPES[name]), loader_of(slow, recipe=RECIPES[name]))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("small", [False, True])
def test_unreadable_images_are_skipped_and_reported(folder: Source, tmp_path: Path, workers: int, small: bool):
    root = Path(folder.spec)
    if small:
        for i, image in enumerate(noise(20)):
            Image.fromarray(image).save(root / f"{i:02d}.png")
    clean = list(loader_of(open_source(root), size=32))
    (root / "05.png").write_text("a text")
    (root / "11.png").write_bytes(b"")
    source = open_source(root)
    if small:
        source = decoded(source, tmp_path / "store")
        assert isinstance(source.images, PixelMap)
    loader, seen = loader_of(source, size=32, reading=Reading(workers=workers)), set()
    for batch, whole in zip(loader, clean, strict=True):
        kept = [j for j, index in enumerate(whole.index.tolist()) if index not in (5, 11)]
        for name in ("index", "anchor"):
            assert torch.equal(getattr(batch, name), getattr(whole, name)[kept])
        assert torch.equal(batch.view, whole.view[:, kept])
        assert torch.equal(batch.pixels, whole.pixels[:, kept])
        assert torch.equal(batch.rows, whole.rows[:, kept])
        assert len(batch.skipped) == 8 - len(kept)
        seen |= {(name, reason.rsplit("/", 1)[-1]) for name, reason in batch.skipped}
    assert seen == {("05.png", "05.png is not an image in a known format."), ("11.png", "11.png is empty (0 bytes).")}


def test_a_batch_without_a_readable_image_is_empty(tmp_path: Path):
    for i in range(8):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    source = open_source(tmp_path)
    batch = next(iter(Loader(source, NeighborBatches(8, 8), Views(16, MOCO, 0), reading=Reading(workers=0))))
    assert batch.pixels.shape == (1, 0, 3, 16, 16)
    assert len(batch.index) == 0
    assert len(batch.skipped) == 8
    (indices, pixels, skipped, _), *more = ImageLoader(source, Geometry(16), batch_size=8, workers=0)
    assert (len(indices), tuple(pixels.shape), len(skipped), more) == (0, (0, 3, 16, 16), 8, [])


def test_training_never_reads_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for i, image in enumerate(noise(20)):
        path = tmp_path / "images" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    source = open_source(tmp_path / "images")
    assert source.labels is not None
    monkeypatch.setattr(
        "understudy.sources.formats.folder.FolderImages.labels", lambda _: pytest.fail("labels were read")
    )
    source = open_source(tmp_path / "images", limit=16)
    fast = decoded(source, tmp_path / "store")
    assert len(list(loader_of(fast, size=32))) == 7
    with pytest.raises(pytest.fail.Exception, match="labels were read"):
        _ = fast.labels


def test_a_batch_is_as_large_as_it_is_reckoned(folder: Source):
    for teacher in (None, TeacherInput(32, (1,))):
        loader = loader_of(folder, per_image=2, teacher=teacher)
        batch = next(iter(loader))
        assert loader._reader.nbytes == batch.pixels.nbytes + (batch.teacher.pixels.nbytes if batch.teacher else 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_in_order_for_embedding(folder: Source, workers: int):
    Path(folder.spec, "03.png").write_bytes(b"")
    source = open_source(folder.spec)
    options = {"geometry": Geometry(24, 0.875, "bicubic"), "batch_size": 6, "workers": workers}
    loader = ImageLoader(source, **options)
    assert len(loader) == 4
    parts = list(loader)
    assert [indices.tolist() for indices, *_ in parts] == [
        [0, 1, 2, 4, 5],
        list(range(6, 12)),
        list(range(12, 18)),
        [18, 19],
    ]
    assert [len(skipped) for _, _, skipped, _ in parts] == [1, 0, 0, 0]
    assert parts[0][2][0][0] == "03.png"
    for indices, pixels, *_ in parts:
        assert pixels.is_contiguous()
        for i, image in zip(indices.tolist(), pixels, strict=True):
            wanted = np.asarray(center(source.read(i), 24, 0.875, "bicubic")).transpose(2, 0, 1)
            assert (image.numpy() == wanted).all()
    parts = [range(5, 13), range(18, 20)]
    chosen = [indices.tolist() for indices, *_ in ImageLoader(source, parts=parts, **options)]
    assert chosen == [list(range(5, 11)), [11, 12], [18, 19]]


def test_real_photographs(shared: Path):
    source = open_source(shared / "data" / "imagenette" / "train", limit=32)
    batches = NeighborBatches(32, 16, steps=2)
    loader = Loader(source, batches, Views(64, MOCO, 0), reading=Reading(workers=1))
    found = list(loader)
    assert [tuple(batch.pixels.shape) for batch in found] == [(1, 16, 3, 64, 64)] * 2
    assert not any(batch.skipped for batch in found)
    assert sorted(torch.cat([batch.index for batch in found]).tolist()) == list(range(32))
