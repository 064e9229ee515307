"""Weight files as foreign data: nothing in them runs, and what they claim is checked before it is unpacked."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import socket
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from understudy.errors import ModelError
from understudy.models.checkpoints import load_into
from understudy.models.resnet import small_resnet
from understudy.models.weight_files import read_weights


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """100 kB that would be 100 MB, as .npz and inside what `torch.save` writes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (25_000_000,)})
    for name, member in (("bomb.npz", "x.npy"), ("bomb.pth", "archive/data/0")):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, header.getvalue() + bytes(100_000_000))
        with pytest.raises(ModelError, match=rf"{name} has [\d,]+ bytes and would unpack to 100,000,\d+, more than 20"):
            read_weights(tmp_path / name)


def test_an_array_has_the_size_it_says(tmp_path: Path) -> None:
    for shape, size in (((2**40,), "4,398,046,511,104"), ((1,), "4")):
        with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive, archive.open("x.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
            member.write(b"abc")
        with pytest.raises(ModelError, match=f"lie.npz: x.npy says that it has {size} bytes .* there are 3"):
            read_weights(tmp_path / "lie.npz")


def test_arrays_of_any_layout_are_what_numpy_reads(tmp_path: Path) -> None:
    arrays = {
        "rows": np.arange(12.0).reshape(3, 4), "columns": np.asfortranarray(np.arange(24).reshape(2, 3, 4)),
        "big": np.arange(5, dtype=">f4"), "one": np.array(2.5, np.float16), "none": np.zeros((0, 3), np.int8),
    }  # fmt: skip
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "a.npz", **arrays, words=np.array(["not a number"]))
        tensors = read_weights(tmp_path / "a.npz")
        assert set(tensors) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(tensors[name].numpy(), array)


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(depth):
        inner = {"a": inner}
    return inner


def test_containers_that_never_end(tmp_path: Path) -> None:
    """Deep ones, one that holds itself, and a few of which each holds the next twice: 2^40 ways to the last."""
    torch.save(nested(20), tmp_path / "a.pth")
    assert list(read_weights(tmp_path / "a.pth")) == [".".join("a" * 20) + ".w"]
    torch.save(nested(400), tmp_path / "deep.pth")
    with pytest.raises(ModelError, match="more than 32 deep"):
        read_weights(tmp_path / "deep.pth")
    ring: dict[str, Any] = {"w": torch.ones(2)}
    ring["again"] = ring
    torch.save(ring, tmp_path / "ring.pth")
    assert list(read_weights(tmp_path / "ring.pth")) == ["w"]
    twice: dict[str, Any] = {"w": torch.ones(2)}
    for _ in range(30):
        twice = {"a": twice, "b": twice}
    torch.save(twice, tmp_path / "twice.pth")
    assert len(read_weights(tmp_path / "twice.pth")) == 1
    torch.save({"." * 100_000: torch.ones(1), "w": torch.ones(1)}, tmp_path / "dots.pth")
    assert list(read_weights(tmp_path / "dots.pth")) == ["w"]


def test_what_is_no_tensor_is_not_made(tmp_path: Path) -> None:
    """A command line and NumPy's scalars are passed over; the attributes that a file sets reach nobody."""
    args = argparse.Namespace(lr=0.1)
    torch.save({"args": args, "best": np.float64(1), "kind": np.dtype("f4"), "w": torch.ones(1)}, tmp_path / "a.pth")
    assert list(read_weights(tmp_path / "a.pth")) == ["w"]
    # `argparse.Namespace.__dict__` and `__setattr__` by a hostile state: BUILD of the class and of an instance.
    for number, code in enumerate((b"}X\1\0\0\0aX\1\0\0\0bsb.", b")R}X\1\0\0\0aX\1\0\0\0bsb.", b")R}(X\1\0\0\0ab.")):
        (tmp_path / f"{number}.pth").write_bytes(b"\x80\2cargparse\nNamespace\n" + code)
        with pytest.raises(ModelError, match=rf"{number}.pth"):
            read_weights(tmp_path / f"{number}.pth")
    assert not hasattr(argparse.Namespace, "a")


class Ran:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a weight file was unpickled",))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_of_any_kind_runs_nothing(tmp_path: Path, protocol: int) -> None:
    for name in ("a.pth", "a.bin", "a.PT"):
        (tmp_path / name).write_bytes(pickle.dumps({"w": Ran()}, protocol=protocol))
        with pytest.raises(ModelError, match=name):
            read_weights(tmp_path / name)


def test_a_record_shorter_than_its_tensor(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"w": torch.ones(1000)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(cut, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            target.writestr(entry.filename.replace("whole", "cut"), data[:8] if "data/0" in entry.filename else data)
    with pytest.raises(ModelError, match="cut.pth cannot be read as a weight file"):
        read_weights(cut)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.pth"))
        for name, kind in (("pipe.pth", "a named pipe"), ("socket.pth", "a socket"), (".", "a folder")):
            with pytest.raises(ModelError, match=f"cannot be opened .it is {kind} and no regular file"):
                read_weights(tmp_path / name)
    with pytest.raises(ModelError, match="it is a device"):
        read_weights("/dev/zero")
    with pytest.raises(ModelError, match="null byte"):
        read_weights("a\0.pth")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pth")
    assert list(read_weights("~/a.pth")) == ["w"]
    with pytest.raises(ModelError, match="~nobody-of-this-name"):
        read_weights("~nobody-of-this-name/a.pth")


HOSTILE = ["w_meta.pth", "w_npzlie.npz", "w_quant.pth", "w_setattr.pth"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_sentences(shared: Path, name: str) -> None:
    with pytest.raises(ModelError, match=name):
        load_into(small_resnet("resnet20"), shared / "cases" / "hostile" / name)


def test_numbers_of_another_kind_are_no_weights(tmp_path: Path) -> None:
    state = small_resnet("resnet8").state_dict()
    for name, other, words in (
        ("meta", torch.empty(16, 3, 3, 3, device="meta"), "has a shape in the file, and no numbers"),
        ("int8", torch.ones(16, 3, 3, 3, dtype=torch.int8), "is int8 in the file and float32 in the model"),
        ("eight", torch.ones(16, 3, 3, 3).to(torch.float8_e5m2), "is float8_e5m2 in the file"),
        ("complex", torch.ones(16, 3, 3, 3, dtype=torch.complex64), "is complex64 in the file"),
        ("sparse", torch.ones(16, 3, 3, 3).to_sparse(), "is sparse float32 in the file"),
    ):
        torch.save(state | {"conv1.weight": other}, tmp_path / f"{name}.pth")
        with pytest.raises(ModelError, match=f"needs all of them and all buffers. conv1.weight {words}"):
            load_into(small_resnet("resnet8"), tmp_path / f"{name}.pth", whole=True)
    torch.save(
        {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()},
        tmp_path / "half.pth",
    )
    assert "missing: none" in load_into(small_resnet("resnet8"), tmp_path / "half.pth", whole=True)
