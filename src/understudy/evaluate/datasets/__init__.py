"""Published evaluation sets in their official layouts; each class that declares a `Dataset` is an entry."""

from __future__ import annotations

from understudy.evaluate.dataset import Dataset
from understudy.registry import Registry

DATASETS: Registry[Dataset] = Registry("understudy.evaluate.datasets", "Dataset", "set")
"""Published sets by name; without a path they are looked for below the folder in UNDERSTUDY_DATA (`data` if unset)."""
