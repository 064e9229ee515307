"""Evaluation: frozen features in, `{figure: value}` out.

`PROTOCOLS` holds what the files of `protocols/` declare, `datasets.DATASETS` those of `datasets/`. `runner` applies
protocols to a run or any encoder and writes evaluation.json; `features` encodes each set of images once.
"""

from understudy.evaluate.protocols import PROTOCOLS

__all__ = ["PROTOCOLS"]
