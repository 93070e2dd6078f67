"""What a reader of any format yields: rows, and what is unreadable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

MAX_LINE_BYTES = 8 << 20
SHOWN_OF_UNREADABLE = 1000  # characters of an unreadable line that are kept
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Unreadable(NamedTuple):
    """A line or row that holds no record."""

    number: int
    """Line of a text file, or position in an array or table, from 1; in a block of lines, from its start."""
    problem: str
    raw: str = ""
    """Its beginning."""
    lines: int = 1
    """How many lines of a text file it takes."""


class Suspect(NamedTuple):
    """A row of delimited text that may have swallowed others: a stray quote opens what another one closes."""

    number: int
    """Its first line, from 1."""
    lines: int
    """How many lines it takes."""
    rows: int
    """How many of them would be rows by themselves."""


Rows = Iterator["dict[str, Any] | Unreadable | Suspect"]


def field_value(row: dict[str, Any], name: str) -> object:
    """Return the value of a field, None if there is none; `a.b` is the field b within a, in a list those of its items."""
    if name in row:
        return row[name]
    outer, dot, inner = name.partition(".")
    held = row.get(outer) if dot else None
    if isinstance(held, list):
        return [field_value(item, inner) for item in held if isinstance(item, dict)]
    return field_value(held, inner) if isinstance(held, dict) else None


def top_names(keys: Iterable[str]) -> set[str]:
    """Return the names that rows may have where field_value is asked for some keys."""
    return {name for key in keys for name in (key, key.partition(".")[0])}


def is_utf8(text: str) -> bool:
    """Return whether a text can be written as UTF-8; what was decoded from other bytes cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def excerpt(raw: bytes | str) -> str:
    """Return the beginning of what could not be read."""
    text = raw[: 4 * SHOWN_OF_UNREADABLE].decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    return text[:SHOWN_OF_UNREADABLE].encode("utf-8", "replace").decode().rstrip("\n")
