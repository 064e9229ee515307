"""The doctor: every fault it knows, made here on purpose, and none found where there is none."""

from __future__ import annotations

import io
import os
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from understudy.doctor import examination, inputs, libraries, machine, probes
from understudy.doctor.check import Check, render

TORCH = {
    "version": "2.15.0",
    "seconds": 3.0,
    "cuda": "13.2",
    "hip": None,
    "threads": 2,
    "devices": [],
    "complaints": [],
    "mps": False,
}
GPU = {**TORCH, "devices": [{"name": "NVIDIA H100"}]}


def shown(found: list[Check], width: int = 100) -> str:
    page = io.StringIO()
    render(found, Console(width=width, file=page))
    return page.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_this_installation_is_sound(tmp_path: Path):
    found = examination.checks(store=str(tmp_path / "store"))
    assert [check for check in found if check.status == "fail"] == []
    names = [check.name for check in found]
    assert names[:4] == ["python", "packages", "torch", "torchvision"]
    assert len(names) == len(set(names))
    assert not (tmp_path / "store").exists()  # it looks, it does not write


@pytest.mark.slow
def test_a_library_that_cannot_be_imported_becomes_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    (tmp_path / "timm.py").write_text("print('noise'); __version__ = '1.0'\n")
    (tmp_path / "faiss.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n")
    (tmp_path / "onnx.py").write_text("import time; time.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(probes, "GROUPS", (("torchvision", "timm"), ("faiss", "pyarrow")))
    found = probes.probe_libraries()
    assert found["torchvision"] == {"error": "RuntimeError: operator torchvision::nms does not exist"}
    assert found["timm"]["version"] == "1.0"
    assert "SIGKILL" in found["faiss"]["error"]
    assert "error" in found["pyarrow"]  # never reached
    monkeypatch.setattr(probes, "GROUPS", (("timm", "onnx"),))
    found = probes.probe_libraries(timeout=5)
    assert found["timm"]["version"] == "1.0"
    assert "more than 5 s" in found["onnx"]["error"]
    assert libraries.library("onnx", found["onnx"]).fix == "uv pip install --reinstall onnx"


def test_torchvision_of_another_torch_is_named_with_the_matching_pair():
    sound = {"version": "0.29.2+cu132", "seconds": 1.0}
    broken = {"error": "RuntimeError: operator torchvision::nms does not exist"}
    bound, pin = ["numpy", "torch (>=2.14.0)"], ["torch==2.15.0", "pillow (!=8.3.*,>=5.3.0)"]
    for needs in (bound, pin):
        assert libraries.torchvision_pair(sound, "2.15.0+cu132", "0.29.2", needs).status == "ok"

    check = libraries.torchvision_pair(broken, "2.13.0+cpu", "0.29.2", bound)
    assert check.status == "fail"
    assert "torchvision 0.29.2 needs torch >= 2.14.0, found torch 2.13.0+cpu" in check.found
    assert "operator torchvision::nms does not exist" in check.found
    assert "uv pip install --reinstall 'torch>=2.14.0' torchvision==0.29.2" in check.fix
    check = libraries.torchvision_pair(sound, "2.15.1", "0.29.2", pin)  # imports, and would fail at the first operator
    assert check.status == "fail"
    assert "uv pip install --reinstall 'torch==2.15.0' torchvision==0.29.2" in check.fix

    # The numbers agree, the builds do not: only the import tells.
    check = libraries.torchvision_pair(broken, "2.15.0+cpu", "0.29.2", bound)
    assert check.status == "fail"
    assert "nms does not exist: torchvision 0.29.2 and torch 2.15.0+cpu come from different builds" in check.found
    # timm dies of the same fault, and reinstalling timm would not help.
    assert libraries.library("timm", broken).fix == "mend torchvision first"


def test_packages_missing_and_old_are_listed_with_one_command():
    have = {"torch": "2.10.1+cpu", "numpy": "2.4.6", "timm": "1.0.31"}
    needs = ["torch>=2.11", "numpy>=2.0", "timm>=1.0.31", "tomli-w>=1.1", 'ruff>=0.11; extra == "dev"']
    check = libraries.packages(needs, have.get)
    assert check.status == "fail"
    assert check.found == "torch 2.10.1+cpu is older than 2.11, tomli-w is missing"
    assert check.fix == "uv pip install 'torch>=2.11' 'tomli-w>=1.1'"
    assert libraries.packages(needs[1:3], have.get) == Check("packages", "ok", "all 2 requirements are met")
    assert libraries.packages([], have.get).status == "fail"


def test_old_python_and_old_torch():
    assert libraries.python((3, 11, 0), True).status == "ok"
    assert libraries.python((3, 10, 14), True).status == "fail"
    assert libraries.python((3, 12, 1), False).status == "fail"
    assert libraries.torch_import({**TORCH, "version": "2.9.1"}).status == "fail"
    assert libraries.torch_import({**TORCH, "version": "2.11.0+cpu"}).status == "ok"


@pytest.mark.parametrize(
    ("torch", "driver", "status", "words"),
    [
        (TORCH, None, "ok", "CPU only"),
        (GPU, "580.65.06", "ok", "NVIDIA H100 (CUDA 13.2)"),
        ({**GPU, "cuda": None, "hip": "7.0"}, None, "ok", "ROCm 7.0"),
        ({**TORCH, "mps": True}, None, "ok", "Apple"),
        ({**TORCH, "cuda": None}, "580.65.06", "warn", "built without CUDA"),
        ({**TORCH, "complaints": ["The NVIDIA driver is too old\nmore"]}, "470.1", "warn", "too old"),
        ({**TORCH, "devices": [{"name": "Old", "error": "no kernel image\nx"}]}, "5", "fail", "no kernel image"),
        ({"error": "ImportError: x"}, None, "fail", "torch cannot be imported"),
    ],
)
def test_devices(torch: dict[str, object], driver: str | None, status: str, words: str):
    check = machine.device(torch, driver)
    assert check.status == status
    assert words in check.found
    assert bool(check.fix) == (status != "ok")


def test_onnx_teachers_beside_a_gpu():
    cpu, both = ({"providers": [f"{name}ExecutionProvider" for name in names]} for names in (["CPU"], ["CUDA", "CPU"]))
    assert machine.onnx_device(cpu, TORCH).status == "ok"
    assert machine.onnx_device(cpu, GPU).status == "warn"
    assert machine.onnx_device(both, GPU).status == "ok"
    assert machine.onnx_device({"error": "x"}, GPU).status == "fail"


def test_more_threads_than_cores():
    assert machine.threads(64, 2).fix == "export OMP_NUM_THREADS=2"
    assert machine.threads(2, 2).status == "ok"
    assert machine.threads(None, 2).status == "ok"  # torch is broken: said elsewhere
    assert 1 <= probes.usable_cores() <= (os.cpu_count() or 1)


def test_bytecode_matters_only_where_it_is_missing():
    assert machine.bytecode("1", torch_compiled=False).status == "warn"
    assert machine.bytecode("1", torch_compiled=True).status == "ok"
    assert machine.bytecode("", torch_compiled=False).status == "ok"
    assert probes.compiled("no_such_package")


def test_room_on_disk_and_in_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")

    def with_free(gib: float) -> None:
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(int(gib * 2**30), 0, int(gib * 2**30)))

    store = tmp_path / "a" / "store"
    with_free(100)
    assert machine.disk(store, None).status == "ok"
    assert machine.disk(store, 98 * 2**30).status == "warn"
    assert machine.disk(store, 100 * 2**30).status == "fail"
    with_free(0.5)
    assert machine.disk(store, None).status == "fail"
    file = tmp_path / "file"
    file.touch()
    assert "cannot be written to" in machine.disk(file / "store", None).found

    with_free(0.0625)
    assert machine.shared_memory(tmp_path)[0].status == "warn"
    with_free(8)
    assert machine.shared_memory(tmp_path)[0].status == "ok"
    assert machine.shared_memory(tmp_path / "absent") == []


