"""The rows of delimited text: CSV, TSV and their like, as the programs of this world write them.

Every line of a file belongs to a row, to what is told as unreadable, or is blank. A quote that is never closed, or closed
by a stray one, must not swallow the rows after it: they are read from the line after it.
"""

from __future__ import annotations

import collections
import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.data import opening
from pipeline.data.dialect import ESCAPED_QUOTE, Dialect, divided, is_quoted, names_of, rules_of, unescaped
from pipeline.data.rows import MAX_LINE_BYTES, Rows, Suspect, Unreadable, excerpt, is_utf8

TOO_LONG = f"row longer than {MAX_LINE_BYTES >> 20} MiB"
UNCLOSED = "unclosed quote"
STRAY = "stray quote"
OTHER_WIDTH = "another number of columns than the header"
LINES_AT_ONCE = 50  # a stray quote has them read in vain
_READ_AT_A_TIME = 1 << 18  # characters


def rows(file: io.BufferedReader, dialect: Dialect, encoding: str) -> Rows:
    """Yield the rows of delimited text, and a Suspect after each that holds lines which would be rows by themselves.

    Args:
        file: UTF-8; bytes that are not are damage.
        dialect: how the rows are written.
        encoding: what the file is stored in, to name damage.
    """
    csv.field_size_limit(2 * MAX_LINE_BYTES)
    lines = _Lines(file)
    for _ in range(dialect.header_line - 1):
        lines.take()
    yield from _Parser(lines, dialect).rows(f"invalid {opening.label_of(encoding)}")
    lines.detach()


