"""`understudy evaluate`."""

import os

from understudy.cli.flags import Flags
from understudy.cli.options import Options
from understudy.cli.verb import Verb
from understudy.errors import ConfigError


class Evaluate(Verb):
    """Measure any model, teacher or student, by any protocol."""

    name = "evaluate"
    models = True
    group = "evaluate.settings.EvaluationSettings"
    usage = "MODEL --eval-data DATA [flags]"
    main = ("eval_data", "protocols", "on", "limit", "batch_size", "seed")

    def flags(self, flags: Flags) -> None:
        from understudy.embed.settings import PRECISIONS, TEACHER_OUTPUT

        flags.add("model", metavar="MODEL", help="A run folder, or any model spec with weights.")
        flags.settings(self.settings_class)
        flags.add(
            "--out", metavar="FILE", help="Where to write the figures of a model spec; a run folder has its own place."
        )
        flags.add("--store", default="store", metavar="FOLDER", help="Root of the stores. [store]")
        flags.add("--workers", type=int, metavar="N", help="Processes that read images.")
        flags.add("--device", default="auto", metavar="DEVICE", help="cpu, cuda, cuda:N, mps or auto. [auto]")
        flags.add(
            "--teacher-precision", choices=PRECISIONS, metavar="PRECISION",
            help="Arithmetic of a model spec; auto is tf32 on a CUDA device that has it, fp32 elsewhere. A run's "
            f"teacher computes as in its training. One of: {', '.join(PRECISIONS)}. [auto]",
        )  # fmt: skip

        flags.add("--teacher-size", type=int, metavar="N", help="Input side of a model spec. Default: its own.")
        flags.add("--teacher-output", metavar="OUTPUT", help=f"{TEACHER_OUTPUT} Of a model spec. [pooled]")

    def run(self, options: Options) -> int:
        from understudy.artifacts import Run
        from understudy.cli.tables import print_figures
        from understudy.evaluate.features import Resources
        from understudy.evaluate.runner import evaluate_model, evaluate_run
        from understudy.train.distributed import choose_device
        from understudy.train.log import StageProgress, notify

        settings = options.settings
        device = choose_device(options.device)
        folder = options.model.removeprefix("run:")
        with StageProgress("evaluate") as progress:
            resources = Resources(device, options.store, options.workers, progress, notify)
            if Run(folder).trained:
                given = [name for name in ("precision", "size", "output") if getattr(options, f"teacher_{name}")]
                if given:
                    raise ConfigError(
                        f"The teacher of the run {folder} computes as in its training: leave out --teacher-{given[0]}."
                    )
                result = evaluate_run(Run(folder), settings, resources)
            elif os.path.isdir(folder) and Run(folder).config_path.is_file():
                raise ConfigError(f"The run {folder} is not finished. Run `understudy train` on it again: it resumes.")
            else:
                result = evaluate_model(
                    options.model, settings, resources, precision=options.teacher_precision or "auto",
                    image_size=options.teacher_size, output=options.teacher_output or "pooled",
                )  # fmt: skip
        if options.out:
            from understudy.artifacts import write_json

            write_json(options.out, result)
        print_figures([("", result)], details=True)
        return 0
