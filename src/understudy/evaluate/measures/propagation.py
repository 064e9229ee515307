"""Masks of a video's first frame, propagated by similarity of feature maps, and their scores: J and F of DAVIS."""

from collections import deque

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from understudy.errors import DataError
from understudy.evaluate.datasets.masks import IGNORED
from understudy.evaluate.encoded_set import EncodedSet, Figures
from understudy.evaluate.settings import EvaluationSettings
from understudy.models.contract import Contract
from understudy.models.dense import DenseFeatures, dense_features
from understudy.models.outputs import patch_size
from understudy.sources.decode import RESAMPLING

SHORT, UNIT = 480, 64
TOP, RADIUS, TEMPERATURE, CONTEXT = 5, 12, 0.1, 7
STRIDE = 16


def video_figures(encoded_set: EncodedSet, settings: EvaluationSettings) -> Figures:
    """Carry the masks of DAVIS-2017's validation sequences with a frozen backbone, and score them.

    Returns:
        "j_and_f", "j", "f" (means over objects), "j_recall", "f_recall" (share of frames above 0.5), in per cent;
        "objects" and "sequences".

    Raises:
        DataError: a file is missing, or a mask has another size than its frame.
        ModelError: the network gives no feature maps.
    """
    assert encoded_set.dataset is not None
    (module, contract), videos = encoded_set.network(), encoded_set.dataset.metadata["videos"]
    body: DenseFeatures | None = None
    scores: list[tuple[float, float, float, float]] = []
    for done, name in enumerate(videos.names):
        frames, truth = videos.read(name)
        objects = int(truth[0][truth[0] != IGNORED].max(initial=0))
        if objects == 0:
            raise DataError(f"The first mask of {name} in {videos.root / 'Annotations' / '480p'} holds no object.")
        size = frame_size(frames[0].height, frames[0].width, SHORT, patch_size(module))
        if body is None or body.size != size:
            body = dense_features(module, size, spec=f"The {encoded_set.name}").to(encoded_set.device).eval()
        masks = propagate(
            body, contract, frames, truth[0], objects, memory_mb=settings.memory_mb, device=encoded_set.device
        )
        for number in range(1, objects + 1):
            pairs = [
                (jaccard(predicted == number, real == number, real == IGNORED),
                 boundary_measure(predicted == number, real == number, real == IGNORED))
                for predicted, real in zip(masks[1:-1], truth[1:-1], strict=True)
            ]  # fmt: skip
            j, f = np.array(pairs).T
            scores.append((float(j.mean()), float(f.mean()), float((j > 0.5).mean()), float((f > 0.5).mean())))
        if encoded_set.progress:
            encoded_set.progress(done + 1, len(videos.names), name)
    j_mean, f_mean, j_recall, f_recall = (100.0 * np.mean(scores, axis=0)).tolist()
    return {
        "j_and_f": (j_mean + f_mean) / 2, "j": j_mean, "f": f_mean, "j_recall": j_recall, "f_recall": f_recall,
        "objects": len(scores), "sequences": len(videos.names),
    }  # fmt: skip


def frame_size(height: int, width: int, short: int, patch: int | None) -> tuple[int, int]:
    """(H, W) of the frames that the network sees; where patches do not divide 64 pixels, 4 patches stand for them."""
    unit = UNIT if patch is None or UNIT % patch == 0 else 4 * patch
    low = short if short % (patch or 1) == 0 else max(1, short // unit) * unit
    high = max(low, int(short * max(height, width) / min(height, width)) // unit * unit)
    return (high, low) if height > width else (low, high)


@torch.no_grad()
def propagate(
    body: DenseFeatures,
    contract: Contract,
    frames: list[Image.Image],
    first: UInt8[np.ndarray, "H W"],
    objects: int,
    *,
    memory_mb: int = 1024,
    device: str | torch.device = "cpu",
) -> list[UInt8[np.ndarray, "H W"]]:
    """The masks of a sequence from that of its first frame: of each frame, the first included, at its own size.

    Args:
        body: the backbone, made ready for the size that the frames are scaled to.
        contract: its mean, std and interpolation.
        frames: the sequence.
        first: object numbers of the first frame, 0 for background.
        objects: how many there are.
        memory_mb: budget for similarities.
        device: where it computes.
    """
    place = int(np.argmin([abs(np.log2(stride / STRIDE)) for stride in body.strides]))
    height, width = body.size

    def features(frame: Image.Image) -> Float[Tensor, "C h w"]:
        pixels = np.asarray(frame.resize((width, height), RESAMPLING[contract.interpolation]), dtype=np.float32) / 255
        images = contract.normalize(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device))
        return F.normalize(body(images)[place][0].float(), dim=0)

    anchor = features(frames[0])
    grid = anchor.shape[1:]
    known = np.where(first == IGNORED, 0, first).astype(np.uint8)
    small = np.asarray(Image.fromarray(known).resize((grid[1], grid[0]), Image.Resampling.NEAREST))
    # One channel each for background and objects.
    anchor_mask = F.one_hot(torch.from_numpy(small.copy()).long(), objects + 1).permute(2, 0, 1).float().to(device)
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=CONTEXT)
    masks = [known]
    for frame in frames[1:]:
        present = features(frame)
        context = [(anchor, anchor_mask), *recent]
        mask = propagate_frame(
            present, torch.stack([one for one, _ in context]), torch.stack([one for _, one in context]),
            memory_mb=memory_mb,
        )  # fmt: skip
        recent.append((present, mask))
        masks.append(_decided(mask, body.size, frame))
    return masks


