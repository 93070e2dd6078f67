"""Read any input as a stream of records, write records, and tell which split a record is in."""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import json
import math
import os
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.artifacts import UserError, atomic_write, read_manifest, require
from pipeline.cleaning import CLEANERS, normalise_title

MAX_LINE_BYTES = 8 << 20
SHOWN_OF_UNREADABLE = 1000  # characters of an unreadable line that are kept
PARQUET = (".parquet", ".pq")
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", *PARQUET)

Split = Literal["train", "validation", "test"]
Advance = Callable[[int], object]


class RawRecord(NamedTuple):
    """A record of the input, or why it could not be read."""

    number: int
    """Line of a text file, or position in an array or table, from 1."""
    fields: dict[str, Any] | None
    problem: str | None = None
    raw: str = ""
    """The beginning of a line that could not be read."""


@dataclass(frozen=True)
class ProcessedData:
    """What stage 1 left behind, with the keys and the splits it was made with."""

    path: Path
    title_key: str
    content_key: str
    validation_fraction: float
    test_fraction: float
    cleaning: Literal["default", "legacy"]

    def clean(self, text: str) -> str:
        """Clean a title that a user asks about as the titles of the data were cleaned."""
        return CLEANERS[self.cleaning](text)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield (title, content) of every record, in constant memory."""
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                line = line.strip().rstrip(",")
                if line in ("[", "]", "[]"):
                    continue
                try:
                    record = json.loads(line)
                    yield record[self.title_key], record[self.content_key]
                except (ValueError, KeyError, TypeError) as error:
                    message = (
                        f"{self.path}, line {number}, is not a record of process_data.py. Run process_data.py again."
                    )
                    raise UserError(message) from error

    def split_of(self, title: str) -> Split:
        """Return the split that holds every record with this title."""
        return split_of(title, self.validation_fraction, self.test_fraction)

    def sample(self, split: Split, size: int | None, seed: int) -> list[tuple[str, str]]:
        """Draw records of a split at random, in one pass and with memory for the sample only; None takes all."""
        records = (record for record in self if self.split_of(record[0]) == split)
        if size is None:
            return list(records)
        return reservoir_sample(records, size, random.Random(f"{seed}/{split}"))


def open_processed(run_dir: Path) -> ProcessedData:
    """Return the cleaned data of a run, or say that process_data.py makes it."""
    path = require(run_dir / "trn_processed.json", "process_data")
    data = read_manifest(run_dir, "process_data")["settings"]["data"]
    return ProcessedData(
        path=path,
        title_key=data["write_title_as"],
        content_key=data["write_content_as"],
        validation_fraction=data["validation_fraction"],
        test_fraction=data["test_fraction"],
        cleaning=data["cleaning"],
    )


def split_of(title: str, validation_fraction: float, test_fraction: float) -> Split:
    """Return the split of a title: a hash decides, so a rerun never moves a record and duplicates stay together."""
    digest = hashlib.blake2b(normalise_title(title).encode("utf-8", "replace"), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"


def reservoir_sample(items: Iterable[Any], size: int, rng: random.Random) -> list[Any]:
    """Return `size` items, each set of them equally likely, in the order of the input (Li 1994, algorithm L)."""
    iterator = enumerate(items)
    kept = [item for _, item in zip(range(size), iterator, strict=False)]
    if len(kept) == size and size > 0:
        weight = rng.random() ** (1 / size)
        skip = int(math.log(rng.random()) / math.log(1 - weight))
        for item in iterator:
            if skip:
                skip -= 1
                continue
            kept[rng.randrange(size)] = item
            weight *= rng.random() ** (1 / size)
            skip = int(math.log(rng.random()) / math.log(1 - weight))
    return [item for _, item in sorted(kept, key=lambda pair: pair[0])]


@contextlib.contextmanager
def record_writer(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that adds a record to a JSON array with one record a line; the file appears when all is written."""
    import orjson

    with atomic_write(path, "wb") as file:
        first = True

        def write(record: dict[str, Any]) -> None:
            nonlocal first
            file.write(b"[\n" if first else b",\n")
            file.write(orjson.dumps(record))
            first = False

        yield write
        file.write(b"[]\n" if first else b"\n]\n")


def input_size(path: Path) -> int:
    """Return the bytes that read_records will report on its way, after checking that there is something to read."""
    if not path.exists():
        raise UserError(
            f"{path} does not exist. Name your file with --data.input; data/README.md says where dumps are."
        )
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file with --data.input.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty.")
    form(path)
    return path.stat().st_size


