"""The input contract of a network of transformers, from its image processor, and the proof that it is the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from understudy.errors import ModelError, first_line
from understudy.models.contract import Contract
from understudy.sources.decode import RESAMPLING

REFUSED = {
    "do_pad": "pads images",
    "do_image_splitting": "cuts images into tiles",
    "do_split_image": "cuts images into tiles",
    "crop_to_patches": "cuts images into tiles",
    "do_flip_channel_order": "swaps red and blue",
    "do_thumbnail": "shrinks images twice",
    "do_align_long_axis": "turns images",
}
"""What a processor may ask for that is not done here."""

LEVELS = 3.5
"""Of 255: how far pixels may lie apart. Torchvision's resizing rounds otherwise than PIL's, by one or two."""

WARPED = 384  # from this size on ConvNeXt's processor squashes images instead of cropping them


def processor_contract(folder: Path, spec: str) -> Contract | None:
    """What the processor in a folder does to an image; None if there is none.

    Raises:
        ModelError: it does what is not done here.
    """
    known = any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))
    if not known and "pretrained_cfg" not in (folder / "config.json").read_text("utf-8"):
        return None
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except Exception as error:  # transformers raises nearly anything
        raise ModelError(f"The image processor of {spec} cannot be used ({first_line(error)}).") from None
    name = type(processor).__name__.removesuffix("Pil")
    try:
        contract = _timm(processor) if hasattr(processor, "data_config") else _own(processor, name)
        _prove(processor, contract, name)
    except ModelError as error:
        raise ModelError(f"{spec}: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # of values of another kind in the file
        raise ModelError(f"{spec}: its {name} has settings that cannot be used ({first_line(error)}).") from None
    return contract


def _timm(processor: Any) -> Contract:
    data = processor.data_config
    size = int(data["input_size"][-1])
    if data.get("crop_mode", "center") == "border":
        raise ModelError("its processor pads images, which is not done here.")
    fit = "squash" if data.get("crop_mode") == "squash" else "crop"
    crop = size / math.floor(size / float(data["crop_pct"]))
    return Contract(size, data["mean"], data["std"], data["interpolation"], crop, fit)


def _own(processor: Any, name: str) -> Contract:
    for attribute, words in REFUSED.items():
        if getattr(processor, attribute, None):
            raise ModelError(f"its {name} {words} ({attribute}), which is not done here.")
    if not getattr(processor, "do_resize", False):
        raise ModelError(f"its {name} leaves images at their size (do_resize), and networks here have one size.")
    size, crop, fit = _geometry(processor, name)
    scale = float(processor.rescale_factor) * 255 if getattr(processor, "do_rescale", True) else 255.0
    normalizes = getattr(processor, "do_normalize", True)
    given = (processor.image_mean, processor.image_std) if normalizes else (0.0, 1.0)
    mean, std = (tuple(float(number) / scale for number in np.broadcast_to(numbers, 3)) for numbers in given)
    kind = Image.Resampling(int(processor.resample)).name.lower()
    if kind not in RESAMPLING:
        raise ModelError(f"its {name} resizes by '{kind}', which is not done here.")
    return Contract(size, mean, std, kind, crop, fit)


def _geometry(processor: Any, name: str) -> tuple[int, float, str]:
    """Size, crop and fit of a `Contract`."""
    sides = {key: value for key, value in dict(processor.size).items() if value}
    if name.startswith("ConvNext"):
        size = int(sides["shortest_edge"])
        return (size, size / int(size / processor.crop_pct), "crop-floor") if size < WARPED else (size, 1.0, "squash")
    if set(sides) == {"height", "width"} and sides["height"] == sides["width"]:
        short, fit = int(sides["height"]), "squash"
    elif set(sides) == {"shortest_edge"}:
        short, fit = int(sides["shortest_edge"]), "crop-floor"
    else:
        listed = ", ".join(f"{key} {value}" for key, value in sides.items())
        raise ModelError(f"its {name} resizes to {listed}, which is no square: that is not done here.")
    if not getattr(processor, "do_center_crop", False):
        if fit == "squash":
            return short, 1.0, fit
        raise ModelError(
            f"its {name} leaves images in their proportions (no do_center_crop); networks here see squares."
        )
    crop = dict(processor.crop_size)
    size = int(crop["height"])
    if size != crop["width"] or size > short:
        raise ModelError(
            f"its {name} crops {size} x {crop['width']} out of {short} pixels: padding, and what is no square, is not "
            "done here."
        )
    return size, size / short, fit


def _prove(processor: Any, contract: Contract, name: str) -> None:
    """Compare the two on smooth images, in which a shift by a pixel shows."""
    for width, height in ((contract.size * 2 + 41, contract.size + 22), (contract.size + 5, contract.size * 2 - 1)):
        y, x = np.mgrid[0:height, 0:width]
        waves = np.stack([np.sin(x / 9) * np.cos(y / 7), np.sin((x + 2 * y) / 11), np.cos(x * y / 3000)], -1)
        image = Image.fromarray((127.5 + 110 * waves).astype(np.uint8))
        try:
            theirs = np.asarray(processor(image, return_tensors="pt")["pixel_values"][0])
        except Exception as error:  # as above
            raise ModelError(f"its {name} fails on an image ({first_line(error)}).") from None
        ours = contract.preprocess(image).numpy()
        if theirs.shape != ours.shape:
            raise ModelError(f"its {name} makes {theirs.shape} of an image, and networks here see {ours.shape}.")
        apart = np.abs(theirs - ours).max(axis=(1, 2)) * np.array(contract.std) * 255
        if apart.max() > LEVELS:
            raise ModelError(
                f"its {name} does more than to resize, crop and normalize: pixels differ by {apart.max():.0f} of 255."
            )
