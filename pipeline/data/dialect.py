"""How a file of delimited text writes its rows: the sign between columns, the line of the header, the escape of a quote."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data import opening

SEPARATORS = ",;\t|"
EXAMINED_CHARACTERS = 1 << 18
HEADER_WITHIN = 20  # lines; a report has its title, its date and the like above
_ESCAPE = re.compile(r'\\(["\\]|\Z)')  # MySQL writes a backslash before the end of a line, too
ESCAPED_QUOTE = "\ufdd0"  # stands for it while a row is divided; no text has it, since Unicode has no such character


@dataclass(frozen=True)
class Dialect:
    """How a file writes its rows."""

    separator: str
    """The sign between two columns."""
    header_line: int = 1
    """Line that names the columns, from 1; those before it hold no rows."""
    backslash: bool = False
    r"""Whether a quote within quotes is written \", as MySQL and Spark do, and not doubled."""


def name_of(separator: str) -> str:
    """Return how a separator is told, and how --data.separator takes it."""
    return "tab" if separator == "\t" else repr(separator)


def first_lines(path: Path, encoding: str) -> str:
    """Return the first lines of a file."""
    stored, file = opening.open_text(path, encoding)
    with stored:
        return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape").read(EXAMINED_CHARACTERS)


def recognise_dialect(
    text: str, wanted: Collection[str], separator: str | None = None, header_line: int | None = None
) -> Dialect:
    r"""Return the dialect that the beginning of a file tells.

    The header is the line, among the first, that has the wanted names, or else the first line of several columns.

    Args:
        text: lines that end with \n.
        wanted: names of columns, whose case does not matter here; none if they are not known.
        separator: the sign between two columns; None finds it.
        header_line: line of the header, from 1; None finds it.
    """
    lines = text.split("\n")
    # Excel's own way to say it.
    told = re.fullmatch(r'"?sep=(.)"?', lines[0], re.IGNORECASE)
    signs = separator or (told[1] if told else SEPARATORS)
    first = header_line or (2 if told else 1)
    last = header_line or first + HEADER_WITHIN
    candidates = [(number, line) for number, line in enumerate(lines, 1) if first <= number <= last and line.strip()]
    names = {name.strip().casefold() for name in wanted}

    def found() -> tuple[int, str]:
        for number, line in candidates if names else []:
            for sign in signs:
                if names <= {name.casefold() for name in names_of(divided(line, rules_of(sign)) or line.split(sign))}:
                    return number, sign
        # Excel writes ; where the comma is the decimal sign, as in Brazil.
        for number, line in candidates:
            if possible := [sign for sign in signs if sign in line]:
                rows = [row for row in lines[number : number + HEADER_WITHIN] if row]
                widths = {sign: line.count(sign) for sign in possible}
                fitting = {sign: sum(row.count(sign) == widths[sign] for row in rows) for sign in possible}
                return number, max(possible, key=lambda sign: (fitting[sign], widths[sign]))
        return candidates[0][0] if candidates else first, signs[0]

    number, sign = found()
    return Dialect(sign, number, _escapes_with_backslash(lines[number:], sign))


def _escapes_with_backslash(lines: Sequence[str], separator: str) -> bool:
    """Return whether more of the lines are rows with the backslash as an escape than without."""
    balance, rules = 0, rules_of(separator)
    for line in lines:
        if '\\"' in line:
            balance += divided(unescaped(line), rules) is not None
            balance -= divided(line, rules) is not None
    return balance > 0


def unescaped(line: str) -> str:
    """Return a line with its escapes resolved, and ESCAPED_QUOTE for each escaped quote."""
    return _ESCAPE.sub(lambda sign: ESCAPED_QUOTE if sign[1] == '"' else sign[1], line)


def rules_of(separator: str) -> Any:
    """Return the rules of RFC 4180 with this separator, ready to be used, which is faster than to name them each time."""
    return csv.reader((), delimiter=separator, strict=True).dialect


def divided(text: str, rules: Any) -> list[str] | None:
    """Return the columns of a row; None if its quotes are not closed, or are closed and followed by more."""
    try:
        return next(csv.reader((text,), rules), [])
    except csv.Error:
        return None


def names_of(header: Sequence[str]) -> list[str]:
    """Return the names of the columns of a header, without empty ones at its end."""
    names = [name.strip() for name in header]
    while names and not names[-1]:
        names.pop()
    return names


def is_quoted(column: str) -> bool:
    """Return whether a column stands in quotes."""
    return len(column) > 1 and column[0] == column[-1] == '"'
