"""Read any input in blocks: parts that fit in memory, keep the order of the file and can be read by another process."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data import delimited, opening
from pipeline.data.formats import DelimitedFormat, Format, TableFormat, TextFormat, format_of
from pipeline.data.json_input import line_rows, with_nulls, without_comma
from pipeline.data.rows import (
    BYTE_ORDER_MARK,
    MAX_LINE_BYTES,
    Rows,
    Suspect,
    Unreadable,
    excerpt,
    field_value,
    top_names,
)
from pipeline.run.errors import UserError

BLOCK_ROWS = 1024
BLOCK_BYTES = 3 << 17
_READ_ONCE = "cannot be read twice, as stage 1 does: write it to a file first, and name that with --data.input."
_HUB_ID = re.compile(r"[\w.-]+/[\w-]+")  # without an ending
TOO_LONG = f"line longer than {MAX_LINE_BYTES >> 20} MiB"


class Record(NamedTuple):
    """A record of the input, as it was found there."""

    title: object
    content: object
    metadata: Sequence[object] = ()
    """The values of the fields that were asked for, None where there is none."""


class Contents(NamedTuple):
    """What a block holds."""

    records: list[Record]
    unreadable: list[Unreadable]


@dataclass(frozen=True)
class Block:
    """A part of the input: lines of a file, lines that were decompressed, or records that were parsed already."""

    path: Path
    stored_bytes: int
    """How much of the file it takes."""
    start: int = 0
    """Where its lines begin in the file or in what was decompressed; their numbers count from there."""
    length: int = 0
    """Bytes of its lines; 0 if it has parsed records."""
    lines: bytes | None = None
    """Its lines, if they cannot be read from the file."""
    parsed: tuple[Record | Unreadable, ...] = ()
    suspects: tuple[Suspect, ...] = ()
    """Which of its records may have swallowed others."""

    def read(self, title_key: str, content_key: str, metadata: tuple[str, ...] = ()) -> Contents:
        """Return what the block holds."""
        if not self.length:
            records = [item for item in self.parsed if isinstance(item, Record)]
            return Contents(records, [item for item in self.parsed if isinstance(item, Unreadable)])
        lines = self.lines
        if lines is None:
            with self.path.open("rb") as file:
                file.seek(self.start)
                lines = file.read(self.length)
        if self.start == 0:
            lines = lines.removeprefix(BYTE_ORDER_MARK)
        return _parse_lines(lines, title_key, content_key, metadata)


@dataclass(frozen=True)
class Recognised:
    """How a file is read: what its name, its first bytes and its first lines tell, or the settings."""

    format: Format
    encoding: str = opening.UTF8
    dialect: delimited.Dialect | None = None
    """Of delimited text."""

    def sentence(self) -> str:
        """Return what was recognised and which settings say otherwise; empty where there is nothing to tell."""
        encoding = opening.label_of(self.encoding)
        if self.dialect is None:
            return "" if self.encoding == opening.UTF8 else f"Read as {encoding} (--data.encoding)."
        escapes = ', quotes escaped as \\"' if self.dialect.backslash else ""
        return (
            f"Read as {encoding}, columns separated by {delimited.name_of(self.dialect.separator)}, header in line "
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
        beginning = delimited.beginning(path, encoding)
    return Recognised(kind, encoding, delimited.recognise_dialect(beginning, wanted, separator, header_line))


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
            yield from _line_blocks(path, file, stored)
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


def _line_blocks(path: Path, file: io.BufferedReader, stored: io.BufferedReader) -> Iterator[Block]:
    start = reported = 0

    def newly_read() -> int:
        nonlocal reported
        before, reported = reported, stored.tell()
        return reported - before

    while file.peek(1):
        if file is stored and (length := _whole_lines(file, start)):
            yield Block(path, newly_read(), start, length)
            start += length
            continue
        lines = file.read(BLOCK_BYTES)
        if not lines.endswith(b"\n"):
            lines += file.readline(MAX_LINE_BYTES)
        long_line = b""
        if not lines.endswith(b"\n") and file.peek(1):
            whole = lines.rfind(b"\n") + 1
            lines, long_line = lines[:whole], lines[whole:]
        if lines:
            yield Block(path, newly_read(), start, len(lines), lines)
        if long_line:
            while (rest := file.readline(BLOCK_BYTES)) and not rest.endswith(b"\n"):
                pass
            problem = Unreadable(1, TOO_LONG, excerpt(long_line))
            yield Block(path, newly_read(), start + len(lines), parsed=(problem,))
        start = file.tell()


def _whole_lines(file: io.BufferedReader, start: int) -> int:
    """Go to the end of the block of lines at `start`, without reading it, and return its length.

    If it ends in a line that is too long, stay and return 0.
    """
    file.seek(start + BLOCK_BYTES - 1)
    rest = file.readline(MAX_LINE_BYTES)
    if not rest:
        return file.seek(0, io.SEEK_END) - start
    if rest.endswith(b"\n") or not file.peek(1):
        return file.tell() - start
    file.seek(start)
    return 0


@functools.cache
def _line_decoder(
    title_key: str, content_key: str, metadata: tuple[str, ...]
) -> tuple[Any, Callable[[Any], Record] | None]:
    """Return a decoder of lines, and what makes a Record of a decoded line, None where that has its attributes."""
    import msgspec

    if any("." in key for key in (title_key, content_key, *metadata)):
        return msgspec.json.Decoder(dict[str, Any]), functools.partial(_record, (title_key, content_key, *metadata))
    names = {"title": title_key, "content": content_key} | {f"field_{n}": name for n, name in enumerate(metadata)}
    fields = [(field, object, None) for field in names]
    decoder = msgspec.json.Decoder(msgspec.defstruct("Line", fields, rename=names, gc=False))
    return decoder, _record_of_line if metadata else None


def _record_of_line(line: Any) -> Record:
    import msgspec

    title, content, *metadata = msgspec.structs.astuple(line)
    return Record(title, content, tuple(metadata))


def _record(keys: Sequence[str], row: dict[str, Any]) -> Record:
    title, content, *metadata = (field_value(row, key) for key in keys)
    return Record(title, content, tuple(metadata))


def _parse_lines(lines: bytes, title_key: str, content_key: str, metadata: tuple[str, ...]) -> Contents:
    import msgspec

    decoder, record = _line_decoder(title_key, content_key, metadata)

    def found(parsed: list[Any]) -> list[Any]:
        return parsed if record is None else list(map(record, parsed))

    def decode(line: bytes) -> Any:
        try:
            return decoder.decode(line)
        except msgspec.DecodeError:
            return decoder.decode(with_nulls(line))

    if len(lines) <= MAX_LINE_BYTES:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Contents(found(decoder.decode_lines(lines)), [])
    records: list[Any] = []
    unreadable: list[Unreadable] = []
    for number, line in enumerate(lines.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(TOO_LONG)
            records.append(decode(without_comma(line)))
        except UnicodeDecodeError:
            unreadable.append(Unreadable(number, "invalid UTF-8", excerpt(line)))
        except RecursionError:
            unreadable.append(Unreadable(number, "nested too deeply", excerpt(line)))
        except ValueError as error:  # msgspec's errors too
            problem = str(error).replace("JSON is malformed", "not JSON")
            unreadable.append(Unreadable(number, problem, excerpt(line)))
    return Contents(found(records), unreadable)


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
        parsed.append(row if isinstance(row, Unreadable) else _record(keys, row))
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
