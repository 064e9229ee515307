"""Recipes and presets: settings that somebody else has written, laid under or between the user's own.

    defaults < recipe < settings files < preset < flags

A recipe is the word `authors` (what the authors of the method ran, kept beside its loss), a TOML file, or the name of
one in `recipes/`. It is resolved away: the saved configuration of a run holds its values, not its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy.errors import ConfigError
from understudy.settings import nearest, nest, read_toml

FOLDERS = (Path(__file__).parent / "recipes", Path(__file__).parents[2] / "recipes")
"""Where the recipes lie: in an installed package, in a checkout."""

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "data": "digits:train", "limit": 64, "eval_data": "digits", "evaluation.limit": 128, "image_size": 32,
        "passes": 0.5, "batch_size": 16, "evaluation.linear_sgd.epochs": 1,
    },
}  # fmt: skip
"""tiny: two steps on a few embedded images, and a teacher without weights in the place of the run's own: the same code,
less data and less of it at a time. Nothing else is touched."""

TINY_TEACHER = "python:understudy.models.toy_encoder:ToyEncoder"


def merge_layers(*layers: Mapping[str, Any], method: str) -> list[dict[str, Any]]:
    """The layers of a run's settings with those that `recipe` and `preset` stand for in their places.

    Args:
        *layers: e.g. the settings file, then the flags, which come last; `recipe` and `preset` may be in any of them,
            and a later one wins ("none" for none).
        method: whose authors are meant when no layer names a method.

    Returns:
        The layers for `config.resolve`, nested.

    Raises:
        ConfigError: an unknown recipe or preset, a recipe that builds on another file, or a method without authors'
            settings.
    """
    nested = [nest(layer) for layer in layers]
    recipe = _taken(nested, "recipe")
    if recipe is not None and recipe != "authors":
        table = nest(read_toml(_file_of(recipe)))
        below = _taken([table], "recipe")
        if below not in (None, "authors"):
            raise ConfigError(f"A recipe can build on 'authors' only; {recipe} asks for {below!r}. Write its settings.")
        nested, recipe = [table, *nested], below
    if recipe == "authors":
        chosen = [_method(layer) for layer in nested]
        method = next((name for name in reversed(chosen) if name is not None), method)
        # What a lower layer says of another method is overruled; it must not come between this one and its authors.
        other = max((place for place, name in enumerate(chosen) if name not in (None, method)), default=-1)
        for layer in nested[: other + 1]:
            layer.pop("method", None)
        nested = [_authors(method), *nested]
    preset = _taken(nested, "preset")
    if preset is not None:
        if preset not in PRESETS:
            raise ConfigError(f"Unknown preset '{preset}'. {nearest(preset, PRESETS)}")
        table = nest(PRESETS[preset])
        if any(layer.get("teacher") for layer in nested):
            table["teacher"] = TINY_TEACHER
        nested.insert(len(nested) - 1, table)
    return nested


def names() -> list[str]:
    """The recipes that come with this program."""
    return sorted({path.stem for folder in FOLDERS for path in folder.glob("*.toml")})


def _taken(layers: list[dict[str, Any]], key: str) -> str | None:
    """What the last layer that has the key says, the key taken out of all of them."""
    found = [layer.pop(key) for layer in layers if key in layer]
    if found and not isinstance(found[-1], str | None):
        raise ConfigError(f"'{key}' must be a name; got {found[-1]!r}.")
    return None if not found or found[-1] == "none" else found[-1]


def _file_of(recipe: str) -> Path:
    places = [Path(recipe), *(folder / f"{recipe}.toml" for folder in FOLDERS)]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(
        f"There is no recipe '{recipe}', neither a file nor a name. {nearest(recipe, ['authors', *names()])}"
    )


def _method(layer: Mapping[str, Any]) -> str | None:
    """The method that a layer names, if it names one."""
    written = layer.get("method")
    name = written.get("name") if isinstance(written, Mapping) else written
    return None if name is None else str(name)


def _authors(method: str) -> dict[str, Any]:
    from understudy.losses import LOSSES

    authors = LOSSES.named(method).authors
    if not authors:
        others = ", ".join(sorted(name for name in LOSSES if LOSSES[name].authors))
        raise ConfigError(
            f"Nothing is known of what the authors of '{method}' ran. Name a method that has authors' settings "
            f"({others}), or leave out the recipe."
        )
    return nest({"method": method, **authors})
