"""Losses: one method, one file, one paper. Tensors in, `Terms` out.

A loss never sees a model, a loader or a configuration. It is an `nn.Module` whose class attributes declare what it
needs (`views`, `needs_teacher`, `needs_key`, ...; see `Loss`), and the loop obeys. Queues and their pointers are
buffers, so a checkpoint holds them.
"""

from __future__ import annotations

import inspect
from typing import Any

from understudy.errors import ConfigError
from understudy.losses.attndistill import AttnDistill
from understudy.losses.bingo import BINGO
from understudy.losses.compress import CompRess
from understudy.losses.coss import CoSS
from understudy.losses.coss_centered import CoSSCentered
from understudy.losses.disco import DisCo
from understudy.losses.dist import DIST
from understudy.losses.isd import ISD
from understudy.losses.moco import MoCo
from understudy.losses.mse import MSE
from understudy.losses.pkt import PKT
from understudy.losses.proteus import Proteus
from understudy.losses.queue_kl import QueueKL
from understudy.losses.rkd import RKD
from understudy.losses.seed import SEED
from understudy.losses.simreg import SimReg
from understudy.losses.smd import SMD
from understudy.losses.sp import SP
from understudy.losses.terms import Loss, Terms
from understudy.settings import nearest

__all__ = ["LOSSES", "Loss", "Terms", "build", "settings_of", "typed"]

LOSSES: dict[str, type[Loss]] = {
    "coss_centered": CoSSCentered,
    "coss": CoSS,
    "simreg": SimReg,
    "seed": SEED,
    "compress": CompRess,
    "isd": ISD,
    "disco": DisCo,
    "bingo": BINGO,
    "smd": SMD,
    "rkd": RKD,
    "pkt": PKT,
    "sp": SP,
    "mse": MSE,
    "dist": DIST,
    "queue_kl": QueueKL,
    "moco": MoCo,
    "attndistill": AttnDistill,
    "proteus": Proteus,
}


def settings_of(name: str) -> dict[str, Any]:
    """The settings of a method with their defaults, e.g. `{"temperature": 0.07, "queue": 8192}` of `queue_kl`.

    Args:
        name: a key of `LOSSES`.

    Raises:
        ConfigError: the name is unknown; the sentence lists the known ones.
    """
    if name not in LOSSES:
        raise ConfigError(f"Unknown method '{name}'. {nearest(name, LOSSES)}")
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def typed(name: str, **settings: Any) -> dict[str, Any]:
    """A method's name and settings, each value in its own type: `true` from a file and `"true"` from a flag are one.

    Args:
        name: a key of `LOSSES`.
        **settings: the method's own settings; numbers and truth values may come as text.

    Returns:
        `{"name": name, ...}`, the settings that were given and no others.

    Raises:
        ConfigError: unknown method, unknown setting or unreadable value; the sentence lists the known ones.
    """
    known = settings_of(name)
    given: dict[str, Any] = {"name": name}
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(f"Method '{name}' has no setting '{key}'. {nearest(key, known)}")
        words = LOSSES[name].words.get(key, ())
        given[key] = value if value in words else _like(known[key], value, f"method.{key}", words)
    return given


def build(name: str, **settings: Any) -> Loss:
    """Build a method by name.

    Args:
        name: a key of `LOSSES`.
        **settings: the method's own settings; numbers may come as text, as they do from a command line.

    Returns:
        The loss as an `nn.Module`.

    Raises:
        ConfigError: unknown method, unknown setting or unusable value; the sentence lists the known ones.
    """
    own = typed(name, **settings)
    del own["name"]
    return LOSSES[name](**own)


def _like(default: Any, value: Any, name: str, words: tuple[str, ...]) -> Any:
    """The value in the type of the default: text from a command line becomes the number it stands for."""
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if not isinstance(value, str) or isinstance(default, str):
        return value
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise ConfigError(f"'{name}' must be true or false; got {value!r}.")
        return value.lower() == "true"
    if not isinstance(default, int | float):
        return value
    try:
        number = float(value)
    except ValueError:
        instead = f" or {' or '.join(words)}" if words else ""
        raise ConfigError(f"'{name}' must be a number{instead}; got {value!r}.") from None
    if isinstance(default, float):
        return number
    if not number.is_integer():
        raise ConfigError(f"'{name}' must be a whole number; got {value!r}.")
    return int(number)
