"""The command line: a thin file a verb in `verbs/`. Imports live inside the verbs, so `--help` answers at once.

Flags are made from the settings dataclasses; a TOML file (`--config`) lies under them and flags win.
"""

from understudy.cli.program import main
from understudy.cli.verbs import VERBS

__all__ = ["VERBS", "main"]
