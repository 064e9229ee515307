"""From a spec string to an encoder: a headless network with its feature width, input contract and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from understudy.artifacts import fingerprint
from understudy.errors import ModelError, first_line
from understudy.models.checkpoints import fingerprint_weights
from understudy.models.contract import Contract
from understudy.models.families import PUBLISHED, BuiltNetwork, Request, parse_spec
from understudy.models.outputs import POOLED, blank_pass, read_out


@dataclass
class Encoder:
    """A headless network, which ends in its pooled feature, and all that is known about it."""

    module: nn.Module  # (B, 3, S, S) prepared -> (B, F) pooled features
    width: int  # F
    contract: Contract  # what its input must look like
    spec: str  # as the user wrote it
    architecture: str  # the spec that builds the same module with no weights: no `@...`, no `run:`
    weights: str  # one line: what was loaded, dropped, missing; "" for a random initialization
    fingerprint: str  # changes with weights, architecture or the user's own code; "" for a random initialization
    code: str = ""  # fingerprint of the user's own code that it is made from
    library: str = ""  # packages whose code it is, with their versions: another one may compute otherwise
    output: str = "pooled"  # what of the network `module` ends in, see `outputs.read_out`


def build_encoder(
    spec: str, *, pretrained: bool, image_size: int | None = None, mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None, output: str = "pooled",
) -> Encoder:  # fmt: skip
    """Build what a spec stands for.

    Args:
        spec: `PREFIX:NAME`, `PREFIX:NAME@FILE` with a local weight file, or `PREFIX:NAME@pretrained` with the weights
            that the library publishes; `families.FAMILIES` has the prefixes.
        pretrained: True for a teacher: its weights are loaded or downloaded, and it is refused without. False for a
            student: random unless the spec brings weights (`@FILE`, `@pretrained`, `run:`).
        image_size: input side in pixels; default the network's own.
        mean: three numbers on [0, 1]; default the network's own.
        std: three numbers on [0, 1]; default the network's own.
        output: what of the network is its feature, see `outputs.read_out`.

    Returns:
        The encoder, on the CPU, in training mode.

    Raises:
        ModelError: an unknown spec, unusable weights, a teacher without any, or a size or an output that the network
            does not have.
    """
    family, name, file = parse_spec(spec)
    if image_size is not None and image_size < 1:
        raise ModelError(f"An image size is at least 1 pixel; got {image_size}.")
    published = file == PUBLISHED
    request = Request(spec, name, None if published else file, pretrained or published, image_size, mean, std, output)
    network = family.build(request)
    if not pretrained and not family.trainable:
        raise ModelError(f"{spec} is frozen and cannot be trained: it can only be a teacher.")
    architecture = network.architecture or f"{family.name}:{name}"
    if pretrained and not network.weights:
        raise ModelError(
            f"{architecture} has no weights, and a random teacher would only distill noise. Add {architecture}@FILE, "
            "or train a teacher without labels first (understudy pretrain) and use run:FOLDER."
        )
    try:
        contract = network.contract.override(size=image_size, mean=mean, std=std)
    except ModelError as error:
        raise ModelError(f"{spec}: {error}") from None
    digest = ""
    if network.weights:
        digest = network.fingerprint or _fingerprint(network, architecture, spec)
    if output != POOLED:
        chosen = read_out(network.module, output, spec)
        if chosen is not network.module:
            network.module, network.weights = chosen, network.weights and f"{network.weights}; embedding: {output}"
            digest = digest and fingerprint(digest, "output", output)
    size = contract.size  # F is measured: one blank image through the network says it for every architecture alike
    features = blank_pass(network.module, (size, size), spec, network.module)
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != 1:
        shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise ModelError(f"{spec} must map (1, 3, {size}, {size}) to pooled features (1, F); it gives {shape}.")
    return Encoder(
        network.module, features.shape[1], contract, spec, architecture, network.weights, digest, network.code,
        network.library, output,
    )  # fmt: skip


def _fingerprint(network: BuiltNetwork, architecture: str, spec: str) -> str:
    try:
        weights = fingerprint_weights(network.module)
    except Exception as error:  # a network of the user's own may hold what has no bytes
        raise ModelError(f"{spec} has parameters or buffers that cannot be read ({first_line(error)}).") from error
    return fingerprint(architecture, weights, *([network.code] if network.code else []))
