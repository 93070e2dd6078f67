"""Put many hostile inputs to what reads, cleans and renders records: no crash, no hang, no memory without bound.

Coverage guides the inputs: atheris, which has wheels for Linux alone and is therefore in no requirements file.

    pip install atheris==3.0.0
    python tests/faults/fuzz.py --target readers --inputs 300000
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tyro

MOST_SECONDS = 10  # of one input
MOST_MIB = 4096


@dataclass(frozen=True)
class Run:
    """What is fuzzed."""

    target: Literal["readers", "cleaner", "prompts"] = "readers"
    """What the inputs are put to."""
    inputs: int = 1000
    """How many."""
    seed: int = 3407
    """Seed of the inputs."""


def check_of(target: str, folder: Path) -> Callable[[bytes], None]:
    """Return what the inputs are put to."""
    import hostile

    if target == "readers":
        return hostile.reads(folder)
    if target == "cleaner":
        return hostile.cleans
    from tiny_models import save_phi3_tokenizer
    from transformers import AutoTokenizer

    from pipeline.models import bundled, loading

    smollm2 = loading.load_tokenizer(bundled.resolve("bundled/SmolLM2-135M-Instruct"))
    save_phi3_tokenizer(folder)
    return hostile.renders(hostile.tokenizers(smollm2, AutoTokenizer.from_pretrained(folder)))


def main(settings: Run) -> None:
    """Fuzz, and print how many inputs took how many seconds; an input that fails is printed and kept, and ends it."""
    import atheris

    with atheris.instrument_imports(include=["pipeline", "hostile"]):
        import hostile

        folder = Path(tempfile.mkdtemp())
        check = check_of(settings.target, folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(hostile.SEEDS[settings.target]):
        (corpus / str(number)).write_bytes(seed)
    started, tried = time.monotonic(), 0

    def one_input(data: bytes) -> None:
        nonlocal tried
        check(data)
        tried += 1
        if tried == settings.inputs:
            seconds, mib = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            print(
                f"{settings.target}: {tried:,} inputs, {seconds:,.0f} s, {mib:,} MiB at most, nothing found", flush=True
            )
            shutil.rmtree(folder)
            os._exit(0)  # libFuzzer would go on

    limits = [f"-seed={settings.seed}", f"-timeout={MOST_SECONDS}", f"-rss_limit_mb={MOST_MIB}", "-max_len=4096"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={folder}/", str(corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(tyro.cli(Run, description=__doc__))
