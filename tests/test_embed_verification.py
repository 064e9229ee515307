"""An image that was rewritten with the same size and time: what listings cannot see, `--verify-images` does."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from understudy.artifacts import Store, checksum
from understudy.cli.program import main
from understudy.embed.embedding import Inference, embed
from understudy.embed.verification import verify_images
from understudy.errors import ConfigError, DataError, StoreError
from understudy.models.contract import Contract
from understudy.pipeline import distill
from understudy.sources.pixels import decoded
from understudy.sources.source import Source, open_source

HERE = Inference(workers=0)


class Means:
    """An encoder that answers with the mean color."""

    spec, width, weights, fingerprint, library, precision = "means", 3, "none", "means", "", "fp32"
    contract = Contract(8)

    def to(self, device: torch.device) -> "Means":
        return self

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))

    __call__ = features


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (70, 70, 3), dtype=np.uint8)).save(buffer, "BMP")
    return buffer.getvalue()


def written(folder: Path, kind: str, contents: list[bytes]) -> str:
    """A set of images in one kind of storage, always of the same time."""
    folder.mkdir(exist_ok=True)
    path = folder / f"set.{kind}"
    if kind == "folder":
        for i, content in enumerate(contents):
            (folder / f"{i}.bmp").write_bytes(content)
    elif kind == "parquet":
        pq.write_table(pa.table({"image": contents}), path, compression="none", use_dictionary=False)
    elif kind == "arrow":
        with pa.ipc.new_stream(path, pa.schema({"image": pa.binary()})) as out:
            out.write_table(pa.table({"image": contents}))
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for i, content in enumerate(contents):
                member = tarfile.TarInfo(f"{i}.bmp")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        np.save(path, np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in contents]))
    for file in folder.iterdir():
        os.utime(file, (10**9, 10**9))
    return str(folder if kind == "folder" else path)


@pytest.mark.parametrize("kind", ["folder", "parquet", "arrow", "tar", "npy"])
def test_a_rewritten_image_is_found(tmp_path: Path, kind: str):
    contents = [encoded(i) for i in range(5)]
    spec = written(tmp_path / "set", kind, contents)
    store = embed(Means(), open_source(spec), tmp_path / "store", HERE, check=False)
    verify_images(store, open_source(spec), HERE)
    contents[3] = encoded(99)
    written(tmp_path / "set", kind, contents)
    assert embed(Means(), open_source(spec), tmp_path / "store", HERE, check=False).folder == store.folder
    with pytest.raises(DataError, match=r"^1 of the 5 images .* though names, sizes and times are: \S*3\S*\. Restore"):
        verify_images(store, open_source(spec), HERE)


def test_sums_are_those_of_the_files_behind_the_rows(tmp_path: Path):
    contents = [encoded(i) for i in range(5)]
    contents[1] = b"broken"
    source = open_source(written(tmp_path / "set", "folder", contents))
    store = embed(Means(), source, tmp_path / "store", Inference(workers=1, batch_size=2), check=False)
    assert np.load(store.sums_path).tolist() == [checksum(contents[i]) for i in (0, 2, 3, 4)]
    verify_images(store, source, HERE)
    (tmp_path / "set" / "4.bmp").unlink()
    with pytest.raises(DataError, match=r"1 of the 4 images .*4\.bmp"):
        verify_images(store, source, HERE)


def test_decoded_images_are_known_by_their_files(tmp_path: Path):
    image = Image.new("RGB", (8, 8), "red")
    (tmp_path / "set").mkdir()
    image.save(tmp_path / "set" / "a.png")
    source = open_source(tmp_path / "set")
    assert bytes(decoded(source, tmp_path / "store").content(0)) == (tmp_path / "set" / "a.png").read_bytes()
    assert isinstance(decoded(source, tmp_path / "store"), Source)


def test_what_cannot_be_compared_is_said(tmp_path: Path):
    source = open_source(written(tmp_path / "set", "folder", [encoded(0), encoded(1)]))
    store = embed(Means(), source, tmp_path / "store", HERE, check=False)
    content = bytearray(store.sums_path.read_bytes())
    content[-1] ^= 1
    store.sums_path.write_bytes(content)
    with pytest.raises(StoreError, match=r"images\.npy is not what was written"):
        verify_images(Store(store.folder), source, HERE)
    store.sums_path.unlink()
    with pytest.raises(StoreError, match="kept no checksums of the images"):
        verify_images(store, source, HERE)
    with pytest.raises(ConfigError, match="this run has none: leave it out"):
        distill(
            data="digits:train", teacher="small:resnet8x0.25", student="small:resnet8x0.25", method="moco",
            verify_images=True, out=tmp_path / "run", quiet=True,
        )  # fmt: skip


def test_the_flag_of_embed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "set", "folder", [encoded(i) for i in range(4)])
    Path("means.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n contract = {'size': 8, 'mean': [0]*3, 'std': [1]*3}\n"
        " def forward(self, x): return x.reshape(len(x), -1)[:, ::7].cos()\n"
    )
    command = ["embed", "--data", "set", "--teacher", "python:means:Net", "--workers", "0", "--verify-images"]
    assert main(command) == 0
    written(tmp_path / "set", "folder", [encoded(i) for i in (0, 1, 7, 3)])
    assert main([word for word in command if word != "--verify-images"]) == 0
    assert main(command) == 1
    assert "1 of the 4 images of set are not those" in capsys.readouterr().err
