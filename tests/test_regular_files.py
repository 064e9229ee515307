"""Only regular files are opened: whatever else stands in a file's place is said, and never waited for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from understudy.artifacts import check_regular, open_regular, read_json, read_regular
from understudy.errors import StoreError


def test_a_regular_file_and_a_link_to_one(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_regular(tmp_path / "a") == read_regular(os.fsencode(tmp_path / "b")) == b"content"
    with open_regular(tmp_path / "a") as file:
        assert file.read(3) == b"con"
    check_regular(tmp_path / "a")


def test_what_is_no_regular_file_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(tmp_path / "pipe")  # opened in the usual way, it would be waited for here
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # a socket's path is at most 107 bytes
        listening.bind("socket")
        for place, words in (
            (tmp_path / "pipe", "it is a named pipe and no regular file"),
            (tmp_path / "link", "it is a named pipe and no regular file"),
            (tmp_path / "socket", "it is a socket and no regular file"),
            (tmp_path, "it is a folder and no regular file"),
            (Path("/dev/zero"), "it is a device and no regular file"),
            ("a\0b", "its name holds a null byte"),
        ):
            with pytest.raises(OSError, match=words) as caught:
                check_regular(place)
            assert caught.value.strerror == words


def test_json_that_is_none(tmp_path: Path):
    for content in (b"{", b"\xff\xfe\x00", b"[" * 200_000):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(StoreError, match=r"a\.json is not valid JSON"):
            read_json(tmp_path / "a.json")
    os.mkfifo(tmp_path / "b.json")
    with pytest.raises(StoreError, match=r"b\.json cannot be read \(it is a named pipe"):
        read_json(tmp_path / "b.json")
