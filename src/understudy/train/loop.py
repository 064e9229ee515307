"""THE training loop. Every method, every teacher and every number of processes goes through `train`, top to bottom.

It knows no method by name: a loss declares what it needs (`losses.Loss`), and the loop gives exactly that.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import math
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy.artifacts import Run, Store, write_text
from understudy.embed.embedding import extract
from understudy.embed.recorded import Recorded, RecordedViews, in_fixed_batches
from understudy.embed.transform import Transform
from understudy.errors import ConfigError, DataError, TrainingError
from understudy.hardware import hardware
from understudy.losses import Loss, Terms, build, typed
from understudy.losses.terms import next_in_bag
from understudy.models.cost import flops
from understudy.models.inverse_transform import InverseTransform
from understudy.models.malloc import keep_freed_memory
from understudy.models.outputs import EncoderOutput, patch_count, require_outputs
from understudy.models.sharded import ShardedTeacher, together
from understudy.models.student import Student, build_student, save_student
from understudy.models.teacher import Teacher
from understudy.settings import as_table, read_toml, resolve, write_toml
from understudy.sources.source import Source
from understudy.train.checkpoint import load_checkpoint, save_checkpoint
from understudy.train.chunks import in_chunks
from understudy.train.compile import Compiled, Networks, choose
from understudy.train.distributed import Processes
from understudy.train.log import Log, notify
from understudy.train.schedule import build_optimizer, learning_rate
from understudy.train.settings import TrainSettings
from understudy.train.signals import Probe, verdict
from understudy.views.augmentation import at_ratio, photometry, recipe_for
from understudy.views.batches import NeighborBatches
from understudy.views.cutmix import cutmix
from understudy.views.loader import Loader, Reading, Share
from understudy.views.patch_masks import hidden_patches, spread_evenly
from understudy.views.reader import ImageBatch, TeacherInput, Views
from understudy.views.tuning import reading_advice

LANDING_IMAGES = 2048
LOG_SECONDS = 10.0
FLUSH_STEPS = {"cpu": 1, "cuda": 50, "mps": 50}
"""How many steps may pass before the losses are read back; reading one waits for the GPU."""
TALK_STEPS = 10
"""Several processes ask each other every so many steps whether to stop or to save."""


def train(
    settings: TrainSettings,
    run: Run,
    source: Source,
    *,
    teacher: Teacher | None,
    graph: np.ndarray | None,
    store: Store | None = None,
    transform: Transform | None = None,
    processes: Processes,
    probe: Probe | None = None,
    quiet: bool = False,
    listing: str = "",
) -> bool:
    """Train a student, from the start or from where the run folder stands.

    The same settings and seed give the same weights on the same machine, interrupted or not.

    Args:
        settings: what to train and how.
        run: the run folder; a checkpoint in it is resumed, a finished student in it is left as it is.
        source: training images; row i of `graph` belongs to image i.
        teacher: on `processes.device`, or None for methods that need none.
        graph: (N, K) int32 neighbors, or None when `neighbors.k` is 0.
        store: the teacher's embeddings of these images; None when nothing in the settings needs them.
        transform: of the teacher's space, fitted on that store; None when the settings name none.
        processes: this process' place among all.
        probe: held-out images for the live signals.
        quiet: print nothing.
        listing: fingerprint of all images that were listed, kept in student.json; that of `source` unless given. They
            differ where unreadable images were left out.

    Returns:
        True when training is finished, False when it was asked to stop (SIGTERM, SIGINT) and left a checkpoint.

    Raises:
        TrainingError: the run folder belongs to other settings, or the loss is not finite.
    """
    device = processes.device
    refuse_other_settings(run, settings)
    if run.trained:
        return True

    # The method says what it needs, the teacher how wide the space is, the student adapts to both.
    loss = build(**settings.method)
    if loss.needs_teacher and teacher is None:
        raise ConfigError(f"Method '{settings.method['name']}' needs a teacher. Give one with --teacher.")
    embed_dim = loss.embed_dim or (teacher.width if teacher is not None else 0)
    torch.manual_seed(settings.seed)
    student = build_student(
        settings.student,
        embed_dim,
        head=settings.head,
        hidden=settings.head_hidden,
        transform=settings.transform,
        image_size=settings.image_size,
    ).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Methods that compare what lies under the embedding: the networks must be able to show it.
    requested = {"attention": loss.needs_attention} if loss.needs_tokens or loss.needs_attention else {}
    if requested:
        require_outputs(student.backbone, student.spec, **requested)
        if teacher is not None:
            require_outputs(teacher.module, teacher.spec, **requested)
        if settings.views.teacher == "recorded":
            raise ConfigError(
                f"Method '{settings.method['name']}' compares tokens or attention, and recorded views hold embeddings "
                "only. Use --views.teacher live."
            )
        if settings.compile == "true":
            raise ConfigError(
                f"Method '{settings.method['name']}' reads tokens or attention through hooks, which torch.compile does "
                "not see. Leave out --compile true."
            )
    loss.prepare(student.width, teacher.width if teacher is not None else 0)
    loss = loss.to(device)
    key_student = average_of(student) if loss.needs_key else None

    # Both networks see the same crops in the same colors, each cut at its own size: a small student of a large teacher
    # costs what its own pixels cost once the teacher's views are recorded, which serve students of any size.
    size = student.contract.size
    teacher_size = teacher.contract.size if teacher is not None and loss.needs_teacher else size
    recipe = recipe_for(settings.views.recipe, max(size, teacher_size))
    k = settings.neighbors.k
    batches = NeighborBatches(
        len(source), settings.batch_size, k=k, n=settings.neighbors.n, seed=settings.seed, graph=graph
    )
    view_seed = settings.seed if settings.views.seed is None else settings.views.seed
    shown = len(loss.teacher_views) * batches.batch_size // processes.world
    recorded = None
    if teacher is not None and loss.needs_teacher and settings.views.teacher == "recorded":
        assert store is not None
        recorded = RecordedViews(
            store, teacher, recipe=at_ratio(recipe, teacher_size / max(size, teacher_size)), size=teacher_size,
            seed=view_seed, batch_size=shown, dtype=settings.views.dtype,
        )  # fmt: skip
    moved = None
    if transform is not None:
        moved = [torch.from_numpy(part).float().to(device) for part in (transform.mean, transform.matrix)]
    steps = batches.steps_for(settings.passes)
    warmup_steps = batches.steps_for(settings.optimizer.warmup) if settings.optimizer.warmup else 0

    optimizer = build_optimizer([student, loss], settings.optimizer, device)
    precision = settings.precision if settings.precision != "auto" else ("bf16" if device.type == "cuda" else "fp32")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    # A checkpoint holds all of the state; without one the run folder gets the resolved configuration and starts.
    first, seconds_before, skipped = 0, 0.0, {}
    checkpoint = load_checkpoint(run, device)
    if checkpoint is not None:
        student.load_state_dict(checkpoint["student"])
        loss.load_state_dict(checkpoint["loss"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        scaler.load_state_dict(checkpoint["scaler"])
        if key_student is not None:
            key_student.load_state_dict(checkpoint["key"])
        if recorded is not None:
            recorded.computed = checkpoint["teacher_views"] if processes.main else 0  # it counts those of all
        first, seconds_before, skipped = checkpoint["step"], checkpoint["seconds"], dict(checkpoint["skipped"])
    elif processes.main:
        write_text(run.config_path, write_toml(resolved(settings)))

    teacher_input = None
    if teacher_size != size:
        known = Recorded(recorded.folder) if recorded is not None else None
        teacher_input = TeacherInput(teacher_size, loss.teacher_views, known)
    pool = settings.views.different
    view_settings = Views(size, recipe, view_seed, per_image=loss.views, pool=pool, teacher=teacher_input)
    reading = Reading(settings.workers, device, notify if processes.main and not quiet else None)
    share_of_batch = Share(processes.rank, processes.world)
    loader = Loader(source, batches, view_settings, reading=reading, share=share_of_batch, steps=range(first, steps))
    title = f"{settings.method['name']}: {settings.teacher or 'no teacher'} -> {settings.student}"
    if processes.main and not quiet:
        notify(f"{title}, {'resumed at step' if first else 'from step'} {first:,} of {steps:,}")
        sizes = f"{size}" if teacher_size == size else f"{size} (teacher {teacher_size})"
        notify(f"  {batches.describe(settings.passes)}; {recipe.name} views of {sizes} px; {precision} on {device}")
        if recorded is None and loss.needs_teacher and not requested and 0 < pool < settings.passes * loss.views:
            notify(
                f"  An image has {pool:,} different views, and the live teacher runs on each of them again and again: "
                "with --views.teacher recorded it runs once on each."
            )
    # In training mode, as it will run: what is measured now is what is called in the loop.
    student.train()
    half = torch.autocast(device.type, dtype, enabled=precision != "fp32")
    share = batches.batch_size // processes.world
    at_once = math.ceil(share / settings.chunks) * (len(loss.student_views) + loss.needs_mixture)
    before = None
    if checkpoint is not None:  # one that does not say was made when nothing was compiled
        before = Compiled(**checkpoint.get("compiled", {"student": False, "teacher": False, "device": device.type}))
    live = teacher if loss.needs_teacher and recorded is None else None
    called, compiled = choose(
        "false" if requested else settings.compile, Networks(student, key_student, live),
        student_images=(at_once, student.contract.size), teacher_images=(shown, teacher_size),
        key_images=(math.ceil(share * len(loss.key_views) / settings.chunks), student.contract.size),
        half=half, steps=steps - first, processes=processes, before=before,
        notify=notify if processes.main and not quiet else None,
    )  # fmt: skip
    wrapped = processes.wrap(called.student)
    log = Log(
        run, resume_step=first, title=title, total=steps, tensorboard=settings.tensorboard, quiet=quiet
    ) if processes.main else None  # fmt: skip
    if log:
        log.write(
            "resume" if first else "start", first, steps=steps, images=len(source),
            compiled=dataclasses.asdict(compiled),
            teacher_precision=None if teacher is None else teacher.precision, **hardware(device),
        )  # fmt: skip

    signal_steps = (
        {round((i + 1) * steps / settings.probes) for i in range(settings.probes)} if settings.probes else set()
    )
    meter = Meter(device, processes, batches.batch_size, steps)
    begun = last_checkpoint = time.monotonic()
    step = first

    def state() -> dict[str, Any]:
        """What the checkpoint holds; every process must call it."""
        if recorded is not None:
            recorded.flush()  # a resumed run begins behind these steps, and may never ask for their views again
        return {
            "step": step,
            "seconds": seconds_before + time.monotonic() - begun,
            "skipped": skipped,
            "compiled": dataclasses.asdict(compiled),
            "teacher_views": processes.total(recorded.computed) if recorded is not None else 0,
            "student": student.state_dict(),
            "key": key_student.state_dict() if key_student is not None else None,
            "loss": loss.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }

    with (
        stop_requests() as stop,
        contextlib.closing(loader),
        kept(recorded),
        closed_on_failure(log),
        keep_freed_memory(device),
    ):
        stream = iter(loader)
        while step < steps:
            with meter.waiting():
                batch = next(stream)
            skipped.update(batch.skipped)
            if len(batch.index) == 0:
                raise DataError(
                    f"No image of step {step} can be read, e.g. {next(iter(batch.skipped))}. Check the data."
                )
            # Anything random inside the student (dropout, stochastic depth) is a function of seed, step and rank, so
            # a resumed run needs no random state.
            step_seed = settings.seed * 1_000_003 + step * processes.world + processes.rank
            torch.manual_seed(step_seed)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, warmup_steps, settings.optimizer, batches.steps_per_epoch)

            # One that lost images has a shape of its own: nothing is compiled for it.
            stance = functools.partial(compiled.stance, whole=len(batch.index) == share)
            images = [
                photometry(pixels.to(device, non_blocking=True), rows, recipe)
                for pixels, rows in zip(batch.pixels, batch.rows, strict=True)
            ]
            inputs: dict[str, Tensor] = {}
            if loss.needs_teacher and teacher is not None:
                apart = batch.teacher
                if apart is None:
                    looked_at = joined(images, loss.teacher_views)
                else:
                    looked_at = photometry(apart.pixels.to(device, non_blocking=True), apart.rows, recipe)
                with meter.in_teacher(), together(teacher), stance():
                    if requested:
                        sight = teacher.forward_outputs(looked_at, **requested)
                    elif recorded is None:
                        sight = EncoderOutput(in_fixed_batches(called.teacher or teacher, looked_at, shown))
                    else:
                        views = batch.view[list(loss.teacher_views)]
                        place = None if apart is None else apart.place
                        sight = EncoderOutput(
                            recorded(looked_at, batch.index.repeat(len(views)), views.flatten(), place)
                        )
                    if moved is not None:
                        sight = dataclasses.replace(sight, embedding=(sight.embedding - moved[0]) @ moved[1])
                    inputs |= named("teacher", sight, loss, loss.teacher_views)
            if called.key is not None:
                with torch.no_grad(), half, stance():
                    seen_by_key = student.contract.prepare(joined(images, loss.key_views))
                    key = torch.cat([called.key(part) for part in seen_by_key.tensor_split(settings.chunks)])
                inputs["key"] = stacked(key, loss.key_views)
            if loss.needs_bags:
                inputs["bags"] = batch.anchor.to(device, non_blocking=True)
            shown_to_student = [images[view] for view in loss.student_views]
            if loss.needs_mixture:
                # In the same forward pass: DDP hooks and BatchNorm statistics then see one batch.
                partner = next_in_bag(batch.anchor).to(device, non_blocking=True)
                mixed, inputs["share"] = cutmix(shown_to_student[0], partner, settings.seed, step)
                shown_to_student.append(mixed)
            chosen = spread_evenly(len(batch.index), loss.mask_probability if loss.needs_masking else 0.0)
            if loss.needs_masking:
                patches = patch_count(student.backbone, student.contract.size)
                hidden = hidden_patches(batch.index.numpy()[chosen], patches, loss.mask_ratio, settings.seed, step)
                inputs["masked"] = torch.from_numpy(chosen).to(device, non_blocking=True)
                inputs["masks"] = torch.from_numpy(hidden).to(device, non_blocking=True)

            # One call for all that is shown: DDP's hooks would take a second one for the next step.
            def look(
                network: nn.Module, places: slice, shown_to_student: list[Tensor] = shown_to_student,
                chosen: np.ndarray = chosen, inputs: dict[str, Tensor] = inputs, stance: Any = stance,
            ) -> dict[str, Tensor]:  # fmt: skip
                pixels = torch.cat([view[places] for view in shown_to_student])
                count = len(pixels)
                clean = count // len(shown_to_student) * len(loss.student_views)
                hiding: dict[str, Tensor] = {}
                if loss.needs_masking:  # images with hidden patches at these places, last of all
                    first_view = shown_to_student[0]
                    here = np.flatnonzero(np.isin(chosen, np.arange(len(first_view))[places]))
                    inside = torch.from_numpy(here).to(device, non_blocking=True)
                    pixels = torch.cat([pixels, first_view[inputs["masked"][inside]]])
                    hiding = {"masks": inputs["masks"][inside], "mask_token": loss.mask_token}
                with half, stance():
                    prepared = student.contract.prepare(pixels).contiguous(memory_format=torch.channels_last)
                    made = network(prepared, **requested, **hiding)
                sight = made if requested else EncoderOutput(made)
                seen = named("student", sight, loss, loss.student_views, clean)
                if loss.needs_mixture:
                    seen["mixed"] = sight.embedding[clean:count]
                if loss.needs_masking and sight.tokens is not None:
                    seen["masked_tokens"] = sight.tokens[count:]
                return seen

            def judge(seen: dict[str, Tensor], inputs: dict[str, Tensor] = inputs, step: int = step) -> Terms:
                progress = {"passes": step * batches.batch_size / len(source)} if loss.needs_passes else {}
                terms: Terms = loss(**inputs, **seen, **progress)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(terms.total).backward()
                return terms

            if settings.chunks == 1:
                terms = judge(look(wrapped, slice(None)))
            else:
                # Slices: an index that lies on the host would be copied to a GPU, and waited for.
                ends = [len(batch.index) * part // settings.chunks for part in range(settings.chunks + 1)]
                parts = tuple(slice(*pair) for pair in itertools.pairwise(ends) if pair[0] < pair[1])
                terms = in_chunks(
                    look, judge, called.student, wrapped, parts, functools.partial(image_axis, loss=loss), step_seed
                )
            processes.average_gradients(loss)
            if settings.optimizer.clip is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_([*student.parameters(), *loss.parameters()], settings.optimizer.clip)
            meter.add(step, batch, terms.total, terms.parts)
            if meter.pending >= FLUSH_STEPS[device.type]:
                meter.flush(source)  # before the step, so that on a CPU a bad batch never touches the weights
            scaler.step(optimizer)
            scaler.update()
            if key_student is not None:
                follow(key_student, student, loss.key_momentum)
            step += 1

            passes = step * batches.batch_size / len(source)
            # Losses are read back only to be shown; the ETA and shares come from the host clock and device events.
            if log and (step == first + 1 or step == steps or meter.seconds_since_row() >= LOG_SECONDS):
                meter.flush(source)
                log.write("step", step, passes=passes, lr=optimizer.param_groups[0]["lr"], **meter.row(step))
            if log and probe is not None and step in signal_steps:
                with meter.paused():
                    signals = probe.measure(student, device)
                    log.write("signal", step, passes=passes, **signals)
            stopping, due = stop.is_set(), time.monotonic() - last_checkpoint >= 60 * settings.checkpoint_minutes
            if processes.world > 1:  # all stop and save together, or none
                talking = step % TALK_STEPS == 0
                stopping = talking and processes.agree(stopping)
                due = talking and processes.agree(due and processes.main)
            if (stopping or due) and step < steps:
                meter.flush(source)
                reached = state()
                if processes.main:
                    save_checkpoint(run, reached)
                last_checkpoint = time.monotonic()
                if stopping:
                    if processes.main:
                        notify(f"Stopped at step {step:,} of {steps:,}; the same command goes on from here.")
                    if log:
                        log.close()
                    return False
    meter.flush(source)

    costs = compute_cost(steps * batches.batch_size, loss)
    if recorded is not None:
        costs["teacher_forwards"] = processes.total(recorded.computed)
    reached = state()
    if processes.main:
        seconds = seconds_before + time.monotonic() - begun
        save_checkpoint(run, reached)
        student.eval()
        if transform is not None and store is not None:
            find_way_back(student, transform, source, store.embeddings(), device)
        found = metadata(settings, source, listing, teacher, student, loss, steps, batches, seconds, skipped)
        save_student(student, run, found)
        if log:
            log.write("end", step, seconds=seconds, data_wait=meter.waited, workers=loader.workers.count, **costs)
            log.close()
        largest = max(size, teacher_size)
        hint = reading_advice(meter.waited, loader.workers.count, largest, processes.world)
        if hint and not quiet:
            notify(hint)
        if skipped and not quiet:
            notify(f"{len(skipped)} images could not be read and were skipped; they are listed in {run.student_path}.")
        signals = log.signal_row if log else {}
        if signals and not quiet:
            notify("  " + verdict({name: value for name, value in signals.items() if isinstance(value, float)}))
    processes.barrier()
    return True


def resolved(settings: TrainSettings) -> dict[str, Any]:
    """The configuration as it is saved: every value, the derived learning rate included."""
    table = as_table(settings)
    table["optimizer"]["lr"] = settings.optimizer.peak
    return table


def refuse_other_settings(run: Run, settings: TrainSettings) -> None:
    """Refuse to go on in a run folder that other settings began.

    Raises:
        TrainingError: names every setting that differs, with both values; or one that is no longer known.
    """
    if not run.config_path.is_file():
        return
    begun = {
        key: value
        for key, value in read_toml(run.config_path).items()
        if key not in settings.FREE or key == "eval_data"
    }
    try:
        # By today's defaults, so that a setting that is newer than the run is no difference.
        before = resolve(type(settings), begun)
        saved = dataclasses.replace(before, method=typed(**before.method)).identity_settings()
    except ConfigError as error:
        raise TrainingError(
            f"The run folder {run.path} was begun with settings that this version does not take: {error} "
            "Use another --out for a new run."
        ) from None
    now = dataclasses.replace(settings, method=typed(**settings.method)).identity_settings()
    differences = [
        f"{key} (was {saved.get(key)}, now {now.get(key)})"
        for key in sorted(set(saved) | set(now)) if saved.get(key) != now.get(key)
    ]  # fmt: skip
    if differences:
        raise TrainingError(
            f"The run folder {run.path} was begun with other settings: {'; '.join(differences)}. "
            "Use the same settings to resume it, or another --out for a new run."
        )


def joined(images: list[Tensor], views: tuple[int, ...]) -> Tensor:
    """The images of the named views as one batch (len * B, 3, S, S): one forward pass, one set of batch statistics."""
    return images[views[0]] if len(views) == 1 else torch.cat([images[view] for view in views])


def stacked(embedding: Tensor, views: tuple[int, ...]) -> Tensor:
    """(len * B, D) as (len, B, D); (B, D) when there is one view."""
    return embedding if len(views) == 1 else embedding.unflatten(0, (len(views), -1))


def find_way_back(
    student: Student, transform: Transform, source: Source, rows: np.ndarray, device: torch.device
) -> None:
    """Fill the student's landing: the inverse of the transform, and the one factor that its loss may have left open.

    A loss of cosines does not see the length of an embedding, but adding the mean back does: the factor is the least
    squares one over `LANDING_IMAGES` training images.
    """
    inverse_transform = student.inverse_transform
    assert isinstance(inverse_transform, InverseTransform)
    sample = np.unique(np.linspace(0, len(source) - 1, min(LANDING_IMAGES, len(source))).astype(np.int64))
    found, kept_rows, _ = extract(student, student.contract, source.subset(sample), device=device, workers=0)
    wanted = transform.apply(rows[sample[kept_rows]].astype(np.float64))
    factor = float((found * wanted).sum() / max(float(np.square(found, dtype=np.float64).sum()), 1e-30))
    inverse_transform.scale.fill_(factor if factor > 0 else 1.0)  # negative: nothing was learned that could be scaled
    inverse_transform.matrix.copy_(torch.from_numpy(transform.inverse))
    inverse_transform.mean.copy_(torch.from_numpy(transform.mean))


@contextlib.contextmanager
def closed_on_failure(log: Log | None) -> Iterator[None]:
    """Stop the live table and close the files of a training that fails: another may follow in this process."""
    try:
        yield
    except BaseException:
        if log is not None:
            with contextlib.suppress(OSError):  # a full disk was said already
                log.close()
        raise


@contextlib.contextmanager
def kept(recorded: RecordedViews | None) -> Iterator[None]:
    """Whatever ends the block, what the teacher has said in it is kept."""
    try:
        yield
    finally:
        if recorded is not None:
            recorded.flush()


def image_axis(name: str, loss: Loss) -> int:
    """Along which axis of a tensor of the student the images lie: behind the views, where there are several."""
    return int(len(loss.student_views) > 1 and name not in ("mixed", "masked_tokens"))


def named(
    name: str, sight: EncoderOutput, loss: Loss, views: tuple[int, ...], count: int | None = None
) -> dict[str, Tensor]:
    """What a network shows of the first `count` images, under the keywords by which the loss asks for it."""
    found = {
        name: sight.embedding,
        f"{name}_tokens": sight.tokens if loss.needs_tokens else None,
        f"{name}_attention": sight.attention if loss.needs_attention else None,
    }
    return {key: stacked(value[:count], views) for key, value in found.items() if value is not None}


def average_of(student: Student) -> Student:
    """A frozen copy in evaluation mode, to follow the student as its exponential moving average."""
    copied: Student = copy.deepcopy(student).eval()
    return copied.requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the average towards the student: parameters and float buffers (running statistics) alike."""
    old = [*average.parameters(), *(b for b in average.buffers() if b.is_floating_point())]
    new = [*student.parameters(), *(b for b in student.buffers() if b.is_floating_point())]
    torch._foreach_lerp_(old, new, 1 - momentum)


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event set by SIGTERM or SIGINT; a second SIGINT interrupts at once. The handlers are put back at the end."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, _: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def compute_cost(images: int, loss: Loss) -> dict[str, int]:
    """Images seen and forward passes made, for tables of cost."""
    return {
        "images": images,
        "student_forwards": round(
            images * (len(loss.student_views) + loss.needs_mixture + loss.needs_masking * loss.mask_probability)
        ),
        "teacher_forwards": images * len(loss.teacher_views) if loss.needs_teacher else 0,
        "key_forwards": images * len(loss.key_views) if loss.needs_key else 0,
    }


