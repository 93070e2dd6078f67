"""Clean the blocks of an input, in one process or in several, into one file of clean records.

The records of a block never leave the process that cleaned them: it tells their hashes, hears which of them are
duplicates and where in the file the others go, and writes them there.

This is no ProcessPoolExecutor: if a worker of a pool is killed while it sends records, the pool waits for the rest of them
for ever, since its other workers hold the same pipe open. Here each worker has a pipe of its own, which ends with it.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import multiprocessing
import os
import queue
import signal
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from config import DataConfig
from pipeline.data.blocks import Block
from pipeline.data.cleaning import CLEANERS, rejection
from pipeline.data.metadata import Metadata, clean_value, is_number, value_text
from pipeline.data.records import RECORD_SEPARATOR, split_numbers
from pipeline.data.rows import Unreadable
from pipeline.run import interruption
from pipeline.run.errors import UserError

BLOCKS_PER_PROCESS = 2  # one being cleaned, one waiting


@dataclass
class BlockSummary:
    """What is known of a block once it is cleaned, record by record in array of 64-bit hashes or numbers."""

    stored_bytes: int
    """How much of the input the block takes."""
    start: int
    """Where in the input it begins, if it is made of lines."""
    records: array[int]
    """Hash of the title and content of each clean record."""
    titles: array[int]
    """Hash of each title."""
    contents: array[int]
    """Hash of each content."""
    lengths: array[int]
    """Bytes of each record as JSON."""
    splits: bytes
    """Position in SPLITS of the split of each record."""
    fields: dict[str, bytes]
    """For each field of the metadata, of each record: 2 where it is a number, 1 where it is a text, 0 where it is not."""
    texts: dict[str, str]
    """A value of each field that has one that is no number."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Records rejected, by reason."""
    unreadable: list[Unreadable] = field(default_factory=list)
    """What could not be read, numbered from `start`."""


def clean_block(block: Block, data: DataConfig) -> tuple[BlockSummary, list[bytes]]:
    """Return the summary of a block and its clean records as JSON; duplicates stay, since any block may hold them."""
    import xxhash

    clean, least = CLEANERS[data.cleaning], data.min_content_chars
    names = data.metadata
    records, unreadable = block.read(data.read_title_from, data.read_content_from, names)
    rejected: Counter[str] = Counter()
    titles, contents, metadata = [], [], []
    for record in records:
        title, content = record.title, record.content
        if type(title) is not str or type(content) is not str:
            title, content = text_of(title), text_of(content)
            if title is None or content is None:
                rejected["not a text"] += 1
                continue
        # Cleaning only shortens.
        if len(content) < least and (reason := rejection(title.strip(), content.strip(), least)) is not None:
            rejected[reason] += 1
            continue
        title, content = clean(title), clean(content)
        if (reason := rejection(title, content, least)) is not None:
            rejected[reason] += 1
            continue
        titles.append(title)
        contents.append(content)
        if names:
            metadata.append(_kept_fields(names, record.metadata))
    make_record, encode_lines = _record_encoder(data.write_title_as, data.write_content_as)
    pairs = encode_lines(list(map(make_record, titles, contents))).split(b"\n")[:-1]
    texts = _with_metadata(pairs, metadata) if names else pairs
    hash_of = xxhash.xxh3_64_intdigest
    summary = BlockSummary(
        block.stored_bytes,
        block.start,
        array("Q", map(hash_of, pairs)),
        array("Q", map(hash_of, map(str.encode, titles))),
        array("Q", map(hash_of, map(str.encode, contents))),
        array("L", map(len, texts)),
        split_numbers(titles, data.validation_fraction, data.test_fraction),
        {name: bytes(name in fields and 1 + is_number(fields[name]) for fields in metadata) for name in names},
        _texts(names, metadata),
        rejected,
        unreadable,
    )
    return summary, texts


def clean_blocks(
    blocks: Iterable[Block],
    data: DataConfig,
    target: Path,
    processes: int,
    find_repeated: Callable[[BlockSummary], list[int]],
) -> None:
    """Clean blocks and write their records, without the duplicates, to a JSON array with one record a line.

    Args:
        blocks: the input.
        data: how to clean.
        target: an empty file.
        processes: how many clean; 1 is this process.
        find_repeated: is given the summary of each block, in their order, and returns the positions of duplicates.

    Raises:
        UserError: a process was killed, most likely for want of memory.
    """
    cleaned = _clean_here(blocks, data, target) if processes == 1 else _clean_there(blocks, data, target, processes)
    start, opening = 0, b"[\n"
    try:
        with contextlib.closing(cleaned):
            for summary, write in cleaned:
                repeated = set(find_repeated(summary))
                lengths: Sequence[int] = summary.lengths
                if repeated:
                    lengths = [length for n, length in enumerate(lengths) if n not in repeated]
                write(start, opening, repeated)
                if lengths:
                    start += len(opening) + sum(lengths) + len(RECORD_SEPARATOR) * (len(lengths) - 1)
                    opening = RECORD_SEPARATOR
    except (EOFError, ConnectionError) as error:
        message = "A process that cleaned was killed, most likely for want of memory. Use fewer --data.processes."
        raise UserError(message) from error
    with target.open("r+b") as file:
        file.seek(start)
        file.write(b"\n]\n" if start else b"[]\n")
        file.flush()
        os.fsync(file.fileno())


