"""Retrieval sets with ground truth: revisited Oxford and Paris (Radenovic et al., CVPR 2018), and sets kept like them.

`FOLDER/jpg/NAME.jpg` and `FOLDER/gnd_NAME.pkl`, a pickle of lists of names and numbers. It is read without executing
it: of all that a pickle can ask for, only plain containers, text, numbers and numpy arrays of numbers are made.

The metadata of the set: "gnd", one table a query with its lists "easy", "hard", "junk" (revisited) or "ok", "junk" (the
older kind, INSTRE's), of database ids.
"""

from __future__ import annotations

import io
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from understudy.artifacts import fingerprint, read_regular
from understudy.errors import DataError, UnreadableImage
from understudy.evaluate.dataset import Dataset, EvaluationSet, below, listed
from understudy.sources.labels import Labels
from understudy.sources.source import Source


def read_ground_truth(path: Path, home: str) -> dict[str, Any]:
    """A ground-truth pickle as plain data; nothing in it is executed.

    Raises:
        DataError: it is missing, damaged, or asks for anything but plain containers, numbers, text and numeric arrays.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). The set is had at {home}.") from None
    try:
        # The published files were written by Python 2: their byte strings are text.
        table = _Plain(io.BytesIO(content), encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{path} was not opened: {error}") from None
    except Exception as error:  # whatever a damaged pickle raises
        raise DataError(f"{path} is not a ground-truth pickle that can be read ({error}).") from None
    needed = ("gnd", "imlist", "qimlist")
    if not isinstance(table, dict) or not all(isinstance(table.get(name), list | tuple) for name in needed):
        raise DataError(f"{path} must hold lists called {', '.join(needed)}; it is of another kind.")
    for kind in ("imlist", "qimlist"):
        if odd := next((name for name in table[kind] if not isinstance(name, str) or "\0" in name), None):
            raise DataError(f"{path} must hold names of images in {kind}; one is {type(odd).__name__}.")
    if not all(isinstance(entry, dict) for entry in table["gnd"]):
        raise DataError(f"{path} must hold a table for each query in gnd; it is of another kind.")
    return table


# The reader in Python: the one in C makes room for as many objects as a damaged file says there are.
class _Plain(pickle._Unpickler):
    """A pickle reader that can make arrays of numbers and nothing else that has a name."""

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle calls by name."""
        known: dict[tuple[str, str], Any] = {
            ("numpy", "dtype"): _Dtype,
            ("numpy", "ndarray"): _Array,
            ("_codecs", "encode"): str.encode,  # how Python 3 writes bytes for Python 2
        }
        for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
            known[core, "_reconstruct"] = _Array
            known[core, "scalar"] = _scalar
        if (module, name) not in known:
            raise DataError(f"it asks for {module}.{name}, and ground truth is plain lists and numbers.")
        return known[module, name]


class _Dtype:
    """A numpy type of numbers or text, remade from its name; what else a pickle tells of it is not trusted."""

    def __init__(self, kind: str, *_: Any) -> None:
        if not re.fullmatch(r"[biufSU]\d{1,4}", kind):
            raise DataError(f"it holds arrays of type {kind!r}, and ground truth is plain lists and numbers.")
        self.numpy = np.dtype(kind)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])


class _Array:
    """A numpy array remade from its bytes."""

    def __init__(self, *_: Any) -> None:
        self.values = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _Dtype) or not isinstance(content, bytes | str):
            raise DataError("it holds an array of objects, and ground truth is plain lists and numbers.")
        values = np.frombuffer(_bytes(content), dtype=kind.numpy)
        self.values = values.reshape(shape, order="F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype) if dtype is not None or copy else self.values


def _scalar(kind: _Dtype, content: bytes | str) -> Any:
    return np.frombuffer(_bytes(content), dtype=kind.numpy)[0].item()


def _bytes(content: bytes | str) -> bytes:
    return content.encode("latin1") if isinstance(content, str) else content


class CroppedImages:
    """The images of a source, each cut to its box: left, top, right, bottom in pixels, None for the whole."""

    def __init__(self, source: Source, boxes: list[tuple[float, ...] | None]) -> None:
        self.source, self.boxes = source, boxes
        self.fingerprint = fingerprint("cropped", source.fingerprint, boxes)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, row: int) -> Image.Image:
        """See `Images`."""
        image, box = self.source.read(row), self.boxes[row]
        if box is None:
            return image
        left, top, right, bottom = (round(side) for side in box)
        if left >= image.width or top >= image.height or right <= 0 or bottom <= 0:
            raise UnreadableImage(f"{self.source.name(row)}: its box {box} lies outside of it.")
        width, height = image.size
        if left < -width or top < -height or right > 2 * width or bottom > 2 * height:  # it would be filled with black
            raise UnreadableImage(f"{self.source.name(row)}: its box {box} is far larger than the image.")
        return image.crop((left, top, right, bottom))

    def content(self, row: int) -> bytes | memoryview:
        """See `Images`: that of the whole image, as it is stored."""
        return self.source.content(row)

    def names(self, rows: np.ndarray) -> pa.Array:
        """See `Images`."""
        return self.source.images.names(rows)

    def labels(self) -> Labels | None:
        """See `Images`."""
        return None


