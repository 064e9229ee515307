"""The story on one page: images and a teacher become a student, one call per arrow.

    images --open_source--> source --embed--> store --build_graph--> graph --train--> run
    run --evaluate_run--> evaluation.json --write_report--> report.html

Every stage whose result is fresh is skipped, so a second call recomputes nothing, and a killed one goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from understudy.artifacts import Run, lock
from understudy.errors import ConfigError, Stopped
from understudy.evaluate.settings import EvaluationSettings
from understudy.models.trust import trusting
from understudy.recipes import merge_layers
from understudy.settings import resolve, setting
from understudy.train import resume
from understudy.train.settings import DEFAULT_METHOD, TrainSettings

if TYPE_CHECKING:
    import numpy as np
    import torch

    from understudy.artifacts import Store
    from understudy.embed.transform import Transform
    from understudy.models.settings import TeacherSettings
    from understudy.models.teacher import Teacher
    from understudy.sources.source import Source
    from understudy.train.distributed import Processes
    from understudy.train.setup import TrainingData
    from understudy.train.signals import Probe

Result = TypeVar("Result")

LOCK_SECONDS = 10.0
"""How long a run waits for its folder: processes of a killed torchrun, and readers of a killed process, end by then."""


@dataclass(frozen=True)
class RunSettings(TrainSettings):
    """A whole run: training and evaluation."""

    evaluation: EvaluationSettings = setting(EvaluationSettings)


def resolve_run(*layers: Mapping[str, Any]) -> RunSettings:
    """The settings of a run from tables laid over each other, with what `recipe` and `preset` stand for.

    Args:
        *layers: e.g. the settings file, then the flags; see `recipes.merge_layers` and `settings.resolve`.

    Raises:
        ConfigError: as those two.
    """
    return resolve(RunSettings, *merge_layers(*layers, method=DEFAULT_METHOD))


def distill(
    *, data: Any, teacher: str, student: str, out: str | os.PathLike[str] | None = None, quiet: bool = False,
    trust_code: bool | str | Sequence[str] = (), **overrides: Any,
) -> Run:  # fmt: skip
    """Distill a teacher into a student, evaluate it and write the report: `understudy run` as a function.

    Args:
        data: training images, a data spec (folder, *.parquet, *.tar, *.arrow, *.npy, list:FILE, torchvision:NAME,
            hf:ORG/NAME, s3://..., digits). Labels are not read.
        teacher: model spec with weights, e.g. "timm:vit_base_patch16_224", "onnx:teacher.onnx", "run:FOLDER".
        student: model spec, e.g. "timm:resnet18", "small:resnet8".
        out: run folder; `runs/METHOD-STUDENT-HASH` unless given.
        quiet: print nothing.
        trust_code: modules that a run given as `run:FOLDER` may name as its code, as in `load_student`.
        **overrides: any setting of `understudy run --help`, `recipe` and `preset` included; inner ones as
            `method={"name": "coss", "weight": 0.5}`, `neighbors={"k": 0}` or `**{"optimizer.lr": 0.001}`.

    Returns:
        The finished run: `.path`, `.student`, `.evaluation`, `.report_path`; `load_student(run.path)` gives the model.

    Raises:
        UnderstudyError: anything a user can do wrong, in a sentence.
        Stopped: SIGTERM or SIGINT arrived; a checkpoint was written.
    """
    given = {"data": os.fspath(data), "teacher": teacher, "student": student, **overrides}
    if out is not None:
        given["out"] = os.fspath(out)
    with trusting(trust_code):
        return run(resolve_run(given), quiet=quiet)


def run(settings: RunSettings, *, quiet: bool = False) -> Run:
    """Embed, graph, train, evaluate, report.

    Args:
        settings: the whole run.
        quiet: print nothing.

    Raises:
        Stopped: training was asked to stop and left a checkpoint.
    """
    finished = train_stage(settings, quiet=quiet)
    if finished is None:
        raise Stopped
    evaluate_stage(finished, settings, quiet=quiet)
    report_stage([finished], quiet=quiet)
    return finished


def train_stage(settings: RunSettings, *, quiet: bool = False) -> Run | None:
    """Everything up to the finished student; None when asked to stop.

    Missing embeddings and graph are made first, from the same store that any other run of this teacher uses.
    """
    finished = finished_run(settings)
    if finished is not None:
        return finished
    from understudy.models.sharded import collective_calls
    from understudy.train.distributed import join
    from understudy.train.loop import train

    settings = resolve_method(settings)
    folder = Run(settings.out or Path("runs") / resume.run_id(settings))
    processes = join(settings.device)
    quiet = quiet or not processes.main
    refuse_sharding(settings, processes)
    source, held_out = training_images(settings)
    if folder.trained:
        resume.refuse_other_settings(folder, settings)
        resume.refuse_other_images(folder, source)
        return folder
    teacher = teacher_stage(settings, processes, quiet=quiet)
    data = data_stage(settings, teacher, source, processes, quiet=quiet)
    with collective_calls(teacher):
        probe = probe_of(settings, teacher, data.transform, held_out, processes) if processes.main else None
    # Another process may still be at it, e.g. one that outlived a torchrun that was killed.
    with lock(folder.path, patience=LOCK_SECONDS) if processes.main else contextlib.nullcontext():
        done = train(settings, folder, data, teacher=teacher, processes=processes, probe=probe, quiet=quiet)
    return folder if done else None


def finished_run(settings: RunSettings) -> Run | None:
    """The finished run of these settings, found without torch; None where there is none or it is not certain.

    Raises:
        StoreError: its images have changed since.
    """
    if not by_files_alone(settings):
        return None
    pattern = f"{settings.method['name']}-{resume.student_id(settings)}-*"
    for folder in [Run(settings.out)] if settings.out else map(Run, sorted(Path("runs").glob(pattern))):
        if folder.trained and folder.config_path.is_file() and resume.same_settings(folder, settings):
            saved = dataclasses.replace(resume.saved_settings(folder, RunSettings), eval_data=settings.eval_data)
            if settings.out or resume.run_id(saved) == folder.path.name:
                resume.refuse_other_images(folder, training_images(settings)[0])
                return folder
    return None


def by_files_alone(settings: RunSettings) -> bool:
    """Whether a stage may be called finished by its files alone: else processes must agree, or devices be there."""
    alone = "WORLD_SIZE" not in os.environ and settings.teacher_sharding == "none"
    return alone and settings.device in ("auto", "cpu")


def refuse_sharding(settings: RunSettings, processes: Processes) -> None:
    """Refuse a sharded teacher where it cannot be.

    Raises:
        ConfigError: there is one process, or the method compares more than embeddings.
    """
    from understudy.losses import LOSSES
    from understudy.models.sharded import require_processes

    if settings.teacher_sharding == "none":
        return
    require_processes(processes)
    needs = LOSSES[settings.method["name"]].needs
    if needs.tokens or needs.attention:
        raise ConfigError(
            f"Method '{settings.method['name']}' compares tokens or attention, and a sharded teacher shows its "
            "embedding only. Leave out --teacher-sharding."
        )


def teacher_stage(settings: RunSettings, processes: Processes, *, quiet: bool = False) -> Teacher | None:
    """The teacher on its device, or shared out over the processes; None for a method that needs none."""
    from understudy.losses import LOSSES
    from understudy.models.outputs import require_outputs
    from understudy.models.sharded import ShardedTeacher
    from understudy.train.log import notify

    needs = LOSSES[settings.method["name"]].needs
    if not needs.teacher or settings.teacher is None:
        return None
    teacher = teacher_of(settings.teacher_settings, processes.device)
    if needs.tokens or needs.attention:  # the loop requires it too, but here it is before any work
        require_outputs(teacher.module, teacher.spec, attention=needs.attention)
    sharded = settings.teacher_settings.sharded
    teacher = ShardedTeacher(teacher, processes, processes.device) if sharded else teacher.to(processes.device)
    if not quiet:
        notify(f"teacher: {teacher.spec}, D = {teacher.width}, {teacher.precision}; {teacher.weights}")
    return teacher


def teacher_of(settings: TeacherSettings, device: torch.device) -> Teacher:
    """A teacher, on the CPU, in the arithmetic it will have on the device.

    Raises:
        UnderstudyError: as `models.teacher.build_teacher`.
    """
    from understudy.models.teacher import build_teacher

    return build_teacher(
        settings.spec, mean=settings.mean, std=settings.std, image_size=settings.image_size, output=settings.output,
        precision=settings.precision, device=device,
    )  # fmt: skip


def data_stage(
    settings: RunSettings, teacher: Teacher | None, source: Source, processes: Processes, *, quiet: bool = False
) -> TrainingData:
    """The training images, with the store, the graph and the transform that the settings need."""
    from understudy.embed.embedding import open_rows
    from understudy.embed.transform import transform_of
    from understudy.sources.formats.address import RemoteImages
    from understudy.sources.pixels import decoded
    from understudy.train.log import notify
    from understudy.train.setup import TrainingData

    rows, store, graph, transform = source, None, None, None
    if settings.verify_images and (teacher is None or not needs_store(settings)):
        raise ConfigError("--verify-images compares the images with a store's, and this run has none: leave it out.")
    if teacher is not None and needs_store(settings):
        store = embed_stage(settings, teacher, source, processes, quiet=quiet)
        rows = open_rows(store, source)
        if settings.neighbors.k:
            graph = graph_stage(settings, store, processes, quiet=quiet)
        if settings.transform != "none":
            transform = on_main_first(processes, partial(transform_of, store, settings.transform))
    # Small images lie decoded in a memory map beside the stores.
    rows = on_main_first(processes, partial(decoded, rows, Path(settings.store) / "pixels"))
    if not quiet and isinstance(rows.images, RemoteImages) and (advice := rows.images.advice(rows.rows)) is not None:
        notify(advice)
    return TrainingData(rows, graph, store, transform, listing=source.fingerprint)


def needs_store(settings: TrainSettings) -> bool:
    """Whether a run needs the teacher's embeddings of all images."""
    return bool(settings.neighbors.k) or settings.views.teacher == "recorded" or settings.transform != "none"


def embed_stage(
    settings: TrainSettings, teacher: Teacher, source: Source, processes: Processes, *, quiet: bool = False
) -> Store:
    """Images to teacher embeddings, once per teacher, preprocessing and listing; shared by all processes."""
    from understudy.embed.embedding import Inference, embed
    from understudy.embed.verification import verify_images
    from understudy.train.log import StageProgress

    with StageProgress("embed", quiet) as progress:
        inference = Inference(processes.device, workers=settings.workers, progress=progress)
        store = embed(teacher, source, settings.store, inference, writers=processes)
        return verify_images(store, source, inference, processes) if settings.verify_images else store


def graph_stage(settings: TrainSettings, store: Store, processes: Processes, *, quiet: bool = False) -> np.ndarray:
    """Teacher embeddings to the neighbor graph, kept in the store."""
    from understudy.neighbors.graph import build_graph
    from understudy.train.log import StageProgress

    with StageProgress("graph", quiet) as progress:
        return build_graph(
            store, settings.neighbors, device=str(processes.device), writers=processes, progress=progress
        )


def evaluate_stage(folder: Run, settings: RunSettings, *, quiet: bool = False) -> dict[str, Any]:
    """The finished student and its teacher to evaluation.json."""
    held_out = training_images(settings)[1] if settings.eval_data is None else None
    evaluation = dataclasses.replace(settings.evaluation, eval_data=settings.eval_data)
    origin = folder.student.get("teacher")
    if by_files_alone(settings) and (origin or settings.teacher is None):
        from understudy.evaluate.results import RunResults

        teacher, listings = origin and origin["fingerprint"], Path(settings.store) / "listings"
        finished = RunResults.of(folder, evaluation, held_out, teacher, listings).finished
        if finished is not None:
            return finished
    from understudy.evaluate.features import Resources
    from understudy.evaluate.runner import evaluate_run
    from understudy.train.distributed import join
    from understudy.train.log import StageProgress, notify

    processes = join(settings.device)
    if not processes.main:
        return {}
    control = None
    if settings.teacher is not None and origin is None:
        control = teacher_of(settings.teacher_settings, processes.device)
    with StageProgress("evaluate", quiet) as progress:
        notice = None if quiet else notify
        resources = Resources(processes.device, settings.store, settings.workers, progress, notice)
        with trusting([settings.teacher, settings.student]):  # the run names them because these settings do
            return evaluate_run(folder, evaluation, resources, held_out=held_out, control=control)


def report_stage(folders: list[Run], out: Path | None = None, *, quiet: bool = False) -> Path:
    """Run folders to one page; that of one run is left as it is while it is newer than all it is made from."""
    from understudy.report.provenance import is_fresh
    from understudy.train.log import notify

    path = out or folders[0].report_path
    if out is not None or len(folders) > 1 or not is_fresh(folders[0]):
        from understudy.report.page import write_report

        path = write_report(folders, path)
    if not quiet:
        notify(f"report: {path}")
    return path


def resolve_method(settings: RunSettings) -> RunSettings:
    """The method's settings in their types; a method without a teacher has nothing to do with its settings.

    Raises:
        ConfigError: the method or one of its settings is unknown, a teacher is needed and not given, or neighbors are
            asked for without one.
    """
    from understudy.losses import LOSSES, typed_settings

    method = typed_settings(**settings.method)
    name = method["name"]
    if LOSSES[name].needs.teacher:
        if settings.teacher is None:
            raise ConfigError(f"Method '{name}' distills a teacher and none was given. Add --teacher SPEC.")
    else:
        if settings.neighbors.k:
            raise ConfigError(f"Method '{name}' has no teacher, so no neighbors: leave out --neighbors.k.")
        if settings.transform != "none":
            raise ConfigError(f"Method '{name}' has no teacher to transform: leave out --transform.")
        if settings.teacher_sharding != "none":
            raise ConfigError(f"Method '{name}' has no teacher to shard: leave out --teacher-sharding.")
        if settings.teacher_precision != "auto" and settings.teacher is None:
            raise ConfigError(f"Method '{name}' has no teacher to compute: leave out --teacher-precision.")
    return dataclasses.replace(settings, method=method)


def training_images(settings: TrainSettings) -> tuple[Source, Source | None]:
    """The images to train on, and those held out of training for the signals when there is no eval data."""
    import numpy as np

    from understudy.sources.source import open_source

    source = open_source(settings.data, limit=settings.limit, listings=Path(settings.store) / "listings")
    count = min(settings.holdout, len(source) // 10)
    if settings.eval_data is not None or count == 0:
        return source, None
    # The same images whatever the seed, so that runs of several seeds share one store and one graph.
    order = np.random.Generator(np.random.Philox(key=[0, 0x0DD])).permutation(len(source))
    return source.subset(np.sort(order[count:])), source.subset(np.sort(order[:count]))


def probe_of(
    settings: RunSettings, teacher: Teacher | None, transform: Transform | None, held_out: Source | None,
    processes: Processes,
) -> Probe | None:  # fmt: skip
    """The held-out images behind the live signals; None where there are none, or no signals are asked for."""
    from understudy.models.student import student_encoder
    from understudy.sources.evaluation import open_evaluation
    from understudy.sources.source import limited
    from understudy.train.signals import build_probe

    if settings.probes == 0 or (held_out is None and settings.eval_data is None):
        return None
    bank = None
    if settings.eval_data is not None:
        halves = open_evaluation(settings.eval_data, listings=Path(settings.store) / "listings")
        bank, held_out = (limited(half, settings.evaluation.limit) for half in halves)
    assert held_out is not None
    contract = student_encoder(settings.student_settings).contract
    return build_probe(
        held_out, bank, contract, teacher=teacher, transform=transform, device=processes.device, seed=settings.seed
    )


def on_main_first(processes: Processes, stage: Callable[[], Result]) -> Result:
    """Let rank 0 make what the others then find ready."""
    result = stage() if processes.main else None
    processes.barrier()
    return stage() if result is None else result
