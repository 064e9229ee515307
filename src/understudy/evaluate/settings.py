"""Settings of evaluation: which protocols, on which images; each protocol adds a group of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from understudy.errors import ConfigError
from understudy.evaluate.protocols import PROTOCOLS
from understudy.settings import as_table, setting

Group = TypeVar("Group")

WITHOUT_EFFECT = frozenset({"eval_data", "on", "protocols", "limit", "batch_size", "memory_mb"})
"""Settings that change no figure: images count by their fingerprints, and figures are kept protocol by protocol."""


@dataclass(frozen=True)
class FinetuneSettings:
    """How `semi` and `transfer` train the whole network."""

    epochs: int = setting(0, "Passes over the labeled images; 0: the frozen probe alone.", minimum=0)
    lr: float = setting(0.01, "Learning rate of the backbone for batches of 256, the classifier's is ten times it.")


@dataclass(frozen=True)
class SharedSettings:
    """What `understudy evaluate` measures, without the groups of single protocols.

    Raises:
        ConfigError: a protocol that does not exist, none at all, or the same one twice.
    """

    eval_data: str | None = setting(
        None,
        "Labeled images: a root with train and val (or test), or two specs separated by a comma.",
        synonyms="data dataset val_data val_dir",
    )
    on: tuple[str, ...] = setting(
        (), "Further sets, comma-separated: NAME=PATH or NAME of a published set, or a data spec."
    )
    protocols: tuple[str, ...] = setting(("knn", "linear", "fidelity"), f"Comma-separated, of {', '.join(PROTOCOLS)}.")
    limit: int | None = setting(
        None, "Use at most this many images of each half, always the same; all unless given.", minimum=1
    )
    batch_size: int = setting(128, "Images per forward pass.", minimum=1)
    memory_mb: int = setting(1024, "Memory budget of neighbor search, MiB.", minimum=16)
    seed: int = setting(0, "Seed of splits, samples and augmentation.", minimum=0)
    finetune: FinetuneSettings = setting(FinetuneSettings)

    def __post_init__(self) -> None:
        for name in self.protocols:
            PROTOCOLS.named(name)
        if not self.protocols or len(set(self.protocols)) < len(self.protocols):
            listed = ", ".join(self.protocols) or "none"
            raise ConfigError(f"'protocols' needs at least one name, each once; got {listed}.")

    def group(self, cls: type[Group]) -> Group:
        """The settings of one protocol, an instance of its `Settings`."""
        return next(value for value in vars(self).values() if isinstance(value, cls))

    def identity_settings(self, protocol: str) -> dict[str, Any]:
        """The settings that decide a protocol's figures."""
        others = {key for declared in PROTOCOLS.values() for key in declared.settings_keys()}
        others -= set(PROTOCOLS[protocol].settings_keys())
        table = {name: value for name, value in as_table(self).items() if name not in WITHOUT_EFFECT | others}
        if protocol in table and hasattr(own := getattr(self, protocol), "identity"):
            table[protocol] = own.identity()  # a file counts by its content
        return table


if TYPE_CHECKING:

    class EvaluationSettings(SharedSettings):
        """What `understudy evaluate` measures; `group` has the settings of a protocol."""

else:
    EvaluationSettings = dataclasses.make_dataclass(
        "EvaluationSettings",
        [(name, one.Settings, setting(one.Settings)) for name, one in PROTOCOLS.items() if one.Settings is not None],
        bases=(SharedSettings,),
        namespace={"__doc__": "What `understudy evaluate` measures.", "__module__": __name__},
        frozen=True,
    )
