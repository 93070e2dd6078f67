"""Stage 1: clean the raw records.

Reads any of JSON Lines, JSON array, CSV or Parquet, plain or gzip (--data.input). Writes trn_processed.json (a JSON
array with one record a line), rejected.jsonl (what could not be read, and why) and a manifest with the counts.

    python process_data.py --data.input my_products.jsonl
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from tqdm import tqdm

from config import Config, DataConfig
from pipeline.data import opening, readers
from pipeline.data.block_cleaning import BlockSummary, clean_blocks
from pipeline.data.blocks import Block
from pipeline.data.duplicates import DistinctCount, SeenHashes
from pipeline.data.records import SPLITS
from pipeline.data.rows import Suspect, Unreadable
from pipeline.run import files, manifests, run_folder
from pipeline.run.command_line import run_stage
from pipeline.run.errors import UserError
from pipeline.run.run_folder import shell_line

REASONS = ("not a text", "empty title", "empty content", "too short", "duplicate", "unreadable")
MEMORISATION_SHARE = 0.5  # above this share of repeated pairs, a model learns them by heart
WORTH_PROCESSES = 16 << 20  # bytes of input from which starting processes pays
MOST_EXPECTED = 1 << 26  # records that there is room for from the start; gzip can make a first block very small
MOST_PROCESSES = 8  # what one process can merge


def run(config: Config) -> Path:
    """Clean the records of config.data.input into trn_processed.json and return its path."""
    source, target, data = config.data.input, config.run_dir / run_folder.PROCESSED, config.data
    size = readers.input_size(source)
    recognised = recognise(data)
    if told := recognised.sentence():
        print(told, flush=True)
    with manifests.stage_manifest(config, "process_data", [source], [target.name]) as metrics:
        with (
            files.atomic_path(target) as temporary,
            files.atomic_write(config.run_dir / run_folder.REJECTED, "wb") as rejected,
            tqdm(total=size, unit="B", unit_scale=True, desc="Cleaning", dynamic_ncols=True) as bar,
        ):
            census, lines = Census(data, size), readers.LineCounter(source, recognised.encoding)

            def note(block: BlockSummary) -> list[int]:
                bar.update(block.stored_bytes)
                for unreadable in block.unreadable:
                    number = lines.before(block.start) + unreadable.number
                    census.reject_unreadable(unreadable._replace(number=number), rejected)
                return census.add(block)

            temporary.touch()
            blocks = readers.blocks(source, data.read_title_from, data.read_content_from, data.metadata, recognised)
            blocks = census.with_suspects(blocks)
            clean_blocks(blocks, data, temporary, data.processes or default_processes(size), note)
            check_any_record(recognised, data, census)
            # What reads the records takes their keys and splits from the manifest.
            manifests.withdraw_manifest(run_folder.RunFolder.of(config), "process_data")
        metrics.update(census.as_metrics())
    print_census(census, data)
    return target


def recognise(data: DataConfig) -> readers.Recognised:
    """Return how the input is to be read."""
    return readers.recognise(
        data.input,
        (data.read_title_from, data.read_content_from, *data.metadata),
        None if data.encoding == "auto" else opening.canonical_encoding(data.encoding),
        {"auto": None, "tab": "\t"}.get(data.separator, data.separator),
        data.header_line,
    )


def default_processes(size: int) -> int:
    """Return how many processes clean an input of so many bytes."""
    if size < WORTH_PROCESSES:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_PROCESSES)


def check_any_record(recognised: readers.Recognised, data: DataConfig, census: Census) -> None:
    """Raise a UserError that says what is wrong with the input if nothing of it, or of a field, could be used."""
    source = data.input
    if census.written:
        check_every_field(recognised, data, census)
        return
    if census.records == 0:
        raise UserError(f"{source} holds no record.")
    if census.rejected["unreadable"] == census.records:
        raise UserError(f"{source}: not one record could be read; {census.first_problem}.")
    wanted = {data.read_title_from: "--data.read-title-from", data.read_content_from: "--data.read-content-from"}
    names = readers.field_names(source, data.read_title_from, data.read_content_from, recognised=recognised)
    for key, option in wanted.items():
        if key not in names:
            found = ", ".join(names[:12])
            meant = [name for name in names if name.strip().casefold() == key.strip().casefold()]
            command = shell_line([option, *meant[:1]])
            raise UserError(f"{source}: no record has a field {key!r}; it has {found}. Name it with {command}.")
    for key, option in wanted.items():
        within = [name for name in names if name.startswith(f"{key}.")]
        if census.rejected["not a text"] and within:
            raise UserError(
                f"{source}: the field {key!r} is no text, but has {', '.join(within[:12])} in it. Name one, such as "
                f"{option} {within[0]}."
            )
    least = f": --data.min-content-chars {data.min_content_chars}"
    counts = ", ".join(
        f"{count} {reason}{least if reason == 'too short' else ''}"
        for reason, count in census.rejected.items()
        if count
    )
    raise UserError(f"{source}: all {census.records} records were rejected ({counts}).")


def check_every_field(recognised: readers.Recognised, data: DataConfig, census: Census) -> None:
    """Raise a UserError if no record has a value in one of the fields of the metadata."""
    for name in data.metadata:
        if not census.fields[name]:
            names = readers.field_names(data.input, data.read_title_from, data.read_content_from, recognised=recognised)
            found = ", ".join(names[:12])
            raise UserError(
                f"{data.input}: no record has a text, a number, a boolean or a list of them in a field {name!r} "
                f"(--data.metadata); the fields are {found}."
            )


def print_census(census: Census, data: DataConfig) -> None:
    """Print how many records were kept, why others were not, and how much of the data repeats."""
    width = max(len(f"{census.records:,}"), 7)

    def line(name: str, count: int, about: bool = False, setting: str = "") -> None:
        print(f"{name:<22}{count:>{width},}{' (about)' if about else ''}{setting}")

    print()
    line("records read", census.records)
    for reason in REASONS:
        setting = f"  (--data.min-content-chars {data.min_content_chars})" if reason == "too short" else ""
        line(f"  - {reason}", census.rejected[reason], setting=setting)
    line("records written", census.written)
    for split in SPLITS:
        line(f"  of them {split}", census.splits[split])
    for name in data.metadata:
        line(f"  with {name}", census.fields[name])
    titles, contents, pairs = census.titles, census.contents, census.pairs
    line("distinct titles", titles.distinct, not titles.exact)
    line("distinct contents", contents.distinct, not contents.exact)
    line("contents that repeat", contents.total - contents.distinct, not contents.exact)
    for name in data.metadata:
        if 0 < census.numbers[name] < census.fields[name]:
            print(
                f"{name}: {census.fields[name] - census.numbers[name]:,} of {census.fields[name]:,} do not read as a number, "
                f"such as {census.texts[name]!r}; a condition such as {name}<20 does not find them."
            )
    if census.rejected["not a text"]:
        print(
            "Where a title or content is an object, --data.read-title-from and --data.read-content-from can name a field "
            "in it, such as content.body."
        )
    if census.rejected["unreadable"]:
        print("Unreadable records are listed in rejected.jsonl; the first is " + census.first_problem + ".")
    if census.suspects:
        worst = census.worst_suspect
        lines = f"lines {worst.number:,} to {worst.number + worst.lines - 1:,} hold {worst.rows:,}"
        print(
            f"\nWarning: {census.suspects:,} records of several lines hold lines that would be rows by themselves; {lines}. "
            "Where texts have no line breaks, a stray quote has swallowed them: mend it in the file."
        )
    if pairs.distinct < MEMORISATION_SHARE * pairs.total:
        print(
            f"\nWarning: these {pairs.total:,} records hold only {pairs.distinct:,} distinct pairs. A model trained on "
            "them learns them by heart, and held-out records measure nothing that is new."
        )
        if not data.deduplicate:
            print(f"They are kept as they are; --data.deduplicate leaves {pairs.distinct:,}.")
    for split, setting in (("validation", "validation-fraction"), ("test", "test-fraction")):
        if not census.splits[split]:
            print(f"\nWarning: no record is in the {split} split. Raise --data.{setting} or bring more data.")


class Census:
    """Counts of what was read, written and rejected, and of what repeats."""

    def __init__(self, data: DataConfig, input_size: int) -> None:
        """Make a census of an input of so many bytes."""
        self.written = 0
        self.rejected: Counter[str] = Counter()
        self.fields: Counter[str] = Counter()
        self.numbers: Counter[str] = Counter()
        self.texts: dict[str, str] = {}
        self._splits: Counter[int] = Counter()
        self.first_problem = ""
        self.suspects = 0
        self.worst_suspect = Suspect(0, 0, 0)
        self.titles, self.contents, self.pairs = DistinctCount(), DistinctCount(), DistinctCount()
        self._input_size = input_size
        self._deduplicate = data.deduplicate
        self._seen: SeenHashes | None = None

    @property
    def records(self) -> int:
        """Records read."""
        return self.written + self.rejected.total()

    def add(self, block: BlockSummary) -> list[int]:
        """Count a block and return the positions of records that were seen before, if duplicates are to go."""
        self.rejected.update(block.rejected)
        self.titles.add(block.titles)
        self.contents.add(block.contents)
        self.pairs.add(block.records)
        repeated = self._seen_before(block) if self._deduplicate else []
        self.rejected["duplicate"] += len(repeated)
        self.written += len(block.records) - len(repeated)
        self._splits.update(block.splits)
        self._splits.subtract(block.splits[position] for position in repeated)
        gone = set(repeated)
        for name, held in block.fields.items():
            written = held if not repeated else bytes(n for i, n in enumerate(held) if i not in gone)
            self.fields[name] += len(written) - written.count(0)
            self.numbers[name] += written.count(2)
        self.texts = block.texts | self.texts
        return repeated

    def with_suspects(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Yield blocks, and note which of their records may have swallowed rows."""
        for block in blocks:
            self.suspects += len(block.suspects)
            self.worst_suspect = max([self.worst_suspect, *block.suspects], key=lambda suspect: suspect.rows)
            yield block

    def reject_unreadable(self, unreadable: Unreadable, file: IO[bytes]) -> None:
        """Count what could not be read and note it in rejected.jsonl."""
        import msgspec

        self.rejected["unreadable"] += 1
        self.first_problem = self.first_problem or f"record {unreadable.number}: {unreadable.problem}"
        note = {"line": unreadable.number, "problem": unreadable.problem, "raw": unreadable.raw}
        if unreadable.lines > 1:
            note["lines"] = unreadable.lines
        file.write(msgspec.json.encode(note) + b"\n")

    @property
    def splits(self) -> dict[str, int]:
        """Records written, by split."""
        return {split: self._splits[position] for position, split in enumerate(SPLITS)}

    def _seen_before(self, block: BlockSummary) -> list[int]:
        if self._seen is None and block.records:
            blocks = self._input_size / max(block.stored_bytes, 1)
            self._seen = SeenHashes(expected=min(int(blocks * len(block.records)), MOST_EXPECTED))
        return self._seen.add(block.records) if self._seen is not None else []

    def as_metrics(self) -> dict[str, object]:
        """Return the counts for the manifest."""
        return {
            "records_read": self.records,
            "records_written": self.written,
            "rejected": {reason: self.rejected[reason] for reason in REASONS},
            "splits": self.splits,
            "records_that_hold_rows": self.suspects,
            "metadata": dict(self.fields),
            "numbers": dict(self.numbers),
            "distinct_titles": self.titles.distinct,
            "distinct_contents": self.contents.distinct,
            "distinct_pairs": self.pairs.distinct,
        }


def main() -> None:
    """Run the stage from the command line."""
    run_stage("process_data", __doc__, run)


if __name__ == "__main__":
    main()
