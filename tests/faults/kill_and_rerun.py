"""Kill a stage at random moments, run it again, and compare the result with that of an undisturbed run.

python tests/faults/kill_and_rerun.py --stage rag_indexing --input my_products.jsonl --kills 20
"""

from __future__ import annotations

import hashlib
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tyro

from config import PROJECT_DIR, RagConfig
from pipeline import vector_store
from pipeline.lexical import FILE_NAME


@dataclass(frozen=True)
class Trial:
    """What is killed."""

    input: Path
    """The raw records."""
    stage: Literal["process_data", "rag_indexing"] = "process_data"
    """The stage."""
    kills: int = 20
    """How often it is killed."""
    from_second: float = 0.2
    """Kills come at random moments from here to the end of an undisturbed run."""
    seed: int = 3407
    """Seed of the moments."""


def run(stage: str, folder: Path, source: Path, kill_after: float | None = None) -> bool:
    """Run a stage, or kill it after some seconds; return whether it finished."""
    options = ["--output-dir", str(folder)]
    if stage == "process_data":
        command = [sys.executable, "process_data.py", "--data.input", str(source), "--data.processes", "2", *options]
    else:
        # Stores after each batch, so that there is something to interrupt.
        often = "import rag_indexing, pipeline.indexing as v; v.SECONDS_BETWEEN_ADDS = 0; rag_indexing.main()"
        command = [sys.executable, "-c", often, *options]
    process = subprocess.Popen(command, cwd=PROJECT_DIR, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    if process.returncode:
        raise SystemExit(f"{stage} failed by itself:\n{errors.decode()}")
    return True


def result(stage: str, folder: Path) -> str:
    """Return a hash of what a stage made."""
    if stage == "process_data":
        digest = hashlib.sha256()
        for name in ("trn_processed.json", "rejected.jsonl"):
            digest.update((folder / "demo" / name).read_bytes())
        return digest.hexdigest()
    collection = vector_store.open_store(folder / "demo" / "chroma", RagConfig()).collection
    found = collection.get(include=["documents", "metadatas"])
    rows = sorted(zip(found["ids"], found["documents"], map(str, found["metadatas"]), strict=True))
    words = sqlite3.connect(folder / "demo" / FILE_NAME).execute("SELECT id, title, text FROM pieces ORDER BY id")
    return f"{len(rows)} pieces, {hashlib.sha256(repr((rows, words.fetchall())).encode()).hexdigest()}"


def start_again(stage: str, folder: Path) -> None:
    """Remove what a stage made."""
    (folder / "demo" / "manifests" / f"{stage}.json").unlink()
    for name in ("chroma", FILE_NAME) if stage == "rag_indexing" else ("trn_processed.json", "rejected.jsonl"):
        path = folder / "demo" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_whole(stage: str, folder: Path) -> None:
    """A file that has its name is complete."""
    target = folder / "demo" / "trn_processed.json"
    if stage == "process_data" and target.exists():
        assert target.read_bytes().endswith(b"\n]\n"), "an incomplete file has its final name"


def main(trial: Trial) -> None:
    """Print each kill and whether the results agree."""
    rng = random.Random(trial.seed)
    with tempfile.TemporaryDirectory() as name:
        calm, disturbed = Path(name) / "calm", Path(name) / "disturbed"
        if trial.stage == "rag_indexing":
            for folder in (calm, disturbed):
                run("process_data", folder, trial.input)
        started = time.monotonic()
        run(trial.stage, calm, trial.input)
        seconds = time.monotonic() - started
        print(f"undisturbed: {seconds:.1f} s, {result(trial.stage, calm)}", flush=True)
        killed = 0
        while killed < trial.kills:
            moment = rng.uniform(trial.from_second, seconds)
            if run(trial.stage, disturbed, trial.input, moment):
                print("finished: " + result(trial.stage, disturbed), flush=True)
                assert result(trial.stage, disturbed) == result(trial.stage, calm)
                start_again(trial.stage, disturbed)
                continue
            killed += 1
            check_whole(trial.stage, disturbed)
            print(f"killed {killed} after {moment:.2f} s", flush=True)
        run(trial.stage, disturbed, trial.input)
        agree = result(trial.stage, disturbed) == result(trial.stage, calm)
        left = [path.name for path in (disturbed / "demo").iterdir() if path.name.endswith(".tmp")]
        print(f"rerun: {result(trial.stage, disturbed)}; temporary files left: {len(left)}")
        print("EQUAL" if agree else "DIFFERENT")
        raise SystemExit(not agree)


if __name__ == "__main__":
    main(tyro.cli(Trial, description=__doc__))