class _Lines:
    """The lines of a text without their ends, some of which may be given back."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
        self._rest: str | None = ""  # what was read of the next line, None at the end of the file
        self.waiting: collections.deque[str] = collections.deque()
        self.number = 0
        """Of the line that was taken last, from 1."""
        self.damaged = False
        """Whether anything so far is not UTF-8."""

    def take(self) -> str | None:
        """Return the next line, None after the last; of one that is too long only so much that this can be seen."""
        if not self.waiting and not self.fill():
            return None
        self.number += 1
        return self.waiting.popleft()

    def skip(self, lines: int) -> None:
        """Take lines that wait."""
        self.number += lines
        for _ in range(lines):
            self.waiting.popleft()

    def give_back(self, lines: Sequence[str]) -> None:
        """Let lines that were taken last be the next ones."""
        self.waiting.extendleft(reversed(lines))
        self.number -= len(lines)

    def fill(self) -> bool:
        """Read until a line waits; return whether one does."""
        parts, size = [self._rest or ""], 0
        while self._rest is not None and not self.waiting:
            text = self._text.read(_READ_AT_A_TIME)
            self.damaged = self.damaged or not is_utf8(text)
            first, *others = text.split("\n")
            if size <= MAX_LINE_BYTES:
                parts.append(first)
                size += len(first)
            if others:
                *whole, self._rest = ["".join(parts), *others]
                self.waiting.extend(whole)
            elif not text:
                self._rest = None
                self.waiting.extend(filter(None, ["".join(parts)]))
        return bool(self.waiting)

    def detach(self) -> None:
        """Leave the file open, which the end of its text would close."""
        self._text.detach()


class _Record(NamedTuple):
    """What begins with a line."""

    values: list[str] | None
    """Those of its columns; None if it cannot be read."""
    further: Sequence[str] = ()
    """Its lines after the first, which were taken."""
    problem: str = ""


class _Parser:
    """Divides lines into rows."""

    def __init__(self, lines: _Lines, dialect: Dialect) -> None:
        self._lines, self._separator, self._backslash = lines, dialect.separator, dialect.backslash
        self._rules = rules_of(dialect.separator)
        sign = re.escape(dialect.separator)
        self._column = re.compile(rf'"((?:[^"]|"(?!{sign}|\Z))*+)"(?={sign}|\Z)|([^{sign}]*)')
        # Programs that write tabs often quote nothing.
        self._quotes_are_text = dialect.separator == "\t"
        self._width = 0  # any, until the header is known
        header = lines.take() or ""
        columns = header.split(self._separator)
        if all(map(is_quoted, columns)):
            self._quotes_are_text = False
        self._names = names_of(self._record(header).values or columns)
        self._width = len(self._names)

    def rows(self, damage: str) -> Rows:
        """Yield what comes after the header; what holds damage is told as such."""
        lines, names, separator, width = self._lines, self._names, self._separator, self._width
        waiting = lines.waiting
        values: list[str] | None
        further: Sequence[str]
        simple = not self._backslash and not self._quotes_are_text  # as most files are
        while waiting or lines.fill():
            line = waiting.popleft()
            lines.number = number = lines.number + 1
            if not line:
                continue
            if len(line) > MAX_LINE_BYTES:
                yield Unreadable(number, TOO_LONG, excerpt(line))
                continue
            if '"' in line:
                values, further, problem = (simple and self._at_once(line)) or self._record(line)
            else:
                values, further, problem = line.split(separator), (), OTHER_WIDTH
                if len(values) != width:
                    values = self._fitted(values)
            if lines.damaged and not is_utf8("".join([line, *further])):
                values, problem = None, damage
            if values is None:
                yield Unreadable(number, problem, excerpt("\n".join([line, *further])), 1 + len(further))
                continue
            yield dict(zip(names, values))  # noqa: B905 - they are as many
            if len(further) > 1 and (swallowed := self._rows_in(further[:-1])):
                yield Suspect(number, 1 + len(further), swallowed)

    def _fitted(self, values: list[str] | None) -> list[str] | None:
        """Return as many values as the header has names, None if there are others; empty ones at the end do not count."""
        if not self._width or values is None:
            return values
        if len(values) < self._width or any(values[self._width :]):
            return None
        return values[: self._width]

    def _rows_in(self, lines: Sequence[str]) -> int:
        """Return how many lines would be rows by themselves."""
        least = self._width - 1
        return sum(self._is_row(line) for line in lines if line.count(self._separator) >= least)

    def _is_row(self, line: str) -> bool:
        """Return whether a line would be a row by itself."""
        if '"' not in line or self._quotes_are_text:
            return self._fitted(line.split(self._separator)) is not None
        return self._fitted(divided(unescaped(line) if self._backslash else line, self._rules)) is not None

    def _at_once(self, line: str) -> tuple[list[str], Sequence[str], str] | None:
        """Return what _record does for most records: as many lines as the number of their quotes tells, well formed."""
        further: Sequence[str] = ()
        if line.count('"') % 2:
            further = []
            for following in itertools.islice(self._lines.waiting, LINES_AT_ONCE):
                further.append(following)
                if following.count('"') % 2:
                    break
            line = "\n".join([line, *further])
        values = divided(line, self._rules)
        if values is None or len(values) != self._width:
            return None
        if further:
            self._lines.skip(len(further))
        return values, further, ""

    def _record(self, line: str) -> _Record:
        """Read the record that begins with a line with a quote; what does not belong to it is left for the next."""
        found = self._quoted(line, self._backslash)
        if found.values is None:
            other = self._quoted(line, not self._backslash)
            found = found if other.values is None else other
        if found.values is None and (found.problem == STRAY or self._quotes_are_text):
            values = self._with_stray_quotes(line)
            found = found if values is None else _Record(values)
        if found.values is None:
            self._lines.skip(len(found.further))
        return found

    def _quoted(self, line: str, backslash: bool) -> _Record:
        """Read the record that begins with a line by the rules of quoting; take its further lines if it can be read."""
        read = unescaped if backslash else str
        further: list[str] = []
        problem = STRAY

        def texts() -> Iterator[str]:
            nonlocal problem
            yield read(line) + "\n"
            problem = UNCLOSED
            size, turns = len(line), 0
            while (following := self._lines.take()) is not None:
                further.append(following)
                text = read(following)
                size += 1 + len(text)
                # A row has no more quotes that are not doubled; so what is read in vain is read a few times at most.
                turns += '"' in text and '"' in text.replace('""', "")
                if size > MAX_LINE_BYTES:
                    problem = TOO_LONG
                if size > MAX_LINE_BYTES or turns > 2 * self._width > 0:
                    return
                yield text + "\n"

        try:
            values = next(csv.reader(texts(), self._rules))
        except csv.Error:
            self._lines.give_back(further)
            return _Record(None, (), problem)
        fitted = self._fitted(values if further else self._literal(line, values))
        if fitted is not None and not (self._quotes_are_text and self._holds_rows(line, further)):
            return _Record([value.replace(ESCAPED_QUOTE, '"') for value in fitted] if backslash else fitted, further)
        self._lines.give_back(further)
        return _Record(None, (), UNCLOSED) if self._holds_rows(line, further) else _Record(None, further, OTHER_WIDTH)

    def _literal(self, line: str, values: list[str]) -> list[str]:
        """Return the columns of a row with their quotes where these are text and not needed: no sign within makes them so."""
        if self._quotes_are_text and '""' not in line:
            columns = line.split(self._separator)
            if len(columns) == len(values) and not all(map(is_quoted, columns)):
                return columns
        return values

    def _holds_rows(self, line: str, further: Sequence[str]) -> bool:
        """Return whether a record holds lines that would be rows by themselves, or consists of two."""
        if not further:
            return False
        inner = [line for line in further[:-1] if '"' not in line or not self._quotes_are_text]
        return self._rows_in(inner) > 0 or (self._is_row(line) and self._is_row(further[-1]))

    def _with_stray_quotes(self, line: str) -> list[str] | None:
        """Return the columns of a line where a quote closes only before a separator or the end, or else where all are text."""
        columns: list[str] = []
        place = 0
        while not columns or place <= len(line):
            column = self._column.match(line, place)
            assert column is not None  # an empty one matches, too
            columns.append(column[2] if column[1] is None else column[1].replace('""', '"'))
            place = column.end() + 1
        literal = line.split(self._separator)
        first, second = (literal, columns) if self._quotes_are_text else (columns, literal)
        fitted = self._fitted(first)
        return self._fitted(second) if fitted is None else fitted
