"""Heads: the maps from a student's backbone features to the teacher's space, one entry of `HEADS` each.

They are declared without torch, because settings and reports read them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from understudy.errors import ModelError
from understudy.settings import nearest

if TYPE_CHECKING:
    from torch import nn

Layer = tuple[Any, ...]
"""A layer as the name of its class in `torch.nn` and its arguments."""


@dataclass(frozen=True)
class Head:
    """One kind of head."""

    summary: str  # one line: its layers, and whose it is
    layers: Callable[[int, int, int], list[Layer]]  # (F, hidden width, D) -> its layers
    hidden: Callable[[int, int], int] | None = None
    """(F, the user's hidden width) -> the hidden width; None where the layers need none."""


def _deep(width: int, hidden: int, out: int) -> list[Layer]:
    projection = [("Linear", width, hidden), ("BatchNorm1d", hidden), ("ReLU",), ("Linear", hidden, width)]
    return [*projection, *projection[:3], ("Linear", hidden, out)]


def _gelu(width: int, _: int, out: int) -> list[Layer]:
    narrow, wide = ("Linear", 2 * width, width), ("Linear", width, 2 * width)
    gelu = ("GELU",)
    return [wide, gelu, narrow, gelu, wide, gelu, ("Linear", 2 * width, out), ("LayerNorm", out, 1e-6)]


HEADS = {
    "mlp": Head(
        "linear, ReLU, linear with biases (CoSS; with a hidden width of 0, the backbone's own, SEED and MoCo-v2)",
        lambda width, hidden, out: [("Linear", width, hidden), ("ReLU",), ("Linear", hidden, out)],
        hidden=lambda width, hidden: hidden or width,
    ),
    "deep": Head(
        "four linear layers, BatchNorm and ReLU after the first and the third, F - 2F - F - 2F - D (SimReg)",
        _deep,
        hidden=lambda width, _: 2 * width,
    ),
    "linear": Head("one linear layer", lambda width, _, out: [("Linear", width, out)]),
    "norm": Head("LayerNorm, linear (Proteus)", lambda width, _, out: [("LayerNorm", width), ("Linear", width, out)]),
    "gelu": Head("deep's widths with GELU between them, then LayerNorm (AttnDistill)", _gelu),
    "none": Head("the feature itself, where F equals D", lambda *_: [("Identity",)]),
}
"""Name -> head.

Source: the released code of CoSS, github.com/paganpasta/coss-pytorch, wrapper.py (mlp, auto), of SimReg,
github.com/UCDvision/simreg, mlp_arch.py (deep), and of AttnDistill, github.com/wangkai930418/attndistill, whose
projector begins with the LayerNorm that a vision transformer's pooled feature has behind it already.
"""


def build_head(width: int, out: int, kind: str = "auto", hidden: int = 2048) -> tuple[nn.Module, dict[str, Any]]:
    """The map from backbone features to the teacher's space.

    Args:
        width: F.
        out: D.
        kind: of `HEADS`, or "auto", the choice of CoSS: none where the widths match, else mlp.
        hidden: width of an mlp's middle layer; 0 for F.

    Returns:
        The head and the table {kind, width, hidden, out} that rebuilds it (`hidden` is None where there is none).

    Raises:
        ModelError: an unknown kind, or "none" between different widths.
    """
    from torch import nn

    if kind == "auto":
        kind = "none" if width == out else "mlp"
    if kind not in HEADS:
        raise ModelError(f"Unknown head '{kind}'. {nearest(kind, ('auto', *HEADS))}")
    if kind == "none" and width != out:
        raise ModelError(
            f"A student {width} wide needs a head to reach a teacher {out} wide; use head 'mlp' or 'linear'."
        )
    head = HEADS[kind]
    middle = None if head.hidden is None else head.hidden(width, hidden)
    layers = [getattr(nn, name)(*arguments) for name, *arguments in head.layers(width, middle or 0, out)]
    table = {"kind": kind, "width": width, "hidden": middle, "out": out}
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers), table


def head_multiply_adds(table: Mapping[str, Any]) -> int | None:
    """Multiply-adds of a head for one image, from its table; None for a kind unknown here."""
    if (head := HEADS.get(table.get("kind", ""))) is None:
        return None
    layers = head.layers(table["width"], table["hidden"] or 0, table["out"])
    return sum(int(arguments[0] * arguments[1]) for name, *arguments in layers if name == "Linear")
