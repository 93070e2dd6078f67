"""The formats of the input, by the ending of the file, and how each is read."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data import json_input, opening
from pipeline.data.rows import Rows
from pipeline.run.errors import UserError

ROWS_OF_PARQUET = 64  # read at a time; a long value that repeats takes no place in the file, but in memory
PARQUET_MARK = b"PAR1"


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
    """A format of UTF-8, which may be compressed with gzip."""

    rows: Callable[[Path, io.BufferedReader, Sequence[str]], Rows]
    """Yields the rows of a file of this path, from its decompressed bytes, with the fields of some names or more."""
    holds_lines: Callable[[Path, io.BufferedReader, Sequence[str]], bool]
    """Tells whether a file holds a record a line, which are read in blocks of lines instead."""


@dataclass(frozen=True)
class DelimitedFormat:
    """Delimited text, whose encoding and signs are recognised first: pipeline/data/dialect.py."""


@dataclass(frozen=True)
class TableFormat:
    """A format of bytes that is compressed inside."""

    rows: Callable[[Path, list[str] | None], tuple[int, Rows]]
    """Returns the number of rows of a file, and the rows with some or all of its columns."""


JSON = TextFormat(json_input.document_rows, json_input.holds_lines)
DELIMITED = DelimitedFormat()
PARQUET = TableFormat(parquet_rows)
Format = TextFormat | DelimitedFormat | TableFormat
FORMATS: dict[str, Format] = {
    ".json": JSON,
    ".jsonl": JSON,
    ".ndjson": JSON,
    ".csv": DELIMITED,
    ".tsv": DELIMITED,
    ".parquet": PARQUET,
    ".pq": PARQUET,
}


def format_of(path: Path) -> Format:
    """Return the format of a file: Parquet by its first bytes, others by the ending, .gz left out.

    Raises:
        UserError: there is no such format, or the file is what another program writes.
    """
    opening.refuse_other_programs(path)
    if opening.first_bytes(path).startswith(PARQUET_MARK):
        return PARQUET
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
