"""Stores: a folder of teacher embeddings that is refused with anything but what made it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.artifacts.files import read_json, write_json
from understudy.artifacts.fingerprints import fingerprint
from understudy.errors import StoreError

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1  # of stores and of saved students; a change makes older ones unreadable


@dataclass(frozen=True)
class StoreKey:
    """What a store depends on; a change in any part makes another store."""

    teacher: Mapping[str, Any]  # fingerprint of the weights, with the spec for messages
    preprocessing: Mapping[str, Any]  # the input contract as a plain table (size, mean, std, interpolation, crop)
    data: Mapping[str, Any]  # fingerprint of the data listing, with spec and count for messages
    dtype: str = "float16"  # "float16" or "float32"
    precision: str = "fp32"  # what the teacher computed in: "fp32", "tf32", "bf16" or "fp16"

    @property
    def fingerprint(self) -> str:
        """The folder name. Specs and counts are for people: only the fingerprints among them count."""
        parts = (FORMAT, self.teacher["fingerprint"], dict(self.preprocessing), self.data["fingerprint"], self.dtype)
        # Once there was fp32 only, and nothing of it in the name.
        return fingerprint(*parts, *([] if self.precision == "fp32" else [self.precision]))

    def table(self) -> dict[str, Any]:
        """The key as plain JSON."""
        return {name: dict(part) if isinstance(part, Mapping) else part for name, part in vars(self).items()}


class Store:
    """One folder of teacher embeddings, `store/<fingerprint>`, and, once built, their neighbor graph.

    It need not exist yet; `complete` says whether it can be read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.manifest_path = self.folder / "manifest.json"  # where the manifest is, or will be
        self.listing_path = self.folder / "listing.parquet"  # the listing of the images behind the rows, in row order

    @classmethod
    def at(cls, root: str | os.PathLike[str], key: StoreKey) -> Store:
        """The store of this key under a root folder, or the root itself if that is a store, checked against the key.

        Raises:
            StoreError: `root` is a store made from something else; the sentence says which part differs.
        """
        store = cls(root)
        if store.complete:
            store.check(key)
            return store
        return cls(Path(root) / key.fingerprint)

    @property
    def complete(self) -> bool:
        """Whether the embeddings are all there."""
        return self.manifest_path.is_file()

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest.

        Raises:
            StoreError: the store is incomplete or of another format.
        """
        if not self.complete:
            raise StoreError(
                f"{self.folder} is not a complete store (no manifest.json). Run `understudy embed` again: it goes on "
                "where it was."
            )
        manifest = read_json(self.manifest_path)
        other = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        if other != FORMAT:
            raise StoreError(
                f"{self.folder} has store format {other!r}, this version reads {FORMAT}. Embed the images again."
            )
        return dict(manifest)

    def check(self, key: StoreKey) -> None:
        """Refuse the store unless it was made from exactly this key.

        Raises:
            StoreError: names every part that differs, with both values.
        """
        own: dict[str, Any] = {"precision": "fp32", **self.manifest["key"]}
        now = json.loads(json.dumps(key.table()))
        titles = ("teacher weights", "preprocessing", "data listing", "stored precision", "the teacher's precision")
        differences = [
            f"{title} (store: {_short(own[part])}; now: {_short(now[part])})"
            for part, title in zip(now, titles, strict=True)
            if _identity(own[part]) != _identity(now[part])
        ]
        if differences:
            raise StoreError(
                f"The store {self.folder} belongs to something else. It differs in: {'; '.join(differences)}. "
                "Run `understudy embed` for the present teacher and data, or name the store that fits."
            )

    def finish(self, key: StoreKey, **metadata: Any) -> None:
        """Write the manifest: call it last, when the arrays and the listing are in place."""
        write_json(self.manifest_path, {"format": FORMAT, "key": key.table(), **metadata})

    def amend(self, **metadata: Any) -> None:
        """Replace top-level facts of the manifest; one set to None is removed (e.g. `graph` before it is rebuilt)."""
        merged = {**self.manifest, **metadata}
        write_json(self.manifest_path, {name: value for name, value in merged.items() if value is not None})

    def embeddings(self) -> np.ndarray:
        """(N, D) float16 or float32, memory-mapped read-only."""
        return self._array("embeddings.npy")

    def graph(self) -> np.ndarray:
        """(N, K) int32 neighbor indices, nearest first, self removed; memory-mapped read-only.

        Raises:
            StoreError: the graph was not built.
        """
        if "graph" not in self.manifest:
            raise StoreError(f"The store {self.folder} has no neighbor graph yet. Run `understudy graph` on it.")
        return self._array("graph.npy")

    def _array(self, name: str) -> np.ndarray:
        import numpy as np

        path, rows = self.folder / name, int(self.manifest["rows"])
        try:
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read ({error}). Delete {self.folder} and embed again.") from None
        if len(array) != rows:
            raise StoreError(
                f"{path} has {len(array)} rows, its manifest says {rows}. Delete the folder and embed again."
            )
        return array


def _identity(part: Any) -> Any:
    """What counts of a part of a key: its fingerprint where it has one."""
    return part.get("fingerprint", part) if isinstance(part, Mapping) else part


def _short(part: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in part.items()) if isinstance(part, Mapping) else str(part)
