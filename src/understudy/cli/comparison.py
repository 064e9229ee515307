"""What `compare` and `ablate` share: their flags, their settings, and the table that they print."""

import sys
from pathlib import Path
from typing import Any, ClassVar

from understudy.cli.flags import Flags
from understudy.cli.options import Options
from understudy.cli.verb import Verb
from understudy.errors import Stopped

MAIN = (
    "data", "teacher", "student", "seeds", "budget", "trials", "jobs", "eval_data", "image_size", "batch_size", "seed",
    "limit", "out", "device",
)  # fmt: skip


class ComparisonVerb(Verb):
    """A verb that compares: the rows come from `methods` or from `vary`."""

    group = "compare.settings.ComparisonSettings"
    usage = "--data DATA --teacher SPEC --student SPEC --out FOLDER [flags]"
    without: ClassVar[tuple[str, ...]]

    def flags(self, flags: Flags) -> None:
        flags.config()
        flags.recipe()
        flags.settings(self.settings_class, skip=("evaluation.eval_data", "vary", *self.without))

    def settings(self, options: Options) -> Any:
        from understudy.recipes import merge_layers
        from understudy.settings import resolve
        from understudy.train.settings import DEFAULT_METHOD

        written = options.layers(self.settings_class, "recipe", "preset")
        return resolve(self.settings_class, *merge_layers(*written, method=DEFAULT_METHOD))

    def run(self, options: Options) -> int:
        from understudy.compare.comparison import compare

        try:
            found = compare(options.settings, kind=self.name)
        except Stopped:
            print(f"Stopped; the same command goes on from here: {options.settings.out}", file=sys.stderr)
            raise
        print_comparison(found)
        print(f"report: {Path(str(options.settings.out)) / 'report.html'}")
        return int(any(row["failure"] or any(cell["failure"] for cell in row["cells"]) for row in found["variants"]))


def print_comparison(comparison: dict[str, Any]) -> None:
    """The table of a comparison, its footnotes and the sentence of every run that failed."""
    from rich.console import Console

    from understudy.compare.table import table
    from understudy.report.comparison import footnotes

    Console(width=None if sys.stdout.isatty() else 160).print(table(comparison))
    for sentence in footnotes(comparison):
        print(sentence)
