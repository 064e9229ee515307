"""One changed byte, anywhere: it is found, the sentence names file, block and rows, and only those are made anew."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from test_embed_embedding import HERE, one_batch_sample, photographs, pixels, teacher_of
from understudy.artifacts import (
    Checksums,
    Run,
    Store,
    checksum,
    read_json,
    sealed_row,
    verdict_on,
    write_json,
    write_text,
)
from understudy.artifacts import checksums as module
from understudy.artifacts.files import atomic
from understudy.embed.embedding import embed
from understudy.errors import ModelError, StoreError
from understudy.neighbors import graph as graph_module
from understudy.neighbors.graph import build_graph
from understudy.neighbors.settings import NeighborSettings
from understudy.sources.source import open_source

__all__ = ["one_batch_sample"]  # a fixture for all tests here too


@pytest.fixture(autouse=True)
def nothing_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has just begun; `forget` makes another."""
    monkeypatch.setattr(module, "_verified", set())


def forget() -> None:
    module._verified.clear()


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_the_checksum_is_that_of_zlib_and_runs_on():
    assert checksum(b"123456789") == 0xCBF43926  # the check value of CRC-32, ITU-T V.42
    assert checksum(b"6789", checksum(b"12345")) == 0xCBF43926


WRITERS = {
    "table.json": lambda path: write_json(path, {"a": [1, 2.5], "b": "text"}),
    "list.json": lambda path: write_json(path, [1, 2]),
    "config.toml": lambda path: write_text(path, 'data = "digits"\n\n[method]\nname = "coss"\n'),
    "report.html": lambda path: write_text(path, "<html><body>40 %</body></html>"),
    "array.npz": lambda path: sealed_array(path),
}


def sealed_array(path: Path) -> None:
    with atomic(path, sealed=True) as temporary, open(temporary, "wb") as file:
        np.savez(file, a=np.arange(5))


@pytest.mark.parametrize("name", WRITERS)
def test_every_single_byte_of_a_sealed_file_counts(tmp_path: Path, name: str):
    path = tmp_path / name
    WRITERS[name](path)
    assert verdict_on(path) == "whole"
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in (0, 5, 7):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            assert verdict_on(path) == "damaged", content[max(0, place - 20) : place + 1]


def test_a_seal_is_not_seen_by_whoever_reads_the_file(tmp_path: Path):
    import tomllib

    for name, writer in WRITERS.items():
        writer(tmp_path / name)
    assert read_json(tmp_path / "table.json") == {"a": [1, 2.5], "b": "text"}
    assert json.loads((tmp_path / "table.json").read_text()) == {"a": [1, 2.5], "b": "text"}
    assert json.loads((tmp_path / "list.json").read_text()) == read_json(tmp_path / "list.json") == [1, 2]
    assert tomllib.loads((tmp_path / "config.toml").read_text()) == {"data": "digits", "method": {"name": "coss"}}
    assert np.load(tmp_path / "array.npz")["a"].tolist() == [0, 1, 2, 3, 4]


def test_what_was_written_before_there_were_seals_is_read(tmp_path: Path):
    (tmp_path / "old.json").write_text('{\n "a": 1\n}\n')
    assert (verdict_on(tmp_path / "old.json"), read_json(tmp_path / "old.json")) == ("unsealed", {"a": 1})
    (tmp_path / "empty.json").write_text("")
    with pytest.raises(StoreError, match="empty.json is not valid JSON"):
        read_json(tmp_path / "empty.json")


def test_damaged_json_is_named_with_its_remedy(tmp_path: Path):
    write_json(tmp_path / "x.json", {"a": 11})
    (tmp_path / "x.json").write_text((tmp_path / "x.json").read_text().replace("11", "12"))
    with pytest.raises(StoreError, match=r"x\.json is damaged: it is not what was written.*edited by hand"):
        read_json(tmp_path / "x.json")


