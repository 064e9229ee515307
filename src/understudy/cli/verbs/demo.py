"""`understudy demo`."""

from pathlib import Path

from understudy.cli.flags import Flags
from understudy.cli.options import Options
from understudy.cli.verb import Verb


class Demo(Verb):
    """The whole flow on embedded real data (handwritten digits): no network, no files needed."""

    name = "demo"
    usage = "[flags]"

    def flags(self, flags: Flags) -> None:
        flags.add("--out", default="runs/demo", metavar="FOLDER", help="Where the demo's runs go. [runs/demo]")
        flags.add("--seed", type=int, default=0, metavar="N", help="Seed of everything random. [0]")
        flags.add("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto. [auto]")

    def run(self, options: Options) -> int:
        from understudy.cli.tables import print_table
        from understudy.demo import demo as run_demo

        runs, page = run_demo(Path(options.out), seed=options.seed, device=options.device)
        print_table(runs)
        print(f"report: {page}")
        return 0
