"""`python:module:callable`: a network of the user's own."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from understudy.errors import ModelError, first_line
from understudy.models.families import BuiltNetwork, Family, Request

if TYPE_CHECKING:
    from torch import nn


class Python(Family):
    """A function or class, called without arguments, that gives a headless module.

    The module's attribute `contract` (a Contract or a table of one), if it has one, is its input contract.
    """

    name = "python"
    form = "python:module:callable"
    summary = "your own: a function without arguments that returns a headless `torch.nn.Module`"

    @staticmethod
    def build(request: Request) -> BuiltNetwork:
        """See `Family.build`."""
        from understudy.models.code_identity import code_identity, watch
        from understudy.models.contract import Contract

        path, _, attribute = request.name.partition(":")
        if not path or not attribute:
            raise ModelError(f"'{request.spec}' must read python:module:callable, e.g. python:my_models:encoder.")
        with watch(path):
            module, own = _call(request, path, attribute)
        code, library = code_identity(path)
        contract = Contract.untrained(request.image_size or 224)
        if isinstance(own, Contract):
            contract = own
        elif isinstance(own, Mapping):
            try:
                contract = Contract.from_table(own)
            except ModelError as error:
                raise ModelError(f"{request.spec}, its .contract: {error}") from None
        elif own is not None:
            raise ModelError(f"{request.spec}: .contract must be a table or a Contract; it is a {type(own).__name__}.")
        weights = request.load_file(module)
        if request.pretrained and not weights:
            weights = f"as returned by {request.name}"
        if weights and own is None:
            weights += f"; it has no .contract: ImageNet's mean and std at {contract.size} pixels assumed"
        return BuiltNetwork(module, contract, weights, code=code, library=library)


def _call(request: Request, path: str, attribute: str) -> tuple[nn.Module, Any]:
    """The module that the user's callable returns, and its contract, if it has one."""
    from torch import nn

    importlib.invalidate_caches()
    sys.path.insert(0, folder := os.getcwd())  # The user's own file beside the run, as `python my_script.py` finds it.
    try:
        module = getattr(importlib.import_module(path), attribute)()
        own = getattr(module, "contract", None)
    except ModuleNotFoundError as error:
        raise ModelError(f"{request.spec}: there is no Python module '{error.name}' here or installed.") from error
    except AttributeError as error:
        raise ModelError(f"{request.spec}: {first_line(error)}.") from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises is its answer
        raise ModelError(
            f"{request.spec} fails when it is imported and called ({type(error).__name__}: {first_line(error)}); "
            "--traceback shows where."
        ) from error
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have changed it
            sys.path.remove(folder)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{request.spec} must return a torch.nn.Module; it returned a {type(module).__name__}.")
    return module, own
