"""BibTeX of exactly what a run used: the method, the models, the views, the protocols, and this program.

Methods, model families, protocols and sets say which papers are theirs; entries are in `papers.bib`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from understudy import __version__
from understudy.artifacts import Run
from understudy.errors import ConfigError, StoreError
from understudy.evaluate.protocols import PROTOCOLS
from understudy.losses import LOSSES
from understudy.models.families import PUBLISHED, parse_spec
from understudy.papers import PAPERS
from understudy.settings import nearest, read_toml

SOFTWARE = f"""@software{{understudy,
  title   = {{Understudy: a large frozen encoder, distilled without labels into a small one that can stand in for it}},
  author  = {{{{The Understudy authors}}}},
  version = {{{__version__}}},
  year    = {{2026}},
  license = {{Apache-2.0}}
}}"""

# What a model's name gives away, several at once (a DINO ViT is both). Only names that a library defines are read so:
# what a user called a file proves nothing.
ARCHITECTURES = {
    r"resnet|resnext": PAPERS["he2016resnet"],
    r"(^|_)vit": PAPERS["dosovitskiy2021vit"],
    r"deit": PAPERS["touvron2021deit"],
    r"dino(?!v)": PAPERS["caron2021dino"],
    r"dinov2": PAPERS["oquab2024dinov2"],
    r"efficientnet(?!v2)": PAPERS["tan2019efficientnet"],
    r"mobilenet_?v2": PAPERS["sandler2018mobilenetv2"],
    r"mobilenet_?v3": PAPERS["howard2019mobilenetv3"],
    r"convnext(?!_?v2)": PAPERS["liu2022convnext"],
}


def cite(run_or_method: str | os.PathLike[str] | None = None) -> str:
    """BibTeX of what a run used, of one method, or of this program alone.

    Args:
        run_or_method: a run folder, finished or not, or the name of a method.

    Returns:
        One entry per work, this program last, each preceded by a comment that says what it was used for. What cannot
        be known from the run (who trained the weights in a file) is asked for in a comment.

    Raises:
        ConfigError: neither a method nor a folder; the sentence lists the methods.
        StoreError: a folder that is no run.
    """
    if run_or_method is None:
        return _bibliography([("software", SOFTWARE)])
    name = os.fspath(run_or_method)
    if name in LOSSES:
        return _bibliography([*_method(name), ("software", SOFTWARE)])
    if not Path(name).is_dir():
        raise ConfigError(f"'{name}' is neither a run folder nor a method. {nearest(name, LOSSES)}")
    return _bibliography(
        [*_run(Run(name), seen=set()), ("framework", PAPERS["paszke2019pytorch"]), ("software", SOFTWARE)]
    )


def _method(name: str) -> list[tuple[str, str]]:
    entries = [(f"method {name}", LOSSES[name].paper)]
    if LOSSES[name].needs.key:
        entries.append(("normalization of the key encoder", PAPERS["cai2021eman"]))
    return entries


def _run(run: Run, seen: set[Path]) -> list[tuple[str, str]]:
    """(used for, BibTeX or a comment) of one run, its teacher's own run included."""
    if not run.config_path.is_file():
        raise StoreError(f"{run.path} is not a run folder (no config.toml). Name the folder that --out was given.")
    seen.add(run.path.resolve())
    config = read_toml(run.config_path)
    method = config.get("method")
    if not isinstance(method, dict) or method.get("name") not in LOSSES:
        raise StoreError(f"{run.config_path} names no method of this version. Take it from a copy of the run.")
    entries = _method(method["name"])
    for use in ("student", "teacher"):
        spec = config.get(use) or ""
        entries += _model(use, spec)
        prefix, _, folder = spec.partition(":")
        if prefix == "run" and Path(folder).resolve() not in seen and Run(folder).config_path.is_file():
            entries += [(f"{inner} of the {use}", text) for inner, text in _run(Run(folder), seen)]
    recipe = config.get("views", {}).get("recipe") or "moco-v2"
    if recipe.startswith("moco-v2"):
        entries.append((f"views {recipe}", LOSSES["moco"].paper))
    if config.get("neighbors", {}).get("index") in ("ivf", "hnsw"):
        entries.append(("neighbor graph", PAPERS["douze2024faiss"]))
    for use in ("data", "eval_data"):
        entries += _data(use.replace("_", " "), config.get(use) or "")
    if run.evaluation_path.is_file():
        entries += _protocols(run.evaluation)
    return entries


def _model(use: str, spec: str) -> list[tuple[str, str]]:
    if not spec or spec.startswith("run:"):  # a run cites what it used itself
        return []
    family, name, file = parse_spec(spec)
    entries = [(f"{use} {family.name}:{name}", family.paper)] if family.paper else []
    if family.names_architecture:
        papers = [paper for pattern, paper in ARCHITECTURES.items() if re.search(pattern, name.lower())]
        unknown = "% (cite its architecture as its library's documentation says)"
        entries += [(f"{use} {family.name}:{name}", text) for text in papers or [unknown]]
    if file not in (None, PUBLISHED) or not family.names_architecture:
        entries.append((f"{use} {spec}", "% (cite whoever trained it: a file does not say)"))
    return entries


def _data(use: str, spec: str) -> list[tuple[str, str]]:
    if spec.split(":")[0] == "digits":
        return [(f"{use} digits", PAPERS["alpaydin1998digits"])]
    if re.match(r"torchvision:cifar", spec.lower()):
        return [(f"{use} {spec}", PAPERS["krizhevsky2009cifar"])]
    return [(f"{use} {spec}", "% (cite whoever made it)")] if spec else []


def _protocols(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The papers of the protocols of an evaluation, then those of its published sets."""
    from understudy.evaluate.datasets import DATASETS

    tables = [figures for name, figures in evaluation.items() if name != "about" and isinstance(figures, dict)]
    keys = {key for figures in tables for key in figures}
    used, sets = ({key.partition("@")[part] for key in keys} for part in (0, 2))
    entries = [(f"evaluation {name}", text) for name in PROTOCOLS if name in used for text in PROTOCOLS[name].paper]
    papers = {name: DATASETS[name].paper for name in DATASETS if name in sets}
    return entries + [(f"evaluation set {name}", f"% (cite {paper})") for name, paper in papers.items() if paper]


def _bibliography(entries: Iterable[tuple[str, str]]) -> str:
    """Each work once, under a comment with all its uses, in order of first use."""
    uses: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for use, text in entries:
        key = match.group(1) if (match := re.match(r"@\w+\{([^,]+),", text)) else f"{use} {text}"
        texts.setdefault(key, text)
        if use not in uses.setdefault(key, []):
            uses[key].append(use)
    return "\n\n".join(f"% {', '.join(uses[key])}\n{text}" for key, text in texts.items()) + "\n"
