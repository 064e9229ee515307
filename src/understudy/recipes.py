"""Recipes and presets: settings that somebody else has written, laid under or between the user's own.

    defaults < recipe < settings files < preset < flags

A recipe is the word `authors` (what the authors of the method ran, kept beside its loss), a TOML file, or the name of
one in `recipes/`. It is resolved away: the saved configuration of a run holds its values, not its name.
"""

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
        The layers for `settings.resolve`, nested.

    Raises:
        ConfigError: an unknown recipe or preset, a recipe that builds on another file, or a method without authors'
            settings.
    """
    tables = [nest(layer) for layer in layers]
    recipe = _pop(tables, "recipe")
    if recipe is not None and recipe != "authors":
        table = nest(read_toml(_path_of(recipe)))
        base = _pop([table], "recipe")
        if base not in (None, "authors"):
            raise ConfigError(f"A recipe can build on 'authors' only; {recipe} asks for {base!r}. Write its settings.")
        tables, recipe = [table, *tables], base
    if recipe == "authors":
        tables = _over_authors(tables, method)
    preset = _pop(tables, "preset")
    if preset is not None:
        tables.insert(len(tables) - 1, _preset_table(preset, teacher=any(table.get("teacher") for table in tables)))
    return tables


def recipe_names() -> list[str]:
    """The recipes that come with this program."""
    return sorted({path.stem for folder in FOLDERS for path in folder.glob("*.toml")})


def _pop(tables: list[dict[str, Any]], key: str) -> str | None:
    """The last table's value of a key, which is removed from all of them."""
    values = [table.pop(key) for table in tables if key in table]
    value = values[-1] if values else None
    if not isinstance(value, str | None):
        raise ConfigError(f"'{key}' must be a name; got {value!r}.")
    return None if value == "none" else value


def _path_of(recipe: str) -> Path:
    for path in [Path(recipe), *(folder / f"{recipe}.toml" for folder in FOLDERS)]:
        if path.is_file():
            return path
    raise ConfigError(
        f"There is no recipe '{recipe}', neither a file nor a name. {nearest(recipe, ['authors', *recipe_names()])}"
    )


def _over_authors(tables: list[dict[str, Any]], default: str) -> list[dict[str, Any]]:
    """The tables with what the authors of their method ran below them."""
    from understudy.losses import LOSSES

    named = [_method_name(table) for table in tables]
    method = next((name for name in reversed(named) if name is not None), default)
    authors = LOSSES.named(method).authors
    if not authors:
        others = ", ".join(sorted(name for name in LOSSES if LOSSES[name].authors))
        raise ConfigError(
            f"Nothing is known of what the authors of '{method}' ran. Name a method that has authors' settings "
            f"({others}), or leave out the recipe."
        )
    # What a lower table says of another method is overruled; it must not come between this one and its authors.
    other = max((place for place, name in enumerate(named) if name not in (None, method)), default=-1)
    for table in tables[: other + 1]:
        table.pop("method", None)
    return [nest({"method": method, **authors}), *tables]


def _method_name(table: Mapping[str, Any]) -> str | None:
    """The method that a table names, if it names one."""
    method = table.get("method")
    name = method.get("name") if isinstance(method, Mapping) else method
    return None if name is None else str(name)


def _preset_table(preset: str, *, teacher: bool) -> dict[str, Any]:
    """What a preset stands for, a teacher only in the place of one."""
    if preset not in PRESETS:
        raise ConfigError(f"Unknown preset '{preset}'. {nearest(preset, PRESETS)}")
    return nest(PRESETS[preset] | ({"teacher": TINY_TEACHER} if teacher else {}))
