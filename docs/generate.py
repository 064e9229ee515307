"""Writes the parts of the reference that the code itself declares: verbs, flags, settings, methods, protocols, recipes.

`docs/conf.py` calls `write` before each build. Each part is one Markdown file in `docs/generated/`, which the pages in
`docs/reference/` and `docs/project/` include. Nothing in that folder is committed.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import os
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from understudy import errors
from understudy.cli import VERBS, main

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
GENERATED = DOCS / "generated"

SHOWN_AS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "CODE_OF_CONDUCT.md": "project/conduct.md",
    "SECURITY.md": "project/security.md",
    "dev/RECORDS.md": "project/records.md",
    "dev/LOG.md": "project/log.md",
}
"""Files of the repository that lie outside `docs/`, and the pages that show them."""


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a line break in a cell becomes a space, a bar is escaped."""
    head = list(headings)
    lines = [head, ["---"] * len(head), *rows]
    cells = ([" ".join(str(cell).split()).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def first_line(thing: object) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def printed(*words: str) -> str:
    """What the program prints on standard output."""
    width, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "100"
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            main(words)
    except SystemExit:
        pass
    finally:
        if width is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = width
    return re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())


def verbs() -> str:
    """The verbs and their first sentences."""
    rows = ((f"[`understudy {name}`](#understudy-{name})", first_line(VERBS[name])) for name in VERBS)
    return table(("verb", "does"), rows)


def cli() -> str:
    """The help of every verb, as the program prints it: the main flags; all of them are in the page of the settings."""
    helps = (f"## understudy {name}\n\n```text\n{printed(name, '--help').strip()}\n```\n" for name in VERBS)
    return "\n".join((verbs(), *helps))


def type_name(hint: Any) -> str:
    """A type as a reader writes it: `number or none`."""
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "none"}
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        return f"{type_name(inner[0])}, ..." if inner[-1] is ... else ", ".join(map(type_name, inner))
    if hint in names:
        return names[hint]
    parts = typing.get_args(hint)
    return " or ".join(dict.fromkeys(map(type_name, parts))) if parts else "table"


def value_name(value: Any) -> str:
    """A default as it is written on the command line; empty for none."""
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple | list):
        return f"`{','.join(map(str, value))}`"
    return f"`{value['name'] if isinstance(value, dict) else value}`"


def fields(cls: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, help) of every setting of a dataclass, those of its groups too."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key, hint = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from fields(hint, f"{key}.")
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        required = default is dataclasses.MISSING
        choices = field.metadata.get("choices")
        kind = ", ".join(f"`{choice}`" for choice in choices) if choices else type_name(hint)
        yield f"`{key}`", kind, "required" if required else value_name(default), field.metadata.get("help", "")


def settings() -> str:
    """Every setting of a run, of an export and of a comparison, with its type and default."""
    from understudy.compare.settings import ComparisonSettings
    from understudy.export.settings import ExportSettings
    from understudy.pipeline import RunSettings

    heading = ("setting", "value", "default", "what")
    run = list(fields(RunSettings))
    groups = dict.fromkeys(key.strip("`").rpartition(".")[0] for key, *_ in run)
    parts = []
    for group in sorted(groups, key=lambda name: (name != "", name)):
        rows = [row for row in run if row[0].strip("`").rpartition(".")[0] == group]
        parts.append(f"## {group or 'A run'}\n\n{table(heading, rows)}")
    parts.append(f"## An export\n\n{table(heading, fields(ExportSettings))}")
    own = [row for row in fields(ComparisonSettings) if row not in run]
    parts.append(f"## A comparison\n\nWhat `compare` and `ablate` add, or set otherwise.\n\n{table(heading, own)}")
    return "\n".join(parts)


def methods() -> str:
    """Every method: one line, what it needs, its own settings, its paper."""
    from understudy.losses import LOSSES

    rows = ((f"[`{name}`](#{name})", LOSSES[name].summary, needs(LOSSES[name])) for name in LOSSES)
    parts = [table(("method", "what it asks of the student", "needs"), rows)]
    for name, method in LOSSES.items():
        own = [(key, default, sentence) for key, _, default, sentence in fields(method.Settings, "method.")]
        settings = table(("setting", "default", "what"), own) if own else "No settings of its own.\n"
        space = (
            "its embeddings are in the teacher's space" if method.in_teacher_space else "only similarities are learned"
        )
        text = f"{first_line(method)} The student's output: {space}."
        parts.append(f"## {name}\n\n{text}\n\n{settings}\n{bibtex(method.paper)}")
    return "\n".join(parts)


def needs(method: Any) -> str:
    """What a method asks of the loop, in words."""
    asked = method.needs
    words = {
        "no teacher": not asked.teacher,
        f"{asked.views} views": asked.views > 1,
        "an average of the student": asked.key,
        "neighbors": asked.bags,
        "mixed images": asked.cutmix,
        "patch tokens": asked.tokens,
        "attention": asked.attention,
        "hidden patches": asked.masks,
    }
    return ", ".join(word for word, wanted in words.items() if wanted)


def bibtex(entry: str) -> str:
    """A BibTeX entry as a block; nothing for none."""
    return f"```bibtex\n{inspect.cleandoc(entry)}\n```\n" if entry else ""


