"""Settings: layers, names, types, and sentences for everything a user can write wrong."""

from __future__ import annotations

import tomllib
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import pytest

from understudy.errors import ConfigError, UnderstudyError
from understudy.settings import as_table, flatten, nearest, nest, read_toml, resolve, setting, write_toml


@dataclass(frozen=True)
class Inner:
    k: int = setting(15, "Neighbors.", minimum=1, maximum=100)
    index: str = setting("auto", choices=("auto", "exact"))


@dataclass(frozen=True)
class Outer:
    data: str = setting(help="Training images.")
    seed: int = setting(0)
    lr: float = setting(0.03, minimum=0)
    image_size: int | None = setting(None, minimum=8)
    mean: tuple[float, float, float] | None = setting(None)
    widths: tuple[int, ...] = setting((1, 2))
    verbose: bool = setting(False)
    head: str = setting("auto", choices=("auto", "none"))
    method: dict = setting({"name": "coss"})  # type: ignore[type-arg]
    inner: Inner = setting(Inner)


def refusal(*layers: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(Outer, {"data": "x"}, *layers)
    assert isinstance(caught.value, UnderstudyError)
    return str(caught.value)


def test_defaults_and_layers():
    assert resolve(Outer, {"data": "x"}) == Outer(data="x")
    file = {"data": "a", "lr": 1.0, "inner": {"k": 3, "index": "exact"}}
    flags = {"data": "b", "inner.k": "4"}
    both = resolve(Outer, file, flags)
    assert (both.data, both.lr, both.inner) == ("b", 1.0, Inner(4, "exact"))
    with pytest.raises(FrozenInstanceError):
        both.seed = 1


def test_hyphens_and_underscores_are_one_name():
    assert resolve(Outer, {"data": "x", "image_size": 64}, {"image-size": 32}).image_size == 32


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("seed", "7", 7),
        ("seed", "1e6", 1_000_000),
        ("seed", 2.0, 2),
        ("seed", "-3", -3),
        ("seed", 2**63 - 1, 2**63 - 1),
        ("seed", str(2**63 - 1), 2**63 - 1),
        ("lr", "1e-3", 1e-3),
        ("lr", 1, 1.0),
        ("lr", "inf", float("inf")),
        ("image_size", "none", None),
        ("image_size", None, None),
        ("mean", ".5, .25, 1", (0.5, 0.25, 1.0)),
        ("mean", [0.5, 0.25, 1], (0.5, 0.25, 1.0)),
        ("mean", "none", None),
        ("widths", "3", (3,)),
        ("widths", 3, (3,)),
        ("verbose", "yes", True),
        ("verbose", "0", False),
        ("head", "none", "none"),  # a word among the choices, not "no value"
        ("data", Path("a") / "b", str(Path("a") / "b")),
        ("data", 3, "3"),
    ],
)
def test_written_values_take_the_declared_type(key: str, written: object, value: object):
    got = getattr(resolve(Outer, {"data": "x", key: written}), key)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"sed": 1}, ["'sed'", "Did you mean 'seed'?", "Known: data, head"]),
        ({"inner.kk": 1}, ["'inner.kk'", "Did you mean 'k'?"]),
        ({"inner": 3}, ["'inner'", "group of settings", "3"]),
        ({"seed": "many"}, ["'seed'", "a whole number", "'many'"]),
        ({"seed": 1.5}, ["'seed'", "a whole number", "1.5"]),
        ({"seed": True}, ["'seed'", "True"]),
        ({"seed": "inf"}, ["'seed'", "inf"]),
        ({"seed": "none"}, ["'seed'", "needs a value"]),
        ({"lr": "nan"}, ["'lr'", "nan"]),
        ({"lr": -1}, ["'lr'", "at least 0", "-1"]),
        ({"image_size": 4}, ["'image_size'", "at least 8", "4"]),
        ({"inner.k": 101}, ["'inner.k'", "at most 100", "101"]),
        ({"inner.index": "hnsw"}, ["'inner.index'", "auto, exact", "'hnsw'"]),
        ({"mean": "1,2"}, ["'mean'", "3 values", "2"]),
        ({"mean": "1,2,x"}, ["'mean'", "a number", "'x'"]),
        ({"verbose": "maybe"}, ["'verbose'", "true or false", "'maybe'"]),
        ({"method": 5}, ["'method'", "name", "5"]),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(layer: dict[str, object], words: list[str]):
    message = refusal(layer)
    assert all(word in message for word in words), message
    assert message.endswith(".")


def test_a_required_setting_is_asked_for_with_its_help():
    with pytest.raises(ConfigError, match=r"'data' is required and was not given\. Training images\."):
        resolve(Outer, {"seed": 1})


def test_method_settings_belong_to_their_method():
    def method(*layers: dict[str, object]) -> dict[str, object]:
        return resolve(Outer, {"data": "x"}, *layers).method

    assert method() == {"name": "coss"}
    assert method({"method.weight": 2}) == {"name": "coss", "weight": 2}
    assert method({"method.weight": 2, "method": "coss"}) == {"name": "coss", "weight": 2}
    assert method({"method": {"name": "coss", "weight": 2}}, {"method.scale": 1}) == {
        "name": "coss",
        "weight": 2,
        "scale": 1,
    }
    # A flag that names another method must not inherit the file's settings of the first.
    assert method({"method": {"name": "coss", "weight": 2}}, {"method": "moco"}) == {"name": "moco"}
    # The shared default is never written to.
    method({"method.weight": 3})
    assert method() == {"name": "coss"}


def test_nest_and_flatten_are_inverse():
    flat = {"a": 1, "b.c": 2, "b.d.e": 3}
    assert nest(flat) == {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    assert flatten(nest(flat)) == flat


def test_what_is_written_resolves_to_itself():
    settings = resolve(Outer, {"data": "é x", "mean": "0,0.5,1", "method": "moco", "method.queue": 9, "inner.k": 2})
    text = write_toml(as_table(settings))
    assert "image_size" not in text  # no value, no line: TOML has no null
    assert resolve(Outer, tomllib.loads(text)) == settings


def test_read_toml(tmp_path: Path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_toml(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("a = \n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_toml(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_toml(broken)


def test_nearest_lists_all_even_when_nothing_is_near():
    assert nearest("zzz", ["b", "a"]) == "Known: a, b."
