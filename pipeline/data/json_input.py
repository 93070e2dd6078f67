"""JSON input: its shapes, and the rows of each, in bounded memory.

JSON Lines are read in blocks of lines, by readers.py. Here is what else there is: an array of records, records that go
over several lines, and one object that holds all of them: as a list (`{"data": [...]}`), as its values (`{"0": {...}}`),
by columns (`{"title": {"0": ...}}`, `{"title": [...]}`), or as lists of cells (`{"columns": [...], "data": [[...]]}`).
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.json_text import READ_AT_A_TIME, JsonText, no_number
from pipeline.data.rows import BYTE_ORDER_MARK, MAX_LINE_BYTES, Rows, top_names
from pipeline.run.errors import UserError

_CONSTANT = re.compile(rb"\b(?:NaN|Infinity)\b")
# Where JSON goes on in the next line: the end of one, and the beginning of the other. A record that was cut off is followed
# by the next one.
_GOES_ON_IN_NEXT_LINE = re.compile(rb'\{["}]|,"|\[.')


def holds_lines(path: Path, file: io.BufferedReader, keys: Sequence[str]) -> bool:
    """Tell whether a file is JSON Lines, damaged or not, and leave it at its beginning.

    Args:
        path: of the file.
        file: at its beginning; decompressed.
        keys: names of the fields that are wanted, of title and content first.
    """
    first = _next_line(file)
    if first.startswith(b"["):
        lines = False
    elif not first.startswith(b"{"):
        lines = True
    elif len(first) == MAX_LINE_BYTES and not first.endswith(b"\n"):
        while (rest := file.readline(READ_AT_A_TIME)) and not rest.endswith(b"\n"):
            pass
        lines = bool(_next_line(file))
    elif _object(first) is None:
        lines = _GOES_ON_IN_NEXT_LINE.fullmatch(first.rstrip()[-1:] + _next_line(file)[:1]) is None
    elif _next_line(file):
        lines = True
    else:
        file.seek(0)
        lines = _layout(JsonText(path, file), keys) is None
    file.seek(0)
    return lines


def line_rows(file: io.BufferedReader) -> Rows:
    """Yield the objects of JSON Lines, as far as they can be read."""
    while line := _next_line(file):
        if (row := _object(line)) is not None:
            yield row


def without_comma(line: bytes) -> bytes:
    """Return a line of JSON Lines without white space around it and a comma at its end."""
    return line.strip().removesuffix(b",")


def with_nulls(line: bytes) -> bytes:
    """Return a line of JSON with null for what is no number (NaN, Infinity), or as it is where there is none."""
    if _CONSTANT.search(line):
        with contextlib.suppress(ValueError, RecursionError):
            return json.dumps(json.loads(line, parse_constant=no_number)).encode()
    return line


def document_rows(path: Path, file: io.BufferedReader, keys: Sequence[str]) -> Rows:
    """Yield the records of JSON that is no JSON Lines, whatever its shape and size.

    Args:
        path: of the file, for messages.
        file: at its beginning; decompressed.
        keys: names of the fields that are wanted, of title and content first.

    Raises:
        UserError: the file breaks off, or its columns differ.
    """
    text = JsonText(path, file)
    if text.next_sign() == "[":
        yield from _listed_rows(text)
    elif (read := _layout(text.fork(), keys)) is not None:
        yield from read(text)
    else:
        while text.next_sign():
            yield text.row()
            if text.next_sign() == ",":
                text.skip(",")
    if text.next_sign():
        raise text.broken("more text follows its end")


def _layout(text: JsonText, keys: Sequence[str]) -> Callable[[JsonText], Rows] | None:
    """Return what reads the records that the object here holds, or None if it is itself a record."""
    title, content, *_ = keys
    own = top_names([title]), top_names([content])
    kinds: dict[str, str] = {}
    with contextlib.suppress(UserError):  # it breaks off: reading the records tells where
        for key in text.members():
            kinds[key] = _kind(text.fork(), own)
            if key == title and kinds[key] == "object" and _has_key(text.fork(), {"text"}):
                kinds[key] = "text"
            text.pass_over()
        if text.next_sign():
            return None  # the first of several objects
    found = set(kinds.values())
    columns = [kinds.get(key) or kinds.get(key.partition(".")[0], "") for key in (title, content)]
    if all(columns):
        by_name = columns == ["object", "object"] and title in kinds and content in kinds
        is_table = by_name or all(kind.startswith("list") for kind in columns)
        return functools.partial(_column_rows, keys=keys) if is_table else None
    if "list of records" in found:
        return functools.partial(_wrapped_rows, own=[set().union(*own)])  # the first of another list may lack a field
    if "record" in found:
        return _member_rows
    if any(names & kinds.keys() for names in own):
        return None
    # What follows has not these fields; read the same way, it tells which it has.
    if kinds.get("data") == "list of lists" and "columns" in kinds:
        return _cell_rows
    if "list of objects" in found:
        return functools.partial(_wrapped_rows, own=())
    return _member_rows if found == {"object"} else None


def _kind(text: JsonText, own: Collection[set[str]]) -> str:
    """Return what begins here: a record (an object with a name of each set), another object, a list and of what, or a scalar."""
    sign = text.next_sign()
    if sign == "[":
        text.skip("[")
        if text.next_sign() == "[":
            return "list of lists"
        return f"list of {_kind(text, own)}s" if text.next_sign() == "{" else "list"
    if sign != "{":
        return "scalar"
    return "record" if all(_has_key(text.fork(), names) for names in own) else "object"


def _has_key(text: JsonText, keys: Collection[str]) -> bool:
    """Tell whether the object here has one of some keys."""
    for key in text.members():
        if key in keys:
            return True
        text.pass_over()
    return False


def _listed_rows(text: JsonText) -> Rows:
    for _ in text.items():
        yield text.row()


def _member_rows(text: JsonText) -> Rows:
    for _ in text.members():
        yield text.row()


def _wrapped_rows(text: JsonText, own: Collection[set[str]]) -> Rows:
    """Yield the rows of each list whose first is an object with a name of each set."""
    for _ in text.members():
        if _kind(text.fork(), own) == "list of records":
            yield from _listed_rows(text)
        else:
            text.pass_over()


def _column_rows(text: JsonText, keys: Sequence[str]) -> Rows:
    """Yield the rows of a table by columns, each a list of values, or an object of them by the name of the row.

    Columns that are not wanted are not read: they are None.
    """
    wanted = top_names(keys)
    columns: dict[str, JsonText] = {}
    others: dict[str, None] = {}
    for key in text.members():
        if key in wanted:
            columns[key] = text.fork()
        else:
            others[key] = None
        text.pass_over()
    end = object()
    places = [column.members() if column.next_sign() == "{" else column.items() for column in columns.values()]
    for row_names in itertools.zip_longest(*places, fillvalue=end):
        if any(name != row_names[0] for name in row_names):
            raise UserError(
                f"{text.path}: the columns {', '.join(columns)} have not the same rows after record {text.rows}. Write an "
                "object for each record, as pandas does with orient='records'."
            )
        cells = {name: column.value() for name, column in columns.items()}
        raw = ", ".join(f"{name}: {part}" for name, (_, part) in cells.items())
        yield text.as_row(others | {name: value for name, (value, _) in cells.items()}, raw)


def _cell_rows(text: JsonText) -> Rows:
    """Yield the rows of a table that is lists of cells under `data`, with the names of the columns before it."""
    names: list[Any] = []
    for key in text.members():
        if key == "columns":
            names, _ = text.value()
        elif key == "data":
            for _ in text.items():
                cells, raw = text.value()
                is_row = isinstance(cells, list) and len(cells) == len(names)
                yield text.as_row(dict(zip(names, cells, strict=True)) if is_row else cells, raw)
        else:
            text.pass_over()


def _next_line(file: io.BufferedReader) -> bytes:
    """Return the next line that is not blank, from its first sign, up to MAX_LINE_BYTES; nothing at the end."""
    while line := file.readline(MAX_LINE_BYTES):
        if text := line.removeprefix(BYTE_ORDER_MARK).lstrip():
            return text
    return b""


def _object(line: bytes) -> dict[str, Any] | None:
    """Return the object that a line is, or None if it is something else."""
    with contextlib.suppress(ValueError, RecursionError):
        row = json.loads(without_comma(line), parse_constant=no_number)
        return row if isinstance(row, dict) else None
    return None
