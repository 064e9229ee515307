"""`understudy graph`."""

from typing import Any

from understudy.cli.flags import Flags
from understudy.cli.options import Options
from understudy.cli.verb import Verb
from understudy.settings import resolve


class Graph(Verb):
    """Find the nearest neighbors of every image of a store: exact, or faiss above a size, with its measured recall."""

    name = "graph"
    group = "neighbors.settings.NeighborSettings"
    usage = "STORE [flags]"
    main = ("neighbors.n", "neighbors.index", "neighbors.memory_mb")

    def flags(self, flags: Flags) -> None:
        flags.add("store", metavar="STORE", help="A store: the folder with manifest.json.")
        flags.settings(self.settings_class, skip=("neighbors.k",), prefix="neighbors.")
        flags.add("--device", default="auto", metavar="DEVICE", help="cpu, cuda, cuda:N, mps or auto. [auto]")

    def settings(self, options: Options) -> Any:
        given = {k.removeprefix("neighbors."): v for k, v in vars(options).items() if k.startswith("neighbors.")}
        return resolve(self.settings_class, given)

    def run(self, options: Options) -> int:
        from understudy.artifacts import Store
        from understudy.neighbors.graph import build_graph
        from understudy.train.distributed import join
        from understudy.train.log import StageProgress, notify

        store = Store(options.store)
        processes = join(options.device)
        with StageProgress("graph", quiet=not processes.main) as progress:
            build_graph(store, options.settings, device=str(processes.device), writers=processes, progress=progress)
        if not processes.main:
            return 0
        notify(", ".join(f"{name} {value}" for name, value in store.manifest["graph"].items()))
        print(store.folder / "graph.npy")
        return 0
