"""The teacher's pass: right rows in the right order, the same bytes after any interruption, and no bad store."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import launch
from understudy.artifacts import ALONE, Store, Writers, read_json
from understudy.embed import blocks
from understudy.embed import embedding as module
from understudy.embed.embedding import Inference, embed, extract, open_rows
from understudy.errors import ModelError, StoreError
from understudy.models.contract import Contract
from understudy.models.encoder import Encoder
from understudy.models.teacher import Teacher, build_teacher
from understudy.neighbors.graph import build_graph
from understudy.neighbors.settings import NeighborSettings
from understudy.sources.source import open_source

SIZE, WIDTH = 8, 6
HERE = Inference(batch_size=8, workers=0)


def here(progress: Callable[[int, int, str], object]) -> Inference:
    """Small batches, read in this process, with their progress."""
    return Inference(batch_size=8, workers=0, progress=progress)


class Network(nn.Module):
    """A convolution and a pool, times `scale`; `before` may look at each batch first."""

    def __init__(self, scale: float = 1.0, before: Callable[[Tensor], None] | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.convolution = nn.Conv2d(3, WIDTH, 3)
        self.scale, self.before = scale, before

    def forward(self, x: Tensor) -> Tensor:
        if self.before is not None:
            self.before(x)
        pooled: Tensor = self.convolution(x).relu().mean((2, 3)) * self.scale
        return pooled


def teacher_of(scale: float = 1.0, before: Callable[[Tensor], None] | None = None, fingerprint: str = "f1") -> Teacher:
    contract = Contract(SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    encoder = Network(scale, before)
    return Teacher(Encoder(encoder, WIDTH, contract, "python:tests", "python:tests", "as built", fingerprint))


def stop_after(batches: int, stop: Callable[[], None]) -> Callable[[Tensor], None]:
    """Lets pass the sample's batch (see `one_batch_sample`) and so many others, and stops at the next."""
    seen = iter(range(10_000))

    def before(_: Tensor) -> None:
        if next(seen) > batches:
            stop()

    return before


def failing() -> None:
    raise RuntimeError("the machine goes down")


