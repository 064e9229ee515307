"""What to say of a flag that a verb does not have: our name for it, or the nearest three."""

from collections.abc import Mapping
from typing import Any

from understudy.errors import ConfigError
from understudy.settings import closest, either

AUTOMATIC = "Resuming is automatic: give the same command again, and what is finished is not done again."
WEIGHTS = "A model spec says its weights: --student timm:resnet18@pretrained, or @FILE for local ones."
TORCHRUN = "Start the same command under torchrun: torchrun --nproc-per-node 4 -m understudy train ..."
SENTENCES = {
    **dict.fromkeys(("resume", "resume_from", "checkpoint", "ckpt", "auto_resume"), AUTOMATIC),
    **dict.fromkeys(("pretrained", "weights"), WEIGHTS),
    **dict.fromkeys(("nproc_per_node", "world_size", "num_gpus", "distributed", "ddp"), TORCHRUN),
}
"""Flags of other programs that none of ours stands for."""


def unknown_flag(word: str, known: Mapping[str, Mapping[str, Any]], program: str) -> ConfigError:
    """The error for a flag that a verb does not have; `known` are those it has, by dotted name, with their metadata."""
    flag = word.partition("=")[0]
    if not flag.startswith("-"):
        return ConfigError(f"Unexpected argument '{word}'. `{program} --help` shows how it is called.")
    name = flag.lstrip("-").replace("-", "_")
    names, synonym = closest(name, known)
    flags = ["--" + path.replace("_", "-") for path in names]
    if synonym:
        return ConfigError(f"Unknown argument '{flag}'. Here it is {flags[0]}: {known[names[0]]['help']}")
    if name in SENTENCES:
        return ConfigError(f"Unknown argument '{flag}'. {SENTENCES[name]}")
    guess = f"Did you mean {either(flags)}? " if flags else ""
    return ConfigError(f"Unknown argument '{flag}'. {guess}`{program} --help-all` lists all flags.")
