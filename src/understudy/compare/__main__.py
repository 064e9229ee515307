"""`python -m understudy.compare`: one cell of a comparison in a process of its own."""

import sys

from understudy.compare.engine import make_cell_of_parent

if __name__ == "__main__":
    sys.exit(make_cell_of_parent())
