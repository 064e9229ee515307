"""Fingerprints: short numbers that change when what they stand for does."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import numpy as np


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits that change when any part does.

    Args:
        *parts: bytes, arrays, or anything `json.dumps` takes; their order counts.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, np.ndarray):
            kind = f"{part.dtype.str}{part.shape}"
            body = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
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
    digest = hashlib.blake2b(digest_size=8)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
