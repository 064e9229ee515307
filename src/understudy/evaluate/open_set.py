"""Sets that an encoder is evaluated on beside the main evaluation images: `--on NAME=PATH`.

A known name says how the files lie and what convention asks of the figures; any other name is a label for a data spec.
"""

import os
import re
from pathlib import Path

from understudy.errors import ConfigError, DataError
from understudy.evaluate.dataset import EvaluationSet, within
from understudy.evaluate.datasets import DATASETS
from understudy.settings import nearest
from understudy.sources.evaluation import open_evaluation
from understudy.sources.formats import holders, split_image
from understudy.sources.source import open_source
from understudy.sources.splits import HELD_OUT_SPLITS, split_of


def split_name(text: str) -> tuple[str, str]:
    """`NAME=PATH`, `NAME` of a published set, or a spec alone, as (name, path or spec).

    Raises:
        ConfigError: nothing is written.
    """
    name, equals, spec = text.partition("=")
    if equals and re.fullmatch(r"[\w.-]+", name) and spec:
        return name, spec
    if not text or equals == text:
        raise ConfigError(f"'{text}' is not a set to be judged on. {nearest(text, DATASETS)} Or NAME=PATH, or a path.")
    if text in DATASETS:
        return text, os.environ.get("UNDERSTUDY_DATA", "data")
    return re.sub(r"[^\w.-]+", "-", Path(text).name or text).strip("-"), text


def kind_of(text: str) -> str:
    """The kind of a set, as far as its name says it; "labeled" for a label of the user's."""
    dataset = DATASETS.get(split_name(text)[0])
    return "labeled" if dataset is None else dataset.kind


def open_set(text: str, *, listings: str | os.PathLike[str] | None = None) -> EvaluationSet:
    """Open one set of `--on`.

    Args:
        text: `NAME=PATH`; `NAME` alone for a published set below UNDERSTUDY_DATA; or a spec: a labeled root (train and
            val or test), `torchvision:NAME`, or class folders without halves, which are test images of the main
            evaluation's classes.
        listings: where the indices of tar shards are kept, as for `open_source`.

    Raises:
        DataError: a file is missing or the layout is another; the sentence says what was expected and where.
    """
    name, spec = split_name(text)
    dataset = DATASETS.get(name)
    if dataset is not None:
        own = within(spec, name)
        # The folder of all sets, where a name alone is looked for, may hold halves of another set.
        if dataset.metric is None or ("=" not in text and own.name != name) or not has_halves(str(own)):
            return dataset.open(spec)
        train, test = open_evaluation(own, listings=listings)
        return EvaluationSet(name, "labeled", spec, train=train, test=test, metadata={"metric": dataset.metric})
    path, _ = split_image(spec)
    if not os.path.exists(path) and ":" not in spec and spec != "digits" and "," not in spec:
        raise DataError(f"'{text}' is neither a published set nor a path that exists. {nearest(name, DATASETS)}")
    if os.path.isdir(path) and not has_halves(spec):
        test = open_source(spec, listings=listings)
        if test.labels is None:
            raise DataError(
                f"{spec} has neither train and test halves nor classes: it {test.unlabeled} Give a labeled root, or "
                f"the name of its layout as NAME={spec}. {nearest(name, DATASETS)}"
            )
        return EvaluationSet(name, "shift", spec, test=test)
    train, test = open_evaluation(spec, listings=listings)
    return EvaluationSet(name, "labeled", spec, train=train, test=test)


def has_halves(spec: str) -> bool:
    """Whether a folder is a labeled root: train beside val or test, as folders, or as parquet, tar or Arrow files."""
    root = Path(split_image(spec)[0])
    folders = {name for name in ("train", *HELD_OUT_SPLITS) if (root / name).is_dir()}
    # A folder down only where it is the one folder: beside others it is one set of several.
    alone = sum(path.is_dir() and not path.name.startswith(".") for path in root.glob("*/")) == 1
    depths = ("", "*/") if alone else ("",)
    inside = [path for depth in depths for path in root.glob(f"{depth}*")]
    paths = ([path for path in inside if path.suffix.lower() == ending] for ending in holders())
    files = [{split_of(path.relative_to(root).as_posix()) for path in of_kind} for of_kind in paths]
    return any("train" in splits and bool(splits & set(HELD_OUT_SPLITS)) for splits in (folders, *files))
