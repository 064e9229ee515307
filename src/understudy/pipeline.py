"""The story on one page: images and a teacher become a student, one call per arrow.

    images --open_source--> source --embed--> store --build_graph--> graph --train--> run
    run --evaluate_run--> evaluation.json --write_report--> report.html

Every stage whose result is fresh is skipped, so a second call recomputes nothing, and a killed one goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from understudy.artifacts import Run, fingerprint, lock
from understudy.errors import ConfigError, Stopped, StoreError
from understudy.evaluate.settings import EvaluationSettings
from understudy.recipes import merge_layers
from understudy.settings import resolve, setting
from understudy.train.settings import DEFAULT_METHOD, TrainSettings

if TYPE_CHECKING:
    import numpy as np
    import torch

    from understudy.artifacts import Store
    from understudy.models.teacher import Teacher
    from understudy.sources.source import Source
    from understudy.train.distributed import Processes
    from understudy.train.signals import Probe

Result = TypeVar("Result")

LOCK_SECONDS = 10.0
"""How long a run waits for its folder: processes of a killed torchrun, and readers of a killed process, end by then."""

PROBE_IMAGES, BANK_IMAGES = 512, 2048
"""Held-out images and labeled training images behind the live signals: small enough to cost seconds a run."""


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
    **overrides: Any,
) -> Run:  # fmt: skip
    """Distill a teacher into a student, evaluate it and write the report: `understudy run` as a function.

    Args:
        data: training images, a data spec (folder, *.parquet, *.tar, *.arrow, *.npy, list:FILE, torchvision:NAME,
            hf:ORG/NAME, s3://..., digits). Labels are not read.
        teacher: model spec with weights, e.g. "timm:vit_base_patch16_224", "onnx:teacher.onnx", "run:FOLDER".
        student: model spec, e.g. "timm:resnet18", "small:resnet8".
        out: run folder; `runs/METHOD-STUDENT-HASH` unless given.
        quiet: print nothing.
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
    from understudy.embed.transform import transform_of
    from understudy.losses import LOSSES
    from understudy.models.outputs import require_outputs
    from understudy.models.sharded import ShardedTeacher, collective_calls, require_processes
    from understudy.sources.formats.address import RemoteImages
    from understudy.train.data import TrainingData
    from understudy.train.distributed import join
    from understudy.train.log import notify
    from understudy.train.loop import train
    from understudy.train.resume import refuse_other_settings

    settings = resolve_method(settings)
    method = LOSSES[settings.method["name"]]
    folder = Run(settings.out or Path("runs") / run_id(settings))
    processes = join(settings.device)
    quiet = quiet or not processes.main
    if settings.teacher_sharding == "fsdp":
        require_processes(processes)
        if method.needs.tokens or method.needs.attention:
            raise ConfigError(
                f"Method '{settings.method['name']}' compares tokens or attention, and a sharded teacher shows its "
                "embedding only. Leave out --teacher-sharding."
            )

    source, held_out = training_images(settings)
    if folder.trained:
        refuse_other_settings(folder, settings)
        refuse_other_images(folder, source)
        return folder
    teacher = None
    if method.needs.teacher and settings.teacher is not None:
        teacher = teacher_of(settings, processes.device)
        if method.needs.tokens or method.needs.attention:  # said again by the loop, but here before any work
            require_outputs(teacher.module, teacher.spec, attention=method.needs.attention)
        if settings.teacher_sharding == "fsdp":
            teacher = ShardedTeacher(teacher, processes, processes.device)
        else:
            teacher = teacher.to(processes.device)
        if not quiet:
            notify(f"teacher: {teacher.spec}, D = {teacher.width}, {teacher.precision}; {teacher.weights}")
    rows, graph, store = source, None, None
    transform = None
    if teacher is not None and (
        settings.neighbors.k or settings.views.teacher == "recorded" or settings.transform != "none"
    ):
        made = embed_stage(settings, teacher, source, processes, quiet=quiet)
        rows, store = open_rows_of(made, source), made
        if settings.neighbors.k:
            graph = graph_stage(settings, made, processes, quiet=quiet)
        if settings.transform != "none":
            transform = on_main_first(processes, lambda: transform_of(made, settings.transform))
    rows = decoded_images(settings, rows, processes)
    if not quiet and isinstance(rows.images, RemoteImages) and (advice := rows.images.advice(rows.rows)) is not None:
        notify(advice)
    with collective_calls(teacher):
        probe = probe_of(settings, teacher, held_out, processes) if processes.main else None
    if probe is not None and probe.teacher is not None and transform is not None:
        probe.target = transform.apply(probe.teacher)
    # Another process may still be at it, e.g. one that outlived a torchrun that was killed.
    with lock(folder.path, patience=LOCK_SECONDS) if processes.main else contextlib.nullcontext():
        images = TrainingData(rows, graph, store, transform, listing=source.fingerprint)
        done = train(settings, folder, images, teacher=teacher, processes=processes, probe=probe, quiet=quiet)
    return folder if done else None


def teacher_of(settings: TrainSettings, device: torch.device) -> Teacher:
    """The teacher that a run names, on the CPU, in the arithmetic it will have on the device.

    Raises:
        UnderstudyError: as `models.teacher.build_teacher`.
    """
    from understudy.models.teacher import build_teacher

    assert settings.teacher is not None
    return build_teacher(
        settings.teacher, mean=settings.teacher_mean, std=settings.teacher_std, precision=settings.teacher_precision,
        device=device,
    )  # fmt: skip


def embed_stage(
    settings: TrainSettings, teacher: Teacher, source: Source, processes: Processes, *, quiet: bool = False
) -> Store:
    """Images to teacher embeddings, once per teacher, preprocessing and listing; shared by all processes."""
    from understudy.embed.embedding import Inference, embed
    from understudy.train.log import StageProgress

    with StageProgress("embed", quiet) as progress:
        inference = Inference(processes.device, workers=settings.workers, progress=progress)
        return embed(teacher, source, settings.store, inference, writers=processes)


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
    from understudy.evaluate.features import Resources
    from understudy.evaluate.runner import evaluate_run
    from understudy.train.distributed import join
    from understudy.train.log import StageProgress, notify

    processes = join(settings.device)
    if not processes.main:
        return {}
    held_out = training_images(settings)[1] if settings.eval_data is None else None
    evaluation = dataclasses.replace(settings.evaluation, eval_data=settings.eval_data)
    control = None
    if settings.teacher is not None and folder.student.get("teacher") is None:
        control = teacher_of(settings, processes.device)
    with StageProgress("evaluate", quiet) as progress:
        say = None if quiet else notify
        resources = Resources(processes.device, settings.store, settings.workers, progress, say)
        return evaluate_run(folder, evaluation, resources, held_out=held_out, control=control)


def report_stage(folders: list[Run], out: Path | None = None, *, quiet: bool = False) -> Path:
    """Run folders to one page."""
    from understudy.report.page import write_report
    from understudy.train.log import notify

    path = write_report(folders, out or folders[0].report_path)
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


def run_id(settings: TrainSettings) -> str:
    """The folder name of a run: method, student, and a hash of all that decides the weights."""
    student = re.sub(r"[^A-Za-z0-9]+", "-", settings.student.split("@")[0]).strip("-")
    # Without what is as usual, so that a version with more settings finds the same run again.
    defaults = settings.defaults()
    own = {
        key: value
        for key, value in settings.identity_settings().items()
        if key not in defaults or value != defaults[key]
    }
    told = settings.data, settings.student, own, settings.eval_data
    return f"{settings.method['name']}-{student}-{fingerprint(*told)[:8]}"


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


def refuse_other_images(folder: Run, source: Source) -> None:
    """Refuse to call a run finished whose images have changed since.

    Raises:
        StoreError: the listing is not the one it was trained on.
    """
    data = folder.student["data"]
    if data["listing"] != source.fingerprint:
        raise StoreError(
            f"The run {folder.path} was trained on {data['images']:,} images of {data['spec']}, which have changed "
            f"since: there are {len(source):,} now, or files are newer. Name another --out to train on them."
        )


def open_rows_of(store: Store, source: Source) -> Source:
    """The images behind the rows of a store: the source without what could not be read."""
    from understudy.embed.embedding import open_rows

    return open_rows(store, source)


def decoded_images(settings: TrainSettings, source: Source, processes: Processes) -> Source:
    """The source behind a uint8 memory map when its images are small, decoded once beside the stores."""
    from understudy.sources.pixels import decoded

    return on_main_first(processes, lambda: decoded(source, Path(settings.store) / "pixels"))


def probe_of(
    settings: RunSettings, teacher: Teacher | None, held_out: Source | None, processes: Processes
) -> Probe | None:
    """The held-out slice behind the live signals, decoded and embedded once."""
    import numpy as np
    import torch

    from understudy.models.encoder import build_encoder
    from understudy.sources.evaluation import open_evaluation
    from understudy.sources.source import limited
    from understudy.train.signals import Probe
    from understudy.views.image_loader import ImageLoader

    if settings.probes == 0 or (held_out is None and settings.eval_data is None):
        return None
    limit = settings.evaluation.limit
    if settings.eval_data is not None:
        halves = open_evaluation(settings.eval_data, listings=Path(settings.store) / "listings")
        bank_source, held_out = (limited(half, limit) for half in halves)
    else:
        bank_source = None
    assert held_out is not None
    contract = build_encoder(settings.student, pretrained=False, image_size=settings.image_size).contract
    size = max(contract.size, teacher.contract.size if teacher is not None else 0)

    def slice_of(source: Source, count: int) -> tuple[torch.Tensor, np.ndarray | None, np.ndarray | None]:
        generator = np.random.Generator(np.random.Philox(key=[settings.seed, 0x51]))
        source = source.subset(np.sort(generator.permutation(len(source))[:count]))
        loader = ImageLoader(
            source, size=size, crop=contract.crop, interpolation=contract.interpolation, batch_size=64, workers=0
        )
        parts = [(indices, pixels) for indices, pixels, _ in loader]
        pixels = torch.cat([part[1] for part in parts])
        kept = np.concatenate([part[0] for part in parts])
        embeddings = None
        if teacher is not None:
            images = (chunk.to(processes.device).float() / 255 for chunk in pixels.split(64))
            embeddings = torch.cat([teacher(image).float().cpu() for image in images]).numpy()
        return pixels, embeddings, None if source.labels is None else source.labels[kept]

    pixels, embeddings, labels = slice_of(held_out, PROBE_IMAGES)
    if bank_source is None or labels is None:
        return Probe(pixels, embeddings)
    return Probe(pixels, embeddings, labels, *slice_of(bank_source, BANK_IMAGES))


def on_main_first(processes: Processes, stage: Callable[[], Result]) -> Result:
    """Let rank 0 make what the others then find ready."""
    result = stage() if processes.main else None
    processes.barrier()
    return stage() if result is None else result
