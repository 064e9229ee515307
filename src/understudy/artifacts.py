"""Files on disk: what is written, in which order, and how a later run knows that it is whole.

Arrays are written first, the manifest last, each by atomic rename: a manifest that exists means the folder is complete.
A store is keyed by fingerprints of what made it and refuses to be used with anything else. Nothing here imports torch.

    store/<fingerprint>/manifest.json  embeddings.npy (N, D)  listing.parquet  graph.npy (N, K) int32
    runs/<id>/config.toml  metrics.jsonl  checkpoint/  student.safetensors  student.json  evaluation.json  report.html
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from understudy.errors import StoreError, UnderstudyError

FORMAT = 1

FULL = 2**16
"""A disk with fewer bytes left is full: not every library says why it could not write."""

UMASK = os.umask(0o022)
os.umask(UMASK)  # it can only be read by setting it


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


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it over `path`.

    A process killed inside the block leaves `path` as it was.

    Raises:
        StoreError: the disk is full; `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with room_on_disk(path):
            yield temporary
            # safetensors writes files that nobody else may read; what a run leaves is for the whole team.
            temporary.chmod(0o666 & ~UMASK)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def room_on_disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say it in a sentence when the disk that holds `path` fills up inside the block.

    Raises:
        StoreError: it did.
    """
    try:
        yield
    except UnderstudyError:
        raise
    except Exception as error:
        folder = Path(path).parent
        space = shutil.disk_usage(folder)
        # Libraries not written in Python have the words of the system in theirs, or give no reason at all.
        said = any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))
        if not said and space.free >= FULL:
            raise
        raise StoreError(
            f"The disk that holds {folder} is full ({space.free / 2**20:,.1f} MiB left of {space.total / 2**20:,.0f}). "
            "Make room on it, then run the same command: what was saved before is whole, and it goes on from there."
        ) from error


