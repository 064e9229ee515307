"""`understudy compare`."""

from typing import Any

from understudy.cli.comparison import MAIN, ComparisonVerb
from understudy.cli.options import Options
from understudy.errors import ConfigError


class Compare(ComparisonVerb):
    """Several methods x seeds over one teacher, each at its best learning rate of a few, as one table.

    All runs share images, views, first weights of a seed, head, optimizer and image passes (or minutes). The rates are
    judged without labels, on training images held out of every run. What is finished is not done again.
    """

    name = "compare"
    models = True
    main = (*MAIN, "methods")
    without = ("method",)

    def settings(self, options: Options) -> Any:
        if options.recipe == "authors":
            raise ConfigError(
                "The methods of a comparison share one budget, and each method's authors had their own. Use "
                "`understudy run --method NAME --recipe authors` for each, or a recipe file for all."
            )
        return super().settings(options)
