"""What `run`, `train`, `plan` and `pretrain` share: the settings of a run."""

import os
from typing import Any, ClassVar

from understudy.cli.flags import Flags
from understudy.cli.options import Options
from understudy.cli.verb import Verb

MAIN = (
    "data", "teacher", "teacher_size", "student", "method", "eval_data", "image_size", "passes", "batch_size", "seed",
    "limit", "out", "device",
)  # fmt: skip


class RunVerb(Verb):
    """A verb over the settings of a run."""

    group = "pipeline.RunSettings"
    usage = "--data DATA --teacher SPEC --student SPEC [flags]"
    main: ClassVar[tuple[str, ...]] = MAIN

    def flags(self, flags: Flags) -> None:
        flags.config()
        flags.recipe()
        flags.settings(self.settings_class, skip=("evaluation.eval_data",))

    def settings(self, options: Options) -> Any:
        return options.resolve_run()

    def table(self, settings: Any) -> dict[str, Any]:
        from understudy.pipeline import resolve_method
        from understudy.train.resume import resolved

        return resolved(resolve_method(settings))


def on_main_process() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return int(os.environ.get("RANK", 0)) == 0
