"""Texts in the space of an image encoder: the text towers of CLIP, SigLIP and their kin, by their own libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from understudy.errors import MissingDependency, ModelError, first_line
from understudy.models.families import parse_spec

BATCH = 64


def embed_texts(spec: str, texts: Sequence[str]) -> Float32[np.ndarray, "n D"]:
    """Texts as the teacher's own text tower embeds them, rows of length one.

    Args:
        spec: of the image encoder, `hf:...` or `open_clip:...`.
        texts: any; what is longer than the tower reads is cut, as its library does.

    Raises:
        ModelError: the model has no text tower, or it cannot be loaded.
        MissingDependency: the library is not installed.
    """
    family, name, file = parse_spec(spec)
    if family.name not in TOWERS:
        raise ModelError(
            f"{spec} has no text tower that is known here; {' and '.join(f'{name}:' for name in TOWERS)} have. Give "
            "the classes' embeddings in a file: --zeroshot.text FILE.npz, in a run --evaluation.zeroshot.text."
        )
    try:
        encode = TOWERS[family.name](name, file)
        with torch.inference_mode():
            rows = torch.cat([encode(list(texts[low : low + BATCH])) for low in range(0, len(texts), BATCH)])
    except (ModelError, MissingDependency):
        raise
    except Exception as error:  # either library has exceptions of many kinds
        raise ModelError(f"The text tower of {spec} cannot be used ({first_line(error)}).") from None
    return torch.nn.functional.normalize(rows.float()).numpy()


def _transformers(name: str, file: str | None) -> Callable[[list[str]], Tensor]:
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise MissingDependency("hf: models need transformers: pip install 'understudy[hf]'.") from None
    revision = None if file == "pretrained" else file
    model: Any = AutoModel.from_pretrained(name, revision=revision, trust_remote_code=False).eval()
    if not hasattr(model, "get_text_features"):
        raise ModelError(f"hf:{name} has no text tower: it is a {type(model).__name__}.")
    tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    longest = model.config.text_config.max_position_embeddings

    def encode(texts: list[str]) -> Tensor:
        # To the full length, as SigLIP was trained; CLIP's causal attention sees no padding behind the last word.
        tokens = tokenizer(texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
        output = model.get_text_features(**tokens)
        rows: Tensor = output if isinstance(output, Tensor) else output.pooler_output
        return rows

    return encode


def _open_clip(name: str, file: str | None) -> Callable[[list[str]], Tensor]:
    try:
        import open_clip
    except ImportError:
        raise MissingDependency("open_clip: models need open_clip: pip install 'understudy[clip]'.") from None
    if Path(name).is_dir():
        name, tag = f"local-dir:{name}", None
    else:
        name, _, tag = name.partition("/")
        tag = file or tag or None
    model = open_clip.create_model(name, pretrained=tag).eval()
    tokenizer = open_clip.get_tokenizer(name)
    return lambda texts: model.encode_text(tokenizer(texts))


TOWERS: dict[str, Callable[[str, str | None], Callable[[list[str]], Tensor]]] = {
    "hf": _transformers, "open_clip": _open_clip,
}  # fmt: skip
