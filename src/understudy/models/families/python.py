"""`python:module:callable`: a network of the user's own."""

from __future__ import annotations

import importlib
import os
import sys

from understudy.errors import ModelError
from understudy.models.families import BuiltNetwork, Family, Request


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
        from torch import nn

        from understudy.models.contract import Contract

        path, _, attribute = request.name.partition(":")
        if not path or not attribute:
            raise ModelError(f"'{request.spec}' must read python:module:callable, e.g. python:my_models:encoder.")
        sys.path.insert(0, os.getcwd())  # The user's own file beside the run, as `python my_script.py` would find it.
        try:
            module = getattr(importlib.import_module(path), attribute)()
        except ModuleNotFoundError as error:
            raise ModelError(f"{request.spec}: there is no Python module '{error.name}' here or installed.") from error
        except AttributeError as error:
            raise ModelError(f"{request.spec}: {error}.") from error
        finally:
            sys.path.remove(os.getcwd())
        if not isinstance(module, nn.Module):
            raise ModelError(f"{request.spec} must return a torch.nn.Module; it returned a {type(module).__name__}.")
        if (own := getattr(module, "contract", None)) is None:
            contract = Contract.untrained(request.image_size or 224)
        else:
            contract = own if isinstance(own, Contract) else Contract.from_table(own)
        weights = request.load_file(module)
        if request.pretrained and not weights:
            weights = f"as returned by {request.name}"
        if weights and own is None:
            weights += f"; it has no .contract: ImageNet's mean and std at {contract.size} pixels assumed"
        return BuiltNetwork(module, contract, weights)
