"""An image encoder of transformers as a headless network: which class, what of its answer, and from which weights."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from understudy.errors import ModelError, first_line
from understudy.models.families import closest
from understudy.models.outputs import blank_pass

TOWERS = {
    "clip": "CLIPVisionModelWithProjection",
    "metaclip_2": "MetaClip2VisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "tipsv2": "Tipsv2VisionModel",
}
"""Models of image and text by their kind: the class that is the image tower, up to the space that both share."""

UNSAID = {"transformers_version", "_name_or_path", "id2label", "label2id", "dtype", "torch_dtype", "num_labels"}
"""What of a configuration does not tell what is computed."""

LARGEST = 2**31  # parameters of a network that begins with random weights: a number in a file must not ask for more

POOLING = "add_pooling_layer"  # key of `describe`: False where a checkpoint has no weights for that layer


class HfEncoder(nn.Module):
    """An encoder of transformers that ends in what its makers call the embedding of an image.

    That is the embedding that a model of image and text projects into their space; else the answer of its pooling
    layer; else the class token; else the mean of all tokens or of the map.
    """

    cls_token: str | None = None  # name of the parameter, of a transformer that has a class token
    num_prefix_tokens: int | None = None  # tokens before those of the patches; None of other networks than transformers
    patch_size: int | None = None  # of a transformer

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.image_size, self._patch = (
            side(getattr(network.config, name, None)) for name in ("image_size", "patch_size")
        )

    def settle(self, size: int, spec: str) -> str:
        """Find out, by a blank image of a size, where its tokens are; returns what it ends in, in words."""
        answer = blank_pass(self.network, (size, size), spec, self._answer)
        states = answer.last_hidden_state
        names = [name for name, _ in self.network.named_parameters()]
        if self._patch is not None and states.ndim == 3 and states.shape[1] >= (patches := (size // self._patch) ** 2):
            self.num_prefix_tokens, self.patch_size = states.shape[1] - patches, self._patch
            self.cls_token = next((name for name in names if name.endswith(("cls_token", "class_embedding"))), None)
        if isinstance(getattr(answer, "image_embeds", None), Tensor):
            return "its projected embedding"
        if isinstance(getattr(answer, "pooler_output", None), Tensor):
            return "its pooled output"
        return (
            "its class token" if self.cls_token else "the mean of its tokens" if states.ndim == 3 else "its map's mean"
        )

    def _answer(self, x: Tensor) -> Any:
        options: dict[str, Any] = {}
        if self.image_size is not None and tuple(x.shape[-2:]) != (self.image_size, self.image_size):
            options["interpolate_pos_encoding"] = True
        if self.network.config.model_type == "vit_mae":  # it mixes its patches by chance, for all but this order
            count = (x.shape[-2] // self._patch) * (x.shape[-1] // self._patch)  # type: ignore[operator]
            options["noise"] = torch.arange(count, device=x.device, dtype=torch.float32).expand(len(x), count)
        return self.network(pixel_values=x, **options)

    def forward(self, x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B F"]:
        """(B, 3, S, S) prepared -> (B, F)."""
        answer = self._answer(x)
        for name in ("image_embeds", "pooler_output"):
            if isinstance(embedding := getattr(answer, name, None), Tensor):
                return embedding.flatten(1)
        states: Tensor = answer.last_hidden_state
        if states.ndim == 4:
            return states.mean((2, 3))
        return states[:, 0] if self.cls_token is not None else states.mean(1)

    def forward_features(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T F"]:
        """The tokens of a transformer behind its last norm."""
        tokens: Tensor = self._answer(x).last_hidden_state
        if "clip" in self.network.config.model_type and "siglip" not in self.network.config.model_type:
            # CLIP has no use for its patches: the norm is applied to the class token alone.
            norms = [part for name, part in self.network.named_modules() if name.endswith("post_layernorm")]
            return norms[0](tokens) if norms else tokens
        return tokens


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers says nothing meanwhile: what matters of it becomes a sentence here."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def read_config(source: str, spec: str) -> tuple[Any, bool]:
    """The configuration of an image encoder, and whether it has a pooling layer if its class knows one.

    Args:
        source: a folder with a config.json, or JSON as `describe` writes it.
        spec: how messages call the model.

    Raises:
        ModelError: there is none, transformers has no such model, or it is none of images.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    try:
        table = json.loads(source if source.startswith("{") else (Path(source) / "config.json").read_text("utf-8"))
        kind = table.get("model_type") if isinstance(table, dict) else None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{spec} has no readable config.json ({first_line(error)}).") from None
    if kind is not None and kind not in CONFIG_MAPPING_NAMES:
        if "auto_map" in table:
            raise ModelError(
                f"{spec} brings code of its own, which is never run here. Export it to ONNX (onnx:FILE), or write a "
                "function that returns it (python:module:callable)."
            )
        raise ModelError(
            f"{spec} is of the kind '{kind}', which the installed transformers does not have. "
            f"{closest(str(kind), list(CONFIG_MAPPING_NAMES))}"
        )
    pooling = bool(table.pop(POOLING, True))
    try:
        if source.startswith("{"):
            return tower_config(AutoConfig.for_model(**table)), pooling
        return tower_config(AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)), pooling
    except Exception as error:  # transformers raises nearly anything at what it does not understand
        raise ModelError(f"The configuration of {spec} cannot be used ({first_line(error)}).") from None


