"""Read the rows of a file that is no JSON Lines: a JSON array, CSV, Parquet."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts import UserError

BLOCK_ROWS = 1024
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


Rows = Iterator["dict[str, Any] | Unreadable"]


def json_rows(file: io.BufferedReader) -> Rows:
    """Yield the objects of JSON Lines, as far as they can be read."""
    while line := file.readline(MAX_LINE_BYTES):
        with contextlib.suppress(ValueError, RecursionError):
            yield json.loads(line)


def json_array_rows(path: Path, file: io.BufferedReader) -> Rows:
    """Yield the objects of a JSON array, of any size."""
    import ijson

    if file.peek(3).startswith(BYTE_ORDER_MARK):
        file.read(3)
    number = 0
    try:
        for value in ijson.items(file, "item", use_float=True):
            number += 1
            if isinstance(value, dict):
                yield value
            else:
                yield Unreadable(number, f"{type(value).__name__} instead of an object", shown(str(value)))
    except (ijson.JSONError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is a JSON array that breaks off after record {number} ({reason}). Repair it."
        ) from error


def csv_rows(file: io.BufferedReader) -> Rows:
    """Yield the rows of CSV, whatever sign separates its columns."""
    # Excel writes ; where the comma is the decimal sign, as in Brazil: the header line tells.
    header = file.peek(4096).partition(b"\n")[0]
    delimiter = max(",;\t", key=lambda sign: header.count(sign.encode()))
    csv.field_size_limit(MAX_LINE_BYTES)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(text, delimiter=delimiter)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            text.detach()  # or the end of `text` would close the file
            return
        except csv.Error as error:
            yield Unreadable(reader.line_num, f"not CSV: {error}")
            continue
        extra = row.pop(None, None)  # type: ignore[call-overload]
        if extra is not None or None in row.values():
            yield Unreadable(reader.line_num, "another number of columns than the header", shown(str(row)))
        elif not all(map(_is_utf8, row.values())):
            yield Unreadable(reader.line_num, "invalid UTF-8", shown(str(row)))
        else:
            yield row


def parquet_rows(path: Path, columns: list[str] | None) -> tuple[int, Rows]:
    """Return the number of rows of a Parquet file, and the rows."""
    import pyarrow
    import pyarrow.parquet

    def rows() -> Rows:
        try:
            for batch in file.iter_batches(BLOCK_ROWS, columns=columns):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise unreadable(error) from error

    def unreadable(error: Exception) -> UserError:
        return UserError(f"{path} is not a readable Parquet file ({error}).")

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(error) from error
    return max(file.metadata.num_rows, 1), rows()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(raw: bytes | str) -> str:
    """Return the beginning of what could not be read."""
    text = raw[: 4 * SHOWN_OF_UNREADABLE].decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    return text[:SHOWN_OF_UNREADABLE].encode("utf-8", "replace").decode().rstrip("\n")
