"""`understudy train`."""

from understudy.cli.options import Options
from understudy.cli.run_verb import RunVerb, on_main_process
from understudy.errors import Stopped


class Train(RunVerb):
    """Distill a student. Missing embeddings and graph are made first; an interrupted run resumes by itself."""

    name = "train"
    models = True

    def run(self, options: Options) -> int:
        from understudy import pipeline

        finished = pipeline.train_stage(options.settings)
        if finished is None:
            raise Stopped
        if on_main_process():
            print(finished.path)
        return 0
