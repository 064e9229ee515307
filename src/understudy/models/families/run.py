"""`run:FOLDER`: the student of an earlier run."""

from __future__ import annotations

from understudy.models.families import BuiltNetwork, Family, Request


class RunFolder(Family):
    """The backbone of a student that was trained here, its head dropped."""

    name = "run"
    form = "run:FOLDER"
    summary = "a run made here, its backbone"
    takes_file = False

    @staticmethod
    def build(request: Request) -> BuiltNetwork:
        """See `Family.build`."""
        from understudy.models.student import load_student

        student = load_student(request.name)
        student.backbone.train()
        return BuiltNetwork(
            student.backbone,
            student.contract,
            f"student of {request.name} ({student.spec}), its head dropped",
            architecture=student.architecture,
            code=student.code,
            library=student.library,
        )
