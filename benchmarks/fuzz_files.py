"""Whole files of every kind that this program reads, and how it opens them: what `fuzz.py` mutates."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save

from understudy.errors import UnderstudyError, UnreadableImage
from understudy.evaluate.datasets import DATASETS
from understudy.evaluate.datasets.objects import Objects
from understudy.models.encoder import build_encoder
from understudy.sources.decode import to_rgb
from understudy.sources.source import Source, open_source

NETWORK = "small:resnet8x0.25"


@dataclass(frozen=True)
class Kind:
    """A kind of file: whole files (path and content), the first of which is mutated, and how they are opened."""

    files: dict[str, bytes]
    open: Callable[[Path], object]  # with the folder of the files


def picture(shape: tuple[int, ...] = (40, 56, 3), seed: int = 0) -> Image.Image:
    """A picture that is neither flat nor noise."""
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(0, 256, (6, 8, *shape[2:]), dtype=np.uint8))
    return rough.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures() -> dict[str, bytes]:
    """One file of each format of pictures, in the forms that have decoders of their own."""
    color, alpha = picture(), picture((40, 56, 4))
    deep = Image.fromarray(np.asarray(color.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    several = {"save_all": True, "append_images": [color.rotate(180)]}
    return {
        "jpg": encoded(color, "JPEG", exif=exif), "progressive.jpg": encoded(color, "JPEG", progressive=True),
        "cmyk.jpg": encoded(color.convert("CMYK"), "JPEG"), "mpo.jpg": encoded(color, "MPO", **several),
        "png": encoded(alpha, "PNG"), "16.png": encoded(deep, "PNG"), "palette.png": encoded(color.quantize(), "PNG"),
        "gif": encoded(color.quantize(), "GIF", transparency=3, **several), "bmp": encoded(color, "BMP"),
        "webp": encoded(color, "WEBP"), "lossless.webp": encoded(alpha, "WEBP", lossless=True),
        "tif": encoded(color, "TIFF"), "lzw.tif": encoded(alpha, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encoded(color, "TIFF", compression="jpeg"),
        "16.tif": encoded(deep, "TIFF", compression="tiff_deflate"),
        "jp2": encoded(color, "JPEG2000"), "avif": encoded(color, "AVIF"), "ppm": encoded(color, "PPM"),
        "plain.pgm": b"P2 8 8 255 " + b" ".join(b"%d" % n for n in range(64)),
    }  # fmt: skip


def open_picture(folder: Path) -> object:
    """Decode the only file."""
    return to_rgb(next(folder.iterdir()).read_bytes())


def open_images(name: str) -> Callable[[Path], object]:
    """List a set of images, with names and labels, and read some of them."""

    def open_(folder: Path) -> object:
        source = open_source(folder / name if name else folder)
        with contextlib.suppress(UnderstudyError):
            _ = source.labels, source.class_names
        _ = source.names.to_pylist()[:100]
        refused: UnreadableImage | None = None
        for row in {*range(min(len(source), 4)), len(source) - 1}:
            try:
                source.read(row)
            except UnreadableImage as error:
                refused = error
        if refused is not None:
            raise refused
        return source

    return open_


def sets_of_images() -> dict[str, Kind]:
    """One set in each container."""
    photos = [encoded(picture(seed=i), "JPEG") for i in range(6)]
    labels = pa.array([0, 1, 0, 1, 2, 2])
    images = pa.StructArray.from_arrays([pa.array(photos), pa.array([f"{i}.jpg" for i in range(6)])], ["bytes", "path"])
    table = pa.table({"image": images, "label": labels})
    parquet, stream, file, tar = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet, row_group_size=3)
    for sink, writer in ((stream, pa.ipc.new_stream), (file, pa.ipc.new_file)):
        with writer(sink, table.schema) as out:
            out.write_table(table, max_chunksize=3)
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for i, photo in enumerate(photos):
            for ending, content in ((".jpg", photo), (".cls", b"%d" % (i % 2)), (".json", b'{"label": 1}')):
                member = tarfile.TarInfo(f"{'deep/' * 30 if i == 3 else ''}{i}{ending}")  # one name is a long one
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    beside = {f"{name}/{i}.jpg": photo for i, photo in enumerate(photos) for name in ("a", "b")}
    npy = io.BytesIO()
    np.save(npy, np.stack([np.asarray(picture(seed=i)) for i in range(3)]))
    csv = "path,label\n" + "".join(f"{name},{name[0]}\n" for name in beside)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_data_files": None}
    found = {
        "parquet": {"set.parquet": parquet.getvalue()}, "stream.arrow": {"set.arrow": stream.getvalue()},
        "arrow": {"set.arrow": file.getvalue()}, "tar": {"set.tar": tar.getvalue()}, "npy": {"set.npy": npy.getvalue()},
        "txt": {"set.txt": "\n".join(beside).encode(), **beside}, "csv": {"set.csv": csv.encode(), **beside},
        "tsv": {"set.tsv": csv.replace(",", "\t").encode(), **beside},
    }  # fmt: skip
    kinds = {name: Kind(files, open_images(next(iter(files)))) for name, files in found.items()}
    saved = {"state.json": json.dumps(state).encode(), "data-00000-of-00001.arrow": stream.getvalue()}
    return kinds | {"state.json": Kind(saved, open_images(""))}


def weights() -> dict[str, Kind]:
    """One weight file in each format."""
    state = build_encoder(NETWORK, pretrained=False).module.state_dict()
    zipped, old, arrays = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": state, "epoch": 3}, zipped)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    np.savez(arrays, **{name: tensor.numpy() for name, tensor in state.items()})
    contents = {
        "pth": zipped.getvalue(),
        "old.pth": old.getvalue(),
        "npz": arrays.getvalue(),
        "safetensors": save(state),
    }
    return {name: Kind({f"w.{name.split('.')[-1]}": content}, open_weights) for name, content in contents.items()}


def open_weights(folder: Path) -> object:
    """Load the only file into a network, as a teacher."""
    return build_encoder(f"{NETWORK}@{_only(folder)}", pretrained=True)


def annotated_sets() -> dict[str, Kind]:
    """Annotated sets, whose annotations are mutated."""
    photo = encoded(picture(), "JPEG")
    outlined = {
        "id": 1, "image_id": 7, "category_id": 3, "bbox": [4, 5, 20, 10], "area": 200, "iscrowd": 0,
        "segmentation": [[4, 5, 24, 5, 24, 15]],
    }  # fmt: skip
    images = [{"id": 7, "file_name": "0.jpg", "width": 56, "height": 40}]
    coco = json.dumps({"images": images, "annotations": [outlined], "categories": [{"id": 3, "name": "cat"}]}).encode()
    box = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
    size = "<size><width>56</width><height>40</height></size>"
    voc = f"<annotation>{size}<object><name>cat</name><difficult>0</difficult>{box}</object></annotation>".encode()
    landmarks = {"gnd": [{"bbx": [1, 2, 30, 30], "easy": [0], "hard": [1], "junk": []}], "imlist": ["0", "1"]}
    truth = pickle.dumps(landmarks | {"qimlist": ["0"]}, 2)
    places = {f"VOC2007/ImageSets/Main/{name}.txt": b"0\n" for name in ("trainval", "test")}
    coco_files = {f"annotations/instances_{half}2017.json": coco for half in ("val", "train")}
    coco_files |= {f"{half}2017/0.jpg": photo for half in ("train", "val")}
    voc_files = {"VOC2007/Annotations/0.xml": voc, **places, "VOC2007/JPEGImages/0.jpg": photo}
    landmark_files = {"roxford5k/gnd_roxford5k.pkl": truth, **{f"roxford5k/jpg/{i}.jpg": photo for i in range(2)}}
    return {
        "coco.json": Kind(coco_files, open_dataset("coco")),
        "voc.xml": Kind(voc_files, open_dataset("voc")),
        "gnd.pkl": Kind(landmark_files, open_dataset("roxford5k")),
    }


def open_dataset(name: str) -> Callable[[Path], object]:
    """Open a set in its official layout and read what protocols read."""

    def open_(folder: Path) -> object:
        held = DATASETS[name].open(os.fspath(folder))
        for part in (*held.sources.values(), *held.metadata.values()):
            if isinstance(part, Source | Objects):
                part.read(0)
            if isinstance(part, Objects):
                _ = part.boxes(0), part.coco(), part.fingerprint
        return held

    return open_


def _only(folder: Path) -> Path:
    return next(folder.iterdir())


def kinds() -> dict[str, Kind]:
    """All kinds, by name."""
    alone = {name: Kind({f"a.{name.split('.')[-1]}": data}, open_picture) for name, data in pictures().items()}
    return alone | sets_of_images() | weights() | annotated_sets()