def propagate_frame(
    target: Float[Tensor, "C h w"],
    context: Float[Tensor, "T C h w"],
    masks: Float[Tensor, "T M h w"],
    *,
    top: int = TOP,
    radius: int = RADIUS,
    temperature: float = TEMPERATURE,
    memory_mb: int = 1024,
) -> Float[Tensor, "M h w"]:
    """The M soft masks of a frame from those of T others: of each position, the weighted mean at its most similar ones.

    Features are normalized. The `top` most similar positions take part, at most `radius` rows and columns away, with
    weights exp(cosine / temperature).
    """
    frames, channels, height, width = context.shape
    keys = context.permute(1, 0, 2, 3).reshape(channels, -1)
    values = masks.permute(1, 0, 2, 3).reshape(masks.shape[1], -1)
    rows = torch.arange(height, device=target.device).repeat_interleave(width)
    columns = torch.arange(width, device=target.device).repeat(height)
    queries = target.reshape(channels, -1).T
    # Similarities, the neighborhood and the sort of one block.
    block = max(1, memory_mb * 2**20 // (4 * 4 * keys.shape[1]))
    parts = []
    for start in range(0, height * width, block):
        here = slice(start, start + block)
        near = (rows[here, None] - rows[None]).abs() <= radius
        near &= (columns[here, None] - columns[None]).abs() <= radius
        similarities = (queries[here] @ keys).masked_fill_(~near.repeat(1, frames), float("-inf"))
        best, places = similarities.topk(min(top, similarities.shape[1]), dim=1)
        weights = (best / temperature).softmax(dim=1)
        parts.append((values[:, places] * weights).sum(-1))
    return torch.cat(parts, dim=1).reshape(-1, height, width)


def _decided(mask: Float[Tensor, "M h w"], size: tuple[int, int], frame: Image.Image) -> UInt8[np.ndarray, "H W"]:
    """The object of each pixel: masks enlarged, each stretched to 0 ... 1, the largest taken, then the frame's size."""
    enlarged = F.interpolate(mask[None], size, mode="bilinear", align_corners=False)[0]
    low, high = enlarged.amin((1, 2), keepdim=True), enlarged.amax((1, 2), keepdim=True)
    stretched = torch.where(high > 0, (enlarged - low) / (high - low).clamp(min=1e-12), enlarged)
    numbers = Image.fromarray(stretched.argmax(0).to(torch.uint8).cpu().numpy())
    return np.asarray(numbers.resize(frame.size, Image.Resampling.NEAREST))


Mask = Bool[np.ndarray, "H W"]

TOLERANCE = 0.008
"""How far two outlines may lie apart and still agree, as a share of the image's diagonal."""


def jaccard(predicted: Mask, truth: Mask, void: Mask | None = None) -> float:
    """J: intersection over union of two masks, 1 where both are empty; `void` pixels do not count."""
    scored = np.ones_like(truth) if void is None else ~void
    union = ((predicted | truth) & scored).sum()
    return 1.0 if union == 0 else float((predicted & truth & scored).sum() / union)


def boundary_measure(predicted: Mask, truth: Mask, void: Mask | None = None) -> float:
    """F: harmonic mean of precision and recall of outlines; `void` pixels do not count.

    A pixel of one outline agrees where the other one passes within 0.008 of the image's diagonal, rounded up to whole
    pixels. An empty mask against one that is not scores 0, two empty ones 1.

    Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016,
    section 4; the outlines are those of the Berkeley segmentation benchmark that the official evaluation uses.
    """
    scored = np.ones_like(truth) if void is None else ~void
    reach = int(np.ceil(TOLERANCE * np.hypot(*truth.shape)))
    own, real = outline(predicted & scored), outline(truth & scored)
    if not own.any() or not real.any():
        return float(own.any() == real.any())
    precision = (own & _widened(real, reach)).sum() / own.sum()
    recall = (real & _widened(own, reach)).sum() / real.sum()
    return 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def outline(mask: Mask) -> Mask:
    """Mask that differ from their neighbor to the right, below, or to the lower right."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def _widened(edge: Mask, reach: int) -> Mask:
    """All pixels within `reach` of one of the edge."""
    axis = torch.arange(-reach, reach + 1)
    disk = (axis[:, None] ** 2 + axis**2 <= reach**2).float()
    near = F.conv2d(torch.from_numpy(edge).float()[None, None], disk[None, None], padding=reach)[0, 0] > 0.5
    return near.numpy()
