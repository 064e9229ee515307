"""Settings of the neighbor graph and of the batches drawn from it."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.errors import ConfigError
from understudy.settings import setting


@dataclass(frozen=True)
class NeighborSettings:
    """How many neighbors an anchor gets in a batch, from how many nearest images, and how those are searched.

    By default none: batches are plain random ones, which have measured best (docs/explanation/method.md). The authors
    of CoSS draw 15 of the nearest 31: `--method coss --recipe authors`.

    Raises:
        ConfigError: more neighbors are to be drawn than `n`.
    """

    k: int = setting(0, "Neighbors drawn for each anchor; 0 for plain random batches.", minimum=0)
    n: int = setting(31, "They are drawn from this many nearest images; the graph stores as many.", minimum=1)
    index: str = setting(
        "auto",
        "How the graph is searched; auto is exact up to 200,000 images on the CPU (2,000,000 on a GPU) and ivf above.",
        choices=("auto", "exact", "ivf", "hnsw"),
    )
    memory_mb: int = setting(1024, "Working memory of the search, in MiB.", minimum=1)

    def __post_init__(self) -> None:
        if self.k > self.n:
            raise ConfigError(
                f"neighbors.k = {self.k} neighbors cannot be drawn from the nearest n = {self.n}. "
                f"Set neighbors.n to at least {self.k}, or neighbors.k to at most {self.n}."
            )
