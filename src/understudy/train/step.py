"""The student's half of a step: its outputs, the loss of the whole batch, and their gradients."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
from torch import Tensor, nn

from understudy.losses import Loss, Terms
from understudy.models.outputs import EncoderOutput
from understudy.train.chunks import in_chunks
from understudy.train.state import TrainState
from understudy.train.step_inputs import StepInputs, keywords_of


def compute_loss(state: TrainState, inputs: StepInputs) -> Terms:
    """The loss of a batch over all its images, whatever the number of chunks and processes.

    Returns:
        The terms; gradients lie in the parameters, clipped if the settings say so.
    """
    forward = functools.partial(student_outputs, state, inputs)

    def backward(outputs: dict[str, Tensor]) -> Terms:
        terms: Terms = state.loss(**inputs.keywords, **outputs)
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(terms.total).backward()
        return terms

    chunks = state.settings.chunks
    if chunks == 1:
        terms = backward(forward(state.trained, slice(None)))
    else:
        # Slices: an index that lies on the host would be copied to a GPU, and waited for.
        ends = [len(inputs.batch.index) * part // chunks for part in range(chunks + 1)]
        parts = tuple(slice(*pair) for pair in itertools.pairwise(ends) if pair[0] < pair[1])
        axis = functools.partial(image_axis, loss=state.loss)
        terms = in_chunks(forward, backward, state.networks.student, state.trained, parts, axis, state.step_seed)
    state.processes.average_gradients(state.loss)
    if state.settings.optimizer.clip is not None:
        state.scaler.unscale_(state.optimizer)
        parameters = [*state.student.parameters(), *state.loss.parameters()]
        nn.utils.clip_grad_norm_(parameters, state.settings.optimizer.clip)
    return terms


def student_outputs(state: TrainState, inputs: StepInputs, network: nn.Module, part: slice) -> dict[str, Tensor]:
    """What a student makes of a part of the batch, by the keywords of the loss.

    One call for all of its images: DDP's hooks would take a second one for the next step.

    Args:
        state: the training.
        inputs: of the step.
        network: the student as it is to be called.
        part: of the batch.
    """
    loss = state.loss
    pixels = torch.cat([images[part] for images in inputs.student_images])
    count = len(pixels)
    unmixed = count // len(inputs.student_images) * len(loss.needs.student_views)
    masking: dict[str, Tensor] = {}
    if loss.needs.masks:  # images of this part with hidden patches, last of all
        first_view = inputs.student_images[0]
        here = np.flatnonzero(np.isin(inputs.masked, np.arange(len(first_view))[part]))
        inside = torch.from_numpy(here).to(state.device, non_blocking=True)
        pixels = torch.cat([pixels, first_view[inputs.keywords["masked"][inside]]])
        masking = {"masks": inputs.keywords["masks"][inside], "mask_token": loss.mask_token}
    with state.autocast, state.stance(inputs.batch):
        prepared = state.student.contract.prepare(pixels).contiguous(memory_format=torch.channels_last)
        result = network(prepared, **state.requested, **masking)
    output = result if state.requested else EncoderOutput(result)
    outputs = keywords_of("student", output, loss, loss.needs.student_views, unmixed)
    if loss.needs.cutmix:
        outputs["mixed"] = output.embedding[unmixed:count]
    if loss.needs.masks and output.tokens is not None:
        outputs["masked_tokens"] = output.tokens[count:]
    return outputs


def image_axis(keyword: str, loss: Loss) -> int:
    """Along which axis of an output of the student the images lie: behind the views, where there are several."""
    return int(len(loss.needs.student_views) > 1 and keyword not in ("mixed", "masked_tokens"))
