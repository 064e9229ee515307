"""Pages from the templates, every value escaped, with styles and scripts inside."""

from __future__ import annotations

import functools
import importlib.resources
from typing import TYPE_CHECKING, Any

from understudy.report.numbers import count, duration, percent

if TYPE_CHECKING:
    from jinja2 import Environment


@functools.cache
def environment() -> Environment:
    """The templates' environment: a misspelled name is an error, text is escaped, data is JSON without markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.utils import PlotlyJSONEncoder

    templates = Environment(
        loader=PackageLoader("understudy.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.policies["json.dumps_kwargs"] = {"cls": PlotlyJSONEncoder, "separators": (",", ":")}
    templates.filters |= {"count": count, "duration": duration, "percent": percent}
    templates.tests["text"] = lambda value: isinstance(value, str)
    return templates


def render(template: str, **values: Any) -> str:
    """A whole page: a file of `templates/` with the values that it reads."""
    from plotly.offline import get_plotlyjs

    files = importlib.resources.files("understudy.report")
    style, script = ((files / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    return environment().get_template(template).render(style=style, scripts=[get_plotlyjs(), script], **values)