@pytest.fixture(autouse=True)
def one_batch_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample that a teacher must pass first is one forward pass; few images make several blocks."""
    monkeypatch.setattr(module, "SAMPLE", 8)
    monkeypatch.setattr(module, "BLOCK", 32)


def pixels(count: int = 75) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def by_hand(images: np.ndarray) -> np.ndarray:
    """The encoder in float64 numpy: normalize, 3 x 3 valid convolution, relu, mean."""
    encoder = Network()
    weight = encoder.convolution.weight.detach().double().numpy()
    bias = encoder.convolution.bias.detach().double().numpy()
    x = (images / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.25]
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))  # (N, 6, 6, 3, 3, 3)
    return np.maximum(np.einsum("nyxcij,ocij->nyxo", windows, weight) + bias, 0).mean((1, 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photographs(tmp_path / "photos")


def photographs(root: Path) -> Path:
    """40 images in a folder, five of them broken: the first, the last, two of one batch, one alone."""
    root.mkdir()
    for number, image in enumerate(pixels(40)):
        Image.fromarray(image).save(root / f"{number:02}.png")
    for number in (0, 9, 10, 25, 39):
        (root / f"{number:02}.png").write_bytes(b"no image")
    return root


def broken_batch(root: Path) -> None:
    """Break images 16 to 23: with batches of 8, a batch without a single readable image."""
    for number in range(16, 24):
        (root / f"{number:02}.png").write_bytes(b"no image")


def test_rows_are_the_embeddings_in_source_order(tmp_path: Path):
    images = pixels()
    source = open_source(images)
    store = embed(teacher_of(), source, tmp_path, Inference(batch_size=16), dtype="float32")
    rows = store.embeddings()
    np.testing.assert_allclose(rows, by_hand(images), atol=1e-5)
    assert isinstance(rows, np.memmap)
    assert rows.dtype == np.float32
    manifest = store.manifest
    assert (manifest["rows"], manifest["images"], manifest["D"], manifest["skipped"]) == (75, 75, WIDTH, [])
    assert manifest["weights"] == "as built"
    assert manifest["seconds"] > 0
    assert manifest["images_per_s"] > 0
    assert manifest["versions"]["torch"] == torch.__version__
    assert open_rows(store, source) is source
    files = [".lock", "embeddings.npy", "images.npy", "listing.parquet", "manifest.json"]
    assert sorted(os.listdir(store.folder)) == files


def test_float16_is_the_rounded_float32(tmp_path: Path):
    source = open_source(pixels())
    half = embed(teacher_of(), source, tmp_path, Inference(batch_size=16)).embeddings()
    full = embed(teacher_of(), source, tmp_path, Inference(batch_size=16), dtype="float32").embeddings()
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, full.astype(np.float16))


def test_unreadable_images_are_skipped_and_listed(tmp_path: Path, folder: Path):
    broken_batch(folder)
    source = open_source(folder)
    store = embed(teacher_of(), source, tmp_path / "stores", HERE, dtype="float32")
    gone = [0, 9, 10, *range(16, 24), 25, 39]
    kept = [number for number in range(40) if number not in gone]
    assert [name for name, _ in store.manifest["skipped"]] == [f"{number:02}.png" for number in gone]
    assert all(reason for _, reason in store.manifest["skipped"])
    assert store.manifest["rows"] == len(kept)
    rows = open_rows(store, source)
    assert [rows.name(i) for i in range(len(rows))] == [f"{number:02}.png" for number in kept]
    np.testing.assert_array_equal(rows.ids, kept)
    np.testing.assert_allclose(store.embeddings(), by_hand(pixels(40)[kept]), atol=1e-5)


def test_worker_processes_change_nothing(tmp_path: Path, folder: Path):
    source = open_source(folder)
    alone = embed(teacher_of(), source, tmp_path / "a", HERE)
    helped = embed(teacher_of(), source, tmp_path / "b", Inference(batch_size=8, workers=2))
    assert (alone.folder / "embeddings.npy").read_bytes() == (helped.folder / "embeddings.npy").read_bytes()
    assert alone.manifest["skipped"] == helped.manifest["skipped"]


def test_complete_store_is_used_as_it_is(tmp_path: Path):
    source = open_source(pixels())
    store = embed(teacher_of(), source, tmp_path)
    assert embed(teacher_of(before=stop_after(-1, failing)), source, tmp_path).folder == store.folder
    other = embed(teacher_of(fingerprint="f2"), source, tmp_path)
    assert other.folder != store.folder


def test_store_named_directly_must_be_the_right_one(tmp_path: Path):
    source = open_source(pixels())
    store = embed(teacher_of(), source, tmp_path)
    assert embed(teacher_of(), source, store.folder).folder == store.folder
    with pytest.raises(StoreError, match="differs in: teacher weights"):
        embed(teacher_of(fingerprint="f2"), source, store.folder)
    with pytest.raises(StoreError, match="differs in: data listing"):
        embed(teacher_of(), open_source(pixels(30)), store.folder)


@pytest.mark.parametrize("save_seconds", [0.0, 1e9], ids=["saved after each batch", "saved on the way out"])
@pytest.mark.parametrize("batches", [0, 1, 3])
def test_goes_on_after_an_error_with_the_same_bytes(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, batches: int, save_seconds: float
):
    source = open_source(folder)
    whole = embed(teacher_of(), source, tmp_path / "whole", HERE)
    monkeypatch.setattr(blocks, "SAVE_SECONDS", save_seconds)
    seen: list[int] = []
    with pytest.raises(ModelError, match="goes down"):
        embed(teacher_of(before=stop_after(batches, failing)), source, tmp_path / "cut", HERE)
    cut = Store(tmp_path / "cut" / whole.folder.name)
    assert not cut.complete
    again = embed(teacher_of(), source, tmp_path / "cut", here(lambda done, *_: seen.append(done)))
    assert seen == list(range(8 * (batches + 1), 41, 8))  # nothing done twice
    assert (again.folder / "embeddings.npy").read_bytes() == (whole.folder / "embeddings.npy").read_bytes()
    assert again.manifest["skipped"] == whole.manifest["skipped"]
    assert again.manifest["rows"] == 35
    np.testing.assert_array_equal(open_rows(again, source).ids, open_rows(whole, source).ids)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_embed_embedding as tests
from understudy.artifacts import Store
from understudy.embed import blocks, embedding

def kill(*_, **__): os.kill(os.getpid(), signal.SIGKILL)

root, photos, moment = Path(sys.argv[2]), sys.argv[3], sys.argv[4]
blocks.SAVE_SECONDS, embedding.SAMPLE, embedding.BLOCK = 0.0, 8, 32
before = None
if moment == "between saves":
    blocks.SAVE_SECONDS = 1e9
    save = blocks.Block.save
    append = blocks.Block.append
    def appended(self, *args):
        append(self, *args)
        if self.done == 16: save(self)
        self._file.flush()
    blocks.Block.append = appended
    blocks.Block.save = lambda self: None
    before = tests.stop_after(3, kill)
elif moment == "while saving":
    count = iter(range(99))
    write = blocks.write_json
    blocks.write_json = lambda *a: kill() if next(count) == 2 else write(*a)
elif moment == "before the listing":
    embedding.write_listing = kill
elif moment == "while merging":
    copy = blocks.shutil.copyfileobj
    def half(rows, file, _):
        if file.tell() > 200: file.write(rows.read(5)), file.flush(), kill()
        copy(rows, file)
    blocks.shutil.copyfileobj = half
elif moment == "before the manifest":
    Store.finish = kill
else:
    embedding.shutil.rmtree = kill
tests.embed(tests.teacher_of(before=before), tests.open_source(photos), root, tests.HERE)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        "between saves",
        "while saving",
        "before the listing",
        "while merging",
        "before the manifest",
        "after the manifest",
    ],
)
def test_goes_on_after_sigkill_with_the_same_bytes(tmp_path: Path, folder: Path, moment: str):
    source = open_source(folder)
    whole = embed(teacher_of(), source, tmp_path / "whole", HERE)
    tests = Path(__file__).parent
    done = launch.run(
        [sys.executable, "-c", KILLED, tests, tmp_path / "cut", folder, moment], check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    cut = Store(tmp_path / "cut" / whole.folder.name)
    assert cut.complete == (moment == "after the manifest")
    if moment == "between saves":  # rows beyond the record are there, and must not be trusted
        record = read_json(cut.folder / "blocks" / "0000.json")
        assert (record["done"], record["rows"]) == (16, 13)
        assert (cut.folder / "blocks" / "0000.rows").stat().st_size > 13 * WIDTH * 2
    passes: list[int] = []
    again = embed(teacher_of(), source, tmp_path / "cut", here(lambda done, *_: passes.append(done)))
    left = {"between saves": [24, 32, 40], "while saving": [24, 32, 40]}
    assert passes == left.get(moment, [])
    assert (again.folder / "embeddings.npy").read_bytes() == (whole.folder / "embeddings.npy").read_bytes()
    assert again.manifest["skipped"] == whole.manifest["skipped"]
    np.testing.assert_array_equal(open_rows(again, source).ids, open_rows(whole, source).ids)


def test_a_record_without_its_rows_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = open_source(pixels())
    monkeypatch.setattr(blocks, "SAVE_SECONDS", 0.0)
    with pytest.raises(ModelError, match="goes down"):
        embed(teacher_of(before=stop_after(3, failing)), source, tmp_path, Inference(batch_size=8))
    (folder,) = tmp_path.iterdir()
    os.truncate(folder / "blocks" / "0000.rows", 130)
    store = embed(teacher_of(), source, tmp_path, Inference(batch_size=8), dtype="float16")
    np.testing.assert_allclose(store.embeddings(), by_hand(pixels()), atol=1e-2)


def test_an_array_that_lost_its_blocks_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = open_source(pixels())
    monkeypatch.setattr(Store, "finish", lambda *_, **__: failing())
    with pytest.raises(RuntimeError, match="goes down"):
        embed(teacher_of(), source, tmp_path)
    (folder,) = tmp_path.iterdir()
    os.truncate(folder / "embeddings.npy", 128 + 40 * WIDTH * 2)
    with pytest.raises(StoreError, match=r"has 608 bytes, and its first 2 blocks alone had 896\. Delete the folder"):
        embed(teacher_of(), source, tmp_path)


def test_another_number_of_processes_goes_on_where_the_first_stopped(tmp_path: Path, folder: Path):
    """Three processes one after the other, each failing at the end of its share; then two, then one."""
    source = open_source(folder)
    whole = embed(teacher_of(), source, tmp_path / "whole", HERE)
    seen: list[int] = []

    class Shares(Writers):
        def barrier(self) -> None:  # the first is passed before, the second after the share is filled
            passed.append(1)
            if len(passed) == 2:
                failing()

        def agree(self, flag: bool) -> bool:
            return flag

    for rank, world in ((1, 3), (1, 2), (0, 1)):
        passed: list[int] = []
        writers = ALONE if world == 1 else Shares(rank, world)
        with contextlib.suppress(RuntimeError):
            embed(
                teacher_of(), source, tmp_path / "shared", here(lambda done, total, _: seen.append((done, total))),
                writers=writers,
            )  # fmt: skip
    # 40 images are blocks of 32 and 8: rank 1 of 3 does the second, rank 1 of 2 finds it done, the last does the first.
    assert seen == [(8, 8), (16, 40), (24, 40), (32, 40), (40, 40)]
    again = Store(tmp_path / "shared" / whole.folder.name)
    assert (again.folder / "embeddings.npy").read_bytes() == (whole.folder / "embeddings.npy").read_bytes()
    assert again.manifest["skipped"] == whole.manifest["skipped"]


def test_extract_is_the_same_pass_in_memory(tmp_path: Path, folder: Path):
    source = open_source(folder)
    teacher = teacher_of()
    features, kept, skipped = extract(teacher.features, teacher.contract, source, HERE)
    store = embed(teacher, source, tmp_path / "stores", HERE, dtype="float32")
    np.testing.assert_array_equal(features, store.embeddings())
    np.testing.assert_array_equal(kept, open_rows(store, source).ids)
    assert [list(entry) for entry in skipped] == store.manifest["skipped"]


def test_real_teacher_on_real_images(tmp_path: Path, shared: Path):
    """CIFAR-10 test images: the nearest neighbor in this teacher's space is of the same class nine times in ten."""
    source = open_source(shared / "data/cifar10/test.parquet", limit=800)
    teacher = build_teacher(f"onnx:{shared / 'weights/resnet56_cifar10.onnx'}")
    store = embed(teacher, source, tmp_path, Inference(workers=0))
    labels = open_rows(store, source).labels
    assert labels is not None
    graph = build_graph(store, NeighborSettings(k=1, n=10))
    assert (labels[graph[:, 0]] == labels).mean() > 0.85


@pytest.mark.slow
def test_memory_does_not_grow_with_the_source(tmp_path: Path):
    """156 MiB of rows pass through; the process may hold a batch of them."""
    if sys.platform != "linux":
        pytest.skip("reads the kernel's record of peak memory")
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np, torch
from pathlib import Path
import test_embed_embedding as tests
torch.set_num_threads(1)

class Wide(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3)).repeat(1, 342)[:, :1024] * torch.arange(1024)

teacher = tests.teacher_of()
teacher.module, teacher.width = Wide(), 1024
peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024
for count in (2_000, 40_000):
    source = tests.open_source(np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))
    Path('/proc/self/clear_refs').write_text('5')
    before = peak()
    tests.embed(teacher, source, {str(tmp_path)!r}, tests.Inference(batch_size=256, workers=0), dtype='float32')
    print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    few, many = map(float, done.stdout.split())
    assert many < few + 50
