"""`python -m understudy.compare`: one cell of a comparison in a process of its own."""

import sys

from understudy.compare import _child

if __name__ == "__main__":
    sys.exit(_child())
