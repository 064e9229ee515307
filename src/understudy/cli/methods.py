"""What the command line says of the methods: their names at once, their settings where somebody asks for all."""

from __future__ import annotations


def method_names() -> list[str]:
    """The methods, without importing torch."""
    return sorted(METHOD_SETTINGS)


def method_keys() -> list[str]:
    """The settings that any method has, each once."""
    return sorted({key for settings in METHOD_SETTINGS.values() for key in settings})


def method_table() -> str:
    """Every method's own settings with their defaults; imports torch."""
    from understudy.losses import settings_of

    lines = ["settings of the methods:"]
    for name in method_names():
        lines.append(f"  {name}")
        lines += [f"    --method.{key.replace('_', '-')}  [{default}]" for key, default in settings_of(name).items()]
    return "\n".join(lines)


METHOD_SETTINGS = {
    "coss_centered": ("weight", "scale", "scope"),
    "coss": ("weight", "scale", "scope"),
    "simreg": (),
    "seed": ("tau_teacher", "tau_student", "queue"),
    "compress": ("queues", "temperature", "queue", "momentum"),
    "isd": ("temperature", "queue", "momentum"),
    "disco": ("temperature", "queue", "momentum", "weight"),
    "bingo": ("temperature", "queue", "warmup"),
    "smd": ("tau", "warmup", "views"),
    "rkd": ("distance", "angle"),
    "pkt": ("weight",),
    "sp": ("weight",),
    "mse": (),
    "dist": ("beta", "gamma"),
    "queue_kl": ("temperature", "queue"),
    "moco": ("temperature", "queue", "momentum"),
    "attndistill": ("weight", "temperature"),
    "proteus": ("token", "feature", "patch", "probability", "ratio"),
}
