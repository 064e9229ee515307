"""Stores: a folder of teacher embeddings that is refused with anything but what made it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.artifacts.checksums import VERIFIED_AT_OPEN, Checksums, is_verified, set_verified
from understudy.artifacts.files import read_table, write_json
from understudy.artifacts.fingerprints import fingerprint
from understudy.artifacts.regular import check_regular
from understudy.artifacts.seals import damaged
from understudy.errors import StoreError

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1  # of stores and of saved students; a change makes older ones unreadable

EMBED = "Run `understudy embed` with the same teacher and data: only what is damaged is made anew."
GRAPH = "Run `understudy graph` on the store: only what is damaged is made anew."
IMAGES = "Delete it: only `understudy embed --verify-images` needs it."
REMEDIES = {"embeddings.npy": EMBED, "listing.parquet": EMBED, "graph.npy": GRAPH, "images.npy": IMAGES}
"""The files of a store whose checksums lie in its manifest, and what to do about a damaged one."""

ARRAYS = ("embeddings.npy", "graph.npy")
"""Those of them that have blocks of rows behind a header."""

log = logging.getLogger("understudy")


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
        self.folder = Path(os.path.expanduser(folder))
        self.manifest_path = self.folder / "manifest.json"  # where the manifest is, or will be
        self.sums_path = self.folder / "images.npy"  # checksums of the images behind the rows, where they are known
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
        manifest = read_table(self.manifest_path, f"Delete {self.folder} and embed again, or take it from a copy.")
        if (other := manifest.get("format")) != FORMAT:
            raise StoreError(
                f"{self.folder} has store format {other!r}, this version reads {FORMAT}. Embed the images again."
            )
        if fault := _fault(manifest):
            raise StoreError(f"{self.manifest_path} cannot be used: {fault}. Delete {self.folder} and embed again.")
        return manifest

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
        """(N, D) float16 or float32, memory-mapped read-only.

        Raises:
            StoreError: the array is not what was written; the sentence names blocks and rows.
        """
        return self._array("embeddings.npy")

    def graph(self) -> np.ndarray:
        """(N, K) int32 neighbor indices, nearest first, self removed; memory-mapped read-only.

        Raises:
            StoreError: the graph was not built, or is not what was written.
        """
        if "graph" not in self.manifest:
            raise StoreError(f"The store {self.folder} has no neighbor graph yet. Run `understudy graph` on it.")
        return self._array("graph.npy")

    def checksums(self) -> dict[str, Checksums]:
        """Those of the store's files by name; nothing for a file that was written before there were any."""
        table = self.manifest.get("checksums", {})
        parsed = {name: Checksums.parse(text) for name, text in table.items()} if isinstance(table, dict) else {}
        return {name: one for name, one in parsed.items() if one is not None}

    def damaged(self, name: str, most: int | None = None) -> list[int]:
        """The blocks of a file of the store that are not what was written; none where nothing is known of it.

        Args:
            name: e.g. "graph.npy".
            most: bytes to read, see `VERIFIED_AT_OPEN`; all unless given.

        Raises:
            StoreError: the file cannot be read.
        """
        checksums = self.checksums().get(name)
        if checksums is None:
            return []
        try:
            return checksums.damaged(self.folder / name, most)
        except OSError as error:
            raise StoreError(
                f"{self.folder / name} cannot be read ({error.strerror}). Delete {self.folder} and embed again."
            ) from None

    def describe(self, name: str, block: int) -> str:
        """A block of a file of the store in words: its number, and its rows or bytes."""
        start, end = self.checksums()[name].span(block)
        if name not in ARRAYS:
            return f"block {block} (bytes {start:,} to {end - 1:,})"
        if block == 0:
            return "block 0 (the header)"
        rows = self.rows_of(name, block)
        return f"block {block} (rows {rows.start:,} to {rows.stop - 1:,})"

    def rows_of(self, name: str, block: int) -> range:
        """The rows of an array that a block of it holds; block 0 is the header and holds none."""
        checksums = self.checksums()[name]
        header, rows = checksums.ends[0], int(self.manifest["rows"])
        width = (checksums.ends[-1] - header) // rows
        start, end = checksums.span(block)
        return range(max(0, start - header) // width, max(0, end - header) // width)

    def require_whole(self, name: str, *, everything: bool = False) -> None:
        """Let a file of the store pass that is what was written.

        Each process looks once, at all of it or, if it is larger, at `VERIFIED_AT_OPEN` bytes; or, every time, at
        `everything`, without a word on a file that has no checksums.

        Raises:
            StoreError: it is damaged; the sentence names file, blocks, rows, and what makes them anew.
        """
        path = self.folder / name
        known = name in self.checksums()
        if not everything and (not path.is_file() or is_verified(path)):
            return
        if not known and not everything:
            log.warning(
                f"{path} was written without checksums, so that damage to it is not seen: `understudy doctor --store "
                f"{self.folder} --add-checksums` adds them."
            )
        elif found := self.damaged(name, None if everything else VERIFIED_AT_OPEN):
            shown = ", ".join(self.describe(name, block) for block in found[:3])
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise damaged(path, f"It is {shown}{more}. {REMEDIES[name]}")
        set_verified(path)

    def _array(self, name: str) -> np.ndarray:
        import numpy as np

        path, rows = self.folder / name, int(self.manifest["rows"])
        self.require_whole(name)
        try:
            check_regular(path)
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read ({error}). Delete {self.folder} and embed again.") from None
        if array.ndim != 2 or len(array) != rows:
            found = f"{len(array)} rows" if array.ndim == 2 else f"the shape {array.shape}"
            raise StoreError(f"{path} has {found}, its manifest says {rows}. Delete the folder and embed again.")
        return array


def _fault(manifest: Mapping[str, Any]) -> str:
    """What is wrong with a manifest, of what every store says of itself; "" if nothing."""
    key = manifest.get("key")
    parts = ("teacher", "preprocessing", "data")
    if not isinstance(key, dict) or not all(isinstance(key.get(part), dict) for part in parts):
        return "it does not say what the store was made from"
    for name, value in (("rows", manifest.get("rows")), ("D", manifest.get("D", 1))):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**48:
            return f"its {name!r} is {str(value)[:40]!r}, and a whole number above 0 is needed"
    if not isinstance(graph := manifest.get("graph", {"K": 1}), dict) or not isinstance(graph.get("K"), int):
        return "its 'graph' is no description of a graph"
    return ""


def _identity(part: Any) -> Any:
    """What counts of a part of a key: its fingerprint where it has one."""
    return part.get("fingerprint", part) if isinstance(part, Mapping) else part


def _short(part: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in part.items()) if isinstance(part, Mapping) else str(part)
