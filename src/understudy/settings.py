"""Settings: frozen dataclasses in, TOML and flags on top, one resolved table out.

Each stage keeps its own dataclass beside the code it feeds (`train/settings.py`, `neighbors/settings.py`, ...). This
module knows none of them: it only reads TOML, lays one table over another, checks names and types, and writes the
result. Nothing here imports torch, so `understudy VERB --help` stays instant.
"""

import dataclasses
import difflib
import math
import os
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from understudy.errors import ConfigError

Settings = TypeVar("Settings")

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
"""Types as errors call them."""


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    choices: tuple[Any, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    synonyms: str = "",
) -> Any:
    """Declare one field of a settings dataclass, with the sentence that `--help` prints.

    Args:
        default: value when nothing is written; without one the setting is required. A dict makes the field a table
            `{"name": ..., further keys}` whose further keys are checked by whoever owns the name (a method's own
            settings); a bare string `"coss"` then means `{"name": "coss"}`.
        help: one line for `--help` and the docs.
        choices: the only values allowed.
        minimum: smallest number allowed.
        maximum: largest number allowed.
        above: numbers must be larger than this.
        synonyms: what other programs of this field call it, words separated by spaces; whoever writes one is told our
            name.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "open": isinstance(default, dict),
        "synonyms": synonyms,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    if dataclasses.is_dataclass(default) and isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def nearest(name: str, known: Iterable[str]) -> str:
    """The sentence that ends every "unknown name" error: the nearest known names, then all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"Did you mean '{close[0]}'? " if close else ""
    return f"{guess}Known: {', '.join(known)}."


