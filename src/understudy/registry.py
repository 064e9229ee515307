"""Registries: what a package of declarations holds, by name. A new file in the package is a new entry; nothing else is.

Every `.py` file that lies directly in such a package declares classes of one base; what they share lies outside it or
in a package within it.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from understudy.errors import ConfigError
from understudy.settings import nearest

Declared = TypeVar("Declared")


class Registry(Mapping[str, type[Declared]], Generic[Declared]):
    """The classes that the files of a package declare, by their attribute `name`; imported when they are asked for.

    Args:
        package: dotted name of the package.
        base: name of the base class; entries are its subclasses that are defined in the package and have a `name`.
        what: how an error calls an entry, e.g. "method".
        one_per_file: each file declares one class named as the file, so names are known without importing anything.
        first: names that stand before the others, which are in alphabetical order.
    """

    def __init__(
        self, package: str, base: str, what: str, *, one_per_file: bool = False, first: tuple[str, ...] = ()
    ) -> None:
        self.package, self.base, self.what, self.first = package, base, what, first
        self.one_per_file = one_per_file
        self._found: dict[str, type[Declared]] = {}

    def __getitem__(self, name: str) -> type[Declared]:
        if name not in self._names():
            raise KeyError(name)
        if name not in self._found:
            self._load(name)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def named(self, name: str) -> type[Declared]:
        """The entry of a name that a user wrote.

        Raises:
            ConfigError: there is none; the sentence says the nearest one and all.
        """
        if name not in self:
            raise ConfigError(f"Unknown {self.what} '{name}'. {nearest(name, self)}")
        return self[name]

    def _files(self) -> list[str]:
        path = importlib.import_module(self.package).__path__
        return [module.name for module in pkgutil.iter_modules(path) if not module.ispkg]

    def _names(self) -> list[str]:
        if self.one_per_file:
            names = self._files()
        else:
            if not self._found:
                for file in self._files():
                    self._load(file)
            names = list(self._found)
        return sorted(names, key=lambda name: (self.first.index(name) if name in self.first else len(self.first), name))

    def _load(self, file: str) -> None:
        module = importlib.import_module(f"{self.package}.{file}")
        for value in vars(module).values():
            if _declares(value, module.__name__, self.base):
                assert value.name not in self._found, f"two declarations of {self.what} '{value.name}'"
                self._found[value.name] = value
        assert not self.one_per_file or file in self._found, f"{module.__name__} declares no {self.base} '{file}'"


def _declares(value: Any, module: str, base: str) -> bool:
    """Whether a class of a module is an entry: of that base, defined there, with a name of its own."""
    return (
        inspect.isclass(value)
        and value.__module__ == module
        and any(parent.__name__ == base for parent in value.__mro__[1:])
        and bool(value.__dict__.get("name"))
    )
