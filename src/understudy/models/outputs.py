"""What a network shows besides its embedding: patch tokens, attention of the class token, the grid of its patches.

Feature maps of any network are in `dense`, which takes them by `record_outputs` too.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision.models import VisionTransformer

from understudy.errors import ModelError, ShapeError, first_line
from understudy.models.onnx_encoder import OnnxEncoder

POOLED = "pooled"  # what a network ends in by its source's own convention
TOKENS = ("cls", "patch-mean", "cls+patch-mean")  # what can be made of a vision transformer's tokens


@dataclass(frozen=True)
class EncoderOutput:
    """One forward pass of a network, with what lies under its embedding if it is a vision transformer."""

    embedding: Float[Tensor, "B D"]  # (B, D) what the network would have returned
    # (B, N, F) patch tokens after the last block and the final norm, row by row of the image; class and register tokens
    # are left out. None of any other network.
    tokens: Float[Tensor, "B N F"] | None = None
    # (B, H, 1 + N) how each head of the last block shares the class token's attention among itself and the patches,
    # before any dropout, at least float32; None unless asked for.
    attention: Float[Tensor, "B H T"] | None = None


def require_outputs(module: nn.Module, spec: str, *, attention: bool) -> None:
    """Refuse a headless network that cannot show what a method compares, the class token's attention too or not.

    Raises:
        ModelError: not a vision transformer of timm; or its class token's attention is not one over itself and the
            patches (no class token, register or distillation tokens), or not computed the usual way.
    """
    parts = ("patch_embed", "blocks", "num_prefix_tokens", "forward_features", "forward_head")
    if not all(hasattr(module, part) for part in parts):
        raise ModelError(
            f"{spec} shows its embedding only (it is a {type(module).__name__}), and this method also compares patch "
            "tokens or attention. It needs vision transformers of timm on both sides, e.g. timm:vit_small_patch16_224 "
            "(or python: with a callable that returns one); convolutional networks, torchvision's transformers and "
            "ONNX files cannot show them. Or choose a method that compares embeddings, e.g. coss."
        )
    if not attention:
        return
    from timm.layers import Attention  # The network came from it.

    extra = int(module.num_prefix_tokens) - 1  # type: ignore[arg-type]
    layer = getattr(module.blocks[-1], "attn", None)  # type: ignore[index]
    kind = "no attention layer" if layer is None else f"an attention layer of the kind {type(layer).__name__}"
    example = "timm:vit_small_patch16_224"
    if getattr(module, "cls_token", None) is None:
        reason = "has no class token, whose attention this method compares. Use a transformer with one"
    elif extra:
        reason = f"has {extra} register or distillation tokens, which take a share of the class token's attention "
        reason += "that the other network has no place for. Use a transformer without"
        example += " or timm:vit_small_patch14_dinov2"
    elif type(layer) is not Attention:
        reason = f"ends in {kind}, whose attention cannot be read here. Use a plain vision transformer"
    else:
        return
    raise ModelError(f"{spec} {reason}, e.g. {example}.")


def read_out(module: nn.Module, output: str, spec: str) -> nn.Module:
    """A network that ends in another of its outputs than its own convention says, which is "pooled".

    Args:
        module: a headless network.
        output: "cls", the class token behind the last norm; "patch-mean", the mean of the patch tokens there, without
            registers; "cls+patch-mean", (B, 2 F), the two behind each other; else the name of a part of the network
            that puts out (B, D), or of an output of an ONNX file.
        spec: how messages call the network.

    Raises:
        ModelError: the network has no such output.
    """
    if output == POOLED:
        return module
    if isinstance(module, OnnxEncoder):
        return module  # it was told when it was opened
    if output not in TOKENS:
        parts = [name for name, _ in module.named_modules() if name]
        if output not in parts:
            close = difflib.get_close_matches(output, parts, n=5, cutoff=0.4)
            nearest = f" Nearest: {', '.join(close)}." if close else ""
            raise ModelError(
                f"{spec} has no output '{output}': it is none of {POOLED}, {', '.join(TOKENS)}, and no part of the "
                f"network is called so.{nearest}"
            )
        return ReadOut(module, output)
    if token_reader(module) is None:
        raise ModelError(
            f"{spec} has no tokens, of which {output} could be made (it is a {type(module).__name__}). Leave out "
            "--teacher-output, which is its own pooled feature."
        )
    if output.startswith("cls") and not has_class_token(module):
        raise ModelError(f"{spec} has no class token. Take --teacher-output patch-mean, or its own: pooled.")
    return ReadOut(module, output)


class ReadOut(nn.Module):
    """A network that ends in another of its outputs, see `read_out`; in all else it is the network itself."""

    def __init__(self, network: nn.Module, output: str) -> None:
        super().__init__()
        self.network, self.output = network, output

    def __getattr__(self, name: str) -> Any:
        """What the network has: methods that compare tokens find blocks and patches where they always do."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "network":  # before it is there, while a copy is made
                raise
            return getattr(self.network, name)

    def forward(self, x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        """(B, 3, S, S) prepared -> (B, D)."""
        if self.output in TOKENS:
            read = token_reader(self.network)
            assert read is not None, "see read_out"
            return self.forward_head(read(x))
        with record_outputs({self.output: self.network.get_submodule(self.output)}) as calls:
            self.network(x)
        embedding = calls[-1][1] if calls else None
        if not isinstance(embedding, Tensor) or embedding.ndim < 2 or embedding[0].numel() != embedding.shape[1]:
            shape = tuple(embedding.shape) if isinstance(embedding, Tensor) else type(embedding).__name__
            raise ModelError(f"The part '{self.output}' puts out {shape} for {len(x)} images, and must (B, D).")
        return embedding.flatten(1)

    def forward_head(self, tokens: Float[Tensor, "B T F"]) -> Float[Tensor, "B D"]:
        """The tokens behind the last norm -> the embedding."""
        prefix = prefix_tokens(self.network)
        vectors = [tokens[:, 0]] if self.output.startswith("cls") else []
        vectors += [tokens[:, prefix:].mean(1)] if self.output.endswith("patch-mean") else []
        # Networks of timm that pool patches have their last norm behind the pooling.
        norm = getattr(self.network, "fc_norm", None) or nn.Identity()
        return torch.cat([norm(vector) for vector in vectors], 1)


def token_reader(module: Any) -> Callable[[Tensor], Tensor] | None:
    """How the tokens of a vision transformer are read, prefix first, behind the last norm; None of other networks."""
    if isinstance(module, VisionTransformer):

        def read(x: Tensor) -> Tensor:
            with record_outputs({"encoder": module.encoder}) as calls:
                module(x)
            tokens: Tensor = calls[0][1]
            return tokens

        return read
    if getattr(module, "num_prefix_tokens", None) is None or not hasattr(module, "forward_features"):
        return None
    features: Callable[[Tensor], Tensor] = module.forward_features
    return features


def prefix_tokens(module: Any) -> int:
    """How many tokens stand before those of the patches, in a network that `token_reader` reads."""
    return 1 if isinstance(module, VisionTransformer) else int(module.num_prefix_tokens)


def has_class_token(module: nn.Module) -> bool:
    """Whether the first token of a vision transformer stands for its whole image."""
    return isinstance(module, VisionTransformer) or getattr(module, "cls_token", None) is not None


def patch_count(module: Any, size: int) -> int:
    """N, how many patches a transformer that `require_outputs` lets pass cuts a square image of `size` pixels into."""
    return prod(module.patch_embed.dynamic_feat_size((size, size)))


def patch_size(module: nn.Module) -> int | None:
    """Pixels of the side of a patch, for a network that cuts its image into a grid of patches."""
    size = getattr(getattr(module, "patch_embed", None), "patch_size", None) or getattr(module, "patch_size", None)
    size = size[0] if isinstance(size, tuple) else size
    return size if isinstance(size, int) else None


def blank_pass(module: nn.Module, size: tuple[int, int], spec: str, call: Callable[[Tensor], Any]) -> Any:
    """What `call`, which runs the network, gives for one blank image (1, 3, H, W) of a size on its device.

    The network is in evaluation mode, which is undone afterwards, and without gradients.

    Raises:
        ModelError: the network cannot take an image of this size.
    """
    was_training = module.training
    module.eval()
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            return call(torch.zeros(1, 3, *size, device=device))
    except ModelError:
        raise
    except Exception as error:  # Whatever a foreign forward raises is about its input here.
        raise ModelError(f"{spec} cannot take {size[0]} x {size[1]} images: {first_line(error)}.") from error
    finally:
        module.train(was_training)


@contextmanager
def record_outputs(
    parts: Mapping[str, nn.Module], read: Callable[[Any], Any] = lambda output: output
) -> Iterator[list[tuple[str, Any]]]:
    """A block that collects (name, what `read` gives of the output) of every call of the parts, in order."""
    calls: list[tuple[str, Any]] = []

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, _inputs, output: calls.append((name, read(output)))

    with ExitStack() as handles:
        for name, part in parts.items():
            handles.enter_context(part.register_forward_hook(hook(name)))
        yield calls


def forward_outputs(
    module: Any, x: Float[Tensor, "B 3 S S"], *, attention: bool = False, masks: Bool[Tensor, "M N"] | None = None,
    mask_token: Float[Tensor, " F"] | None = None,
) -> EncoderOutput:  # fmt: skip
    """One forward pass through a headless vision transformer of timm, and what it shows.

    Differs from `module(x)` by what it returns, not by what it computes: the embedding is the same to the last bit.
    The attention is recomputed from the queries and keys of the last block, one row of it, because fused kernels never
    write it down.

    Args:
        module: one that `require_outputs` lets pass.
        x: (B, 3, S, S) prepared images.
        attention: whether to return the class token's attention.
        masks: (M, N) for the last M images: True where a patch is hidden.
        mask_token: (F,) takes the place of the embeddings of hidden patches, before positions are added.

    Raises:
        ShapeError: the masks do not have one entry per patch.
    """
    with ExitStack() as hooks:
        if masks is not None:
            assert mask_token is not None, "hidden patches need something in their place"
            hooks.enter_context(_hide(module.patch_embed, masks, mask_token))
        layer: Any = module.blocks[-1].attn if attention else None
        calls = hooks.enter_context(record_outputs({"qkv": layer.qkv} if attention else {}))
        tokens = module.forward_features(x)
        embedding = module.forward_head(tokens)
    return EncoderOutput(
        embedding, tokens[:, module.num_prefix_tokens :], _attention_of_first(layer, calls[0][1]) if attention else None
    )


def _attention_of_first(layer: Any, qkv: Float[Tensor, "B T Z"]) -> Float[Tensor, "B H T"]:
    """The attention of the first token, from the output of a block's joint projection."""
    query, key = qkv.unflatten(2, (3, layer.num_heads, layer.head_dim)).permute(2, 0, 3, 1, 4)[:2]
    query, key = layer.q_norm(query[:, :, :1]), layer.k_norm(key)
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):  # half precision would round small shares to nothing
        scores = query.to(dtype) @ key.to(dtype).mT * layer.scale
    shares: Tensor = scores.squeeze(2).softmax(2)
    return shares


def _hide(patch_embed: nn.Module, masks: Tensor, mask_token: Tensor) -> RemovableHandle:
    """Put the mask token in the place of hidden patches of the last images of a batch, until the handle is left."""

    def replace(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        patches = output.flatten(1, -2)  # networks for any input size keep rows and columns apart here
        if patches.shape[1] != masks.shape[1]:
            raise ShapeError(f"There are {patches.shape[1]} patches an image, and masks for {masks.shape[1]}.")
        whole, masked = patches.split([len(patches) - len(masks), len(masks)])
        masked = torch.where(masks[:, :, None], mask_token.to(masked.dtype), masked)
        return torch.cat([whole, masked]).view_as(output)

    return patch_embed.register_forward_hook(replace)