def tower_config(config: Any) -> Any:
    """The configuration of the image tower of a model of image and text; any other as it is."""
    if config.model_type == "timm_wrapper" and config.model_args:
        config.model_args.pop("num_classes", None)  # newer timm writes it, and the wrapper says 0 itself
    if config.model_type not in TOWERS:
        return config
    vision = config.vision_config
    vision.architectures = [TOWERS[config.model_type]]
    if hasattr(config, "projection_dim"):
        vision.projection_dim = config.projection_dim  # the tower's own says nothing
    return vision


def network_class(config: Any, spec: str) -> Any:
    """The class of transformers that a configuration is of.

    Raises:
        ModelError: it reads something else than images.
    """
    import transformers

    named = [name for name in config.architectures or () if name in TOWERS.values()]
    if named:
        return getattr(transformers, named[0])
    try:
        kind = transformers.AutoModel._model_mapping[type(config)]
    except KeyError:
        raise ModelError(f"{spec}: transformers has no encoder of the kind '{config.model_type}'.") from None
    kind = kind[0] if isinstance(kind, list | tuple) else kind
    needed = [
        name
        for name, parameter in inspect.signature(kind.forward).parameters.items()
        if name not in ("self", "pixel_values")
        and parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    reads = getattr(kind, "main_input_name", "")
    if (
        reads != "pixel_values"
        or hasattr(config, "text_config")
        or "input_ids" in inspect.signature(kind.forward).parameters
    ):
        what = "text" if reads == "input_ids" or hasattr(config, "text_config") else f"'{reads}'"
        raise ModelError(
            f"{spec} is a {kind.__name__}, which needs {what} as well as or instead of images. A teacher embeds images "
            f"alone; of models of image and text, the image towers of {', '.join(TOWERS)} are taken."
        )
    if needed:
        raise ModelError(
            f"{spec} is a {kind.__name__}, which also asks for {' and '.join(needed)}: images in tiles or with "
            "padding, which are not made here. Take a version of it for images of one size."
        )
    return kind


def build_network(config: Any, spec: str, *, pooling: bool) -> Any:
    """A network with random weights.

    Raises:
        ModelError: transformers cannot build it.
    """
    kind = network_class(config, spec)
    options = {POOLING: False} if not pooling and POOLING in inspect.signature(kind.__init__).parameters else {}
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0  # an encoder sees all patches
    try:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in kind(config, **options).parameters())
        if count > LARGEST:
            raise ModelError(f"it would have {count:,} parameters, and a student may have {LARGEST:,}")
        return kind(config, **options).float()
    except Exception as error:  # as above
        raise ModelError(f"{spec} cannot be built ({first_line(error)}).") from None


def load_network(folder: Path, config: Any, spec: str) -> tuple[Any, bool]:
    """A network with all weights of a folder, in float32, and whether there were some for its pooling layer.

    Raises:
        ModelError: the files lack some of them, or cannot be read.
    """
    kind = network_class(config, spec)
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0

    def load(**options: Any) -> tuple[Any, list[str], list[Any]]:
        try:
            network, found = kind.from_pretrained(
                folder, config=config, dtype=torch.float32, local_files_only=True, trust_remote_code=False,
                output_loading_info=True, **options,
            )  # fmt: skip
        except Exception as error:  # as above, and of safetensors and torch
            raise ModelError(f"The weights of {spec} cannot be loaded ({first_line(error)}).") from None
        return network, sorted(found["missing_keys"]), sorted(map(str, found["mismatched_keys"]))

    network, missing, different = load()
    pooling = True
    if missing and all(name.startswith("pooler.") for name in missing):
        # Classifiers and masked autoencoders are published without: what would pool is random.
        pooling = False
        network, missing, different = load(**{POOLING: False})
    if missing or different:
        listed = ", ".join((missing + different)[:3]) + (", ..." if len(missing + different) > 3 else "")
        raise ModelError(
            f"The weights of {spec} lack {len(missing + different)} tensors that its {kind.__name__} has, or have them "
            f"in another shape: {listed}. A teacher needs all of them."
        )
    return network, pooling


def describe(config: Any, *, pooling: bool) -> str:
    """A configuration as JSON, without what does not tell what is computed: enough to build the network anywhere."""
    table: Mapping[str, Any] = config.to_diff_dict()
    kept = {name: value for name, value in table.items() if name not in UNSAID}
    if not set(kept.get("architectures") or ()) & set(TOWERS.values()):
        kept.pop("architectures", None)
    kept |= {"model_type": config.model_type} | ({} if pooling else {POOLING: False})
    return json.dumps(kept, sort_keys=True)


def side(size: Any) -> int | None:
    """The first of several sizes, or the size, if it is a number."""
    size = size[0] if isinstance(size, list | tuple) and size else size
    return size if isinstance(size, int) else None
