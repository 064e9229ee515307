"""Files on disk: atomic writes, fingerprints, stores that refuse what they were not made from, one writer at a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import launch
from understudy.artifacts import (
    Run,
    Store,
    StoreKey,
    atomic,
    blocks_of,
    file_fingerprint,
    fingerprint,
    lock,
    read_json,
    room_on_disk,
    sweep,
    write_json,
)
from understudy.errors import ConfigError, StoreError

KEY = StoreKey(
    teacher={"fingerprint": "aa", "spec": "small:resnet8"},
    preprocessing={"size": 32, "mean": (0.5, 0.5, 0.5)},
    data={"fingerprint": "bb", "spec": "digits", "images": 4},
)


def finished_store(folder: Path, rows: int = 4, key: StoreKey = KEY) -> Store:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "embeddings.npy", np.ones((rows, 3), np.float16))
    store = Store(folder)
    store.finish(key, rows=rows, D=3)
    return store


def run_python(script: str, *arguments: object) -> subprocess.Popen[str]:
    return launch.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def test_fingerprint_sees_every_part_its_order_type_and_shape():
    zeros = np.zeros((2, 3), np.float32)
    parts: list[tuple[object, ...]] = [
        ("ab", "c"), ("a", "bc"), ("c", "ab"), ("abc",), (1,), ("1",), (b"1",), (None,), (), ({"a": 1},), ({"a": 2},),
        (b"ab", b"c"), (b"ab\x00", b"c"), (b"ab", b"\x00c"), (zeros,), (zeros.T,), (zeros.astype(np.int32),),
        (zeros + 1,), (zeros.tobytes(),),
    ]  # fmt: skip
    assert len({fingerprint(*part) for part in parts}) == len(parts)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(zeros) == fingerprint(np.asfortranarray(zeros))


def test_fingerprint_is_the_same_in_another_process():
    script = "from understudy.artifacts import fingerprint; print(fingerprint('teacher', {'size': 32}, b'x'))"
    printed, _ = run_python(script).communicate()
    assert printed.strip() == fingerprint("teacher", {"size": 32}, b"x")


def test_file_fingerprint_follows_the_content_only(tmp_path: Path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"x" * 3_000_000)
    second.write_bytes(b"x" * 3_000_000)
    assert file_fingerprint(first) == file_fingerprint(second)
    second.write_bytes(b"x" * 2_999_999 + b"y")
    assert file_fingerprint(first) != file_fingerprint(second)


def test_atomic_leaves_the_old_file_when_the_writer_fails(tmp_path: Path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(UnicodeEncodeError), atomic(path) as temporary:
        temporary.write_text("half, then \ud800", encoding="utf-8")
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["value.json"]


class Foreign(Exception):
    """Of a library that tells the system's words and not its number."""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    said = pytest.raises(StoreError, match=f"The disk that holds {tmp_path} is full .* what was saved before is whole")
    with said, atomic(path) as temporary, open("/dev/full", "wb", buffering=0) as file:
        temporary.write_text("half")
        file.write(b"value")
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["value.json"]


@pytest.mark.parametrize(("free", "error", "full"), [
    (2**40, Foreign("I/O error: No space left on device (os error 28)"), True),
    (0, RuntimeError("unexpected pos 371328 vs 371216"), True),
    (2**40, RuntimeError("unexpected pos 371328 vs 371216"), False),
    (0, ConfigError("Another fault."), False),
])  # fmt: skip
def test_what_a_full_disk_is_called_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, error: Exception, full: bool
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free, total=2**41))
    with pytest.raises(StoreError if full else type(error)) as raised, room_on_disk(tmp_path / "file"):
        raise error
    assert (raised.value is error) != full
    assert not full or raised.value.__cause__ is error


def test_what_is_written_can_be_read_by_whom_the_system_lets(tmp_path: Path):
    umask = os.umask(0o022)
    os.umask(umask)
    with atomic(tmp_path / "weights") as temporary:
        temporary.touch(0o600)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o666 & ~umask


