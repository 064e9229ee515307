"""The image tower of a model of open_clip, up to the space that it shares with text; the text tower is never built."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from understudy.errors import ModelError, first_line
from understudy.models.contract import Contract
from understudy.models.outputs import patch_size

NO_TEXT = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}
"""A text tower as small as can be, which is thrown away."""

KEYS = ("embed_dim", "vision_cfg", "quick_gelu")  # what of a model's configuration decides its image tower


class OpenClipEncoder(nn.Module):
    """An image tower that ends in its projected embedding, not normalized, as `encode_image` gives it."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.network = tower
        self.trunk = hasattr(tower, "trunk")  # of timm
        inner = tower.trunk if self.trunk else tower
        own = hasattr(tower, "class_embedding")
        self.num_prefix_tokens: int | None = 1 if own else getattr(inner, "num_prefix_tokens", None)
        self.cls_token = "class_embedding" if own else getattr(inner, "cls_token", None) is not None or None
        self.patch_size = patch_size(inner)

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        """Resample the position embeddings to images of another size, as open_clip does when it loads weights.

        Raises:
            ValueError: it is made for one size.
        """
        from open_clip.model import resize_pos_embed

        if self.trunk:
            if hasattr(self.network.trunk, "set_input_size"):
                self.network.trunk.set_input_size(img_size=img_size)
            return
        if self.patch_size is None:
            raise ValueError(f"it takes exactly {self.network.image_size}")
        if img_size[0] % self.patch_size or img_size[1] % self.patch_size:
            raise ValueError(f"its patches have {self.patch_size} pixels, which do not divide them")
        grid = (img_size[0] // self.patch_size, img_size[1] // self.patch_size)
        state = {"visual.positional_embedding": self.network.positional_embedding.detach()}
        resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=grid)))
        self.network.positional_embedding = nn.Parameter(state["visual.positional_embedding"])
        self.network.image_size, self.network.grid_size = img_size, grid

    def forward(self, x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        """(B, 3, S, S) prepared -> (B, D)."""
        answer = self.network(x)
        embedding: Tensor = answer[0] if isinstance(answer, tuple) else answer
        return embedding

    def forward_features(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T F"]:
        """The tokens of a transformer behind its last norm, before the projection."""
        if self.trunk:
            features: Tensor = self.network.trunk.forward_features(x)
            return features
        shown = self.network.forward_intermediates(
            x, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC",
            output_extra_tokens=True,
        )  # fmt: skip
        return torch.cat([shown["image_intermediates_prefix"][-1], shown["image_intermediates"][-1]], 1)


def read_folder(folder: Path, spec: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of model and preprocessing in a folder that open_clip wrote.

    Raises:
        ModelError: they cannot be read.
    """
    try:
        table = json.loads((folder / "open_clip_config.json").read_text("utf-8"))
        return dict(table["model_cfg"]), dict(table.get("preprocess_cfg", {}))
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise ModelError(f"{spec} has no readable open_clip_config.json ({first_line(error)}).") from None


def describe(config: Mapping[str, Any]) -> str:
    """The configuration of an image tower as JSON: enough to build it anywhere."""
    return json.dumps({key: config[key] for key in KEYS if key in config}, sort_keys=True)


def build_tower(config: Mapping[str, Any], spec: str) -> Any:
    """An image tower with random weights.

    Raises:
        ModelError: open_clip cannot build it.
    """
    from open_clip import CLIP

    wanted = copy.deepcopy({key: config[key] for key in KEYS if key in config})
    try:
        wanted["vision_cfg"]["timm_model_pretrained"] = False
        return CLIP(**wanted, text_cfg=NO_TEXT).visual
    except Exception as error:  # of open_clip, and of timm beneath it
        raise ModelError(f"{spec} has no image tower that open_clip can build ({first_line(error)}).") from None


def tower_contract(tower: Any, preprocessing: Mapping[str, Any], spec: str) -> Contract:
    """The input contract, from open_clip's configuration of the preprocessing.

    Raises:
        ModelError: it pads images.
    """
    from open_clip.transform import PreprocessCfg

    own = PreprocessCfg()
    known = {
        name: preprocessing.get(name) or getattr(own, name) for name in ("mean", "std", "interpolation", "resize_mode")
    }
    if known["resize_mode"] not in ("shortest", "squash"):
        raise ModelError(f"{spec} pads images (resize_mode '{known['resize_mode']}'), which is not done here.")
    table = {
        "size": tower.image_size, "mean": known["mean"], "std": known["std"],
        "interpolation": "bilinear" if known["interpolation"] == "bilinear" else "bicubic",
        "fit": "squash" if known["resize_mode"] == "squash" else "crop",
    }  # fmt: skip
    try:
        return Contract.from_table(table)
    except ModelError as error:
        raise ModelError(f"{spec}: {error}") from None
