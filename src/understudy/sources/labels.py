"""Class numbers and names, of whatever holds one class per image: folders, columns of any type, texts.

Numbers are counted off: C classes have the numbers 0 ... C - 1, whatever stands in the files, so what is computed with
them takes memory by the number of classes and never by the largest number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from understudy.errors import DataError

Labels = tuple[np.ndarray, list[str]]
"""(N,) int64 class numbers, and the names of the classes."""

LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")
"""Names under which data sets keep one class per image."""

LONGEST = 65_536  # bytes of a path, more than any system allows
NO_LABEL = "-1"  # the hub's mark for images of a test half
WHOLE = re.compile(r"-?[0-9]{1,40}")  # a class number as text; hashes have up to 39 digits


class Unlabeled(DataError):
    """Labels are there, at least in part, and cannot be used; the sentence says which and why."""


@dataclass(frozen=True)
class Part:
    """The labels of one file.

    Args:
        title: the file, for messages.
        numbers: (N,) int64.
        names: of the classes, by number.
        kind: type of the column, for messages.
        counted: the names are numbers and not texts.
        declared: the file itself says how its numbers are called.
    """

    title: str
    numbers: np.ndarray
    names: list[str]
    kind: str
    counted: bool = False
    declared: bool = False


def column_named(columns: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first of some wanted names that is among the columns of a table; letter case and spaces around do not matter.

    Raises:
        DataError: two columns are called so.
    """
    for name in wanted:
        alike = [column for column in columns if column.strip().lower() == name]
        found = [column for column in alike if column == name] or alike
        if len(found) > 1:
            raise DataError(f"Two columns are called '{found[0]}' ({', '.join(columns)}). Rename one of them.")
        if found:
            return found[0]
    return None


def column_labels(
    values: pa.ChunkedArray, title: str, column: str, where: Callable[[int], str],
    declared: Sequence[str] | None = None,
) -> Part:  # fmt: skip
    """The labels in a column of any type: whole numbers (also as floats or decimals), texts, categories, booleans.

    Args:
        values: (N,).
        title: what messages call the table.
        column: what messages call the column.
        where: what messages call a row.
        declared: names of the classes 0, 1, ... as the file declares them; not used where it has numbers beyond.

    Raises:
        Unlabeled: a value is none of those, missing, or -1; the sentence has the column, its type and the first one.
    """
    kind = str(values.type)

    def refuse(row: int, shown: str) -> Unlabeled:
        return Unlabeled(
            f"the column '{column}' of {title} has the type {kind} and holds {shown} in {where(row)}; a class is a "
            "whole number from 0 on, a text, or true or false"
        )

    try:
        encoded = _encoded(values)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        first = values[0].as_py() if len(values) else None
        raise refuse(0, repr(first)[:80]) from None
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    distinct = encoded.dictionary.to_pylist()
    texts = [class_text(value) for value in distinct]
    odd = [code for code, text in enumerate(texts) if text in (None, "", NO_LABEL)]
    wrong = np.isin(codes, [-1, *odd])
    if wrong.any():
        row = int(wrong.argmax())
        value = None if codes[row] < 0 else distinct[codes[row]]
        shown = "nothing" if value is None else repr(value)[:80]
        raise refuse(row, f"{shown} (no label)" if class_text(value) == NO_LABEL else shown)
    names = [str(text) for text in texts]
    if declared and all(map(WHOLE.fullmatch, names)) and all(0 <= int(name) < len(declared) for name in names):
        table = np.array([int(name) for name in names], dtype=np.int64)
        return Part(title, table[codes], list(declared), kind, declared=True)
    counted = not any(isinstance(value, bytes | bool) for value in distinct)
    return Part(title, *sorted_classes(codes, names, counted), kind, counted)


def _encoded(values: pa.ChunkedArray) -> pa.DictionaryArray:
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.cast(kind.value_type)
    if pa.types.is_temporal(kind):
        values = values.cast(pa.string())
    if any(is_kind(values.type) for is_kind in (pa.types.is_string, pa.types.is_large_string)):
        values = values.cast(pa.large_binary())  # text that is no UTF-8 is found value by value
    parts = values.dictionary_encode().unify_dictionaries()
    if not parts.num_chunks:
        return pa.array([], pa.null()).dictionary_encode()
    return parts.combine_chunks() if isinstance(parts, pa.ChunkedArray) else parts


def class_text(value: Any) -> str | None:
    """The name of the class that a value stands for; None where it stands for none."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    if isinstance(value, bool | int | str):
        return str(value)
    if isinstance(value, float | Decimal):
        return str(int(value)) if np.isfinite(float(value)) and value == int(value) else None
    return None


def sorted_classes(codes: np.ndarray, names: Sequence[str], counted: bool = False) -> Labels:
    """Class numbers in the order of the names.

    Args:
        codes: (N,) places among the names.
        names: in any order.
        counted: they are numbers, in order of value; else texts, by letter.
    """
    ordered = sorted(set(names), key=int if counted else None)
    place = {name: number for number, name in enumerate(ordered)}
    return np.array([place[name] for name in names], dtype=np.int64)[codes], ordered


def text_labels(texts: pa.ChunkedArray | pa.Array) -> Labels:
    """Labels of (N,) texts, none of them missing; where all are whole numbers, 007 and 7 are one class."""
    encoded = (texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts).dictionary_encode()
    codes, names = encoded.indices.to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist()
    if not all(map(WHOLE.fullmatch, names)):
        return sorted_classes(codes, names)
    return sorted_classes(codes, [str(int(name)) for name in names], counted=True)


def joined(parts: Iterable[Part]) -> Labels:
    """The labels of several files as one: what has the same name is the same class, whatever its number in each.

    Names that all files declare alike keep their order; else those of the first file come before those of the second.

    Raises:
        Unlabeled: some have names of classes and others only numbers, so nobody can tell which is which.
    """
    parts = list(parts)
    parts = [part for part in parts if len(part.numbers)] or parts
    first = parts[0]
    numbers = [part for part in parts if part.counted]
    others = [part for part in parts if part.declared or not all(map(WHOLE.fullmatch, part.names))]
    if numbers and others:
        raise Unlabeled(
            f"{numbers[0].title} has {_example(numbers[0])} for its classes and {others[0].title} has "
            f"{_example(others[0])}, so nobody can tell which are the same"
        )
    if all(part.declared and part.names == first.names for part in parts):
        return np.concatenate([part.numbers for part in parts]), first.names
    names = list(dict.fromkeys(name for part in parts for name in part.names))
    place = {name: number for number, name in enumerate(names)}
    codes = [np.array([place[name] for name in part.names], dtype=np.int64)[part.numbers] for part in parts]
    if first.declared:
        return np.concatenate(codes), names
    return sorted_classes(np.concatenate(codes), names, all(part.counted for part in parts))


def _example(part: Part) -> str:
    return f"{'declared names' if part.declared else f'values of the type {part.kind}'} such as '{part.names[0]}'"


def class_folders(paths: pa.Array) -> Labels | None:
    """The folders as classes, where every one of (N,) binary paths is `CLASS/FILE`; None where no path has a folder.

    Raises:
        Unlabeled: some lie elsewhere, or all in one folder; the sentence names one of them.
    """
    depths = pc.count_substring(paths, "/")
    direct = pc.equal(depths, 1)
    if not pc.any(pc.greater(depths, 0)).as_py():
        return None
    if not pc.all(direct).as_py():
        raise Unlabeled(_misplaced(paths, depths, pc.sum(direct).as_py()))
    folders = pc.list_element(pc.split_pattern(as_text(paths), "/", max_splits=1), 0).dictionary_encode()
    names = [str(name) for name in folders.dictionary.to_pylist()]
    if len(names) < 2:
        raise Unlabeled(f"all {len(paths):,} images lie in one folder, '{names[0]}', and one class is none")
    return sorted_classes(folders.indices.to_numpy(zero_copy_only=False), names)


def _misplaced(paths: pa.Array, depths: pa.Array, direct: int) -> str:
    """Why folders are no classes, naming the first image that lies elsewhere."""
    place = int(pc.index(pc.not_equal(depths, 1), value=True).as_py())
    shown, depth = as_text(paths.slice(place, 1))[0].as_py(), int(depths[place].as_py())
    lies = "in no class folder" if depth == 0 else f"{depth} folders deep"
    if direct:
        return (
            f"{direct:,} of {len(paths):,} images lie at CLASS/FILE and {len(paths) - direct:,} do not: '{shown}' lies "
            f"{lies}. Move or remove what is no part of the classes"
        )
    return f"no image lies at CLASS/FILE: '{shown}' lies {lies}. Give the folder right above the class folders"


def below_common(paths: pa.Array) -> pa.Array:
    """(N,) binary paths without the folder that all of them lie in."""
    ends = pc.min_max(paths).as_py()  # what the first and the last in order share, all share
    pairs = enumerate(zip(ends["min"], ends["max"], strict=False))
    differ = next((place for place, (one, other) in pairs if one != other), 0)
    return pc.binary_slice(paths, ends["min"].rfind(b"/", 0, differ) + 1, stop=LONGEST)


def as_text(names: pa.Array) -> pa.Array:
    """Names as text; bytes that are no UTF-8 are replaced."""
    try:
        return names.cast(pa.large_string())
    except pa.ArrowInvalid:
        return pa.array([name.decode(errors="replace") for name in names.to_pylist()], type=pa.large_string())
