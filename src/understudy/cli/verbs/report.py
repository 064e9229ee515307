"""`understudy report`."""

from pathlib import Path

from understudy.cli.flags import Flags
from understudy.cli.options import Options
from understudy.cli.verb import Verb


class Report(Verb):
    """One self-contained HTML page of one or more runs."""

    name = "report"
    usage = "RUN [RUN ...] [flags]"

    def flags(self, flags: Flags) -> None:
        flags.add("runs", nargs="+", metavar="RUN", help="Run folders; the first is the main one, the others controls.")
        flags.add("--out", metavar="FILE.html", help="The page; report.html in the first run unless given.")

    def run(self, options: Options) -> int:
        from understudy.artifacts import Run
        from understudy.errors import StoreError
        from understudy.report.page import write_report

        runs = [Run(folder) for folder in options.runs]
        for folder in runs:
            if not folder.path.is_dir():
                raise StoreError(f"There is no run folder {folder.path}. Known runs lie under runs/.")
        print(write_report(runs, Path(options.out) if options.out else runs[0].report_path))
        return 0
