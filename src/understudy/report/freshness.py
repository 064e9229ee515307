"""Whether a report has to be written again, told by its files."""

from __future__ import annotations

from pathlib import Path

from understudy.artifacts import Run


def is_fresh(run: Run) -> bool:
    """Whether a run's report is newer than every file of the run that it shows, and than the code that writes it."""
    if not run.report_path.is_file():
        return False
    code = [path for path in Path(__file__).parent.rglob("*") if path.suffix != ".pyc"]
    shown = [run.config_path, run.metrics_path, run.student_path, run.evaluation_path, run.sample_path]
    newest = max(path.stat().st_mtime_ns for path in [*code, *shown] if path.is_file())
    return run.report_path.stat().st_mtime_ns > newest
