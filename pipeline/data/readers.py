"""Read any input in blocks: parts that fit in memory, keep the order of the file and can be read by another process."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data import delimited, opening
from pipeline.data.blocks import BLOCK_BYTES, Block, Record, line_blocks, record_of
from pipeline.data.dialect import Dialect, first_lines, name_of, recognise_dialect
from pipeline.data.formats import DelimitedFormat, Format, TableFormat, TextFormat, format_of
from pipeline.data.json_input import line_rows
from pipeline.data.rows import (
    Rows,
    Suspect,
    Unreadable,
    top_names,
)
from pipeline.run.errors import UserError

BLOCK_ROWS = 1024
_READ_ONCE = "cannot be read twice, as stage 1 does: write it to a file first, and name that with --data.input."
_HUB_ID = re.compile(r"[\w.-]+/[\w-]+")  # without an ending


@dataclass(frozen=True)
class Recognised:
    """How a file is read: what its name, its first bytes and its first lines tell, or the settings."""

    format: Format
    encoding: str = opening.UTF8
    dialect: Dialect | None = None
    """Of delimited text."""

    def sentence(self) -> str:
        """Return what was recognised and which settings say otherwise; empty where there is nothing to tell."""
        encoding = opening.label_of(self.encoding)
        if self.dialect is None:
            return "" if self.encoding == opening.UTF8 else f"Read as {encoding} (--data.encoding)."
        escapes = ', quotes escaped as \\"' if self.dialect.backslash else ""
        return (
            f"Read as {encoding}, columns separated by {name_of(self.dialect.separator)}, header in line "
            f"{self.dialect.header_line}{escapes} (--data.encoding, --data.separator, --data.header-line)."
        )


def input_size(path: Path) -> int:
    """Return the size of the input in bytes, after checking that there is something to read."""
    if not path.exists():
        raise UserError(_where_it_may_be(path))
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file with --data.input.")
    if not path.is_file():
        raise UserError(f"{path} {_READ_ONCE}")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty.")
    format_of(path)
    return path.stat().st_size


def _where_it_may_be(path: Path) -> str:
    """Return what may be meant by the name of a file that does not exist, and what can be done."""
    text = path.as_posix()
    if text == "-":
        return f"Standard input {_READ_ONCE}"
    if set(text) & set("*?["):
        return f"{path} does not exist. Stage 1 reads one file: join those that are meant, and name the result with --data.input."
    if _HUB_ID.fullmatch(text):
        name = text.rpartition("/")[2] + ".jsonl"
        return (
            f"{path} does not exist. If it is a data set of the Hugging Face hub, export it with python -c "
            f"\"from datasets import load_dataset; load_dataset('{text}', split='train').to_json('{name}')\" and give "
            f"--data.input {name}."
        )
    return f"{path} does not exist. Name your file with --data.input; data/README.md says where dumps are."


def recognise(
    path: Path,
    wanted: Collection[str],
    encoding: str | None = None,
    separator: str | None = None,
    header_line: int | None = None,
) -> Recognised:
    """Return how a file is to be read.

    Args:
        path: JSON Lines, JSON array, CSV, TSV or Parquet, plain or gzip.
        wanted: names of columns, by which the header of delimited text is found.
        encoding: what the text is stored in; None finds it.
        separator: the sign between two columns of delimited text; None finds it.
        header_line: line of the header of delimited text, from 1; None finds it.
    """
    kind = format_of(path)
    if isinstance(kind, TableFormat):
        return Recognised(kind)
    with _gzip_errors(path):
        encoding = encoding or opening.recognise_encoding(path, may_be_legacy=isinstance(kind, DelimitedFormat))
        if not isinstance(kind, DelimitedFormat):
            return Recognised(kind, encoding)
        beginning = first_lines(path, encoding)
    return Recognised(kind, encoding, recognise_dialect(beginning, wanted, separator, header_line))


@contextlib.contextmanager
def _gzip_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a complete gzip file ({error}). Download or compress it again.") from error


def blocks(
    path: Path, title_key: str, content_key: str, metadata: tuple[str, ...] = (), recognised: Recognised | None = None
) -> Iterator[Block]:
    """Yield the blocks of a file in order; their stored_bytes add up to its size.

    Args:
        path: JSON Lines, JSON array, CSV, TSV or Parquet, plain or gzip.
        title_key: name of the field or column that holds the title.
        content_key: name of the field or column that holds the content.
        metadata: names of other fields to read.
        recognised: how it is read; None finds it.
    """
    size, keys = path.stat().st_size, (title_key, content_key, *metadata)
    recognised = recognised or recognise(path, keys)
    kind = recognised.format
    if isinstance(kind, TableFormat):
        total, rows = kind.rows(path, sorted(top_names(keys)))
        yield from _parsed_blocks(rows, path, keys, lambda number: size * number // total)
        return
    stored, file = opening.open_text(path, recognised.encoding)
    with stored, _gzip_errors(path):
        if _is_json_lines(path, file, kind, keys):
            yield from line_blocks(path, file, stored)
        else:
            rows = _text_rows(path, file, keys, recognised)
            yield from _parsed_blocks(rows, path, keys, lambda _: stored.tell())


def _text_rows(path: Path, file: io.BufferedReader, keys: Sequence[str], recognised: Recognised) -> Rows:
    if recognised.dialect is not None:
        return delimited.rows(file, recognised.dialect, recognised.encoding)
    assert isinstance(recognised.format, TextFormat)
    return recognised.format.rows(path, file, keys)


def field_names(
    path: Path, title_key: str, content_key: str, examined: int = 1000, recognised: Recognised | None = None
) -> list[str]:
    """Return the names of the fields that the first records have; those within another come after it, with a dot."""
    keys = title_key, content_key

    def names(rows: Rows) -> list[str]:
        some = itertools.islice(rows, examined)
        return sorted({name for row in some if isinstance(row, dict) for name in _names_in(row)})

    recognised = recognised or recognise(path, ())
    kind = recognised.format
    if isinstance(kind, TableFormat):
        return names(kind.rows(path, None)[1])
    stored, file = opening.open_text(path, recognised.encoding)
    with stored:
        lines = _is_json_lines(path, file, kind, keys)
        return names(line_rows(file) if lines else _text_rows(path, file, keys, recognised))


class LineCounter:
    """Tells how many lines are before a place of a file, for places in ascending order.

    Only a file with unreadable lines pays for this second reading.
    """

    def __init__(self, path: Path, encoding: str = opening.UTF8) -> None:
        """Count the lines of this file, which is closed when the counter is forgotten."""
        self._file = opening.open_text(path, encoding)[1]
        self._lines = 0

    def before(self, place: int) -> int:
        """Return the number of lines that end before this byte of the file, decompressed and as UTF-8."""
        while lines := self._file.read(min(place - self._file.tell(), BLOCK_BYTES)):
            self._lines += lines.count(b"\n")
        return self._lines


def _is_json_lines(path: Path, file: io.BufferedReader, kind: Format, keys: Sequence[str]) -> bool:
    return isinstance(kind, TextFormat) and kind.holds_lines(path, file, keys)


def _parsed_blocks(
    rows: Rows, path: Path, keys: tuple[str, ...], position_after: Callable[[int], int]
) -> Iterator[Block]:
    reported = size = 0
    parsed: list[Record | Unreadable] = []
    suspects: list[Suspect] = []
    for number, row in enumerate(rows, 1):
        if isinstance(row, Suspect):
            suspects.append(row)
            continue
        parsed.append(row if isinstance(row, Unreadable) else record_of(keys, row))
        size += _size(parsed[-1])
        if len(parsed) == BLOCK_ROWS or size > BLOCK_BYTES:
            position = max(position_after(number), reported)  # columns are read by turns
            yield Block(path, position - reported, parsed=tuple(parsed), suspects=tuple(suspects))
            parsed, suspects, size, reported = [], [], 0, position
    yield Block(path, path.stat().st_size - reported, parsed=tuple(parsed), suspects=tuple(suspects))


def _size(value: object) -> int:
    """Return roughly how many characters a value has."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if not isinstance(value, (list, tuple)):
        return 1
    size = 0
    for inner in value:
        size += len(inner) if type(inner) is str else _size(inner)
    return size


def _names_in(row: dict[str, Any], depth: int = 4) -> Iterator[str]:
    """Yield the names of the fields of a row, and of those within them."""
    for name, value in row.items():
        yield name
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict) and depth > 1:
                yield from (f"{name}.{inner}" for inner in _names_in(part, depth - 1))
