"""How Sphinx builds these pages: Markdown through MyST, the theme furo, the API from the docstrings."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "src"))

import generate  # noqa: E402

from understudy import __version__  # noqa: E402

project = "Understudy"
author = "The Understudy authors"
copyright = "The Understudy authors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["generated", "build"]
html_theme = "furo"
html_title = f"Understudy {__version__}"
html_show_sphinx = False
html_copy_source = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the signature shows them; the docstring says shapes and units
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
nitpicky = True
nitpick_ignore_regex = [  # packages of others, whose pages are not at hand where these are built
    ("py:.*", r"(?!understudy).*"),
    ("py:class", r".*NoSettings"),  # an empty class that stands for "none"
]

generate.write()


def setup(app: Sphinx) -> None:
    """Links to files of the repository lead to the pages that show them; docstrings are read as written."""
    app.connect("source-read", generate.relink_page)
    app.connect("autodoc-process-docstring", generate.plain_docstring, priority=100)  # before napoleon
