"""What one step shows to the networks, and what it gives to the loss beside the student's own outputs."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from understudy.embed.recorded import in_fixed_batches
from understudy.losses import Loss
from understudy.losses.base.bags import next_in_bag
from understudy.models.outputs import EncoderOutput, patch_count
from understudy.models.sharded import collective_calls
from understudy.train.state import TrainState
from understudy.views.augmentation import photometry
from understudy.views.masking import cutmix, hidden_patches, spread_evenly
from understudy.views.reader import ImageBatch


@dataclasses.dataclass(frozen=True)
class StepInputs:
    """One step on its device, everything but the student's forward pass.

    Args:
        batch: as it was read.
        student_images: each (B, 3, S, S) in [0, 1]: the views that the student gets, then the mixture if there is one.
        masked: (M,) int64 positions in the batch of images that the student gets once more with hidden patches.
        keywords: of the loss, without what the student makes of its images.
    """

    batch: ImageBatch
    student_images: list[Tensor]
    masked: np.ndarray
    keywords: dict[str, Any]


def gather(state: TrainState, batch: ImageBatch, timer: contextlib.AbstractContextManager[Any]) -> StepInputs:
    """What the loss of a step declares that it needs, from one batch.

    Args:
        state: the training.
        batch: as it was read.
        timer: runs while the teacher does.
    """
    loss, device = state.loss, state.device
    images = [
        photometry(pixels.to(device, non_blocking=True), rows, state.views.recipe)
        for pixels, rows in zip(batch.pixels, batch.rows, strict=True)
    ]
    keywords: dict[str, Any] = {}
    if loss.needs.teacher and state.teacher is not None:
        with timer, collective_calls(state.teacher), state.stance(batch):
            keywords |= keywords_of("teacher", teacher_output(state, images, batch), loss, loss.needs.teacher_views)
    if state.networks.key is not None:
        keywords["key"] = key_embedding(state, images, batch)
    if loss.needs.bags:
        keywords["bags"] = batch.anchor.to(device, non_blocking=True)
    student_images = [images[view] for view in loss.needs.student_views]
    if loss.needs.cutmix:
        # In the same forward pass: DDP hooks and BatchNorm statistics then see one batch.
        partner = next_in_bag(batch.anchor).to(device, non_blocking=True)
        mixed, keywords["share"] = cutmix(student_images[0], partner, state.settings.seed, state.step)
        student_images.append(mixed)
    masked = spread_evenly(len(batch.index), loss.mask_probability if loss.needs.masks else 0.0)
    if loss.needs.masks:
        patches = patch_count(state.student.backbone, state.student.contract.size)
        masks = hidden_patches(batch.index.numpy()[masked], patches, loss.mask_ratio, state.settings.seed, state.step)
        keywords["masked"] = torch.from_numpy(masked).to(device, non_blocking=True)
        keywords["masks"] = torch.from_numpy(masks).to(device, non_blocking=True)
    if loss.needs.passes:
        keywords["passes"] = state.passes
    return StepInputs(batch, student_images, masked, keywords)


def teacher_output(state: TrainState, images: list[Tensor], batch: ImageBatch) -> EncoderOutput:
    """The teacher on its views of a batch, live or recorded, in the space that the student is trained in."""
    teacher, own = state.teacher, batch.teacher
    assert teacher is not None
    numbers = batch.view[list(state.loss.needs.teacher_views)]
    if own is None:
        shown = concatenated(images, state.loss.needs.teacher_views)
    else:
        shown = photometry(own.pixels.to(state.device, non_blocking=True), own.rows, state.views.recipe)
    if state.requested:
        output = teacher.forward_outputs(shown, **state.requested)
    elif state.recorded is None:
        output = EncoderOutput(in_fixed_batches(state.networks.teacher or teacher, shown, state.teacher_batch))
    else:
        place = None if own is None else own.place
        output = EncoderOutput(state.recorded(shown, batch.index.repeat(len(numbers)), numbers.flatten(), place))
    if state.transform is not None:
        mean, matrix = state.transform
        output = dataclasses.replace(output, embedding=(output.embedding - mean) @ matrix)
    return output


@torch.no_grad()
def key_embedding(state: TrainState, images: list[Tensor], batch: ImageBatch) -> Tensor:
    """Embeddings of the key views from the average of the student, (B, D) or (len, B, D)."""
    assert state.networks.key is not None
    with state.autocast, state.stance(batch):
        prepared = state.student.contract.prepare(concatenated(images, state.loss.needs.key_views))
        parts = [state.networks.key(part) for part in prepared.tensor_split(state.settings.chunks)]
        return stacked(torch.cat(parts), state.loss.needs.key_views)


def concatenated(images: list[Tensor], views: tuple[int, ...]) -> Tensor:
    """The images of the named views as one batch (len * B, 3, S, S): one forward pass, one set of batch statistics."""
    return images[views[0]] if len(views) == 1 else torch.cat([images[view] for view in views])


def stacked(embedding: Tensor, views: tuple[int, ...]) -> Tensor:
    """(len * B, D) as (len, B, D); (B, D) when there is one view."""
    return embedding if len(views) == 1 else embedding.unflatten(0, (len(views), -1))


def keywords_of(
    network: str, output: EncoderOutput, loss: Loss, views: tuple[int, ...], count: int | None = None
) -> dict[str, Tensor]:
    """The outputs of "student" or "teacher" for the first `count` images, by the keywords of the loss."""
    values = {
        network: output.embedding,
        f"{network}_tokens": output.tokens if loss.needs.tokens else None,
        f"{network}_attention": output.attention if loss.needs.attention else None,
    }
    return {key: stacked(value[:count], views) for key, value in values.items() if value is not None}
