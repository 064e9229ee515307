"""Whose code may be imported for a file of a run: modules that the command line names, and no other. No torch.

A run folder is data. It may say that its student or its teacher is made by `python:module:callable`, and importing a
module runs it, so nothing is imported on its word. What the user wrote, as a model spec or after `--trust-code`, is.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

from understudy.errors import ModelError
from understudy.models.code_identity import locate

log = logging.getLogger("understudy")

ANY = "*"
"""Trusts whatever a run names: the flag without a module."""

OWN = "python:understudy.models.toy_encoder:ToyEncoder"
"""The one network of this package that is a `python:` spec."""

TRUSTED: ContextVar[frozenset[str]] = ContextVar("TRUSTED", default=frozenset())


@contextlib.contextmanager
def trusting(names: bool | str | Iterable[str | None]) -> Iterator[None]:
    """A block in which files of runs may name these modules too.

    Args:
        names: "my_models", "my_models.py" or "python:my_models:encoder", one or several; specs that are no code are
            passed over. True trusts whatever is named.
    """
    if isinstance(names, bool):
        names = [ANY] if names else []
    given = [names] if isinstance(names, str) else names
    token = TRUSTED.set(TRUSTED.get() | {module_of(name) for name in given if name})
    try:
        yield
    finally:
        TRUSTED.reset(token)


def module_of(name: str) -> str:
    """The module that a spec, a path or a module's own name means; "" for specs that are no code."""
    family, colon, rest = name.partition(":")
    if colon and family != "python":
        return ""
    module = rest.partition(":")[0] if colon else name
    if module.endswith(".py"):
        module = os.path.relpath(os.path.expanduser(module)).removesuffix(".py").replace(os.sep, ".")
    return module


def require_trust(spec: str, file: str | os.PathLike[str]) -> None:
    """Refuse code that a file of a run names and the command line does not.

    Args:
        spec: a model spec of that file.
        file: it.

    Raises:
        ModelError: says which module it is, where it lies, and how it can be trusted.
    """
    module = module_of(spec)
    if not spec.startswith("python:") or spec == OWN:
        return
    found = locate(module)
    place = found.origin if found is not None and found.origin else "nowhere to be found here"
    if not TRUSTED.get() & {module, ANY}:
        raise ModelError(
            f"{os.fspath(file)} names code, {spec} ({place}), and a run folder is data: nothing is imported on its "
            f"word. If you trust that file, add --trust-code {module} (in Python trust_code='{module}')."
        )
    log.warning("%s names %s, which you trust: %s is imported.", os.fspath(file), spec, place)
