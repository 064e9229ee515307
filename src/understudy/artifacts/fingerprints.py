"""Fingerprints: short numbers that change when what they stand for does."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import Any


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits that change when any part, or their order, does: bytes, arrays, or what `json.dumps` takes."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        numpy = sys.modules.get("numpy")  # where it is not imported, nothing is an array, and `--help` need not wait
        if numpy is not None and isinstance(part, numpy.ndarray):
            kind = f"{part.dtype.str}{part.shape}"
            body = numpy.ascontiguousarray(part).reshape(-1).view(numpy.uint8).data
        elif isinstance(part, bytes | bytearray | memoryview):
            kind, body = "bytes", memoryview(part)
        else:
            kind, body = "json", memoryview(json.dumps(part, sort_keys=True, default=str).encode())
        # Kind and length first: no part can look like another one, or like two.
        digest.update(f"{kind} {body.nbytes}\n".encode())
        digest.update(body)
    return digest.hexdigest()


def file_fingerprint(path: str | os.PathLike[str]) -> str:
    """Fingerprint of a file's content, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