@contextlib.contextmanager
def lock(folder: str | os.PathLike[str], *, shared: bool = False) -> Iterator[None]:
    """Be the only process that writes a folder, for as long as the block runs.

    The lock is the kernel's (flock): it goes when its process does, and the file left behind means nothing.

    Args:
        folder: made if it is not there.
        shared: only keep out those who would be alone; any number of processes may share the lock.

    Raises:
        StoreError: another process holds it; the sentence gives its number.
    """
    import fcntl

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StoreError(
                f"Process {file.read().strip() or '(unknown)'} is writing {folder}. Wait for it to end, or stop it; "
                "what it has done is kept."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@dataclass(frozen=True)
class Writers:
    """The processes that make one result together, on one file system; this is one of them, `ALONE` the usual case.

    Args:
        rank: 0 ... world - 1; rank 0 puts the parts together.
        world: how many there are.
    """

    rank: int
    world: int

    @property
    def main(self) -> bool:
        """Whether this process puts the parts together and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all."""
        assert self.world == 1

    def agree(self, flag: bool) -> bool:
        """Whether any of them raised the flag; all must call it."""
        assert self.world == 1
        return flag


ALONE = Writers(0, 1)


def blocks_of(count: int, *, smallest: int, most: int) -> list[range]:
    """Work on `count` items cut into blocks, the units in which it is shared, kept and taken up again.

    The cut depends on the work alone: any number of processes can go on with what another number began.

    Args:
        count: items.
        smallest: items in a block where the work is small; the blocks of larger work hold a multiple of it.
        most: blocks there may be.
    """
    size = smallest * max(1, -(-count // (smallest * most)))
    return [range(low, min(low + size, count)) for low in range(0, count, size)]


def sweep(folder: str | os.PathLike[str], name: str = "*") -> None:
    """Remove what killed processes left of files that nobody else writes now.

    Args:
        folder: where `atomic` wrote.
        name: of the file; all in the folder unless given.
    """
    for leftover in Path(folder).glob(f".{name}.partial"):
        leftover.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON atomically, NaN refused (a measurement that failed must say so in words)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON.

    Raises:
        StoreError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist. Was the step that writes it run to its end?") from None
    except json.JSONDecodeError as error:
        raise StoreError(f"{path} is not valid JSON ({error}). Delete it and run the step again.") from None


@dataclass(frozen=True)
class StoreKey:
    """What a store depends on; a change in any part makes another store.

    Args:
        teacher: fingerprint of the weights, with the spec for messages.
        preprocessing: the input contract as a plain table (size, mean, std, interpolation, crop).
        data: fingerprint of the data listing, with spec and count for messages.
        dtype: "float16" or "float32".
        precision: what the teacher computed in: "fp32", "tf32", "bf16" or "fp16".
    """

    teacher: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    data: Mapping[str, Any]
    dtype: str = "float16"
    precision: str = "fp32"

    @property
    def fingerprint(self) -> str:
        """The folder name. Specs and counts are for people: only the fingerprints among them count."""
        parts = (FORMAT, self.teacher["fingerprint"], dict(self.preprocessing), self.data["fingerprint"], self.dtype)
        # Once there was fp32 only, and nothing of it in the name.
        return fingerprint(*parts, *([] if self.precision == "fp32" else [self.precision]))

    def table(self) -> dict[str, Any]:
        """The key as plain JSON."""
        return {
            "teacher": dict(self.teacher),
            "preprocessing": dict(self.preprocessing),
            "data": dict(self.data),
            "dtype": self.dtype,
            "precision": self.precision,
        }


class Store:
    """One folder of teacher embeddings and, once built, their neighbor graph.

    Args:
        folder: `store/<fingerprint>`. It need not exist yet; `complete` says whether it can be read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @classmethod
    def at(cls, root: str | os.PathLike[str], key: StoreKey) -> Store:
        """The store of this key under a root folder, or the root itself if that is a store, checked against the key.

        Raises:
            StoreError: `root` is a store made from something else; the sentence says which part differs.
        """
        given = cls(root)
        if given.complete:
            given.check(key)
            return given
        return cls(Path(root) / key.fingerprint)

    @property
    def manifest_path(self) -> Path:
        """Where the manifest is, or will be."""
        return self.folder / "manifest.json"

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
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
            raise StoreError(
                f"{self.folder} has store format {found!r}, this version reads {FORMAT}. Embed the images again."
            )
        return manifest

    def check(self, key: StoreKey) -> None:
        """Refuse the store unless it was made from exactly this key.

        Raises:
            StoreError: names every part that differs, with both values.
        """
        found: dict[str, Any] = {"precision": "fp32", **self.manifest["key"]}
        wanted = key.table()
        names = {
            "teacher": "teacher weights",
            "preprocessing": "preprocessing",
            "data": "data listing",
            "dtype": "stored precision",
            "precision": "the teacher's precision",
        }
        differences = []
        for part, title in names.items():
            old, new = found[part], wanted[part]
            if part in ("teacher", "data"):
                if old["fingerprint"] == new["fingerprint"]:
                    continue
            elif old == json.loads(json.dumps(new)):
                continue
            differences.append(f"{title} (store: {_short(old)}; now: {_short(new)})")
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
        return self._array("embeddings.npy", rows=int(self.manifest["rows"]))

    def graph(self) -> np.ndarray:
        """(N, K) int32 neighbor indices, nearest first, self removed; memory-mapped read-only.

        Raises:
            StoreError: the graph was not built.
        """
        if "graph" not in self.manifest:
            raise StoreError(f"The store {self.folder} has no neighbor graph yet. Run `understudy graph` on it.")
        return self._array("graph.npy", rows=int(self.manifest["rows"]))

    @property
    def listing_path(self) -> Path:
        """The listing of the images behind the rows, in row order."""
        return self.folder / "listing.parquet"

    def _array(self, name: str, rows: int) -> np.ndarray:
        path = self.folder / name
        try:
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read ({error}). Delete {self.folder} and embed again.") from None
        if len(array) != rows:
            raise StoreError(
                f"{path} has {len(array)} rows, its manifest says {rows}. Delete the folder and embed again."
            )
        return array


def _short(part: Any) -> str:
    if isinstance(part, Mapping):
        return ", ".join(f"{name}={value}" for name, value in part.items())
    return str(part)


class Run:
    """One run folder, `runs/<id>`: where a student, its curves, its figures and its report lie.

    Args:
        folder: the run folder; it need not exist yet.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @property
    def config_path(self) -> Path:
        """The resolved configuration, written when training starts."""
        return self.path / "config.toml"

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line, as training went."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint_path(self) -> Path:
        """The newest checkpoint."""
        return self.path / "checkpoint" / "latest.pt"

    @property
    def weights_path(self) -> Path:
        """The finished student's weights."""
        return self.path / "student.safetensors"

    @property
    def student_path(self) -> Path:
        """What the student is (spec, head, contract, origin); written last, so it means training is done."""
        return self.path / "student.json"

    @property
    def evaluation_path(self) -> Path:
        """The measured figures."""
        return self.path / "evaluation.json"

    @property
    def sample_path(self) -> Path:
        """Embeddings, neighbors and thumbnails of a sample of the evaluation images, for the report."""
        return self.path / "sample.npz"

    @property
    def report_path(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def trained(self) -> bool:
        """Whether training ran to its end."""
        return self.student_path.is_file() and self.weights_path.is_file()

    @property
    def evaluation(self) -> dict[str, Any]:
        """The measured figures, `{"teacher": {"knn": {...}}, "student": {...}}`."""
        value = read_json(self.evaluation_path)
        assert isinstance(value, dict)
        return value

    @property
    def student(self) -> dict[str, Any]:
        """What the student is, from student.json."""
        value = read_json(self.student_path)
        assert isinstance(value, dict)
        return value

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics file as a list of rows; a last line cut off by a kill is left out."""
        if not self.metrics_path.is_file():
            return []
        rows = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows
