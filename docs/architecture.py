"""Draws the rooms of the package and what they import, from the imports themselves: docs/images/architecture.svg.

    python docs/architecture.py

Floors are those of `tests/test_floors.py`. An arrow that only repeats a way through other rooms is left out, and so are
those to the ground floor, on which all stand.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "understudy"
PICTURE = ROOT / "docs" / "images" / "architecture.svg"

WIDTH, BAND, BOX, TOP = 960, 74, 34, 20
CHARACTER, PADDING = 8.2, 26
ALIAS = {"__init__": "understudy"}


def floors() -> list[list[str]]:
    """The rooms by floor, the lowest first, as the test declares them; what lies below `sources` is one floor here."""
    tree = ast.parse((ROOT / "tests" / "test_floors.py").read_text(encoding="utf-8"))
    value = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "FLOORS"
    )
    there = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")} - {"__main__"}
    levels = [rooms for floor in ast.literal_eval(value) if (rooms := sorted(set(floor) & there))]
    ground = next(number for number, level in enumerate(levels) if "sources" in level)
    return [sorted(room for level in levels[:ground] for room in level), *levels[ground:]]


def imported(path: Path, rooms: set[str]) -> Iterator[str]:
    """The rooms that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "understudy":
            names = [f"understudy.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        yield from (
            parts[1] for name in names if (parts := [*name.split("."), ""])[0] == "understudy" and parts[1] in rooms
        )


def arrows(levels: list[list[str]]) -> dict[str, set[str]]:
    """The rooms that each room imports, without those that it also reaches through another one."""
    rooms = {room for level in levels[1:] for room in level}
    direct: dict[str, set[str]] = {room: set() for level in levels for room in level}
    for path in PACKAGE.rglob("*.py"):
        if (here := path.relative_to(PACKAGE).with_suffix("").parts[0]) in rooms:
            direct[here] |= set(imported(path, rooms)) - {here}
    reached: dict[str, set[str]] = {}
    for level in levels:  # imports go down, so what lies below is known
        for room in level:
            reached[room] = direct[room].union(*(reached[other] for other in direct[room]))
    return {
        room: {way for way in direct[room] if not any(way in reached[other] for other in direct[room])}
        for room in sorted(direct)
    }


def places(levels: list[list[str]], edges: dict[str, set[str]]) -> dict[str, tuple[float, float, float]]:
    """(center, top, width) of each room's box; rooms stand near those that they are joined to."""
    joined = {room: edges[room] | {other for other in edges if room in edges[other]} for room in edges}
    order = [list(level) for level in levels]

    def spread() -> dict[str, float]:
        centers = {}
        for level in order:
            widths = [len(ALIAS.get(room, room)) * CHARACTER + PADDING for room in level]
            gap = (WIDTH - sum(widths)) / (len(level) + 1)
            left = gap
            for room, width in zip(level, widths, strict=True):
                centers[room] = left + width / 2
                left += width + gap
        return centers

    for _ in range(8):
        centers = spread()
        for level in order:
            level.sort(
                key=lambda room: (sum(centers[other] for other in joined[room]) / max(1, len(joined[room])), room)
            )
    centers = spread()
    return {
        room: (centers[room], TOP + BAND * (len(order) - 1 - number), len(ALIAS.get(room, room)) * CHARACTER + PADDING)
        for number, level in enumerate(order)
        for room in level
    }


def svg() -> str:
    """The picture."""
    levels = floors()
    edges = arrows(levels)
    boxes = places(levels, edges)
    height = TOP + BAND * len(levels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="13">',
        "<title>Rooms of the package: an arrow is an import, and all go down</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fbfaf7"/>',
        '<defs><marker id="end" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0L6 3L0 6z" fill="#8a93a5"/></marker></defs>',
    ]
    for number in range(1, len(levels), 2):
        top = TOP + BAND * (len(levels) - 1 - number) - (BAND - BOX) / 2
        parts.append(f'<rect y="{top:.0f}" width="{WIDTH}" height="{BAND}" fill="#f2efe8"/>')
    for room, others in edges.items():
        for other in sorted(others):
            (x, y, _), (to, down, _) = boxes[room], boxes[other]
            y, down = y + BOX, down - 2
            bend = (down - y) * 0.5
            parts.append(
                f'<path d="M{x:.0f} {y:.0f}C{x:.0f} {y + bend:.0f} {to:.0f} {down - bend:.0f} {to:.0f} {down:.0f}" '
                'fill="none" stroke="#8a93a5" stroke-opacity=".6" marker-end="url(#end)"/>'
            )
    for room, (x, y, width) in boxes.items():
        parts.append(
            f'<rect x="{x - width / 2:.0f}" y="{y}" width="{width:.0f}" '
            f'height="{BOX}" rx="6" fill="#fff" stroke="#3b4a63"/><text x="{x:.0f}" y="{y + 22}" text-anchor="middle" '
            f'fill="#1d2636">{escape(ALIAS.get(room, room))}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(svg(), encoding="utf-8")
