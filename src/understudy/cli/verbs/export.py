"""`understudy export`."""

from typing import Any

from understudy.cli.flags import Flags
from understudy.cli.options import Options
from understudy.cli.verb import Verb


class Export(Verb):
    """A student in the formats that other programs open, each judged by its own runtime."""

    name = "export"
    usage = "RUN --to TARGET[,TARGET ...] [flags]"
    main = ("to", "output", "with_preprocessing", "tolerance", "data", "images", "license", "dry_run", "out")

    def flags(self, flags: Flags) -> None:
        """The run and what becomes of it."""
        from understudy.export.settings import ExportSettings

        flags.add("run", metavar="RUN", help="Folder of a finished run.")
        flags.settings(ExportSettings)

    def settings(self, options: Options) -> Any:
        """The flags."""
        from understudy.export.settings import ExportSettings

        return options.resolve(ExportSettings)

    def run(self, options: Options) -> int:
        """Export, a line for each target; 1 if one of them failed."""
        from understudy.artifacts import Run
        from understudy.export.exporting import export_student
        from understudy.train.log import notify

        record = export_student(Run(options.run.removeprefix("run:")), options.settings, notify)
        names = [target.partition(":")[0] for target in options.settings.to]
        return int(any("failed" in record["targets"][name] for name in names))