def test_data_and_teacher(tmp_path: Path):
    random = np.random.default_rng(0)
    for index in range(8):
        Image.fromarray(random.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    check, images, rows = inputs.data_source(str(tmp_path))
    assert (check.status, len(images), rows) == ("ok", 8, 8)
    assert "8 images without labels" in check.found

    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:200])
    check, images, rows = inputs.data_source(str(tmp_path))
    assert (check.status, len(images), rows) == ("warn", 7, 8)
    assert "1 of them unreadable" in check.found
    assert "3.png" in check.found

    check, images, rows = inputs.data_source(str(tmp_path / "absent"))
    assert (check.status, images, rows) == ("fail", [], None)
    assert "absent" in check.found

    check, width = inputs.teacher_model("small:resnet8", [])
    assert (check.status, width) == ("fail", None)
    assert "weights" in check.found


def test_the_real_teacher(shared: Path):
    images = inputs.data_source(str(shared / "data" / "cifar10" / "test.parquet"))[1]
    assert len(images) == inputs.SAMPLE
    check, width = inputs.teacher_model(f"onnx:{shared / 'weights' / 'resnet56_cifar10.onnx'}", images)
    assert (check.status, width) == ("ok", 64), check.found


def test_the_page_says_what_to_do():
    found = [Check("a", "ok", "fine"), Check("b", "warn", "slow", "do this"), Check("c", "fail", "broken", "do that")]
    text = shown(found)
    assert "fix: do this" in text
    assert "1 of 3 checks failed" in text
    assert "1 of 2 checks could be better" in shown(found[:2])
    assert "All 1 checks passed" in shown(found[:1])
    long = Check("data", "fail", "x" * 300, "y" * 300)
    assert shown([long], width=60).count("y") == 300  # a long fix is folded, never cut