def protocols() -> str:
    """Every protocol: what it measures, on what, its own settings, its papers."""
    from understudy.evaluate.protocols import PROTOCOLS

    rows = ((f"[`{name}`](#{name})", PROTOCOLS[name].summary, measured_on(PROTOCOLS[name])) for name in PROTOCOLS)
    parts = [table(("protocol", "measures", "on"), rows)]
    for name, protocol in PROTOCOLS.items():
        keys = ", ".join(f"`evaluation.{key}`" for key in protocol.settings_keys())
        own = f"Its settings: {keys} ([values](settings.md)).\n" if keys else ""
        text = f"{protocol.display.title}. {protocol.display.sentence} {protocol.display.source}"
        parts.append(f"## {name}\n\n{text}\n\n{own}\n{''.join(map(bibtex, protocol.paper))}")
    return "\n".join(parts)


def measured_on(protocol: Any) -> str:
    """What a protocol is applied to, in words."""
    needs = protocol.requirements
    if not needs.images:
        return "no images"
    main = [] if not needs.main else ["main images" if needs.labels else "main images, no labels needed"]
    return ", ".join([*main, *(f"{kind} sets" for kind in sorted(needs.kinds))])


def models() -> str:
    """Every kind of model spec."""
    from understudy.models.families import FAMILIES

    def row(family: Any) -> tuple[str, ...]:
        marks = (family.publishes_weights, family.trainable)
        file = family.after_at if family.takes_file else "no"
        return f"`{family.form}`", family.summary, file, *("yes" if mark else "no" for mark in marks)

    return table(("spec", "what", "after `@`", "`@pretrained`", "as a student"), map(row, FAMILIES.values()))


def exports() -> str:
    """Every export target: what it holds, below what name, what opens and judges it, and how far it may be off."""
    from understudy.export.targets import TARGETS

    def row(name: str) -> tuple[str, ...]:
        target = TARGETS[name]
        holds = (
            "features"
            if target.backbone_only
            else "embedding, features"
            if issubclass(target, TARGETS["folder"])
            else "`--output`"
        )
        extra = f"`understudy[{target.extra}]`" if target.extra else ""
        spec = f"`{name}:ORG/NAME`" if target.takes_name else f"`{name}`"
        return spec, first_line(target), holds, f"`{target.place}`", target.runtime, extra, f"{target.tolerance:g}"

    return table(("target", "what", "outputs", "in `RUN/export`", "judged by", "extra", "tolerance"), map(row, TARGETS))


def images() -> str:
    """Every storage format."""
    from understudy.sources.formats import FORMATS

    return table(("spec", "what"), ((f"`{kind.form}`", kind.summary) for kind in FORMATS.values()))


def sets() -> str:
    """Every published set that `--on` knows."""
    from understudy.evaluate.datasets import DATASETS

    rows = ((f"`{name}`", kind.summary, kind.kind, kind.paper, kind.home) for name, kind in DATASETS.items())
    return table(("set", "what", "kind", "paper", "where to get it"), rows)


def recipes() -> str:
    """Every recipe and the first sentence of its head."""
    rows = []
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        head = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
        text = " ".join(line.lstrip("# ") for line in head[0].splitlines()) if head else ""
        rows.append((f"`{path.stem}`", text.partition(". ")[0].rstrip(".") + "."))
    return table(("recipe", "what"), rows)


def error_classes() -> str:
    """Every class of error that a user can cause."""
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    return table(("class", "when"), ((f"`{cls.__name__}`", first_line(cls)) for cls in classes))


PARTS: dict[str, Callable[[], str]] = {
    "verbs": verbs,
    "cli": cli,
    "settings": settings,
    "methods": methods,
    "protocols": protocols,
    "models": models,
    "exports": exports,
    "images": images,
    "sets": sets,
    "recipes": recipes,
    "errors": error_classes,
}


def relink(text: str, home: str, page: str) -> str:
    """The text with its relative links leading from where it is shown.

    Args:
        text: Markdown.
        home: path of its file in the repository.
        page: path in `docs/` of the page that shows it.
    """

    def moved(match: re.Match[str]) -> str:
        path = os.path.normpath(os.path.join(os.path.dirname(home), match[1]))
        inside = os.path.relpath(path, "docs") if path.startswith("docs" + os.sep) else SHOWN_AS.get(path)
        target = inside if inside is not None else os.path.join("..", path)
        return f"]({os.path.relpath(target, os.path.dirname(page) or '.')}{match[2] or ''})"

    return re.sub(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", moved, text)


def relink_page(_app: object, name: str, source: list[str]) -> None:
    """Sphinx' event `source-read`: a page's links to files outside `docs/` lead to the pages that show them."""
    source[0] = relink(source[0], f"docs/{name}.md", f"{name}.md")


def plain_docstring(_app: object, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Autodoc's event: in our docstrings a name between backticks is code and a star is a star."""
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)", lambda match: f"``{' '.join(match[1].split())}``", "\n".join(lines))
    parts = re.split(r"(``.+?``)", text)
    lines[:] = "".join(part if part.startswith("``") else part.replace("*", "\\*") for part in parts).splitlines()


def write() -> None:
    """Write every part, and the files of the repository that have a page."""
    GENERATED.mkdir(exist_ok=True)
    for name, part in PARTS.items():
        (GENERATED / f"{name}.md").write_text(part(), encoding="utf-8")
    for home, page in SHOWN_AS.items():
        if page != "index.md":
            text = relink((ROOT / home).read_text(encoding="utf-8"), home, page)
            (GENERATED / Path(page).name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
