"""Who writes: one process alone under a lock, or several that share the work in blocks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from understudy.errors import StoreError


@contextlib.contextmanager
def lock(folder: str | os.PathLike[str], *, shared: bool = False, patience: float = 0.0) -> Iterator[None]:
    """Be the only process that writes a folder, for as long as the block runs.

    The lock is the kernel's (flock): it goes when its process does, and the file left behind means nothing.

    Args:
        folder: made if it is not there.
        shared: only keep out those who would be alone; any number of processes may share the lock.
        patience: seconds to wait for another process to let go.

    Raises:
        StoreError: another process holds it; the sentence gives its number.
    """
    import fcntl

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                file.seek(0)
                raise StoreError(
                    f"Process {file.read().strip() or '(unknown)'} is writing {folder}. Wait for it to end, or stop "
                    "it; what it has done is kept."
                ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@dataclass(frozen=True)
class Writers:
    """The `world` processes that make one result together, on one file system; this is one of them.

    Of their ranks, 0 ... world - 1, 0 puts the parts together. `ALONE` is the usual case.
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
