"""What an evaluation will compute, in sentences, before it computes anything."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from understudy.artifacts import Store
from understudy.embed.embedding import Frozen, store_key
from understudy.evaluate.features import FeatureExtractor, StudentBackbone
from understudy.evaluate.protocols import PROTOCOLS
from understudy.evaluate.settings import EvaluationSettings
from understudy.sources.source import Source

MEASURED = 16
"""Blank images behind the seconds an image that the sentences name."""


def estimate(
    extractor: FeatureExtractor,
    settings: EvaluationSettings,
    sources: Mapping[str, list[Source]],
    protocols: Mapping[str, list[str]],
) -> list[str]:
    """A sentence for each encoder: images, passes, and seconds an image as measured here.

    `sources` are the images of each set, "" for the main one; `protocols` those to apply to each.
    """
    lines = []
    for name, (encoder, root, dtype) in extractor.stores.items():
        each, total, parts, unknown = _seconds_an_image(encoder, extractor), 0, [], []
        for dataset, halves in sources.items():
            fresh = [one for one in halves if not Store.at(root, store_key(encoder, one, dtype)).complete]
            images = sum(len(one) for one in fresh)
            title = dataset or "main images"
            if images:
                parts.append(f"{title} {images:,}")
            if not halves:
                unknown += [f"{one} on {title}" for one in protocols.get(dataset, ()) if dataset]
                continue
            # Of test images alone, what protocols ask for is the shared features.
            for protocol in protocols.get(dataset, ()) if len(halves) > 1 or not dataset else ():
                passes = PROTOCOLS[protocol].image_passes(settings, len(halves[0]), len(halves[-1]))
                if passes:
                    parts.append(f"{protocol} on {title} {passes:,.0f}")
                images += int(passes)
            total += images
        line = f"{name}: no image passes, all features are kept"
        if parts:
            line = (
                f"{name}: {total:,} image passes ({', '.join(parts)}) at {1000 * each:.1f} ms, measured on blank "
                f"images: about {_duration(total * each)} beside reading them"
            )
        lines.append(line + (f"; and of unknown length: {', '.join(unknown)}" if unknown else ""))
    return lines


@torch.no_grad()
def _seconds_an_image(encoder: Frozen, extractor: FeatureExtractor) -> float:
    """Forward seconds of one image in a batch, the better of two tries. Reading and decoding are not in it."""
    size = encoder.contract.size
    module: Any = encoder.student.backbone if isinstance(encoder, StudentBackbone) else encoder.module  # type: ignore[attr-defined]
    images = torch.zeros(min(MEASURED, extractor.batch_size), 3, size, size, device=extractor.resources.device)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        module(images).float().cpu()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / len(images)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
