"""HTML that cannot forget to escape: text is escaped unless `tag` made it."""

from __future__ import annotations

import html


class Markup(str):
    """Finished HTML. Any other string handed to `tag` is somebody's text and gets escaped."""


Child = str | None


def text(value: str) -> Markup:
    """Somebody's text as HTML; finished HTML passes through."""
    return value if isinstance(value, Markup) else Markup(html.escape(value))


def join(*children: Child) -> Markup:
    """The children in order, text escaped, None left out."""
    return Markup("".join(text(child) for child in children if child is not None))


def prose(sentence: str) -> Markup:
    """A sentence as HTML, its `backticked` parts as code."""
    return join(*(tag("code", part) if i % 2 else part for i, part in enumerate(sentence.split("`"))))


def tag(name: str, *children: Child, **attributes: str | bool | None) -> Markup:
    """One element.

    Args:
        name: element name; `img`, `meta` and `br` get no end tag.
        *children: text (escaped), finished HTML (kept) or None (left out).
        **attributes: `class_` for `class`, underscores for hyphens; True writes the bare name, None and False nothing.
    """
    written = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(f" {key}")
        elif value is not None and value is not False:
            written.append(f' {key}="{html.escape(value)}"')
    opening = f"<{name}{''.join(written)}>"
    return Markup(opening if name in {"img", "meta", "br"} else f"{opening}{join(*children)}</{name}>")