def text_of(value: object) -> str | None:
    """Return a value of a record as text, or None where it is not a text, a number, a boolean, or a list of these.

    The items of a list are joined with blanks. An object that has a `text` is that text, as in the messages of a chat.
    """
    if isinstance(value, str):
        return value
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return text_of(value["text"]) if "text" in value else None
    try:
        if isinstance(value, list):
            texts = list(map(text_of, value))
            return None if None in texts else " ".join(filter(None, texts))
        return str(value) if isinstance(value, (int, float, Decimal)) else None
    except (ValueError, RecursionError):  # a number of more than 4,300 digits; lists in one another
        return None


Write = Callable[[int, bytes, set[int]], None]
"""Writes a block at a position of the file, after some bytes, without the records at some positions."""


def _clean_here(
    blocks: Iterable[Block], data: DataConfig, target: Path
) -> Generator[tuple[BlockSummary, Write], None, None]:
    with target.open("r+b", buffering=0) as file:
        for block in blocks:
            summary, texts = clean_block(block, data)
            yield summary, functools.partial(_write_texts, file, texts)


def _clean_there(
    blocks: Iterable[Block], data: DataConfig, target: Path, processes: int
) -> Generator[tuple[BlockSummary, Write], None, None]:
    context = multiprocessing.get_context("spawn")  # the same on every system, and safe beside threads
    connections: list[Connection] = []
    started: list[Any] = []
    try:
        with interruption.delay_interrupts():
            for _ in range(processes):
                ours, theirs = context.Pipe()
                connections.append(ours)
                process = context.Process(target=_serve, args=(theirs, data, target), daemon=True)
                process.start()
                started.append(process)
                theirs.close()
        working: collections.deque[Connection] = collections.deque()
        for number, block in enumerate(blocks):
            connection = connections[number % processes]
            connection.send(block)
            working.append(connection)
            if len(working) == BLOCKS_PER_PROCESS * processes:
                yield _next_summary(working.popleft())
        while working:
            yield _next_summary(working.popleft())
        for connection in connections:
            connection.send(None)
            _receive(connection)
    finally:
        for connection in connections:
            connection.close()  # which ends the process
        for process in started:
            process.join()


def _next_summary(connection: Connection) -> tuple[BlockSummary, Write]:
    return _receive(connection), lambda *where: connection.send(where)


def _receive(connection: Connection) -> Any:
    answer = connection.recv()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _serve(connection: Connection, data: DataConfig, target: Path) -> None:
    """Clean the blocks that come and write them when told where, until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, on Windows too
    waiting: collections.deque[list[bytes]] = collections.deque()
    tasks = _tasks(connection)
    try:
        with target.open("r+b", buffering=0) as file:
            for task in tasks:
                if isinstance(task, Block):
                    summary, texts = clean_block(task, data)
                    waiting.append(texts)
                    connection.send(summary)
                elif task:
                    _write_texts(file, waiting.popleft(), *task)
                else:
                    connection.send(None)
    except Exception as error:
        with contextlib.suppress(ConnectionError):  # a parent that was interrupted listens no more
            connection.send(error)
        collections.deque(tasks, maxlen=0)  # the parent hears of the error when it next listens


def _tasks(connection: Connection) -> Iterator[Any]:
    # A thread empties the pipe, so that neither side waits for the other to read.
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    end = object()

    def receive() -> None:
        try:
            while True:
                tasks.put(connection.recv())
        except (EOFError, OSError):
            tasks.put(end)

    threading.Thread(target=receive, daemon=True).start()
    return iter(tasks.get, end)


def _write_texts(file: Any, texts: list[bytes], start: int, opening: bytes, repeated: set[int]) -> None:
    kept = [text for n, text in enumerate(texts) if n not in repeated] if repeated else texts
    rest = memoryview(opening + RECORD_SEPARATOR.join(kept)) if kept else b""
    file.seek(start)
    while rest:
        rest = rest[file.write(rest) :]


@functools.cache
def _record_encoder(title_key: str, content_key: str) -> tuple[type, Callable[[list[Any]], bytes]]:
    import msgspec

    names = {"title": title_key, "content": content_key}
    record_type = msgspec.defstruct("Record", [("title", str), ("content", str)], rename=names, gc=False)
    return record_type, msgspec.json.Encoder().encode_lines


def _kept_fields(names: tuple[str, ...], values: Sequence[object]) -> Metadata:
    found = zip(names, map(clean_value, values), strict=True)
    return {name: value for name, value in found if value is not None}


def _texts(names: tuple[str, ...], metadata: list[Metadata]) -> dict[str, str]:
    """Return the first value of each field that is no number."""
    texts = {}
    for name in names:
        values = (fields[name] for fields in metadata if name in fields)
        if (text := next((value for value in values if not is_number(value)), None)) is not None:
            texts[name] = value_text(text)
    return texts


def _with_metadata(pairs: list[bytes], metadata: list[Metadata]) -> list[bytes]:
    """Return records of title and content as JSON with the keys of their metadata added."""
    import msgspec

    added = map(msgspec.json.Encoder().encode, metadata)
    return [
        pair[:-1] + b"," + fields[1:] if fields != b"{}" else pair for pair, fields in zip(pairs, added, strict=True)
    ]
