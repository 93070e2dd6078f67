"""The rows of delimited text: CSV, TSV and their like."""

from __future__ import annotations

import csv
import io

from pipeline.data.rows import MAX_LINE_BYTES, Rows, Unreadable, excerpt, is_utf8


def csv_rows(file: io.BufferedReader) -> Rows:
    """Yield the rows of CSV, whatever sign separates its columns."""
    # Excel writes ; where the comma is the decimal sign, as in Brazil: the header line tells.
    header = file.peek(4096).partition(b"\n")[0]
    delimiter = max(",;\t", key=lambda sign: header.count(sign.encode()))
    csv.field_size_limit(MAX_LINE_BYTES)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    lines = _Lines(text)
    reader = csv.DictReader(lines, delimiter=delimiter)
    while True:
        lines.begin_row()
        try:
            row = next(reader)
        except StopIteration:
            text.detach()  # or the end of `text` would close the file
            return
        except csv.Error as error:
            yield Unreadable(lines.number, f"not CSV: {error}")
            continue
        extra = row.pop(None, None)
        if extra is not None or None in row.values():
            yield Unreadable(lines.number, "another number of columns than the header", excerpt(str(row)))
        elif not all(map(is_utf8, row.values())):
            yield Unreadable(lines.number, "invalid UTF-8", excerpt(str(row)))
        else:
            yield row


class _Lines:
    """The lines of a text, none of which is longer, and no row of which is, than a line may be."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.number = self._size = 0

    def begin_row(self) -> None:
        """Let the next line be the first of a row."""
        self._size = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(MAX_LINE_BYTES)
        if not line:
            raise StopIteration
        self.number += 1
        rest = line
        while len(rest) == MAX_LINE_BYTES and not rest.endswith(("\n", "\r")):
            self._size = MAX_LINE_BYTES
            rest = self._text.readline(MAX_LINE_BYTES)
        self._size += len(line)
        if self._size > MAX_LINE_BYTES:
            raise csv.Error(f"row longer than {MAX_LINE_BYTES >> 20} MiB")
        return line
