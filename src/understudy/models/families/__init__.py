"""Model families: what the prefix of a spec such as `timm:resnet18@FILE` stands for, one family a file.

A family is declared without torch, so that it can be listed at once; `build` imports what it needs.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from understudy.errors import ModelError, first_line
from understudy.registry import Registry
from understudy.settings import nearest

if TYPE_CHECKING:
    from torch import nn

    from understudy.models.contract import Contract


T = TypeVar("T")

PUBLISHED = "pretrained"  # stands in a spec in the place of a file: the weights that the library publishes


@dataclass(frozen=True)
class Request:
    """A spec, taken apart, and what is asked of the network; the rest is as in `build_encoder`."""

    spec: str  # as written
    name: str  # between the prefix and `@`
    file: str | None  # the local weight file after `@`, or None
    pretrained: bool
    image_size: int | None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    output: str = "pooled"

    @property
    def download(self) -> bool:
        """Whether the published weights are asked for."""
        return self.pretrained and self.file is None

    def load_file(self, module: nn.Module, fit: Callable[[Mapping[str, Sequence[int]]], bool] | None = None) -> str:
        """Load the local weight file, if there is one, into a network, whole if it is a teacher's; one line, or "".

        `fit` is as in `checkpoints.load_into`.
        """
        from understudy.models.checkpoints import load_into

        return load_into(module, self.file, whole=self.pretrained, fit=fit) if self.file else ""

    def downloaded(self, build: Callable[[], T]) -> T:
        """What `build` returns, which downloads weights.

        Raises:
            ModelError: the download failed.
        """
        try:
            return build()
        except Exception as error:  # Hub, proxy, certificate, disk: each library below has exceptions of its own.
            raise ModelError(
                f"The weights of {self.spec} could not be downloaded ({first_line(error)}). With no network, pass a "
                f"local file: {self.spec.partition('@')[0]}@FILE."
            ) from error


@dataclass
class BuiltNetwork:
    """What a family builds; `Encoder` is this with the user's overrides and all that follows from it."""

    module: nn.Module  # (B, 3, S, S) prepared -> (B, F) pooled features, on the CPU
    contract: Contract  # the network's own
    weights: str = ""  # one line: what was loaded, dropped, missing; "" for a random initialization
    architecture: str | None = None  # the spec that builds the module without weights, if it is not the request's own
    fingerprint: str | None = None  # of a network whose parameters cannot be read
    code: str = ""  # fingerprint of the user's own code that it is made from
    library: str = ""  # packages whose code it is, with their versions


class Family(ABC):
    """The networks behind one prefix."""

    name: ClassVar[str]  # the prefix
    form: ClassVar[str]  # a spec as documentation shows it
    summary: ClassVar[str]  # one line: what it stands for
    paper: ClassVar[str] = ""  # BibTeX of the library that has the networks; "" where there is none
    takes_file: ClassVar[bool] = True
    """Whether `@FILE` may follow. Otherwise what follows the prefix is a path and may itself contain "@"."""
    after_at: ClassVar[str] = "local weights"  # what follows `@`, if something may
    publishes_weights: ClassVar[bool] = False
    """Whether the library has weights, for a teacher without `@FILE` and for `@pretrained`."""
    trainable: ClassVar[bool] = True  # whether it can be a student
    names_architecture: ClassVar[bool] = False  # whether the name tells the architecture, whose paper is then cited

    @staticmethod
    @abstractmethod
    def build(request: Request) -> BuiltNetwork:
        """The network of a spec.

        Raises:
            ModelError: there is none of that name, or its weights cannot be used.
        """


FIRST = ("timm", "torchvision")
FAMILIES: Registry[Family] = Registry(__name__, "Family", "model family", one_per_file=True, first=FIRST)


def parse_spec(spec: str) -> tuple[type[Family], str, str | None]:
    """The family, the name and the weight file (`PUBLISHED` or None) of `PREFIX:NAME` or `PREFIX:NAME@FILE`.

    Raises:
        ModelError: an unknown prefix, no name, or published weights of a family without any.
    """
    prefix, _, name = spec.partition(":")
    if prefix not in FAMILIES or not name:
        raise ModelError(
            f"'{spec}' is not a model spec PREFIX:NAME. {nearest(prefix, FAMILIES)} Example: timm:resnet18."
        )
    family = FAMILIES[prefix]
    if not family.takes_file:
        return family, name, None
    name, _, file = name.partition("@")
    if file == PUBLISHED and not family.publishes_weights:
        *known, last = (f"{prefix}:" for prefix, family in FAMILIES.items() if family.publishes_weights)
        raise ModelError(
            f"{spec}: {', '.join(known)} and {last} publish weights, {prefix}: does not. Give a local file: "
            f"{prefix}:{name}@FILE."
        )
    return family, name, file or None


def closest(name: str, known: Sequence[str]) -> str:
    """The sentence that names the nearest of very many networks."""
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
    return f"Nearest: {', '.join(close)}." if close else f"It has {len(known)} others."
