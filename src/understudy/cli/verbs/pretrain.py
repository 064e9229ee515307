"""`understudy pretrain`."""

import sys
from typing import Any

from understudy.cli.flags import Flags
from understudy.cli.options import Options
from understudy.cli.run_verb import MAIN, RunVerb, on_main_process
from understudy.errors import Stopped

WITHOUT = (
    "student", "teacher", "teacher_mean", "teacher_std", "teacher_size", "teacher_output", "method",
    "evaluation.eval_data", "head", "neighbors.k", "neighbors.n", "neighbors.index", "neighbors.memory_mb",
)  # fmt: skip


class Pretrain(RunVerb):
    """Train a teacher without labels (MoCo-v2) when there is none; the same loop, the same checkpoints."""

    name = "pretrain"
    models = True
    usage = "--data DATA --model SPEC [flags]"
    main = tuple(name for name in MAIN if name not in WITHOUT)

    def flags(self, flags: Flags) -> None:
        flags.config()
        flags.recipe()
        flags.add("--model", required=True, metavar="SPEC", help="What to train, e.g. small:resnet20 or timm:resnet18.")
        flags.settings(self.settings_class, skip=WITHOUT)
        flags.add(
            "--method", default="moco", metavar="METHOD",
            help="A method without a teacher. moco has temperature, queue and momentum. [moco]",
        )  # fmt: skip

    def settings(self, options: Options) -> Any:
        return options.resolve_run(student=options.model)

    def run(self, options: Options) -> int:
        from understudy import pipeline
        from understudy.cli.tables import print_table

        settings = options.settings
        finished = pipeline.train_stage(settings)
        if finished is None:
            raise Stopped
        if settings.eval_data is not None:
            pipeline.evaluate_stage(finished, settings)
            print_table([finished])
        if on_main_process():
            print(finished.path)
            print(f"Use it as a teacher: --teacher run:{finished.path}", file=sys.stderr)
        return 0
