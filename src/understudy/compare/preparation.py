"""What several runs share is made once, before them: embeddings, graph, pixels, the teacher's figures."""

import dataclasses
from collections.abc import Sequence

from understudy.artifacts import fingerprint
from understudy.compare.cell import Cell
from understudy.pipeline import RunSettings, data_stage, teacher_of, training_images
from understudy.settings import as_table


class Preparation:
    """What has been made for the runs of a comparison so far."""

    def __init__(self) -> None:
        self.made: set[str] = set()

    def make(self, cells: Sequence[Cell]) -> None:
        """Make what these cells share and nobody has made yet."""
        for cell in cells:
            settings = dataclasses.replace(cell.settings, eval_data=None)
            key = fingerprint(
                settings.teacher, settings.teacher_mean, settings.teacher_std, settings.teacher_precision,
                settings.teacher_size, settings.teacher_output,
                settings.data, settings.limit, settings.holdout, settings.views.teacher, settings.transform,
                settings.neighbors.n if settings.neighbors.k else 0, cell.settings.eval_data,
                as_table(cell.settings.evaluation),
            )  # fmt: skip
            if key not in self.made:
                self._make(settings, cell.settings.eval_data)
                self.made.add(key)

    def _make(self, settings: RunSettings, eval_data: str | None) -> None:
        from understudy.evaluate.features import Resources
        from understudy.evaluate.runner import evaluate_teacher
        from understudy.train.distributed import join
        from understudy.train.log import StageProgress, notify

        processes = join(settings.device)
        source, held_out = training_images(settings)
        teacher = None
        if settings.teacher is not None:
            teacher = teacher_of(settings.teacher_settings, processes.device).to(processes.device)
            if not self.made:
                notify(f"teacher: {teacher.spec}, D = {teacher.width}, {teacher.precision}; {teacher.weights}")
        data_stage(settings, teacher, source, processes)
        if teacher is not None and (eval_data is not None or held_out is not None):
            with StageProgress("evaluate the teacher") as progress:
                evaluation = dataclasses.replace(settings.evaluation, eval_data=eval_data)
                resources = Resources(processes.device, settings.store, settings.workers, progress)
                evaluate_teacher(teacher, evaluation, resources, held_out=held_out)