def form(path: Path) -> str:
    """Return the suffix that decides how a file is read, without .gz."""
    compressed = path.suffix.lower() == ".gz"
    suffix = path.with_suffix("").suffix if compressed else path.suffix
    if compressed and suffix.lower() in PARQUET:
        raise UserError(f"{path}: Parquet is compressed inside and not read through gzip. Decompress it first.")
    if suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{path} has none of the endings {', '.join(SUFFIXES)} (and .gz after it). Rename or convert it."
        )
    return suffix.lower()


def read_records(path: Path, advance: Advance = lambda _: None) -> Iterator[RawRecord]:
    """Yield every record of a file, one at a time.

    Args:
        path: JSON Lines, JSON array, CSV, TSV or Parquet, plain or gzip; the ending says which.
        advance: called with the number of bytes read since the last call; they add up to the size of the file.
    """
    kind = form(path)
    if kind in PARQUET:
        yield from _read_parquet(path, advance)
        return
    with path.open("rb", buffering=1 << 20) as stored:
        file = io.BufferedReader(gzip.GzipFile(fileobj=stored), 1 << 20) if path.suffix.lower() == ".gz" else stored
        try:
            yield from _reporting(_text_records(file, path, kind), stored, advance)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path} is not a complete gzip file ({error}). Download or compress it again.") from error


def _text_records(file: io.BufferedReader, path: Path, kind: str) -> Iterator[RawRecord]:
    if kind in (".csv", ".tsv"):
        return _read_csv(file)
    start = file.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    return _read_json_array(file, path) if start.startswith(b"[") else _read_json_lines(file)


def _reporting(records: Iterator[RawRecord], file: io.BufferedReader, advance: Advance) -> Iterator[RawRecord]:
    reported, size = 0, os.fstat(file.fileno()).st_size
    for index, record in enumerate(records):
        if index % 256 == 0:
            position = file.tell()
            advance(position - reported)
            reported = position
        yield record
    advance(size - reported)


def _read_json_lines(file: io.BufferedReader) -> Iterator[RawRecord]:
    import orjson

    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            shown = _shown(line)
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield RawRecord(number, None, f"line longer than {MAX_LINE_BYTES >> 20} MiB", shown)
            continue
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield RawRecord(number, None, f"not JSON: {error}", _shown(line))
            continue
        yield _as_record(number, value, line)


def _read_json_array(file: io.BufferedReader, path: Path) -> Iterator[RawRecord]:
    import ijson

    if file.peek(3).startswith(b"\xef\xbb\xbf"):
        file.read(3)
    number = 0
    try:
        for value in ijson.items(file, "item", use_float=True):
            number += 1
            yield _as_record(number, value, None)
    except (ijson.JSONError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is a JSON array that breaks off after record {number} ({reason}). Repair it."
        ) from error


def _read_csv(file: io.BufferedReader) -> Iterator[RawRecord]:
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
            return
        except csv.Error as error:
            yield RawRecord(reader.line_num, None, f"not CSV: {error}")
            continue
        extra = row.pop(None, None)  # type: ignore[call-overload]
        if extra is not None or None in row.values():
            yield RawRecord(reader.line_num, None, "another number of columns than the header", _shown(str(row)))
        else:
            yield _as_record(reader.line_num, row, None)


def _read_parquet(path: Path, advance: Advance) -> Iterator[RawRecord]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        rows, size, number = max(table.metadata.num_rows, 1), path.stat().st_size, 0
        for batch in table.iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                number += 1
                yield _as_record(number, value, None)
            advance(size * len(batch) // rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}).") from error


def _as_record(number: int, value: object, line: bytes | None) -> RawRecord:
    if not isinstance(value, dict):
        problem = f"{type(value).__name__} instead of an object"
    elif any(isinstance(text, str) and not _is_utf8(text) for text in value.values()):
        problem = "invalid UTF-8"
    else:
        return RawRecord(number, value)
    return RawRecord(number, None, problem, _shown(line if line is not None else str(value)))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(raw: bytes | str) -> str:
    text = raw[: 4 * SHOWN_OF_UNREADABLE].decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    return text[:SHOWN_OF_UNREADABLE].encode("utf-8", "replace").decode().rstrip("\n")
