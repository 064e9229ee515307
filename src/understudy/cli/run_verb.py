"""What `run`, `train`, `plan` and `pretrain` share: the settings of a run."""

import os
from typing import Any, ClassVar

from understudy.cli.flags import Flags
from understudy.cli.options import Options
from understudy.cli.verb import Verb

MAIN = (
    "data", "teacher", "student", "method", "eval_data", "image_size", "passes", "batch_size", "seed", "limit", "out",
    "device",
)  # fmt: skip


class RunVerb(Verb):
    """A verb over the settings of a run."""

    usage = "--data DATA --teacher SPEC --student SPEC [flags]"
    main: ClassVar[tuple[str, ...]] = MAIN

    def flags(self, flags: Flags) -> None:
        """All settings of a run."""
        from understudy.pipeline import RunSettings

        flags.config()
        flags.recipe()
        flags.settings(RunSettings, skip=("evaluation.eval_data",))

    def settings(self, options: Options) -> Any:
        """Recipe, file, preset and flags, laid over the defaults."""
        return options.resolve_run()

    def table(self, settings: Any) -> dict[str, Any]:
        """As the run saves them."""
        from understudy.pipeline import resolve_method
        from understudy.train.resume import resolved

        return resolved(resolve_method(settings))


def on_main_process() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return int(os.environ.get("RANK", 0)) == 0
