"""Cleaning a dump: process_data.py against the way it was done before.

Builds seeded dumps in the layout of the Amazon catalogue, or takes yours, and cleans each with both, in turns: the way
before is `json` into a list, `re` and `html`, a set of pairs, `json.dump`. Checks that both write the same records, and
prints medians, ratios and the peak memory of all processes.

    python benchmarks/process_data.py --lines 10000 200000 2250000
"""

from __future__ import annotations

import html
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import psutil
import tyro

from config import PROJECT_DIR

NOISE = {  # share of the contents that hold it, near what 11,823 real contents of such a catalogue hold
    "&#8217;s": 0.04, "&amp;": 0.04, "<br />": 0.02, "</p> <p>": 0.01, "\n": 0.02, "  ": 0.02, "café": 0.03,
}  # fmt: skip
LEAST_CHARACTERS = 40


@dataclass(frozen=True)
class Benchmark:
    """What to measure."""

    lines: tuple[int, ...] = (10_000, 200_000)
    """Sizes of the dumps that are built."""
    dump: Path | None = None
    """A JSON Lines file of yours, instead."""
    rounds: int = 3
    """Runs of each, in turns."""


@dataclass(frozen=True)
class Before:
    """Clean a dump the way it was done before."""

    source: tyro.conf.Positional[Path]
    target: tyro.conf.Positional[Path]
    cleaning: tyro.conf.Positional[Literal["light", "default"]]


def write_dump(path: Path, lines: int, seed: int = 3407) -> None:
    """Write a dump with titles and contents of random words, noise, empty contents and duplicates."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("aeiourstlnmdcpbgh", k=rng.randint(2, 10))) for _ in range(5000)]
    with path.open("wb") as file:
        for number in range(lines):
            if number % 200 != 1:
                title = " ".join(rng.choices(words, k=rng.randint(3, 12))).title()
                length = rng.choices((0, rng.randint(2, 6), rng.randint(15, 150)), (10, 10, 80))[0]
                content = rng.choices(words, k=length)
                for noise, share in NOISE.items():
                    if content and rng.random() < share:
                        content[rng.randrange(length)] = noise
            record = {"uid": f"{number:010}", "title": title, "content": " ".join(content)}
            record |= {"target_ind": rng.choices(range(lines), k=4), "target_rel": [1.0] * 4}
            file.write(msgspec.json.encode(record) + b"\n")


def clean_as_before(work: Before) -> None:
    """Load everything, clean every text with every expression, write everything."""
    with work.source.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]

    def clean(text: str) -> str:
        text = re.sub(r"<[^>]+>", " ", html.unescape(text))
        if work.cleaning == "default":
            text = re.sub(r"\s+", " ", text)
        return text.strip()

    seen, kept = set(), []
    for row in rows:
        title, content = clean(row["title"]), clean(row["content"])
        if title and len(content) >= LEAST_CHARACTERS and (title, content) not in seen:
            seen.add((title, content))
            kept.append({"product": title, "description": content})
    with work.target.open("w", encoding="utf-8") as file:
        json.dump(kept, file)


def measure(command: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds and the peak memory of it and its processes in MB, shared pages counted once."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=PROJECT_DIR) as process:
        while process.poll() is None:
            memory = 0
            try:
                root = psutil.Process(process.pid)
                for part in [root, *root.children(recursive=True)]:
                    memory += part.memory_full_info().pss
            except psutil.Error:
                pass  # it has just ended
            peak = max(peak, memory)
            time.sleep(0.1)
        seconds = time.perf_counter() - started
        if process.returncode:
            raise SystemExit(process.stderr.read().decode())
    return seconds, peak / 1e6


def equal_records(one: Path, other: Path) -> str:
    """Say how many records of two JSON arrays are the same."""
    left, right = ({tuple(record.values()) for record in json.loads(path.read_bytes())} for path in (one, other))
    return "the same records" if left == right else f"{len(left & right):,} of {len(left | right):,} records the same"


def compare(source: Path, folder: Path, lines: int, rounds: int) -> None:
    """Print a row for each cleaning of one dump."""
    for cleaning in ("light", "default"):
        before, now = folder / "before.json", folder / "demo" / "trn_processed.json"
        commands = {
            "before": [sys.executable, __file__, "before", str(source), str(before), cleaning],
            "now": [
                sys.executable, "process_data.py", "--data.input", str(source), "--output-dir", str(folder),
                "--data.cleaning", cleaning, "--data.min-content-chars", str(LEAST_CHARACTERS),
            ],
        }  # fmt: skip
        results = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                results[name].append(measure(command))
        seconds = {name: statistics.median(r[0] for r in runs) for name, runs in results.items()}
        memory = {name: max(r[1] for r in runs) for name, runs in results.items()}
        print(
            f"{lines:>10,} {source.stat().st_size / 1e6:>7,.0f} {cleaning:<8} {seconds['before']:>8.1f} s "
            f"{seconds['now']:>6.1f} s {seconds['before'] / seconds['now']:>6.1f} {memory['before']:>8,.0f} MB "
            f"{memory['now']:>5,.0f} MB   {equal_records(before, now)}",
            flush=True,
        )


def run(work: Benchmark) -> None:
    """Print the table."""
    print(f"{psutil.cpu_count()} cores; medians of {work.rounds} runs in turns; start of the program included")
    print("     lines      MB cleaning     before       now  ratio      before       now   result")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if work.dump is not None:
            with work.dump.open("rb") as file:
                lines = sum(1 for _ in file)
            compare(work.dump, folder, lines, work.rounds)
            return
        for lines in work.lines:
            source = folder / "trn.json"
            write_dump(source, lines)
            compare(source, folder, lines, work.rounds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["before"]:
        clean_as_before(tyro.cli(Before, args=sys.argv[2:]))
    else:
        run(tyro.cli(Benchmark, description=__doc__))
