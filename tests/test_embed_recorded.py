"""Recorded views: what the teacher would say, said once; many writers, kills and stored precisions."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy.artifacts import Store, StoreKey
from understudy.embed import recorded as module
from understudy.embed.recorded import SHAPE, Recorded, RecordedViews, in_fixed_batches
from understudy.errors import ConfigError, ModelError, StoreError
from understudy.views.augmentation import recipe_for

N, D = 40, 5
MIX = torch.linspace(-1, 1, 3 * 16 * D).reshape(3 * 16, D).sin()


class Counting:
    """A linear teacher that knows how many views it was shown."""

    def __init__(self, scale: float = 1.0) -> None:
        self.shown, self.scale = 0, scale

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.shown += len(images)
        return self.scale * images.flatten(1) @ MIX


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "store" / "abc")
    store.folder.mkdir(parents=True)
    np.save(store.folder / "embeddings.npy", images_of(np.arange(N), np.zeros(N)).flatten(1).numpy() @ MIX.numpy())
    key = StoreKey({"fingerprint": "t", "spec": "t"}, {}, {"fingerprint": "d", "spec": "d", "images": N}, "float32")
    store.finish(key, rows=N, D=D)
    return store


def images_of(index: np.ndarray, view: np.ndarray) -> torch.Tensor:
    """A view as a function of image and number, like the real ones."""
    phase = torch.from_numpy(index * 0.7 + view * 0.13).float()[:, None]
    return (phase + torch.arange(48)).sin().reshape(-1, 3, 4, 4) / 2 + 0.5


def opened(store: Store, encode=None, **other) -> RecordedViews:
    settings = {"recipe": recipe_for("weak", 4), "size": 4, "seed": 0, "batch_size": 40, "dtype": "float32", **other}
    return RecordedViews(store, encode or Counting(), **settings)


def ask(views: RecordedViews, index: list[int], view: list[int]) -> torch.Tensor:
    at, number = np.array(index), np.array(view)
    return views(images_of(at, number), torch.from_numpy(at), torch.from_numpy(number))


def test_a_view_is_computed_once_and_is_what_the_teacher_says(store):
    teacher = Counting()
    views = opened(store, teacher)
    index, view = [*range(12), 0], [0] * 12 + [1]
    first = ask(views, index, view)
    assert torch.equal(first, images_of(np.array(index), np.array(view)).flatten(1) @ MIX)
    views.flush()
    before = teacher.shown
    assert torch.equal(ask(views, index, view), first) and teacher.shown == before
    # One new view among known ones: only it is computed, in a pass of the usual shape: 40 rows are two of 20.
    mixed = ask(views, [3, 20, 5], [0, 0, 0])
    assert torch.equal(mixed[[0, 2]], first[[3, 5]]) and teacher.shown == before + 20
    assert (views.computed, views.read) == (14, 15)
    # Another run reads them without a teacher at all.
    other = opened(store, encode=lambda images: pytest.fail("everything is recorded"))
    assert torch.equal(ask(other, index, view), first)


def test_views_that_any_process_knows_to_be_recorded_need_not_be_shown(store):
    teacher = Counting()
    views = opened(store, teacher)
    known = Recorded(views.folder)
    index, view = np.array([4, 7, 9, 4]), np.array([0, 0, 1, 1])
    assert not known(index, view).any()  # nothing there yet
    ask(views, [4, 9], [0, 1])
    assert not known(index, view).any()  # on its way to the disk, and may not arrive
    views.flush()
    assert known(index, view).tolist() == [True, False, True, False]
    assert pickle.loads(pickle.dumps(known))(index, view).tolist() == [True, False, True, False]
    place = np.flatnonzero(~known(index, view))
    found = views(images_of(index, view)[place], *map(torch.from_numpy, (index, view, place)))
    torch.testing.assert_close(found, images_of(index, view).flatten(1) @ MIX)
    assert views.computed == 4
    # What was recorded since the images were cut is read, whatever is shown.
    again = views(images_of(index, view)[place], *map(torch.from_numpy, (index, view, place)))
    assert torch.equal(again, found) and views.computed == 4


@pytest.mark.parametrize("change", [{"seed": 1}, {"size": 5}, {"recipe": recipe_for("none", 4)}, {"dtype": "int8"}])
def test_other_views_are_recorded_elsewhere(store, change):
    one, other = opened(store), opened(store, **change)
    assert one.folder != other.folder
    ask(one, list(range(N)), [0] * N)
    one.flush()
    assert one.full(1) and not one.full(2) and not other.full(1)


def test_what_was_not_flushed_is_computed_again(store):
    killed = opened(store)
    ask(killed, list(range(10)), [0] * 10)  # never flushed, as if killed here
    teacher = Counting()
    again = ask(opened(store, teacher), list(range(10)), [0] * 10)
    assert teacher.shown == 20  # ten, filled up to a pass
    assert torch.equal(again, images_of(np.arange(10), np.zeros(10)).flatten(1) @ MIX)


def test_room_is_taken_before_anything_is_written_to_a_map(store, monkeypatch):
    ask(opened(store), [0], [0])
    for path in (store.folder / "views").rglob("0000*.npy"):
        assert path.stat().st_blocks * 512 >= path.stat().st_size  # a hole would be filled when the disk may be full

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    teacher = Counting()
    views = opened(store, teacher)
    with pytest.raises(StoreError, match="The disk that holds .* is full"):
        ask(views, [0], [1])
    monkeypatch.undo()
    assert torch.equal(ask(views, [0], [1]), images_of(np.array([0]), np.array([1])).flatten(1) @ MIX)


def test_stored_precisions(store):
    index = list(range(N))
    exact = ask(opened(store), index, [1] * N)
    half = ask(opened(store, dtype="float16"), index, [1] * N)
    assert torch.equal(half, exact.half().float())
    quarter = opened(store, dtype="int8")
    rows = ask(quarter, index, [1] * N)
    quarter.flush()
    step = np.abs(store.embeddings()).max(0) * 1.5 / 127
    assert quarter.saturated == 0 and ((rows - exact).abs().numpy() <= step / 2 + 1e-6).all()
    assert torch.equal(ask(opened(store, dtype="int8"), index, [1] * N), rows)  # a run sees what later ones will read


def test_int8_says_how_much_it_cut_off(store):
    views = opened(store, Counting(scale=3.0), dtype="int8")
    rows = ask(views, list(range(N)), [0] * N)
    reach = torch.from_numpy(np.abs(store.embeddings()).max(0) * 1.5)
    assert views.saturated > 0 and (rows.abs() <= reach * (1 + 1e-6)).all()


def test_bad_embeddings_are_refused_and_nothing_is_marked(store):
    with pytest.raises(ModelError, match="of 4 of 4 augmented views contain NaN"):
        ask(opened(store, Counting(float("nan"))), [1, 2, 3, 4], [0] * 4)
    with pytest.raises(ConfigError, match="--views.dtype float32"):
        ask(opened(store, Counting(1e6), dtype="float16"), [1, 2, 3, 4], [0] * 4)
    assert not opened(store).read_recorded(np.arange(N), np.zeros(N, np.int64))[1].any()


def _write(folder: Path, part: int) -> None:
    views = opened(Store(folder))
    for start in range(part, N, 2):
        ask(views, [start, (start + 1) % N], [0, 2])
        views.flush()


def test_processes_write_at_once_without_loss(store):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(store.folder, part)) for part in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    views = opened(store, encode=lambda images: pytest.fail("everything is recorded"))
    assert views.full(1) and not views.full(3)
    for number in (0, 2):
        expected = images_of(np.arange(N), np.full(N, number)).flatten(1) @ MIX
        torch.testing.assert_close(ask(views, list(range(N)), [number] * N), expected, rtol=0, atol=1e-5)


def test_foreign_files_are_refused(store):
    views = opened(store)
    np.save(views.folder / "0000.npy", np.zeros((N, D + 1), np.float32))
    with pytest.raises(StoreError, match=r"0000.npy holds float32 \(40, 6\), not float32 \(40, 5\)"):
        ask(views, [0], [0])
    (views.folder / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(StoreError, match="has format 99"):
        opened(store)


def test_rows_are_flushed_as_time_goes_by(store, monkeypatch):
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.0)
    ask(opened(store), [1, 2, 3], [0] * 3)
    recorded = opened(store).read_recorded(np.array([0, 1, 2, 3]), np.zeros(4, np.int64))[1]
    assert recorded.tolist() == [False, True, True, True]


def test_passes_have_one_shape(store):
    shapes = []
    images = images_of(np.arange(70), np.zeros(70))

    def encode(part):
        shapes.append(len(part))
        return part.flatten(1) @ MIX

    for count in (70, 5, 36):
        found = in_fixed_batches(encode, images[:count], 70)
        torch.testing.assert_close(found, images[:count].flatten(1) @ MIX)
    assert shapes == [24] * (3 + 1 + 2) and max(shapes) <= SHAPE


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize(("name", "row"), [("0001.npy", 20), ("0001.done.npy", 20), ("0001.npy", 0)])
def test_a_damaged_row_is_recorded_anew_and_no_other(store, caplog, dtype, name, row):
    index, view = list(range(N)), [1] * N
    views = opened(store, dtype=dtype)
    expected = ask(views, index, view)
    views.flush()
    files = {path.name: path.read_bytes() for path in views.folder.iterdir()}
    flip(views.folder / name, 128 + row * (len(files[name]) - 128) // N)
    known = Recorded(views.folder)(np.arange(N), np.ones(N, np.int64))
    assert np.flatnonzero(~known).tolist() == [row], "whoever cuts the views cuts this one"
    again = opened(store, encode := Counting(), dtype=dtype)
    at, number = torch.tensor(index), torch.tensor(view)
    shown = images_of(np.array([row]), np.array([1]))
    assert torch.equal(again(shown, at, number, torch.tensor([row])), expected)
    assert (again.computed, encode.shown >= 1) == (1, True)
    again.flush()
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == files
    (record,) = [one for one in caplog.records if "are recorded anew" in one.message]
    assert f"0001.npy or 0001.done.npy is damaged in 1 rows ({row})" in record.message


@pytest.mark.parametrize("name", ["0000.npy", "0000.done.npy", "manifest.json"])
def test_what_lies_before_the_rows_is_known_and_written_anew(store, caplog, name):
    views = opened(store)
    ask(views, [0, 3], [0, 0])
    views.flush()
    whole = (views.folder / name).read_bytes()
    for place in range(0, min(128, len(whole)), 5):
        flip(views.folder / name, place, 2)
        again = opened(store)
        ask(again, [0, 3], [0, 0])
        assert (again.read, (views.folder / name).read_bytes() == whole) == (2, True)
    said = [record.message for record in caplog.records if "embeddings.npy" not in record.message]
    assert len(said) > 20 and all(name in sentence for sentence in said)


def test_a_row_that_is_damaged_when_nobody_cut_its_view(store):
    views = opened(store)
    ask(views, [0, 1], [0, 0])
    views.flush()
    flip(views.folder / "0000.npy", 130)
    again, nothing = opened(store), torch.empty(0, dtype=torch.int64)
    with pytest.raises(StoreError, match="was damaged while it was read"):
        again(torch.empty(0, 3, 4, 4), torch.tensor([0, 1]), torch.tensor([0, 0]), nothing)
    assert Recorded(views.folder)(np.array([0, 1]), np.array([0, 0])).tolist() == [False, True]


def test_views_recorded_before_there_were_checksums_are_read(store, caplog):
    views = opened(store)
    expected = ask(views, [0, 1], [0, 0])
    views.flush()
    old = np.zeros(N, np.uint8)
    old[:2] = 1
    np.save(views.folder / "0000.done.npy", old)
    again = opened(store)
    assert torch.equal(ask(again, [0, 1], [0, 0]), expected)
    ask(again, [2], [0])
    again.flush()
    assert (again.read, np.load(views.folder / "0000.done.npy").tolist()) == (2, [1, 1, 1, *[0] * (N - 3)])
    assert Recorded(views.folder)(np.array([0, 5]), np.array([0, 0])).tolist() == [True, False]
    assert len([one for one in caplog.records if "done.npy was written without checksums" in one.message]) == 1
