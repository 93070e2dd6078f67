"""The formats of the input, by the ending of the file, and how each is read."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data import json_input
from pipeline.data.rows import MAX_LINE_BYTES, Rows, Unreadable, excerpt, is_utf8
from pipeline.run.errors import UserError

ROWS_OF_PARQUET = 64  # read at a time; a long value that repeats takes no place in the file, but in memory


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


def parquet_rows(path: Path, columns: list[str] | None) -> tuple[int, Rows]:
    """Return the number of rows of a Parquet file, and the rows."""
    import pyarrow
    import pyarrow.parquet

    def rows() -> Rows:
        try:
            for batch in file.iter_batches(ROWS_OF_PARQUET, columns=columns):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise unreadable(error) from error

    def unreadable(error: Exception) -> UserError:
        return UserError(f"{path} is not a readable Parquet file ({error}).")

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(error) from error
    return max(file.metadata.num_rows, 1), rows()


@dataclass(frozen=True)
class TextFormat:
    """A format of texts, which may be compressed with gzip."""

    rows: Callable[[Path, io.BufferedReader, Sequence[str]], Rows]
    """Yields the rows of a file of this path, from its decompressed bytes, with the fields of some names or more."""
    holds_lines: Callable[[Path, io.BufferedReader, Sequence[str]], bool] | None = None
    """Whether a file is JSON Lines, which are read in blocks of lines instead; nothing where the format has none."""


@dataclass(frozen=True)
class TableFormat:
    """A format of bytes that is compressed inside."""

    rows: Callable[[Path, list[str] | None], tuple[int, Rows]]
    """Returns the number of rows of a file, and the rows with some or all of its columns."""


JSON = TextFormat(json_input.document_rows, json_input.holds_lines)
CSV = TextFormat(lambda _, file, __: csv_rows(file))
PARQUET = TableFormat(parquet_rows)
FORMATS: dict[str, TextFormat | TableFormat] = {
    ".json": JSON,
    ".jsonl": JSON,
    ".ndjson": JSON,
    ".csv": CSV,
    ".tsv": CSV,
    ".parquet": PARQUET,
    ".pq": PARQUET,
}


def format_of(path: Path) -> TextFormat | TableFormat:
    """Return the format that the ending of a file names, .gz left out; a UserError if there is no such format."""
    compressed = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if compressed else path).suffix.lower()
    if suffix not in FORMATS:
        raise UserError(
            f"{path} has none of the endings {', '.join(FORMATS)} (and .gz after it). Rename or convert it."
        )
    found = FORMATS[suffix]
    if compressed and isinstance(found, TableFormat):
        name = suffix.removeprefix(".").capitalize()
        raise UserError(f"{path}: {name} is compressed inside and not read through gzip. Decompress it first.")
    return found