def test_atomic_leaves_the_old_file_when_the_writer_is_killed(tmp_path: Path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    script = """
import os, signal, sys
from understudy.artifacts import atomic
with atomic(sys.argv[1]) as temporary:
    temporary.write_text('half')
    os.kill(os.getpid(), signal.SIGKILL)
"""
    writer = run_python(script, path)
    writer.communicate()
    assert writer.returncode == -signal.SIGKILL
    assert read_json(path) == {"a": 1}


def test_json_refuses_nan_and_reports_what_is_wrong_with_a_file(tmp_path: Path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    with pytest.raises(StoreError, match="does not exist"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"a":')
    with pytest.raises(StoreError, match="not valid JSON"):
        read_json(tmp_path / "x.json")


def test_key_counts_what_changes_the_rows_and_not_how_they_are_called():
    def key(**changes: object) -> str:
        table = {**KEY.table(), **changes}
        return StoreKey(**table).fingerprint  # type: ignore[arg-type]

    assert key() == KEY.fingerprint
    assert key(teacher={"fingerprint": "aa", "spec": "run:elsewhere"}) == KEY.fingerprint
    assert key(data={"fingerprint": "bb", "spec": "moved"}) == KEY.fingerprint
    changed = {
        key(teacher={"fingerprint": "ab"}),
        key(data={"fingerprint": "bc"}),
        key(dtype="float32"),
        key(preprocessing={"size": 33, "mean": (0.5, 0.5, 0.5)}),
        KEY.fingerprint,
    }
    assert len(changed) == 5


def test_store_is_found_under_its_root_or_by_itself(tmp_path: Path):
    store = Store.at(tmp_path, KEY)
    assert store.folder == tmp_path / KEY.fingerprint
    assert not store.complete
    finished_store(store.folder)
    assert Store.at(tmp_path, KEY).complete
    assert Store.at(store.folder, KEY).folder == store.folder
    assert Store(store.folder).embeddings().shape == (4, 3)


@pytest.mark.parametrize(
    ("change", "part", "values"),
    [
        ({"teacher": {"fingerprint": "zz", "spec": "onnx:other"}}, "teacher weights", ("small:resnet8", "onnx:other")),
        ({"preprocessing": {"size": 64, "mean": (0.5, 0.5, 0.5)}}, "preprocessing", ("size=32", "size=64")),
        ({"data": {"fingerprint": "yy", "spec": "photos", "images": 9}}, "data listing", ("digits", "photos")),
        ({"dtype": "float32"}, "stored precision", ("float16", "float32")),
    ],
)
def test_store_refuses_another_key_and_names_the_part(
    tmp_path: Path, change: dict[str, object], part: str, values: tuple[str, str]
):
    finished_store(tmp_path / "store")
    other = StoreKey(**{**KEY.table(), **change})  # type: ignore[arg-type]
    with pytest.raises(StoreError) as refusal:
        Store.at(tmp_path / "store", other)
    text = str(refusal.value)
    assert all(value in text for value in (part, *values))
    others = {"teacher weights", "preprocessing", "data listing", "stored precision"} - {part}
    assert not any(name in text for name in others)


def test_store_without_manifest_cannot_be_read(tmp_path: Path):
    np.save(tmp_path / "embeddings.npy", np.ones((4, 3)))
    with pytest.raises(StoreError, match="not a complete store"):
        Store(tmp_path).embeddings()


def test_store_of_another_format_or_length_is_refused(tmp_path: Path):
    store = finished_store(tmp_path, rows=4)
    np.save(tmp_path / "embeddings.npy", np.ones((3, 3)))
    with pytest.raises(StoreError, match="has 3 rows, its manifest says 4"):
        store.embeddings()
    (tmp_path / "embeddings.npy").write_bytes((tmp_path / "embeddings.npy").read_bytes()[:-8])
    with pytest.raises(StoreError, match="cannot be read"):
        store.embeddings()
    write_json(store.manifest_path, {**store.manifest, "format": 99})
    with pytest.raises(StoreError, match="format 99"):
        store.embeddings()


def test_amend_adds_and_removes_facts_and_keeps_the_others(tmp_path: Path):
    store = finished_store(tmp_path)
    with pytest.raises(StoreError, match="no neighbor graph yet"):
        store.graph()
    np.save(tmp_path / "graph.npy", np.zeros((4, 2), np.int32))
    store.amend(graph={"K": 2})
    assert store.graph().shape == (4, 2)
    store.amend(graph=None)
    assert "graph" not in store.manifest
    assert store.manifest["rows"] == 4
    store.check(KEY)


def test_lock_excludes_another_process_and_says_which(tmp_path: Path):
    script = """
import sys, time
from understudy.artifacts import lock
with lock(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""
    holder = run_python(script, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StoreError, match=f"Process {holder.pid} is writing"), lock(tmp_path):
        pass
    holder.kill()  # SIGKILL: nobody cleans up
    holder.communicate()
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    with lock(tmp_path):
        pass


def test_run_metrics_leave_out_a_line_cut_off_by_a_kill(tmp_path: Path):
    run = Run(tmp_path)
    assert run.metrics() == []
    rows = [{"step": 1, "time": time.time()}, {"step": 2}]
    run.metrics_path.write_text("\n".join(json.dumps(row) for row in rows) + '\n{"step": 3, "lo')
    assert run.metrics() == rows
    assert not run.trained


def test_a_shared_lock_keeps_out_only_those_who_would_be_alone(tmp_path: Path):
    alone = pytest.raises(StoreError, match="is writing")
    with lock(tmp_path, shared=True), lock(tmp_path, shared=True), alone, lock(tmp_path):
        pass
    with lock(tmp_path), pytest.raises(StoreError, match="is writing"), lock(tmp_path, shared=True):
        pass


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(0, []), (3, [3]), (4, [4]), (9, [4, 4, 1]), (12, [4, 4, 4]), (13, [8, 5]), (24, [8, 8, 8]), (25, [12, 12, 1])],
)
def test_blocks_cover_the_work_and_are_few(count: int, sizes: list[int]):
    blocks = blocks_of(count, smallest=4, most=3)
    assert [len(block) for block in blocks] == sizes
    assert [item for block in blocks for item in block] == list(range(count))


def test_only_what_was_left_half_written_is_swept(tmp_path: Path):
    for name in (".a.npy.17.partial", ".b.json.4.partial", "a.npy", ".lock"):
        (tmp_path / name).touch()
    sweep(tmp_path, "a.npy.*")
    assert sorted(os.listdir(tmp_path)) == [".b.json.4.partial", ".lock", "a.npy"]
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", "a.npy"]