def metadata(
    settings: TrainSettings, source: Source, listing: str, teacher: Teacher | None, student: Student, loss: Loss,
    steps: int, batches: NeighborBatches, seconds: float, skipped: dict[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Where a student comes from, for student.json."""
    origin = None
    if teacher is not None:
        origin = {
            "spec": teacher.spec,
            "fingerprint": teacher.fingerprint,
            "weights": teacher.weights,
            "width": teacher.width,
            "parameters": teacher.parameters_count,
            "flops": teacher.flops if isinstance(teacher, ShardedTeacher) else flops(teacher),
            "contract": teacher.contract.table(),
            "precision": teacher.precision,
        }
    return {
        "method": dict(settings.method),
        "in_teacher_space": loss.in_teacher_space,
        "teacher": origin,
        "data": {
            "spec": source.spec,
            "images": len(source),
            "fingerprint": source.fingerprint,
            "listing": listing or source.fingerprint,
        },
        "passes": settings.passes,
        "steps": steps,
        "batch_size": batches.batch_size,
        "seed": settings.seed,
        "seconds": round(seconds, 1),
        "flops": flops(student),
        "skipped": sorted(skipped.items()),
    }


@dataclasses.dataclass
class _Pending:
    step: int
    index: np.ndarray
    total: Tensor
    parts: dict[str, Tensor]


class Meter:
    """Losses, rates and shares between two rows of the log, read back from the device as rarely as possible."""

    def __init__(self, device: torch.device, processes: Processes, batch_size: int, steps: int) -> None:
        self.device, self.processes, self.batch_size, self.steps = device, processes, batch_size, steps
        self.held: list[_Pending] = []
        self.losses: list[dict[str, float]] = []
        self.teacher_events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.wait_s = self.teacher_s = self.pause_s = 0.0
        self.since = time.monotonic()
        self._past = np.zeros(2)  # seconds in all, and of waiting, up to the last row
        self.first_step: int | None = None

    @property
    def pending(self) -> int:
        """Steps whose losses were not read back yet."""
        return len(self.held)

    @property
    def waited(self) -> float:
        """Share of the time since the start, or since it was resumed, that went into waiting for data."""
        wall, waited = self._past
        return float(waited / max(wall, 1e-9))

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent waiting for data."""
        begun = time.monotonic()
        yield
        self.wait_s += time.monotonic() - begun

    @contextlib.contextmanager
    def in_teacher(self) -> Iterator[None]:
        """Time spent in the teacher: device events on a GPU, where the host only queues the work."""
        if self.device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self.teacher_events.append((start, end))
        else:
            begun = time.monotonic()
            yield
            self.teacher_s += time.monotonic() - begun

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count as training."""
        begun = time.monotonic()
        yield
        self.pause_s += time.monotonic() - begun

    def add(self, step: int, batch: ImageBatch, total: Tensor, parts: Any) -> None:
        """Keep a step's losses on the device."""
        self.first_step = step if self.first_step is None else self.first_step
        self.held.append(
            _Pending(step, np.asarray(batch.index), total.detach(), {k: v.detach() for k, v in parts.items()})
        )

    def flush(self, source: Source) -> None:
        """Read the kept losses back.

        Raises:
            TrainingError: one of them is NaN or inf; the sentence names the batch's images.
        """
        if not self.held:
            return
        names = list(self.held[0].parts)
        table = torch.stack([torch.stack([h.total, *(h.parts[n] for n in names)]).float() for h in self.held]).cpu()
        held, self.held = self.held, []
        for row, entry in zip(table.tolist(), held, strict=True):
            if not np.isfinite(row).all():
                shown = ", ".join(source.name(int(i)) for i in entry.index)
                values = ", ".join(f"{n} {v}" for n, v in zip(["total", *names], row, strict=True))
                raise TrainingError(
                    f"The loss is not finite at step {entry.step} ({values}). Nothing was saved since the last "
                    "checkpoint. Lower --optimizer.lr, set --optimizer.clip 1, or use --precision fp32; then run the "
                    f"same command in a new --out. The images of the batch: {shown}"
                )
            self.losses.append(dict(zip(["total", *names], row, strict=True)))

    def seconds_since_row(self) -> float:
        """Seconds since the last row."""
        return time.monotonic() - self.since

    def row(self, step: int) -> dict[str, Any]:
        """Means over the steps since the last row, and start anew."""
        wall = max(1e-9, time.monotonic() - self.since - self.pause_s)
        for start, end in self.teacher_events:
            self.teacher_s += start.elapsed_time(end) / 1000
        count = max(1, len(self.losses))
        mean = {name: sum(row[name] for row in self.losses) / count for name in (self.losses[0] if self.losses else {})}
        rate = len(self.losses) * self.batch_size / wall
        result = {
            "loss": mean.pop("total", 0.0),
            "terms": mean,
            "images_per_s": rate,
            "data_wait": self.wait_s / wall,
            "teacher_share": min(1.0, self.teacher_s / wall),
            "eta_s": (self.steps - step) * self.batch_size / max(rate, 1e-9),
        }
        self._past += wall, self.wait_s
        self.losses, self.teacher_events = [], []
        self.wait_s = self.teacher_s = self.pause_s = 0.0
        self.since = time.monotonic()
        return result
