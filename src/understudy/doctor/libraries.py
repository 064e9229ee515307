"""What the versions and imports of libraries mean: each check is a function of facts."""

import importlib.metadata
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from understudy.doctor.check import Check
from understudy.doctor.probes import installed_version


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version: (2, 15, 0) of "2.15.0+cpu"."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def python(version: tuple[int, int, int], is_64_bit: bool) -> Check:
    """Python 3.11 or newer, 64 bit."""
    found = ".".join(map(str, version)) + ("" if is_64_bit else ", 32 bit")
    if version < (3, 11) or not is_64_bit:
        return Check("python", "fail", found, "install a 64-bit Python 3.11 or newer, then `make setup`")
    return Check("python", "ok", found)


def packages(requirements: Iterable[str], version_of: Callable[[str], str | None]) -> Check:
    """Every requirement of the metadata (`torch>=2.11`, `tomli-w; extra == "x"`) is installed and new enough."""
    wrong, count = {}, 0
    for requirement in requirements:
        match = re.match(r"([\w.-]+)\s*>=\s*([\w.]+)\s*$", requirement)
        if match is None:  # belongs to an extra
            continue
        count += 1
        name, least = match.groups()
        have = version_of(name)
        if have is None or _release(have) < _release(least):
            wrong[f"'{name}>={least}'"] = f"{name} {have} is older than {least}" if have else f"{name} is missing"
    if not count:
        return Check("packages", "fail", "understudy is not installed here", "run `make setup`, or `pip install -e .`")
    if wrong:
        return Check("packages", "fail", ", ".join(wrong.values()), f"uv pip install {' '.join(wrong)}")
    return Check("packages", "ok", f"all {count} requirements are met")


def torch_import(torch: Mapping[str, Any]) -> Check:
    """Torch can be imported, and is 2.11 or newer."""
    check = library("torch", torch)
    if check.status == "ok" and _release(torch["version"]) < (2, 11):
        return Check("torch", "fail", check.found, "uv pip install 'torch>=2.11' torchvision")
    return check


def torchvision_import(torchvision: Mapping[str, Any], torch: Mapping[str, Any]) -> Check:
    """Torchvision was built for this very torch; if not, it dies of "operator torchvision::nms does not exist"."""
    if "error" in torch:
        return Check("torchvision", "fail", "not tried, because torch cannot be imported", "mend torch first")
    have = installed_version("torchvision")
    needs = importlib.metadata.requires("torchvision") or [] if have else []
    return torchvision_pair(torchvision, torch["version"], have, needs)


def torchvision_pair(
    torchvision: Mapping[str, Any], torch: str, have: str | None, requirements: Iterable[str]
) -> Check:
    """The verdict on facts of torchvision's import, torch's version, and what torchvision's metadata has.

    That is its version, and its own requirements, among them `torch (>=2.14.0)` or `torch==2.9.0`.
    """
    named = "torch torchvision"
    for requirement in requirements:
        if match := re.match(r"torch\s*\(?([=>]=)\s*([\d.]+)", requirement):
            relation, wanted = match.groups()
            named = f"'torch{relation}{wanted}' torchvision=={have}"
            fits = _release(torch) == _release(wanted) if relation == "==" else _release(torch) >= _release(wanted)
            if not fits:
                found = f"torchvision {have} needs torch {relation} {wanted}, found torch {torch}"
                found += f" ({torchvision['error']})" if "error" in torchvision else ""
                return Check("torchvision", "fail", found, _together(named))
    if "error" in torchvision:
        reason = torchvision["error"]
        if "torchvision::" in reason:
            reason += f": torchvision {have} and torch {torch} come from different builds"
        return Check("torchvision", "fail", reason, _together(named))
    return library("torchvision", torchvision)


def _together(named: str) -> str:
    return f"install the two together: `uv pip install --reinstall {named}`"


def library(name: str, metadata: Mapping[str, Any]) -> Check:
    """A library can be imported."""
    if "torchvision::" in metadata.get("error", ""):
        return Check(name, "fail", "not tried, because torchvision cannot be imported", "mend torchvision first")
    if "error" in metadata:
        package = {"torch": "torch torchvision", "faiss": "faiss-cpu", "sklearn": "scikit-learn"}.get(name, name)
        return Check(name, "fail", metadata["error"], f"uv pip install --reinstall {package}")
    return Check(name, "ok", f"{metadata['version']}, imported in {metadata['seconds']:.1f} s".lstrip(", "))