def either(names: Iterable[str]) -> str:
    """`'a', 'b' or 'c'`."""
    *others, last = (f"'{name}'" for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def settings_in(cls: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """(dotted name, field, type) of every setting of a dataclass, those of its groups included."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from settings_in(hint, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field, hint


def closest(name: str, known: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], bool]:
    """The settings that somebody may have meant by an unknown name, at most three.

    Args:
        name: as written, with underscores.
        known: dotted names of settings and their metadata.

    Returns:
        The dotted names, the likeliest first, and whether the name is a synonym of the only one.
    """
    meant = [path for path, metadata in known.items() if name in metadata.get("synonyms", "").split()]
    if meant:
        return meant[:1], True
    leaves = [path for path in known if path.rpartition(".")[2] == name.rpartition(".")[2]]
    return list(dict.fromkeys(leaves + difflib.get_close_matches(name, list(known), n=3)))[:3], False


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file into a plain nested dict.

    Raises:
        ConfigError: the file is missing or is not TOML.
    """
    path = Path(os.path.expanduser(path))
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"The configuration file {path} does not exist. Check --config.") from None
    except OSError as error:
        raise ConfigError(f"The configuration file {path} cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"The configuration file {path} is not valid TOML: {error}.") from None


def write_toml(table: Mapping[str, Any]) -> str:
    """The table as TOML text, keys without a value left out (TOML has no null)."""
    import tomli_w

    def present(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: present(item) for key, item in value.items() if item is not None}
        return list(value) if isinstance(value, tuple) else value

    return tomli_w.dumps(present(table))


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` -> `{"a": {"b": 1}}`; a name and its settings share a table: `{"method": "coss", "method.k": 1}`."""
    nested: dict[str, Any] = {}
    for dotted, value in flat.items():
        *parents, leaf = dotted.split(".")
        table = nested
        for parent in parents:
            inner = table.get(parent)
            if not isinstance(inner, dict):
                inner = {} if inner is None else {"name": inner}
                table[parent] = inner
            table = inner
        if isinstance(table.get(leaf), dict) and not isinstance(value, Mapping):
            table[leaf]["name"] = value
        elif isinstance(table.get(leaf), dict) and isinstance(value, Mapping):
            table[leaf].update(value)
        else:
            table[leaf] = dict(value) if isinstance(value, Mapping) else value
    return nested


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`, the inverse of `nest`."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def as_table(settings: Any) -> dict[str, Any]:
    """A settings dataclass as a nested dict of plain values."""
    return dataclasses.asdict(settings)


def resolve(cls: type[Settings], *layers: Mapping[str, Any], prefix: str = "") -> Settings:
    """Build a settings dataclass from tables laid over each other; a later layer wins.

    Args:
        cls: the dataclass; nested dataclasses are groups, written `group.key` or `{"group": {"key": ...}}`.
        *layers: e.g. the TOML file, then the flags. Keys may be dotted, nested, or written with hyphens.
        prefix: what stands before the names in errors, e.g. "method.".

    Returns:
        The dataclass, every value of its declared type and inside its declared range.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a missing required one, a wrong type or value.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _lay_over(cls, merged, nest(layer), prefix)
    return _build(cls, merged, prefix)


def _suggestion(cls: type, key: str, prefix: str) -> str:
    """What to write in place of an unknown name: all known names if they are few, else the nearest."""
    known = {path: field.metadata for path, field, _ in settings_in(cls)}
    names, synonym = closest(key, known)
    if synonym:
        return f"Here it is '{prefix}{names[0]}': {known[names[0]]['help']}"
    fields = [field.name for field in dataclasses.fields(cls)]
    if len(fields) <= 12:
        return nearest(key, fields)
    guess = f"Did you mean {either(prefix + name for name in names)}? " if names else ""
    return f"{guess}`understudy VERB --help-all` lists all settings of a verb."


def _lay_over(cls: type, below: dict[str, Any], above: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    result = dict(below)
    for written, value in above.items():
        key = written.replace("-", "_")
        if key not in fields:
            raise ConfigError(f"Unknown setting '{prefix}{written}'. {_suggestion(cls, key, prefix)}")
        if fields[key].metadata.get("open"):
            if not isinstance(value, str | Mapping):
                raise ConfigError(f"'{prefix}{key}' must be a name or a table with a name; got {value!r}.")
            table = {"name": value} if isinstance(value, str) else dict(value)
            old = result.get(key, {})
            # Settings belong to a name: a layer that names another one starts with that one's own defaults.
            same = "name" not in table or "name" not in old or table["name"] == old["name"]
            result[key] = {**old, **table} if same else table
        elif dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"'{prefix}{key}' is a group of settings, got {value!r}. Write '{prefix}{key}.KEY'.")
            result[key] = _lay_over(hints[key], result.get(key, {}), value, f"{prefix}{key}.")
        else:
            result[key] = value
    return result


def _build(cls: type[Settings], table: Mapping[str, Any], prefix: str) -> Settings:
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name, hint = field.name, hints[field.name]
        if dataclasses.is_dataclass(hint) and not field.metadata.get("open"):
            values[name] = _build(hint, table.get(name, {}), f"{prefix}{name}.")  # type: ignore[arg-type]
        elif field.metadata.get("open"):
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else {}
            given = table.get(name)
            values[name] = {**default, **given} if given and "name" not in given else (given or default)
        elif name in table:
            values[name] = _checked(table[name], hint, field, prefix + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(
                f"'{prefix}{name}' is required and was not given. {field.metadata.get('help', '')}".strip()
            )
    return cls(**values)


def _checked(value: Any, hint: Any, field: dataclasses.Field[Any], name: str) -> Any:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)  # the latter where a Literal is among them
    allowed = typing.get_args(hint) if union else (hint,)
    meta = field.metadata
    # A command line has no other way to write "no value"; a setting that lists "none" among its choices means the word.
    if isinstance(value, str) and value.lower() == "none" and "none" not in (meta.get("choices") or ()):
        value = None
    value = _typed(value, allowed, name)
    if value is None:
        return None
    if meta.get("choices") and value not in meta["choices"]:
        listed = ", ".join(str(choice) for choice in meta["choices"])
        raise ConfigError(f"'{name}' must be one of {listed}; got {value!r}.")
    if isinstance(value, str):  # a word, where the setting may also be a number
        return value
    if meta.get("above") is not None and value <= meta["above"]:
        raise ConfigError(f"'{name}' must be above {meta['above']}; got {value}.")
    if meta.get("minimum") is not None and value < meta["minimum"]:
        raise ConfigError(f"'{name}' must be at least {meta['minimum']}; got {value}.")
    if meta.get("maximum") is not None and value > meta["maximum"]:
        raise ConfigError(f"'{name}' must be at most {meta['maximum']}; got {value}.")
    return value


def _typed(value: Any, allowed: tuple[Any, ...], name: str) -> Any:
    if value is None:
        if type(None) in allowed:
            return None
        raise ConfigError(f"'{name}' needs a value, got none.")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    for kind in allowed:
        if kind is type(None):
            continue
        if typing.get_origin(kind) is typing.Literal:
            if value in typing.get_args(kind):
                return value
        elif typing.get_origin(kind) is tuple:
            if isinstance(value, str):
                value = value.split(",")
            items = list(value) if isinstance(value, list | tuple) else [value]
            inner, *rest = typing.get_args(kind)
            if rest != [...] and len(items) != 1 + len(rest):
                raise ConfigError(f"'{name}' must be {1 + len(rest)} values separated by commas; got {len(items)}.")
            return tuple(_typed(item.strip() if isinstance(item, str) else item, (inner,), name) for item in items)
        elif kind is bool:
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in {"true", "yes", "on", "1", "false", "no", "off", "0"}:
                return value.lower() in {"true", "yes", "on", "1"}
        elif kind in (int, float) and not isinstance(value, bool):
            try:
                number = float(value)
            except (TypeError, ValueError):
                continue
            if kind is float and not math.isnan(number):
                return number
            if kind is int and number.is_integer():
                # Past 2**53 a float would lose the last digits of a seed; 1e6 is a whole number only as a float.
                return int(value) if str(value).lstrip("+-").isdecimal() else int(number)
        elif kind is str and isinstance(value, str | int | float):
            text = str(value).lower() if isinstance(value, bool) else str(value)  # TOML and Python say true by a word
            return os.path.expanduser(text)  # a shell does not where `=` or a quote stands before it
    raise ConfigError(f"'{name}' must be {_expected(allowed)}; got {value!r}.")


def _expected(allowed: tuple[Any, ...]) -> str:
    """The types that a setting may have, in words."""
    words: list[str] = []
    for kind in allowed:
        if typing.get_origin(kind) is typing.Literal:
            words += map(str, typing.get_args(kind))
        elif kind is not type(None):
            words.append(KINDS.get(kind, str(kind)))
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last
