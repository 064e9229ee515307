"""Settings of `understudy export`."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.errors import ConfigError
from understudy.export.targets import TARGETS
from understudy.settings import setting

OUTPUTS = ("embed", "features", "both")


@dataclass(frozen=True)
class ExportSettings:
    """What leaves, how it is judged, and what is said of it.

    Raises:
        ConfigError: a target that does not exist, none at all, the same one twice, or a hub without a name.
    """

    to: tuple[str, ...] = setting(
        ("onnx",),
        f"Targets, comma-separated, of {', '.join(TARGETS)}; hub:ORG/NAME uploads.",
        synonyms="format formats",
    )
    out: str | None = setting(None, "Folder of the exports; RUN/export unless given.")
    output: str = setting(
        "embed", "What the network gives: the embedding in the teacher's space, the backbone's features, or both.",
        choices=OUTPUTS,
    )  # fmt: skip
    with_preprocessing: bool = setting(
        False, "ONNX takes decoded pictures, uint8 (B, H, W, 3) of any size, and prepares them itself."
    )
    free_size: bool = setting(False, "Prepared images of any size, where the network allows it.")
    data: str | None = setting(None, "Held-out images it is judged on; the run's own evaluation images unless given.")
    images: int = setting(256, "How many held-out images are compared, drawn by the seed.", minimum=16)
    calibration: int = setting(256, "How many training images the int8 ranges come from, drawn by the seed.", minimum=8)
    tolerance: float | None = setting(
        None, "Largest mean of 1 - cosine to the student's rows, all seen from their mean; each target has its own.",
        above=0, maximum=1,
    )  # fmt: skip
    license: str | None = setting(
        None, "License of the student, for its card; yours to know, hence empty unless given."
    )
    dry_run: bool = setting(False, "Write the folder of the hub and upload nothing.")
    seed: int = setting(0, "Seed of what is drawn.", minimum=0)

    def __post_init__(self) -> None:
        names = [target.partition(":")[0] for target in self.to]
        for name in names:
            TARGETS.named(name)
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"'to' needs at least one target, each once; got {', '.join(self.to) or 'none'}.")
        for target in self.to:
            name, colon, argument = target.partition(":")
            if bool(argument) != TARGETS[name].takes_name or (colon and not argument):
                wanted = f"{name}:ORG/NAME" if TARGETS[name].takes_name else name
                raise ConfigError(f"'{target}' is not a target; write {wanted}.")
