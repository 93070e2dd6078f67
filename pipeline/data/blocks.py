"""Blocks: parts of an input that fit in memory, keep the order of the file and can be read by another process."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.json_input import with_nulls, without_comma
from pipeline.data.rows import BYTE_ORDER_MARK, MAX_LINE_BYTES, Suspect, Unreadable, excerpt, field_value

BLOCK_BYTES = 3 << 17
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


def line_blocks(path: Path, file: io.BufferedReader, stored: io.BufferedReader) -> Iterator[Block]:
    """Yield the blocks of a file with a record a line.

    Args:
        path: of the file.
        file: its text as UTF-8; `stored` itself where it is stored so.
        stored: its bytes.
    """
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
        return msgspec.json.Decoder(dict[str, Any]), functools.partial(record_of, (title_key, content_key, *metadata))
    names = {"title": title_key, "content": content_key} | {f"field_{n}": name for n, name in enumerate(metadata)}
    fields = [(field, object, None) for field in names]
    decoder = msgspec.json.Decoder(msgspec.defstruct("Line", fields, rename=names, gc=False))
    return decoder, _record_of_line if metadata else None


def _record_of_line(line: Any) -> Record:
    import msgspec

    title, content, *metadata = msgspec.structs.astuple(line)
    return Record(title, content, tuple(metadata))


def record_of(keys: Sequence[str], row: dict[str, Any]) -> Record:
    """Return the record of a row: the fields of title, content and metadata."""
    title, content, *metadata = keys
    values = tuple([field_value(row, key) for key in metadata]) if metadata else ()
    return Record(field_value(row, title), field_value(row, content), values)


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
