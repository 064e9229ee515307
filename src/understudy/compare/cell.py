"""One run of a comparison: an ordinary run folder, made by anybody who is given the cell."""

import dataclasses
import json
import shutil
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.artifacts import read_json, write_json, write_text
from understudy.compare.settings import FREE
from understudy.compare.variants import Variant
from understudy.errors import Stopped, UnderstudyError
from understudy.pipeline import RunSettings, evaluate_stage, train_stage
from understudy.settings import as_table, flatten


@dataclass(frozen=True)
class Cell:
    """One run to be made."""

    variant: Variant  # whose
    folder: Path  # its run folder
    settings: RunSettings  # all of it; `eval_data` is for the evaluation only
    role: str  # "cell", "trial" (judged on held-out images), or "timing" (not judged)

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.variant.label}, seed {self.settings.seed}, rate {self.settings.optimizer.peak:.3g}"

    def bound(self) -> dict[str, Any]:
        """What its figures depend on, as plain JSON."""
        flat = {k: v for k, v in flatten(as_table(self.settings)).items() if k.split(".")[0] not in FREE}
        return dict(json.loads(json.dumps({"role": self.role, **flat})))

    @property
    def done_path(self) -> Path:
        """Written last, so it means that the cell is whole."""
        return self.folder / "cell.json"

    @property
    def failure_path(self) -> Path:
        """The sentence of a cell that failed."""
        return self.folder / "failure.json"

    @property
    def done(self) -> bool:
        """Whether it is trained and evaluated as asked for now."""
        return self.done_path.is_file() and read_json(self.done_path) == self.bound()

    @property
    def failure(self) -> str | None:
        """Why it failed, unless it is done."""
        if self.done or not self.failure_path.is_file():
            return None
        return str(read_json(self.failure_path)["sentence"])


def attempt(cell: Cell) -> None:
    """Make a cell; what goes wrong is written into its folder as a sentence.

    Raises:
        Stopped: asked to stop; a checkpoint is there.
    """
    cell.failure_path.unlink(missing_ok=True)
    try:
        make(cell)
    except Stopped:
        raise
    except UnderstudyError as error:
        write_json(cell.failure_path, {"sentence": str(error)})
    except Exception as error:
        # One method's fault must not cost the others' hours: the rest goes on, the exit status tells.
        write_text(cell.folder / "traceback.txt", traceback.format_exc())
        sentence = f"{type(error).__name__}: {error} (see {cell.folder / 'traceback.txt'})"
        write_json(cell.failure_path, {"sentence": sentence})


def make(cell: Cell) -> None:
    """Train and evaluate one cell."""
    # Without the evaluation images training holds out the same images in every cell, trials and final runs alike.
    finished = train_stage(dataclasses.replace(cell.settings, eval_data=None), quiet=True)
    if finished is None:
        raise Stopped
    if cell.role != "timing":
        evaluate_stage(finished, cell.settings, quiet=True)
    if cell.role != "cell":  # nobody goes on from a trial or looks at its pictures
        finished.sample_path.unlink(missing_ok=True)
        for leftover in (finished.checkpoint_path.parent, finished.path / "features"):
            shutil.rmtree(leftover, ignore_errors=True)
    write_json(cell.done_path, cell.bound())
