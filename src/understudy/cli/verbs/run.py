"""`understudy run`."""

from understudy.cli.options import Options
from understudy.cli.run_verb import RunVerb, on_main_process


class Run(RunVerb):
    """The whole flow: embed, graph, train, evaluate, report. A second call repeats nothing that is finished."""

    name = "run"
    models = True

    def run(self, options: Options) -> int:
        from understudy import pipeline
        from understudy.cli.tables import print_table

        finished = pipeline.run(options.settings)
        if on_main_process():
            print_table([finished])
        return 0