def _file(root: Path, name: Any) -> str:
    text = str(name)
    if Path(text).suffix.lower() in (".jpg", ".jpeg", ".png"):
        return text if os.path.exists(root / text) else f"jpg/{text}"
    return f"jpg/{text}.jpg"


def _box(value: Any, home: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    box = tuple(_numbers(value, np.float64, home).tolist())
    if len(box) != 4:
        return None
    if not (np.isfinite(box).all() and box[0] < box[2] and box[1] < box[3]):
        raise DataError(f"The ground truth has a query with the box {box}, which is none. The set is had at {home}.")
    return box


def _numbers(value: Any, kind: type[np.generic], home: str) -> np.ndarray:
    """Numbers of a ground truth, (n,): an array, or a flat list; a list of lists of lists could grow without end."""
    plain = value.values if isinstance(value, _Array) else value
    flat = isinstance(plain, list | tuple) and all(isinstance(one, int | float | np.generic) for one in plain)
    if not flat and not isinstance(plain, np.ndarray):
        raise DataError(f"The ground truth must hold lists of numbers. The set is had at {home}.")
    try:
        return np.asarray(plain, dtype=kind).ravel()
    except (ValueError, OverflowError) as error:
        raise DataError(f"The ground truth must hold numbers ({error}). The set is had at {home}.") from None


def _plain(entry: Mapping[str, Any], images: int, home: str) -> dict[str, np.ndarray]:
    lists = {}
    for kind in ("easy", "hard", "junk", "ok"):
        if kind in entry:
            ids = _numbers(entry[kind], np.int64, home)
            if len(ids) and not (ids.min() >= 0 and ids.max() < images):
                raise DataError(f"The ground truth names image {ids.max()} of {images}. The set is had at {home}.")
            lists[kind] = ids
    return lists


class Landmarks(Dataset):
    """A set of revisited Oxford and Paris, or one kept like them: its folder is called as the set is."""

    kind = "landmarks"

    @classmethod
    def open(cls, path: str) -> EvaluationSet:
        """See `Dataset`."""
        file = f"gnd_{cls.name}.pkl"
        root = below(path, f"{cls.name}/{file}", home=cls.home) / cls.name
        table = read_ground_truth(root / file, cls.home)
        database = listed(root, [_file(root, one) for one in table["imlist"]], home=cls.home)
        photographs = listed(root, [_file(root, one) for one in table["qimlist"]], home=cls.home)
        truth = [_plain(entry, len(database), cls.home) for entry in table["gnd"]]
        if (count := len(photographs)) != len(truth):
            raise DataError(f"{root}: {count} queries and ground truth of {len(truth)}. It is had at {cls.home}.")
        boxes = [_box(entry.get("bbx"), cls.home) for entry in table["gnd"]]
        queries = Source(f"{path} queries", CroppedImages(photographs, boxes))
        metadata = {"gnd": truth, "home": cls.home}
        return EvaluationSet(cls.name, "landmarks", path, test=database, queries=queries, metadata=metadata)


class RevisitedOxford(Landmarks):
    """Landmarks of Oxford, revisited ground truth."""

    name = "roxford5k"
    paper = "Radenovic et al., Revisiting Oxford and Paris, CVPR 2018"
    home = "http://cmp.felk.cvut.cz/revisitop/"


class RevisitedParis(RevisitedOxford):
    """Landmarks of Paris, revisited ground truth."""

    name = "rparis6k"


class Instre(Landmarks):
    """Instances of 250 objects, buildings and logos."""

    name = "instre"
    paper = "Wang and Jiang, INSTRE: A New Benchmark for Instance-Level Object Retrieval and Recognition, ACM TOMM 2015"
    home = "http://123.57.42.89/instre/home.html, its ground truth with the diffusion code of Iscen et al."
