"""`understudy ablate`."""

from understudy.cli.comparison import MAIN, ComparisonVerb
from understudy.cli.flags import Flags


class Ablate(ComparisonVerb):
    """A grid over any settings, each point at its best learning rate of a few, as one table.

    Otherwise as `compare`.
    """

    name = "ablate"
    models = True
    usage = "--data DATA --teacher SPEC --student SPEC --vary KEY=V1,V2 --out FOLDER [flags]"
    main = (*MAIN, "method")
    without = ("methods",)

    def flags(self, flags: Flags) -> None:
        super().flags(flags)
        flags.add(
            "--vary", action="append", metavar="KEY=V1,V2",
            help="Any setting and its values, e.g. method.weight=0,0.5,1; several --vary make a grid.",
        )  # fmt: skip
