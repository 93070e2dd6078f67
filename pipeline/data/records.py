"""The cleaned records: write them, read them, and tell which split a record is in."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.data.cleaning import CLEANERS, normalise_title
from pipeline.data.metadata import Metadata, Value
from pipeline.run.files import atomic_write
from pipeline.run.manifests import guard_against_rerun, read_manifest, require_unchanged
from pipeline.run.run_folder import PROCESSED, RunFolder

RECORD_SEPARATOR = b",\n"
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class ProcessedData:
    """What stage 1 left behind, with the keys and the splits it was made with."""

    run: RunFolder
    """Where stage 1 has made it."""
    path: Path
    title_key: str
    content_key: str
    validation_fraction: float
    test_fraction: float
    cleaning: Literal["default", "light", "verbatim", "legacy"]
    metadata: tuple[str, ...] = ()
    """Keys of the other fields that records may have."""
    manifest: dict[str, Any] = field(default_factory=dict, repr=False)
    """What stage 1 noted of them."""

    @property
    def digest(self) -> str:
        """Return the hash of the file, which open_processed has compared with what is there."""
        return self.manifest["outputs"][self.path.name]

    def clean(self, text: str) -> str:
        """Clean a title that a user asks about as the titles of the data were cleaned."""
        return CLEANERS[self.cleaning](text)

    def unchanged(self) -> AbstractContextManager[None]:
        """Return the context of a block that reads the records; a UserError ends it if stage 1 ran meanwhile."""
        return guard_against_rerun(self.run, "process_data", self.manifest)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield (title, content) of every record, in constant memory."""
        return ((record.title, record.content) for _, record in self._read(()))

    def with_metadata(self) -> Iterator[tuple[str, str, Metadata]]:
        """Yield (title, content, metadata) of every record, in constant memory."""
        import msgspec

        for _, record in self._read(self.metadata):
            title, content, *values = msgspec.structs.astuple(record)
            found = zip(self.metadata, values, strict=True)
            yield title, content, {name: value for name, value in found if value is not None}

    def with_places(self) -> Iterator[tuple[int, str, str]]:
        """Yield (place, title, content) of every record, in constant memory; places are what `at` is told."""
        return ((place, record.title, record.content) for place, record in self._read(()))

    def at(self, places: Iterable[int]) -> Iterator[tuple[str, str]]:
        """Yield (title, content) of the records at some places of the file, each read when it is asked for."""
        decode = _decoder(self.title_key, self.content_key, ())
        with self.path.open("rb") as file:
            for place in places:
                file.seek(place)
                record = self._decoded(decode, file.readline().rstrip(b",\n"), f"byte {place}")
                yield record.title, record.content

    def _read(self, metadata: tuple[str, ...]) -> Iterator[tuple[int, Any]]:
        decode = _decoder(self.title_key, self.content_key, metadata)
        following = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                place, following = following, following + len(line)
                line = line.rstrip(b",\n")
                if line not in (b"[", b"]", b"[]"):
                    yield place, self._decoded(decode, line, f"line {number}")

    def _decoded(self, decode: Callable[[bytes], Any], line: bytes, where: str) -> Any:
        import msgspec

        try:
            return decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            problem = f"{self.path}, {where}, is not a record of process_data.py."
            raise self.run.stage_needed(problem, "process_data", again=True) from error

    def split_of(self, title: str) -> Split:
        """Return the split that holds every record with this title."""
        return split_of(title, self.validation_fraction, self.test_fraction)

    def sample(self, split: Split, size: int | None, seed: int) -> list[tuple[str, str]]:
        """Draw records of a split at random, in one pass and with memory for the sample only; None takes all."""
        records = (record for record in self if self.split_of(record[0]) == split)
        if size is None:
            return list(records)
        return reservoir_sample(records, size, random.Random(f"{seed}/{split}"))


@functools.cache
def _decoder(title_key: str, content_key: str, metadata: tuple[str, ...]) -> Callable[[bytes], Any]:
    """Return the function from a line to its record: title, content, field_0 and so on."""
    import msgspec

    fields = [(f"field_{n}", Value | None, None) for n in range(len(metadata))]
    keys = {"title": title_key, "content": content_key}
    keys |= {field: name for (field, _, _), name in zip(fields, metadata, strict=True)}
    record_type = msgspec.defstruct("Record", [("title", str), ("content", str), *fields], rename=keys, gc=False)
    return msgspec.json.Decoder(record_type).decode


def open_processed(run: RunFolder) -> ProcessedData:
    """Return the cleaned data of a run; a UserError if process_data.py has not made it, or it is another since."""
    path = require_unchanged(run, PROCESSED)
    manifest = read_manifest(run, "process_data")
    data = manifest["settings"]["data"]
    return ProcessedData(
        run=run,
        path=path,
        title_key=data["write_title_as"],
        content_key=data["write_content_as"],
        validation_fraction=data["validation_fraction"],
        test_fraction=data["test_fraction"],
        cleaning=data["cleaning"],
        metadata=tuple(data.get("metadata", ())),  # manifests of old have none
        manifest=manifest,
    )


def split_of(title: str, validation_fraction: float, test_fraction: float) -> Split:
    """Return the split of a title: a hash decides, so a rerun never moves a record and duplicates stay together."""
    return SPLITS[split_numbers([title], validation_fraction, test_fraction)[0]]


def split_numbers(titles: Iterable[str], validation_fraction: float, test_fraction: float) -> bytes:
    """Return the position in SPLITS of the split of each title."""
    test, held_out = map(_as_digest, (test_fraction, test_fraction + validation_fraction))
    hashed = (hashlib.blake2b(normalise_title(t).encode("utf-8", "replace"), digest_size=8).digest() for t in titles)
    return bytes([2 if digest < test else 1 if digest < held_out else 0 for digest in hashed])


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


def _as_digest(fraction: float) -> bytes:
    # Digests are compared as bytes, which takes a tenth of the time of comparing them as numbers.
    return int(fraction * 2**64).to_bytes(8, "big")


@contextlib.contextmanager
def array_writer(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that adds JSON texts, joined by RECORD_SEPARATOR, to an array with one record a line.

    The file appears when all is written.
    """
    with atomic_write(path, "wb") as file:
        separator = b"[\n"

        def write(encoded: bytes) -> None:
            nonlocal separator
            if encoded:
                file.write(separator)
                file.write(encoded)
                separator = RECORD_SEPARATOR

        yield write
        file.write(b"[]\n" if separator == b"[\n" else b"\n]\n")
