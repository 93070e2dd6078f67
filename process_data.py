"""Stage 1: clean the raw records.

Reads any of JSON Lines, JSON array, CSV or Parquet, plain or gzip (--data.input). Writes trn_processed.json (a JSON
array with one record a line), rejected.jsonl (what could not be read, and why) and a manifest with the counts.

    python process_data.py --data.input my_products.jsonl
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from config import Config, DataConfig
from pipeline import artifacts, records
from pipeline.cleaning import CLEANERS, rejection
from pipeline.command_line import run_stage

REASONS = ("empty title", "empty content", "too short", "duplicate", "unreadable")
MEMORISATION_SHARE = 0.5  # above this share of repeated pairs, a model learns them by heart


def run(config: Config) -> Path:
    """Clean the records of config.data.input into trn_processed.json and return its path."""
    source, target = config.data.input, config.run_dir / "trn_processed.json"
    total = records.input_size(source)
    with artifacts.stage_manifest(config.run_dir, "process_data", {"data": config.data}, [source]) as metrics:
        with (
            records.record_writer(target) as write,
            artifacts.atomic_write(config.run_dir / "rejected.jsonl", "wb") as rejected,
            tqdm(total=total, unit="B", unit_scale=True, desc="Cleaning", dynamic_ncols=True) as bar,
        ):
            census = clean_records(records.read_records(source, bar.update), config.data, write, rejected)
            check_any_record(source, config.data, census)
        metrics.update(census.as_metrics())
    print_census(census, config.data)
    return target


def clean_records(source: Any, data: DataConfig, write: Any, rejected: Any) -> Census:
    """Clean every record of `source`; pass the good ones to `write`, note unreadable ones in the file `rejected`."""
    import orjson

    cleaner = CLEANERS[data.cleaning]
    census = Census()
    for record in source:
        census.records += 1
        if record.fields is None:
            census.reject("unreadable", f"record {record.number}: {record.problem}")
            note = {"line": record.number, "problem": record.problem, "raw": record.raw}
            rejected.write(orjson.dumps(note) + b"\n")
            continue
        census.keys.update(record.fields)
        title = cleaner(_text(record.fields.get(data.read_title_from)))
        content = cleaner(_text(record.fields.get(data.read_content_from)))
        reason = rejection(title, content, data.min_content_chars)
        if reason is None and census.seen_before(title, content) and data.deduplicate:
            reason = "duplicate"
        if reason:
            census.reject(reason)
            continue
        census.written += 1
        write({data.write_title_as: title, data.write_content_as: content})
        census.splits[records.split_of(title, data.validation_fraction, data.test_fraction)] += 1
    return census


def check_any_record(source: Path, data: DataConfig, census: Census) -> None:
    """Raise a UserError that says what is wrong with the input if nothing of it could be used."""
    if census.written:
        return
    if census.records == 0:
        raise artifacts.UserError(f"{source} holds no record.")
    if census.rejected["unreadable"] == census.records:
        raise artifacts.UserError(f"{source}: not one record could be read; {census.first_problem}.")
    wanted = {data.read_title_from: "--data.read-title-from", data.read_content_from: "--data.read-content-from"}
    for key, option in wanted.items():
        if key not in census.keys:
            found = ", ".join(sorted(map(str, census.keys))[:12])
            raise artifacts.UserError(
                f"{source}: no record has a field {key!r}; it has {found}. Name it with {option}."
            )
    counts = ", ".join(f"{count} {reason}" for reason, count in census.rejected.items())
    raise artifacts.UserError(f"{source}: all {census.records} records were rejected ({counts}).")


def print_census(census: Census, data: DataConfig) -> None:
    """Print how many records were kept, why others were not, and how much of the data repeats."""
    width = max(len(f"{census.records:,}"), 7)
    print(f"\n{'records read':<22}{census.records:>{width},}")
    for reason in REASONS:
        print(f"  {'- ' + reason:<20}{census.rejected[reason]:>{width},}")
    print(f"{'records written':<22}{census.written:>{width},}")
    for split in ("train", "validation", "test"):
        print(f"  {'of them ' + split:<20}{census.splits[split]:>{width},}")
    repeated = census.complete - len(census.contents)
    print(f"{'distinct titles':<22}{len(census.titles):>{width},}")
    print(f"{'distinct contents':<22}{len(census.contents):>{width},}")
    print(f"{'contents that repeat':<22}{repeated:>{width},}")
    if census.rejected["unreadable"]:
        print("Unreadable records are listed in rejected.jsonl; the first is " + census.first_problem + ".")
    pairs = len(census.pairs)
    if pairs < MEMORISATION_SHARE * census.complete:
        print(
            f"\nWarning: these {census.complete:,} records hold only {pairs:,} distinct pairs. A model trained on them "
            "learns them by heart, and held-out records measure nothing that is new."
        )
        if not data.deduplicate:
            print(f"They are kept as they are; --data.deduplicate leaves {pairs:,}.")
    for split, setting in (("validation", "validation-fraction"), ("test", "test-fraction")):
        if not census.splits[split]:
            print(f"\nWarning: no record is in the {split} split. Raise --data.{setting} or bring more data.")


@dataclass
class Census:
    """Counts of what was read, written and rejected; hashes tell what repeats."""

    records: int = 0
    written: int = 0
    complete: int = 0
    """Records that had a title and enough content, duplicates included."""
    rejected: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    first_problem: str = ""
    keys: set[str] = field(default_factory=set)
    titles: set[int] = field(default_factory=set)
    contents: set[int] = field(default_factory=set)
    pairs: set[int] = field(default_factory=set)

    def reject(self, reason: str, problem: str = "") -> None:
        """Count a rejected record."""
        self.rejected[reason] += 1
        self.first_problem = self.first_problem or problem

    def seen_before(self, title: str, content: str) -> bool:
        """Note a complete record and tell whether the same pair was noted before."""
        self.complete += 1
        title_hash, content_hash = _hash(title), _hash(content)
        pair = hash((title_hash, content_hash))
        self.titles.add(title_hash)
        self.contents.add(content_hash)
        known = pair in self.pairs
        self.pairs.add(pair)
        return known

    def as_metrics(self) -> dict[str, object]:
        """Return the counts for the manifest."""
        return {
            "records_read": self.records,
            "records_written": self.written,
            "rejected": {reason: self.rejected[reason] for reason in REASONS},
            "splits": dict(self.splits),
            "distinct_titles": len(self.titles),
            "distinct_contents": len(self.contents),
            "distinct_pairs": len(self.pairs),
        }


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return " ".join(_text(item) for item in value)
    return value if isinstance(value, str) else str(value)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def main() -> None:
    """Run the stage from the command line."""
    run_stage("process_data", __doc__, run, "foundation_model")


if __name__ == "__main__":
    main()
