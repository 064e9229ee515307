"""The cache of fetched row groups, on this machine's disk, up to a bound."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from understudy.artifacts import atomic, fingerprint
from understudy.errors import ConfigError, DataError, StoreError

CACHE_GB = 50.0  # gigabytes of row groups kept on disk unless UNDERSTUDY_CACHE_GB says otherwise
LOCKS = 64  # files that processes lock while they fetch; two row groups may share one and then wait for each other
ABANDONED_SECONDS = 3600  # age at which an unfinished file belongs to a process that was killed


@dataclass(frozen=True)
class Cache:
    """Row groups on this machine's disk, in one folder; the least recently used make room for new ones.

    Many processes share it. It keeps at most so many bytes, over all data sets; the newest row group always stays.
    """

    folder: Path
    most: int

    @classmethod
    def of_machine(cls) -> Cache:
        """As UNDERSTUDY_CACHE and UNDERSTUDY_CACHE_GB say.

        Raises:
            ConfigError: UNDERSTUDY_CACHE_GB is no number above 0.
        """
        home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        folder = Path(os.path.expanduser(os.environ.get("UNDERSTUDY_CACHE", f"{home}/understudy")))
        text = os.environ.get("UNDERSTUDY_CACHE_GB", str(CACHE_GB))
        try:
            most = float(text)
        except ValueError:
            most = 0.0
        if not most > 0 or not np.isfinite(most):
            raise ConfigError(f"UNDERSTUDY_CACHE_GB is a number of gigabytes above 0; got '{text}'.")
        return cls(folder, int(most * 1e9))

    def table(self, name: str, make: Callable[[], pa.Table]) -> pa.Table:
        """The table of this name, mapped into memory; made, once for all processes, where it is not there.

        Raises:
            DataError: it cannot be written.
        """
        path = self.folder / f"{name}.group"
        with self._writable():
            self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return self._read(path)
        with self._lock(name):
            with suppress(FileNotFoundError):
                return self._read(path)  # another process has just made it
            table = make()
            with self._writable(), atomic(path) as temporary:
                with pa.ipc.new_file(temporary, table.schema) as writer:
                    writer.write_table(table)
                self._make_room(temporary.stat().st_size)
        with suppress(FileNotFoundError):
            return self._read(path)
        return table  # others have had to make room already

    @staticmethod
    def _read(path: Path) -> pa.Table:
        table = pa.ipc.open_file(pa.memory_map(os.fspath(path))).read_all()
        with suppress(FileNotFoundError):
            os.utime(path)  # the time of the last use
        return table

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """Make a sentence of it where the folder cannot be written."""
        try:
            yield
        except (OSError, StoreError) as error:
            reason = error.__cause__ or error  # a full disk comes as a sentence about another remedy
            raise DataError(
                f"What is fetched cannot be kept in {self.folder} ({getattr(reason, 'strerror', None) or reason}). Set "
                f"UNDERSTUDY_CACHE to a folder with room for {self.most / 1e9:.3g} GB (UNDERSTUDY_CACHE_GB)."
            ) from None

    def _make_room(self, size: int) -> None:
        """Delete the row groups least recently used until another one fits, and parts that a killed process left."""
        entries = []
        with os.scandir(self.folder) as files:
            for entry in files:
                with suppress(FileNotFoundError):
                    state = entry.stat()
                    if entry.name.endswith(".group") or (
                        entry.name.endswith(".partial") and state.st_mtime < time.time() - ABANDONED_SECONDS
                    ):
                        entries.append((state.st_mtime_ns, state.st_size, entry.path))
        total = size + sum(entry[1] for entry in entries)
        for _, freed, path in sorted(entries):
            if total <= self.most:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= freed

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Be the only process that fetches this; wait for one that does."""
        import fcntl

        path = self.folder / f".lock-{int(fingerprint(name), 16) % LOCKS:02d}"
        with self._writable():
            number = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)  # the kernel's: it ends with its process
            yield
        finally:
            os.close(number)