def test_checksums_of_blocks_name_those_that_are_damaged(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    sums = Checksums.of(path, (10, 40, 100))
    assert Checksums.parse(str(sums)) == sums
    assert sums.damaged(path) == []
    flip(path, 39)
    assert (sums.damaged(path), sums.span(1)) == ([1], (10, 40))
    assert sums.replaced(path, [1]) == Checksums.of(path, (10, 40, 100))
    flip(path, 39)
    path.write_bytes(path.read_bytes()[:99])
    assert sums.damaged(path) == [2]
    path.write_bytes(bytes(range(101)))
    assert sums.damaged(path) == [2], "a file that is too long"
    for wrong in ("", "5", "5:1234567", "9:00000000 5:00000000", None, 7, {}, "1" * 30 + ":00000000"):
        assert Checksums.parse(wrong) is None


def test_of_a_large_file_a_part_is_looked_at_and_the_clock_says_which(tmp_path: Path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    sums = Checksums.of(path, range(100, 1001, 100))
    flip(path, 950)
    looked = []
    for now in range(10):
        monkeypatch.setattr(module.time, "time_ns", lambda now=now: now)
        looked.append(sums.damaged(path, 300))
    assert looked.count([9]) == 3  # 300 of 1,000 bytes at each opening
    assert looked.count([]) == 7
    assert sums.damaged(path) == [9]


def whole_store(tmp_path: Path) -> tuple[Store, dict[str, bytes]]:
    """A store of 35 of 40 photographs, in blocks of 32, with its graph; and the bytes of its files."""
    source = open_source(str(photographs(tmp_path / "photos")))
    store = embed(teacher_of(), source, tmp_path / "store", HERE)
    build_graph(store, NeighborSettings(k=3, n=9))
    return store, {path.name: path.read_bytes() for path in store.folder.glob("*.*") if path.name[0] != "."}


@pytest.mark.parametrize(
    ("name", "place", "shown"),
    [
        ("embeddings.npy", 20, r"block 0 \(the header\)"),
        ("embeddings.npy", 127, r"block 0 \(the header\)"),
        ("embeddings.npy", 128 + 28 * 12 - 1, r"block 1 \(rows 0 to 27\)"),
        ("embeddings.npy", -1, r"block 2 \(rows 28 to 34\)"),
        ("listing.parquet", 40, r"block 0 \(bytes 0 to [\d,]+\)"),
    ],
)
def test_a_changed_byte_is_named_and_embed_makes_its_block_anew(tmp_path: Path, caplog, name, place, shown):
    store, files = whole_store(tmp_path)
    forget()
    flip(store.folder / name, place)
    with pytest.raises(StoreError, match=rf"{name} is damaged.*It is {shown}\. Run `understudy embed`"):
        store.require_whole(name)
    seen: list[int] = []
    teacher = teacher_of(before=lambda images: seen.append(len(images)))
    source = open_source(str(tmp_path / "photos"))
    assert embed(teacher, source, tmp_path / "store", HERE).folder == store.folder
    assert sum(seen) == {"embeddings.npy": {20: 0, 127: 0, -1: 7}.get(place, 28), "listing.parquet": 0}[name]
    assert {path.name: path.read_bytes() for path in store.folder.glob("*.*") if path.name[0] != "."} == files
    (record,) = [one for one in caplog.records if "was damaged in" in one.message]
    assert name in record.message
    forget()
    store.require_whole(name)


def test_rows_that_are_rounded_otherwise_get_checksums_of_their_own(tmp_path: Path, caplog):
    store, _ = whole_store(tmp_path)
    forget()
    flip(store.folder / "embeddings.npy", -1)
    embed(teacher_of(1.001), open_source(str(tmp_path / "photos")), tmp_path / "store", HERE)
    assert any("its bytes are others than before" in record.message for record in caplog.records)
    forget()
    assert np.isfinite(store.embeddings()).all()


@pytest.mark.parametrize("place", [20, 128, -1])
def test_a_changed_byte_of_an_exact_graph_is_searched_again(tmp_path: Path, monkeypatch, caplog, place):
    monkeypatch.setattr(graph_module, "BLOCK", 16)
    store, files = whole_store(tmp_path)
    forget()
    flip(store.folder / "graph.npy", place)
    with pytest.raises(StoreError, match=r"graph\.npy is damaged.*Run `understudy graph`"):
        store.graph()
    searched: list[int] = []
    search = graph_module.search
    monkeypatch.setattr(graph_module, "search", lambda q, *a, **k: (searched.append(len(q)), search(q, *a, **k))[1])
    build_graph(store, NeighborSettings(k=3, n=9))
    assert searched == {20: [], 128: [16], -1: [3]}[place]
    assert (store.folder / "graph.npy").read_bytes() == files["graph.npy"]
    assert (store.folder / "manifest.json").read_bytes() == files["manifest.json"]


def test_an_approximate_graph_is_built_anew(tmp_path: Path, caplog):
    store, files = whole_store(tmp_path)
    store.amend(graph={**store.manifest["graph"], "exact": False})
    forget()
    flip(store.folder / "graph.npy", -1)
    build_graph(store, NeighborSettings(k=3, n=9))
    assert (store.folder / "graph.npy").read_bytes() == files["graph.npy"]
    assert any("an approximate graph is built anew" in record.message for record in caplog.records)


def test_a_store_without_checksums_is_read_and_says_so_once(tmp_path: Path, caplog):
    store, _ = whole_store(tmp_path)
    manifest = json.loads(store.manifest_path.read_text())
    store.manifest_path.write_text(json.dumps({k: v for k, v in manifest.items() if k != "checksums"}))
    forget()
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        assert len(store.embeddings()) == 35
    said = [record.message for record in caplog.records if "was written without checksums" in record.message]
    assert len(said) == 1
    assert "understudy doctor --store" in said[0]


def test_a_block_that_was_damaged_while_a_store_was_in_the_making(tmp_path: Path, caplog, monkeypatch):
    from test_embed_embedding import failing, stop_after
    from understudy.embed import blocks

    data = tmp_path / "x.npy"
    np.save(data, pixels())
    monkeypatch.setattr(blocks, "SAVE_SECONDS", 0.0)
    whole = embed(teacher_of(), open_source(str(data)), tmp_path / "whole", HERE)
    for damage in ("rows", "json"):
        with pytest.raises(ModelError, match="the machine goes down"):
            embed(teacher_of(before=stop_after(6, failing)), open_source(str(data)), tmp_path / damage, HERE)
        (path,) = (tmp_path / damage).glob(f"*/blocks/0001.{damage}")
        flip(path, 30)
        found = embed(teacher_of(), open_source(str(data)), tmp_path / damage, HERE)
        assert (found.folder / "embeddings.npy").read_bytes() == (whole.folder / "embeddings.npy").read_bytes()
        assert any(f"0001.{damage}" in record.message for record in caplog.records)


def test_lines_of_the_metrics_count_byte_by_byte(tmp_path: Path):
    run = Run(tmp_path)
    rows = [{"kind": "start", "step": 0}, {"kind": "step", "step": 1, "loss": -0.5}]
    content = "".join(map(sealed_row, rows)).encode()
    run.metrics_path.write_bytes(content)
    assert run.metrics() == rows
    assert json.loads(content.split(b"\n")[1])["loss"] == -0.5
    first = content.index(b"\n")
    for place in range(len(content)):
        run.metrics_path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(StoreError, match=rf"metrics.jsonl is damaged.*Line {1 if place <= first else 2} is"):
            run.metrics()
    for cut in range(len(content)):  # what a kill leaves
        run.metrics_path.write_bytes(content[:cut])
        found = run.metrics()
        assert found == rows[: len(found)]
        assert len(found) - content[:cut].count(b"\n") in ((1,) if content[cut : cut + 1] == b"\n" else (0, 1))
